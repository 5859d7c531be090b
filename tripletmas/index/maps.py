"""A map that was fitted: it moves stored vectors of one model to where another has them, and can be kept in a file.

It is a sum of parts, each of which a kind of map has or has not: the vector itself or a matrix times it, a change that
is linear, one by a small network, a constant. `drift` fits the parts, on pairs of embeddings of the same samples.

Shapes: g stored vectors; dim of the old model, new_dim of the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tripletmas.basics.files import damaged, read_tensors, save_tensors
from tripletmas.basics.weights import Params, weight_hash
from tripletmas.index.base import check_rows, unit

_ROWS = 4096  # moved at once, by one call of the same shape
_KEY = "map"
_REMEDY = "fit the map anew, by tripletmas upgrade"


@dataclass(frozen=True, eq=False)
class FittedMap:
    """v -> v M + v C + scale (relu(v W1 + b1) W2 + b2) + s, of those parts that it has; without M the first is v.

    Called, it does just that, in the type of what it is given. `apply` is for vectors of a store.

    Args:
        kind: the name of how it was fitted, "none" for the map that leaves vectors where they are.
        dim, new_dim: of the vectors that it takes and gives.
        tensors: matrix (dim, new_dim), change (dim, new_dim), start (new_dim,); of a network first (dim, hidden),
            first_bias, second (hidden, new_dim), second_bias, scale ().
        normalize: whether vectors are of unit length, and stay so. See `apply`.
    """

    kind: str
    dim: int
    new_dim: int
    tensors: Mapping[str, Tensor]
    normalize: bool = True

    def __call__(self, vectors: Tensor) -> Tensor:
        """(g, dim) -> (g, new_dim), as they come out, of any length."""
        parts = self.tensors
        moved = vectors @ parts["matrix"] if "matrix" in parts else vectors
        if "change" in parts:
            moved = moved + vectors @ parts["change"]
        if "first" in parts:
            hidden = functional.relu(vectors.to(parts["first"].dtype) @ parts["first"] + parts["first_bias"])
            moved = moved + (parts["scale"] * (hidden @ parts["second"] + parts["second_bias"])).to(vectors.dtype)
        return moved + parts["start"] if "start" in parts else moved

    def apply(self, vectors: Tensor) -> Tensor:
        """Stored vectors (g, dim), moved: (g, new_dim) float32, of unit length where the map is of unit vectors.

        A row that holds nan, as that of a point without a vector, comes out as nan; of a map of unit vectors a row of
        zeros, which has no direction, stays zeros, and others are scaled to unit length first. Equal blocks come out
        equal bit for bit, in every process on a machine and with any number of threads: rows are copied to where
        memory is aligned, and moved by calls of one shape, filled up with zeros.

        Raises:
            ValueError: if the vectors have another dim, or are no floating-point numbers.
        """
        check_rows(vectors, self.dim, "vectors")
        # copies, aligned and row by row: of a matrix that lies otherwise BLAS adds up in another order
        parts = {
            name: value.float().clone(memory_format=torch.contiguous_format) for name, value in self.tensors.items()
        }
        move = FittedMap(self.kind, self.dim, self.new_dim, parts)
        moved = torch.empty(len(vectors), self.new_dim)
        block = torch.zeros(_ROWS, self.dim)
        for start in range(0, len(vectors), _ROWS):
            rows = vectors[start : start + _ROWS].detach().to("cpu", torch.float32)
            count = len(rows)
            block[:count] = unit(rows) if self.normalize else rows
            block[count:] = 0
            found = move(block)
            if self.normalize:
                found = unit(found) * block.ne(0).any(dim=1, keepdim=True)
            moved[start : start + count] = found[:count]
        return moved

    @property
    def identity(self) -> str:
        """A hash of what it does: two maps of equal identity move every vector alike."""
        return weight_hash({**self.tensors, "normalize": torch.tensor([self.dim, self.new_dim, int(self.normalize)])})

    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file, whole or not at all.

        Raises:
            OSError: if it cannot be written, as when the disk is full.
        """
        about = {"kind": self.kind, "dim": self.dim, "new_dim": self.new_dim, "normalize": self.normalize}
        tensors = {name: value.float() for name, value in self.tensors.items()}
        # safetensors files hold one tensor at least
        save_tensors(path, tensors or {"nothing": torch.zeros(1)}, {_KEY: about})

    @classmethod
    def open(cls, path: str | Path) -> FittedMap:
        """The map in a file.

        Raises:
            ValueError: if there is no such file, or it is damaged or another kind of file.
        """
        tensors, about = read_tensors(path, _REMEDY, header=_KEY)
        tensors.pop("nothing", None)
        try:
            found = cls(str(about["kind"]), int(about["dim"]), int(about["new_dim"]), tensors, bool(about["normalize"]))
            _check_shapes(found)
        except (LookupError, TypeError, ValueError) as error:
            raise damaged(path, f"it holds no map: {error}", _REMEDY) from None
        return found


def affine(
    kind: str, *, matrix: Tensor | None = None, change: Tensor | None = None, start: Tensor | None = None
) -> FittedMap:
    """v -> v M + v C + s, of those that are given."""
    given = {"matrix": matrix, "change": change, "start": start}
    tensors: Params = {name: value for name, value in given.items() if value is not None}
    dim, new_dim = next(value.shape for value in tensors.values() if value.ndim == 2)
    return FittedMap(kind, dim, new_dim, tensors)


def _check_shapes(found: FittedMap) -> None:
    """Raises ValueError where the tensors do not fit each other."""
    old, new, parts = found.dim, found.new_dim, found.tensors
    hidden = len(parts["first_bias"]) if "first" in parts else 0
    shapes: dict[str, Any] = {"matrix": (old, new), "change": (old, new), "start": (new,)}
    shapes |= {"first": (old, hidden), "first_bias": (hidden,), "second": (hidden, new), "second_bias": (new,)}
    shapes |= {"scale": ()}
    for name, value in parts.items():
        if tuple(value.shape) != shapes[name]:
            raise ValueError(f"{name} of shape {tuple(value.shape)}, not {shapes[name]}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity")
    if old != new and "matrix" not in parts:
        raise ValueError(f"no matrix from {old} to {new}")
