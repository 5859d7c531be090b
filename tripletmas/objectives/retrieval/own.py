"""Queries of several tasks, each searched in its task's gallery: what `evaluate` finds, task by task, in a few calls.

A search of few vectors takes longer to call than to compute. Here all pairs of a query and a vector of its gallery, if
that is small, are compared in float64, sorted, and refined, for all tasks at once. So the order is the exact one of
`ExactIndex`, and all values are those of `evaluate` to the bit.

Shapes: q queries and g vectors of all small galleries, r queries of a block, k ranks: as deep as any task needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tripletmas.index import ties
from tripletmas.index.base import unit
from tripletmas.index.ordering import block_scores
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives import metrics
from tripletmas.objectives.embedded import joined
from tripletmas.objectives.retrieval.evaluate import (
    RetrievalScores,
    count_relevant,
    evaluate,
    least_depth,
    scores_by_part,
    unanswered,
    values_of,
)

_KS = (1, 2, 4, 8)
# Up to so many pairs of a query and a vector of a task, and numbers in these pairs, comparing them all is faster than a
# search; the second for collapsed embeddings, of which each pair is computed exactly.
_MOST_PAIRS, _MOST_NUMBERS = 2**12, 2**18
_CELLS = 2**18  # (query, rank) cells at once: 2 MB of scores


def evaluate_each(
    queries: Sequence[Embeddings], galleries: Sequence[Embeddings], own: Sequence[Tensor]
) -> list[RetrievalScores]:
    """What `evaluate(query, gallery, self_positions=own)` finds for each task.

    Args:
        own: where in its task's gallery each query is, -1 where it is not.
    """
    tasks = list(zip(queries, galleries, own, strict=True))
    few = [_are_few(query, gallery) for query, gallery, _ in tasks]
    together = iter(_scores_of_small([task for task, is_small in zip(tasks, few, strict=True) if is_small]))
    return [
        next(together) if is_small else evaluate(query, gallery, self_positions=position)
        for (query, gallery, position), is_small in zip(tasks, few, strict=True)
    ]


def _are_few(query: Embeddings, gallery: Embeddings) -> bool:
    pairs = len(query) * len(gallery)
    return 0 < pairs <= min(_MOST_PAIRS, _MOST_NUMBERS // query.vectors.shape[1])


def _scores_of_small(tasks: Sequence[tuple[Embeddings, Embeddings, Tensor]]) -> list[RetrievalScores]:
    if not tasks:
        return []
    search = _Search(tasks)
    per_query, nearest = unanswered(_KS, len(search.of)), torch.full_like(search.of, -1)
    rows = (search.num_relevant > 0).nonzero().flatten()
    for block in rows.split(max(1, _CELLS // search.longest)):
        relevant, nearest[block] = search.ranked(block)
        count, depths = search.num_relevant[block], search.depths[search.of[block]]
        per_query["mrr"][block] = metrics.reciprocal_rank(relevant, count)
        for depth in depths.unique().tolist():  # as deep as `evaluate` ranks: a sum over more ranks may round otherwise
            same = (depths == depth).nonzero().flatten()
            for name, values in values_of(relevant[same, :depth], count[same], _KS).items():
                per_query[name][block[same]] = values
    return scores_by_part(per_query, nearest, [len(query) for query, _, _ in tasks])


class _Search:
    """Ranked lists of the whole gallery of each query's task, without the query itself.

    Attributes:
        of: (q,) the task of each query.
        num_relevant: (q,) the items of its class in the gallery of its task, without itself.
        depths: (tasks,) ranks that the metrics of each task look at.
        longest: ranks of a list.
    """

    def __init__(self, tasks: Sequence[tuple[Embeddings, Embeddings, Tensor]]):
        queries, galleries = joined([each for each, _, _ in tasks]), joined([each for _, each, _ in tasks])
        self._sizes = torch.tensor([len(each) for _, each, _ in tasks])
        self._starts = self._sizes.cumsum(0) - self._sizes
        numbers = torch.arange(len(tasks))
        self.of = numbers.repeat_interleave(torch.tensor([len(each) for each, _, _ in tasks]))
        self._own = torch.cat([own for _, _, own in tasks])
        self._own = torch.where(self._own >= 0, self._own + self._starts[self.of], -1)
        self._queries, self._vectors = unit(queries.vectors), unit(galleries.vectors)
        self._query_labels, self._labels = queries.labels, galleries.labels
        # a class counts in its task alone: classes by number, and those of each task after those of the one before
        classes, number = torch.cat([queries.labels, galleries.labels]).unique(return_inverse=True)
        keys = number + len(classes) * torch.cat([self.of, numbers.repeat_interleave(self._sizes)])
        count = count_relevant(*keys.split([len(queries), len(galleries)]))
        self.num_relevant = count - (self._own >= 0).long()
        least = torch.full_like(numbers, least_depth(_KS))
        self.depths = least.scatter_reduce(0, self.of, self.num_relevant, "amax")
        self.longest = int(torch.cat([self._sizes, self.depths]).max())

    def ranked(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(whether the item at each rank is of the query's class (r, k), position of the first in its gallery (r,))."""
        scores, positions = self._compared(rows)
        scores, order = scores.sort(dim=1, descending=True)
        positions = positions.gather(1, order)
        lengths = torch.linalg.vector_norm(self._queries[rows], dim=1, dtype=torch.float64)
        longest = float(torch.linalg.vector_norm(self._vectors, dim=1, dtype=torch.float64).max())
        bound = ties.rounding_bound(lengths, longest, self._vectors.shape[1], "inner_product", ties.FLOAT64)
        pairs = self._queries[rows], self._vectors, scores, positions
        _, positions = ties.refined(*pairs, (bound,), "inner_product")
        itself = (positions == self._own[rows, None]) & (positions >= 0)
        positions = metrics.without(positions, itself, self.longest)
        relevant = self._labels[positions.clamp_min(0)] == self._query_labels[rows, None]
        first = positions[:, 0] - self._starts[self.of[rows]]
        return relevant.logical_and_(positions >= 0), first

    def _compared(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores in float64 with all vectors of each query's gallery, and their positions, (r, k + 1) each.

        Where a gallery ended, a score is -inf, and the position -1.
        """
        places = torch.arange(self.longest + 1)
        of = self.of[rows]
        positions = torch.where(places < self._sizes[of, None], places + self._starts[of, None], -1)
        scores = torch.full(positions.shape, -torch.inf, dtype=torch.float64)
        queries, start = self._queries[rows].double(), 0
        for task, count in zip(*(each.tolist() for each in of.unique_consecutive(return_counts=True)), strict=True):
            first, size = int(self._starts[task]), int(self._sizes[task])
            vectors = self._vectors[first : first + size].double()
            some = slice(start, start + count)
            scores[some, :size] = block_scores(queries[some], vectors, "inner_product")
            start += count
        return scores, positions
