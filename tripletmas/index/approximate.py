"""Nearest-neighbour search: the Index protocol, and faiss behind it. faiss is imported nowhere else.

Shapes: g gallery vectors, q queries, k ranks, dim.
"""

from __future__ import annotations

from typing import Any, Protocol

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_BLOCK_CELLS = 2**22  # (query, rank) cells in one call: faiss keeps a few copies of each, so about 100 MB
_BLOCK_QUERIES = (32, 4096)  # at least and at most; with fewer than 20 queries faiss leaves BLAS and gets slow


def queries_per_block(k: int) -> int:
    """How many queries to search at once, so that their ranked lists of k fit in about 100 MB."""
    smallest, largest = _BLOCK_QUERIES
    return min(max(_BLOCK_CELLS // k, smallest), largest)


class Index(Protocol):
    """A gallery of vectors that can be searched. A position counts the vectors in the order they were added."""

    def add(self, vectors: Tensor) -> None:
        """Append vectors (g, dim) to the gallery."""
        ...

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best of the gallery for each query: scores (q, k) and positions (q, k), best first."""
        ...


class FaissIndex:
    """An index of faiss on the CPU; scores are inner products, of normalised vectors unless asked otherwise.

    With `normalize` a score is the cosine of the angle, and ranking by it equals ranking by the Euclidean distance of
    the normalised vectors. A vector of zeros has no direction: its score with everything is 0. The order among equal
    scores is faiss's own. Vectors are converted to float32.

    Args:
        kind: "exact", or a factory string of faiss ("IVF64,Flat", "HNSW32", ...). An index that must be trained is
            trained on the vectors of the first `add`. An approximate index can miss items.
        normalize: whether vectors and queries are scaled to length 1; they are not changed in place.

    Raises:
        ValueError: if faiss does not know the factory string.

    >>> index = FaissIndex(2)
    >>> index.add(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> index.search(torch.tensor([[1.0, 0.0]]), 2)
    (tensor([[1., 0.]]), tensor([[1, 0]]))
    """

    def __init__(self, dim: int, *, kind: str = "exact", normalize: bool = True):
        if dim < 1:
            raise ValueError(f"dim must be >= 1, got {dim}")
        self.dim = dim
        self.kind = kind
        self.normalize = normalize
        try:
            self._index: Any = faiss.index_factory(dim, "Flat" if kind == "exact" else kind, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(
                f"kind must be 'exact' or a factory string of faiss for dim {dim}, got {kind!r} ({_reason(error)})"
            ) from error

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: Tensor) -> None:
        """Append vectors (g, dim) to the gallery; all of them, or none if one is refused.

        Raises:
            ValueError: naming the row of a value that is not finite; if the dimension or the type does not fit; if
                there are too few vectors to train the index on.
        """
        rows = self._prepare(vectors, "vectors")
        if not len(rows):
            return
        if not self._index.is_trained:
            try:
                self._index.train(rows)
            except RuntimeError as error:
                raise ValueError(
                    f"{len(rows)} vectors cannot train the index {self.kind!r}; "
                    f"the first add must bring more ({_reason(error)})"
                ) from error
        self._index.add(rows)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k vectors of largest score for each query, best first, found in blocks of queries.

        Where the gallery ends before rank k (or an approximate index finds fewer), positions are -1 and scores -inf.

        Returns: scores (q, k) float32 and positions (q, k) int64.
        Raises:
            ValueError: naming the row of a value that is not finite; if the dimension or the type does not fit.
        """
        if k < 1:
            raise ValueError(f"k must be >= 1, got {k}")
        self._check(queries, "queries")
        scores = torch.full((len(queries), k), -torch.inf)
        positions = torch.full((len(queries), k), -1)
        found = min(k, len(self))
        if not found:
            return scores, positions
        step = queries_per_block(found)
        for start in range(0, len(queries), step):
            block = self._prepare(queries[start : start + step], "queries", first_row=start)
            block_scores, block_positions = self._index.search(block, found)
            scores[start : start + step, :found] = torch.from_numpy(block_scores)
            positions[start : start + step, :found] = torch.from_numpy(block_positions)
        return scores.masked_fill_(positions < 0, -torch.inf), positions

    def _check(self, vectors: Tensor, what: str) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"{what} must have shape (n, {self.dim}), got {tuple(vectors.shape)}")
        if not vectors.is_floating_point():
            raise ValueError(f"{what} must be floating point, got {vectors.dtype}")

    def _prepare(self, vectors: Tensor, what: str, *, first_row: int = 0) -> np.ndarray:
        self._check(vectors, what)
        rows = vectors.detach().to("cpu", torch.float32)
        bad = (~rows.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise ValueError(f"{what} must be finite in float32; row {first_row + int(bad[0])} holds NaN or infinity")
        return (unit(rows) if self.normalize else rows).contiguous().numpy()


def unit(rows: Tensor) -> Tensor:
    """The rows divided by their lengths; a row of zeros stays."""
    # Divided by the largest entry first: the square of a huge entry would overflow, that of a tiny one vanish.
    largest = rows.abs().amax(dim=1, keepdim=True)
    return functional.normalize(rows / largest.masked_fill(largest == 0, 1.0), dim=1)


def _reason(error: RuntimeError) -> str:
    """What faiss says went wrong, without the C++ function and file before it."""
    return str(error).strip().splitlines()[-1].rsplit(": ", 1)[-1]
