"""A linear map inside a model: its weight and bias as matrices that are applied to the inputs it sees.

A convolution is a linear map of the patches of its input, a normalisation's scale and shift are one of each normalised
channel, a table of embeddings is one of the words' one-hot vectors. Groups are maps side by side.

Shapes: matrices (groups, rows, columns), a row for each output; where there is a bias, the last column is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

Kind = Literal["linear", "transposed", "convolution", "transposed convolution", "scale", "table", "whole"]


class LinearMap(NamedTuple):
    """Which parameters it is made of, and how they lie in its matrices.

    Attributes:
        weight, bias: canonical names; None where it has none.
        kind: linear (out, in); transposed (in, out); convolution (out, in / groups, *kernel); transposed convolution
            (in, out / groups, *kernel); scale, a number for each channel; table (words, dim). whole: a parameter that
            no layer explains is a response of its own, a column of all its numbers.
        groups: maps side by side: of a convolution, channels of a scale, words of a table.
        start, stop: the rows of weight and bias that belong to it; stop None for all. Attention packs three maps.
    """

    weight: str | None
    bias: str | None
    kind: Kind
    groups: int = 1
    start: int = 0
    stop: int | None = None

    @property
    def name(self) -> str:
        """Of the layer, if weight and bias are its own, else of the weight; with its rows where it has not all."""
        layers = {name.rpartition(".")[0] for name in self.parameters}
        one = layers.pop() if len(self.parameters) == 2 and len(layers) == 1 else ""
        rows = "" if self.stop is None else f"[{self.start}:{self.stop}]"
        return f"{one or self.parameters[0]}{rows}"

    @property
    def key(self) -> str:
        """All of it as text, for files: no parameter's name has two dots in a row."""
        stop = "" if self.stop is None else self.stop
        return "..".join(map(str, (self.kind, self.weight or "", self.bias or "", self.groups, self.start, stop)))

    @staticmethod
    def from_key(key: str) -> LinearMap:
        """The map with this key."""
        kind, weight, bias, groups, start, stop = key.split("..")
        assert kind in get_args(Kind), kind
        return LinearMap(
            weight or None, bias or None, cast(Kind, kind), int(groups), int(start), int(stop) if stop else None
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its weight and bias, as far as it has them."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def matrices(self, values: Mapping[str, Tensor]) -> Tensor:
        """The matrices (groups, rows, columns) of these values of its parameters."""
        return self.joined({name: self.rows(values[name]) for name in self.parameters})

    def joined(self, rows: Mapping[str, Tensor]) -> Tensor:
        """The same of what is its own of its parameters."""
        parts = []
        if self.weight is not None:
            parts.append(self._weight_matrices(rows[self.weight]))
        if self.bias is not None:
            parts.append(rows[self.bias].reshape(self.groups, -1, 1))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]

    def shape(self, like: Mapping[str, Tensor]) -> tuple[int, int, int]:
        """(groups, rows, columns) of its matrices, for parameters like these."""
        groups, rows, columns = self.matrices(
            {name: torch.empty(like[name].shape, device="meta") for name in self.parameters}
        ).shape
        return groups, rows, columns

    def spread(self, matrices: Tensor, like: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The matrices as parts of its parameters: names, and what `rows` of tensors like them are."""
        for name, part in self.columns(matrices):
            shape = self._shape_of_rows(like[name])
            yield name, self._weight_like(part, shape) if name == self.weight else part.reshape(shape)

    def columns(self, matrices: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The columns (..., rows, n) that are its weight's, and the one that is its bias's, by name."""
        if self.weight is not None:
            yield self.weight, matrices[..., :-1] if self.bias else matrices
        if self.bias is not None:
            yield self.bias, matrices[..., -1:]

    def rows(self, parameter: Tensor) -> Tensor:
        """What belongs to it of a parameter: a view."""
        return parameter if self.stop is None else parameter[self.start : self.stop]

    def _shape_of_rows(self, parameter: Tensor) -> torch.Size:
        return parameter.shape if self.stop is None else torch.Size((self.stop - self.start, *parameter.shape[1:]))

    def _weight_matrices(self, weight: Tensor) -> Tensor:
        if self.kind == "linear":
            return weight.unsqueeze(0)
        if self.kind == "transposed":
            return weight.t().unsqueeze(0)
        if self.kind == "convolution":
            return weight.reshape(self.groups, len(weight) // self.groups, -1)
        if self.kind == "transposed convolution":
            return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(2)
        if self.kind == "table":
            return weight.unsqueeze(2)
        return weight.reshape(self.groups, -1, 1)  # scale, whole

    def _weight_like(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        if self.kind == "transposed":
            return matrices[0].t()
        if self.kind == "transposed convolution":
            return matrices.unflatten(2, (-1, *shape[2:])).transpose(1, 2).reshape(shape)
        return matrices.reshape(shape)
