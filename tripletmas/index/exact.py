"""Exact search: every vector is compared, and the order among equal scores is defined, whatever computes it.

Shapes: g gallery vectors, q queries, r queries of one block, k ranks, dim.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from tripletmas.index import base
from tripletmas.index.ordering import Gallery, nearest_by_faiss, nearest_by_torch

BACKENDS = ("auto", "faiss", "torch")


class ExactIndex:
    """All vectors of the gallery, compared with every query.

    Scores are float32: inner products, or negative squared distances for the metric "l2"; see `Index`. With both
    backends the ids are the same in the same order: by score, where float32 does not tell neighbours apart by the exact
    score of their float32 vectors, and where these are equal too by position in the gallery (the order of `add`),
    smallest first. The scores of both agree to the rounding of float32.

    Args:
        normalize: whether vectors and queries are scaled to length 1; they are not changed in place. A vector of zeros
            has no direction and stays.
        backend: "faiss" searches with its kernels, on the CPU; "torch" with products of matrices on the device of the
            first vectors; "auto" is faiss where it is installed, except on macOS, where torch and faiss each bring
            their libomp and may crash.

    >>> index = ExactIndex(2)
    >>> index.add(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> index.search(torch.tensor([[1.0, 0.0]]), 2)
    (tensor([[1., 0.]]), tensor([[1, 0]]))
    """

    kind = "exact"

    def __init__(self, dim: int, *, metric: str = "inner_product", normalize: bool = True, backend: str = "auto"):
        base.check_settings(dim, metric)
        self.dim, self.metric, self.normalize = dim, metric, normalize
        self.backend = _backend(backend)
        self._room = torch.empty(0, dim)  # the vectors, and after them room for more
        self._size = 0
        self._ids: Tensor | None = None  # None: the positions
        self._gallery: Gallery | None = None

    @classmethod
    def over(
        cls,
        vectors: Tensor,
        *,
        ids: Tensor | None = None,
        metric: str = "inner_product",
        normalize: bool = True,
        backend: str = "auto",
    ) -> ExactIndex:
        """An index over vectors (g, dim) that are used where they are, not copied; they may be memory-mapped.

        They must not change while the index is in use. What is added later goes to a copy.

        Args:
            vectors: contiguous float32, already scaled to length 1 if `normalize` (see `unit`): this is not checked.
        """
        if vectors.ndim != 2 or vectors.dtype != torch.float32 or not vectors.is_contiguous():
            raise ValueError(
                f"vectors must be contiguous float32 of shape (g, dim), got {vectors.dtype} of {tuple(vectors.shape)}"
            )
        if backend == "auto" and vectors.device.type != "cpu":
            backend = "torch"
        index = cls(vectors.shape[1], metric=metric, normalize=normalize, backend=backend)
        if index.backend == "faiss" and vectors.device.type != "cpu":
            raise ValueError(f"the backend 'faiss' searches on the CPU, got vectors on {vectors.device}; use 'torch'")
        if ids is not None:
            index._ids = base.new_ids(ids, len(vectors), torch.empty(0, dtype=torch.int64))
        index._room, index._size = vectors.detach(), len(vectors)
        return index

    def __len__(self) -> int:
        return self._size

    @property
    def vectors(self) -> Tensor:
        """(g, dim) float32 as they are compared: of length 1 if normalised."""
        return self._room[: self._size]

    @property
    def ids(self) -> Tensor:
        """(g,) int64 of the vectors, in the same order."""
        return torch.arange(self._size) if self._ids is None else self._ids

    def add(self, vectors: Tensor, ids: Tensor | None = None) -> None:
        """See `Index.add`."""
        device = vectors.device if self.backend == "torch" and not self._size else self._room.device
        rows = base.prepare(vectors, self.dim, "vectors", normalize=self.normalize, device=device)
        if ids is not None or self._ids is not None:
            self._ids = torch.cat([self.ids, base.new_ids(ids, len(rows), self.ids)])
        needed = self._size + len(rows)
        if needed > len(self._room):
            room = torch.empty(max(needed, 2 * self._size), self.dim, device=device)
            room[: self._size] = self.vectors
            self._room = room
        self._room[self._size : needed] = rows
        self._size, self._gallery = needed, None

    def remove(self, ids: Tensor) -> int:
        """See `Index.remove`. Vectors added later without ids still count on from the largest id that is left."""
        keep = ~torch.isin(self.ids, base.check_removed(ids))
        removed = int((~keep).sum())
        if removed:
            self._ids = self.ids[keep]
            self._room, self._gallery = self.vectors[keep.to(self._room.device)], None
            self._size = len(self._room)
        return removed

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Index.search`."""

        def best(block: Tensor, found: int) -> tuple[Tensor, Tensor]:
            scores, positions = self._ordering().best(block, found)
            return scores, positions if self._ids is None else self._ids[positions]

        return base.search_in_blocks(self, queries, k, best)

    def rank(self, queries: Tensor, positions: Tensor) -> Tensor:
        """The rank, from 1, that each query's vector at a position (q,) of the gallery has in `search`, (q,) int64.

        Vectors are counted, not sorted: a deep rank costs no more than a shallow one.
        """
        base.check_rows(queries, self.dim, "queries")
        ranks = torch.empty(len(queries), dtype=torch.int64)
        step = base.queries_per_block(max(self._size, 1))
        for start in range(0, len(queries), step):
            block = self._prepared(queries[start : start + step], start)
            ranks[start : start + step] = self._ordering().rank(block, positions[start : start + step])
        return ranks

    def pair_scores(self, queries: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Exact scores (n,) float64 of queries[rows[i]] and the vector at positions[i] of the gallery."""
        return self._ordering().exact(self._prepared(queries, 0), rows, positions)

    def _prepared(self, queries: Tensor, first_row: int) -> Tensor:
        return base.prepare(queries, self.dim, "queries", normalize=self.normalize, first_row=first_row)

    def _ordering(self) -> Gallery:
        if self._gallery is None:
            nearest = nearest_by_faiss if self.backend == "faiss" else nearest_by_torch
            self._gallery = Gallery(self.vectors, self.metric, nearest)
        return self._gallery


def _backend(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto" and sys.platform == "darwin":
        return "torch"
    if backend == "torch":
        return backend
    try:
        base.import_faiss("the backend 'faiss'")
    except ValueError:
        if backend == "faiss":
            raise
        return "torch"
    return "faiss"
