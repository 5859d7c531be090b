"""The nearest of a gallery that comes block by block, and what is right about them.

Shapes: q queries, g vectors of a gallery, k ranks, dim.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

RANKS = 10  # of which it is asked how many are the same
NO_LABEL = -1


def scores(queries: Tensor, gallery: Tensor, metric: str) -> Tensor:
    """(q, g): inner products, which are cosines of unit vectors, or for "l2" negative squared distances but for a
    constant of each query; the larger the nearer."""
    products = queries @ gallery.T
    return 2 * products - gallery.square().sum(dim=1) if metric == "l2" else products


@final
class Nearest:
    """The k nearest of each query among all that was added.

    Args:
        queries: (q, dim), of unit length where the gallery is.
        own: (q,) int64 the numbers that the queries themselves have in the gallery, which are left out; -1 for none.

    Attributes:
        numbers: (q, k) of what was found, best first; -1 where there is nothing.
        labels: (q, k) of the same.
    """

    def __init__(self, queries: Tensor, metric: str, *, own: Tensor, k: int = RANKS):
        self._queries, self._metric, self._own = queries, metric, own
        self._scores = torch.full((len(queries), k), -torch.inf)
        self.numbers = torch.full((len(queries), k), -1)
        self.labels = torch.full((len(queries), k), NO_LABEL)

    def add(self, vectors: Tensor, numbers: Tensor, labels: Tensor) -> None:
        """Add vectors (g, dim) with their numbers and labels (g,); those that hold nan are left out."""
        there = vectors.isfinite().all(dim=1)
        vectors, numbers, labels = vectors[there], numbers[there], labels[there]
        if not len(vectors):
            return
        found = scores(self._queries, vectors, self._metric)
        found[self._own[:, None] == numbers[None, :]] = -torch.inf
        best, rows = found.topk(min(self._scores.shape[1], len(vectors)), dim=1)
        k = self._scores.shape[1]
        merged, order = torch.cat([self._scores, best], dim=1).sort(dim=1, descending=True, stable=True)
        self._scores, order = merged[:, :k], order[:, :k]
        self.numbers = torch.cat([self.numbers, numbers[rows]], dim=1).gather(1, order)
        self.labels = torch.cat([self.labels, labels[rows]], dim=1).gather(1, order)
        self.numbers[self._scores == -torch.inf] = -1


def right_first(found: Nearest, labels: Tensor, counts: Tensor) -> Tensor:
    """(q,) whether the nearest is of the query's class; nan for queries that have no label, or nothing to find.

    Args:
        labels: (q,) of the queries.
        counts: how many of each label the gallery has, the queries themselves among them.
    """
    right = (found.labels[:, 0] == labels).double()
    counted = (labels != NO_LABEL) & (counts[labels.clamp_min(0)] > 1)
    return torch.where(counted, right, torch.nan)


def shared(one: Tensor, other: Tensor) -> Tensor:
    """(q,) of the numbers (q, k) that were found, the share that two searches have in common."""
    same = (one[:, :, None] == other[:, None, :]) & (one != -1)[:, :, None]
    return same.any(dim=2).double().sum(dim=1) / (one != -1).sum(dim=1).clamp_min(1)
