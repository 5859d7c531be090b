"""Ranked lists in their exact order: a quick search first, and more work only where it cannot tell.

A float32 search a little deeper than asked brings candidates. Those that lie closer together than its rounding are
recomputed (see `ties`). Where the candidates' last score is so close to that of rank k that an unseen vector might
belong before it, the query is searched deeper, then by products in float64 with the whole gallery, and at last (exactly
equal scores across rank k) by whatever of the gallery is level with rank k.

Shapes: g gallery vectors, r queries of one block, k ranks, m candidates, dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from tripletmas.basics import mapped
from tripletmas.index import ties
from tripletmas.index.base import import_faiss

# queries (r, dim), vectors, m, metric -> scores (r, m) float32, best first, and positions (r, m) int64, on the CPU,
# for m <= g. The order among scores that float32 cannot tell apart is its own.
Nearest = Callable[[Tensor, Tensor, int, str], tuple[Tensor, Tensor]]

_DEEPER = 8  # how many times as deep the second search is
_DENSE = 4  # from a quarter of the gallery on, all of it is compared in float64
_CELLS = 2**22  # (query, vector) cells of one product of matrices: 16 MB in float32, 32 MB in float64
_MOST_CELLS = 2**25  # in float64 at any time: 256 MB
_FEWEST = 32  # queries at once: the gallery is converted to float64 for each block
_MANY = 512  # vectors level with one, on average a query, from which on float64 sorts out first


def nearest_by_faiss(queries: Tensor, vectors: Tensor, m: int, metric: str) -> tuple[Tensor, Tensor]:
    """By faiss.knn, which reads the vectors where they are: nothing is copied."""
    if not mapped.is_large(vectors):
        return _by_knn(queries, vectors, m, metric)
    best, start = _none(queries), 0
    for block in mapped.blocks(vectors):
        found, where = _by_knn(queries, block, min(m, len(block)), metric)
        best = _merged(best, (found, where + start), m)
        start += len(block)
    return best


def _by_knn(queries: Tensor, vectors: Tensor, m: int, metric: str) -> tuple[Tensor, Tensor]:
    faiss = import_faiss("the backend 'faiss'")
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    scores, positions = faiss.knn(queries.numpy(), vectors.numpy(), m, kind)
    scores = torch.from_numpy(scores)
    return scores.neg_() if metric == "l2" else scores, torch.from_numpy(positions)


def nearest_by_torch(queries: Tensor, vectors: Tensor, m: int, metric: str) -> tuple[Tensor, Tensor]:
    """By products of blocks of the gallery, of which only the m best are kept."""
    queries = queries.to(vectors.device)
    nearest, large = _none(queries), mapped.is_large(vectors)
    step = max(_CELLS // max(len(queries), 1), m, 1024)
    for start in range(0, len(vectors), step):
        block = block_scores(queries, vectors[start : start + step], metric)
        if large:
            mapped.release(vectors[start : start + step])
        best = block.topk(min(m, block.shape[1]), dim=1)
        nearest = _merged(nearest, (best.values, best.indices + start), m)
    return nearest[0].cpu(), nearest[1].cpu()


def _none(queries: Tensor) -> tuple[Tensor, Tensor]:
    """Of a search that has not begun: scores and positions (r, 0)."""
    scores = torch.empty(len(queries), 0, device=queries.device)
    return scores, torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], m: int) -> tuple[Tensor, Tensor]:
    """The m best of two ranked lists for each query."""
    scores, positions = (torch.cat(each, dim=1) for each in zip(one, other, strict=True))
    best = scores.topk(min(m, scores.shape[1]), dim=1)
    return best.values, positions.gather(1, best.indices)


def block_scores(queries: Tensor, vectors: Tensor, metric: str) -> Tensor:
    """All scores (r, g) of queries (r, dim) and vectors (g, dim), in their own type."""
    with torch.autocast(queries.device.type, enabled=False):  # half precision would break the bound of rounding
        products = queries @ vectors.T
    if metric == "inner_product":
        return products
    products.mul_(2).sub_(vectors.square().sum(dim=1)).sub_(queries.square().sum(dim=1)[:, None])
    return products.clamp_max_(0)


class Gallery:
    """Prepared vectors (g, dim) float32 that do not change, and a quick search over them."""

    def __init__(self, vectors: Tensor, metric: str, nearest: Nearest):
        self._vectors, self._metric, self._nearest = vectors, metric, nearest
        self._is_large = mapped.is_large(vectors)

    def best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k <= g best: scores (r, k) float32 and positions (r, k)."""
        lengths = _lengths(queries)
        scores, positions, rows = self._by_float32s(queries, k, lengths)
        if len(rows):
            scores[rows], positions[rows] = self._by_float64(queries[rows], k)
        if self._metric == "l2":  # near vectors cancel: what is small against the rounding is computed again
            small = scores > -128 * self._bound(lengths, _unit_of_rounding())[:, None]
            scores[small] = self.exact(queries, small.nonzero()[:, 0], positions[small]).float()
        if self._is_large:
            mapped.release(self._vectors)
        return scores, positions

    def rank(self, queries: Tensor, positions: Tensor) -> Tensor:
        """The rank, from 1, of the vector at each position (r,): one more than the vectors that come before it."""
        target, lengths = self.exact(queries, torch.arange(len(queries)), positions), _lengths(queries)
        for dtype, rounding in ((torch.float32, _unit_of_rounding()), (torch.float64, ties.FLOAT64)):
            if dtype == torch.float32 and not self._fits_float32(lengths):
                continue
            before, level = self._counted(queries, target, self._bound(lengths, rounding), dtype)
            if len(level) <= _MANY * len(queries):
                break
        rows, others = level.unbind(dim=1)
        scores = self._exact_with_duplicates(queries, rows, others)
        first = (scores > target[rows]) | ((scores == target[rows]) & (others < positions[rows]))
        return before.index_add(0, rows, first.long()) + 1

    def exact(self, queries: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Exact scores (n,) float64 of the pairs (queries[rows[i]], vectors[positions[i]])."""
        return ties.pair_scores(queries, self._vectors, rows, positions, self._metric, exact=True)

    def _by_float32s(self, queries: Tensor, k: int, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scores (r, k), positions (r, k), which rows a search and a deeper one do not settle)."""
        scores, positions = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
        rows, depth = torch.arange(len(queries)), k + max(4, k // 8)
        for m in (depth, _DEEPER * depth):
            if m * _DENSE < len(self._vectors) and len(rows) and self._fits_float32(lengths[rows]):
                asked = queries if len(rows) == len(queries) else queries[rows]
                found, where, settled = self._by_float32(asked, k, m, lengths[rows])
                if len(rows) == len(queries):  # most are settled by the first search, and nothing is copied
                    scores, positions = found, where
                else:
                    scores[rows[settled]], positions[rows[settled]] = found[settled], where[settled]
                rows = rows[~settled]
        return scores, positions, rows

    def _by_float32(self, queries: Tensor, k: int, m: int, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scores (r, k), positions (r, k), whether no vector that was not seen can belong there (r,))."""
        scores, positions = self._nearest(queries, self._vectors, m, self._metric)
        scores = scores.double()
        bound = self._bound(lengths, _unit_of_rounding())
        unseen = scores[:, -1] + bound
        bounds = (bound, self._bound(lengths, ties.FLOAT64))
        scores, positions = ties.refined(queries, self._vectors, scores, positions, bounds, self._metric)
        return scores[:, :k].float(), positions[:, :k], scores[:, k - 1] - bound > unseen

    def _by_float64(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(scores (r, k), positions (r, k)) by the scores with the whole gallery; equal queries are searched once."""
        first, which = ties.first_equal(queries).unique(return_inverse=True)
        queries = queries[first]
        size, m = len(self._vectors), min(len(self._vectors), k + max(4, k // 8))
        found, where = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
        at_once = max(_CELLS // size, min(_FEWEST, _MOST_CELLS // size), 1)
        for rows in torch.arange(len(queries)).split(at_once):
            block = queries[rows]
            bound = self._bound(_lengths(block), ties.FLOAT64)
            everything = torch.cat([part for _, part in self._blocks(block, torch.float64)], dim=1)
            best = everything.topk(m, dim=1)
            kth = best.values[:, k - 1]
            scores, positions = ties.refined(block, self._vectors, best.values, best.indices, (bound,), self._metric)
            found[rows], where[rows] = scores[:, :k].float(), positions[:, :k]
            if m == size:
                continue
            for row in (kth - best.values[:, -1] <= 2 * bound).nonzero().flatten().tolist():
                level = (everything[row] >= kth[row] - 2 * bound[row]).nonzero().flatten()
                scores = self._exact_with_duplicates(block, torch.full_like(level, row), level)
                scores, level = ties.ordered(scores[None], level[None])
                found[rows[row]], where[rows[row]] = scores[0, :k].float(), level[0, :k]
        return found[which], where[which]

    def _counted(self, queries: Tensor, target: Tensor, bound: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """How many vectors certainly score more than the target (r,), and the pairs (row, position) that may not."""
        above, below = (target + bound).to(dtype)[:, None], (target - bound).to(dtype)[:, None]
        count, level = torch.zeros(len(queries), dtype=torch.int64), []
        for start, scores in self._blocks(queries, dtype):
            more = scores > above
            count += more.sum(dim=1)
            level.append(((scores >= below) & ~more).nonzero() + torch.tensor([0, start]))
        return count, torch.cat(level)

    def _blocks(self, queries: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """(first position, scores (r, block) on the CPU) for the gallery block after block."""
        step = max(_CELLS // max(len(queries), 1), 1024)
        for start in range(0, len(self._vectors), step):
            vectors = self._vectors[start : start + step]
            vectors = vectors if dtype == torch.float32 else vectors.cpu().to(dtype)
            yield start, block_scores(queries.to(vectors.device, dtype), vectors, self._metric).cpu()
            if self._is_large:
                mapped.release(self._vectors[start : start + step])

    def _exact_with_duplicates(self, queries: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """As `exact`; vectors that equal each other are computed once."""
        if len(rows) < _MANY:
            return self.exact(queries, rows, positions)
        pairs = rows * len(self._vectors) + self._first_equal[positions]
        pairs, which = pairs.unique(return_inverse=True)
        rows, positions = pairs // len(self._vectors), pairs % len(self._vectors)
        return self.exact(queries, rows, positions)[which]

    @cached_property
    def _first_equal(self) -> Tensor:
        return ties.first_equal(self._vectors)

    @cached_property
    def _longest(self) -> float:
        """Length of the longest vector."""
        step = max(_CELLS // self._vectors.shape[1], 1)
        return max(float(_lengths(block.cpu()).max()) for block in mapped.blocks(self._vectors, step))

    def _bound(self, lengths: Tensor, unit_of_rounding: float) -> Tensor:
        """How far the score of a query of each of these lengths (r,) may be off."""
        dim = self._vectors.shape[1]
        return ties.rounding_bound(lengths, self._longest, dim, self._metric, unit_of_rounding)

    def _fits_float32(self, lengths: Tensor) -> bool:
        """Whether no square overflows."""
        return (float(lengths.max()) + self._longest) ** 2 < 1e37


def _lengths(rows: Tensor) -> Tensor:
    """(r,) float64, at least as long as the rows are, and no more than a trifle longer."""
    lengths = torch.linalg.vector_norm(rows, dim=1).double() * (1 + (rows.shape[1] + 8) * ties.FLOAT32)
    if bool(((lengths > 1e-10) & (lengths < 1e15)).all()):
        return lengths
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)  # of which the squares leave float32


def _unit_of_rounding() -> float:
    """Of the quick search: larger where torch may multiply in a shorter type than float32."""
    return ties.FLOAT32 if torch.get_float32_matmul_precision() == "highest" else 2.0**-8
