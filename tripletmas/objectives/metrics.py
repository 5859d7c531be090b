"""Retrieval metrics of ranked lists: pure functions, one value per query.

Every function takes the same two things. `relevant` (q, k), bool: whether the item at each rank, best first, is of the
query's class; the query itself is taken out before. `num_relevant` (q,), int64: how many relevant items the gallery
holds besides the query. Where the gallery ends before rank k, the remaining columns are False. Values are float64, and
nan for a query whose gallery holds nothing relevant: it cannot be answered, and the caller leaves it out and says how
many there were. A list too short for its metric is an error, since a number read off it would be too low.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recall_at_k(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """1 where at least one of the k nearest items is relevant, else 0.

    This is recall@k of metric learning (hit rate, CMC@k), not the share of relevant items found that information
    retrieval calls by the same name. The query itself never counts among the k.

    Returns: (q,)
    Raises:
        ValueError: if the lists hold fewer than k ranks.

    >>> recall_at_k(torch.tensor([[False, True, False]]), torch.tensor([4]), 2)
    tensor([1.], dtype=torch.float64)
    """
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    check_ranked(relevant, num_relevant)
    if relevant.shape[1] < k:
        raise ValueError(f"recall@{k} needs {k} ranks, got lists of {relevant.shape[1]}; search deeper")
    return _nan_without_relevant(relevant[:, :k].any(dim=1).double(), num_relevant)


def r_precision(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """The share of relevant items among the R nearest, where R is the query's `num_relevant`.

    Returns: (q,)
    Raises:
        ValueError: if the lists hold fewer ranks than the largest R.

    >>> r_precision(torch.tensor([[True, False, False, True]]), torch.tensor([2]))
    tensor([0.5000], dtype=torch.float64)
    """
    check_ranked(relevant, num_relevant)
    hits = relevant & _within_r(relevant, num_relevant)
    return hits.sum(dim=1).double() / num_relevant  # 0 / 0 is nan


def map_at_r(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """Mean average precision at R: (1/R) sum_{i <= R} P(i) rel(i), with P(i) the precision of the first i ranks.

    The divisor is R, not the number of hits, so that relevant items which were not found cost.

    Returns: (q,)
    Raises:
        ValueError: if the lists hold fewer ranks than the largest R.
    Source: Musgrave, Belongie, Lim, A Metric Learning Reality Check, ECCV 2020, section 3.2.

    >>> map_at_r(torch.tensor([[False, True, True, False]]), torch.tensor([2]))  # P(2) / 2
    tensor([0.2500], dtype=torch.float64)
    """
    check_ranked(relevant, num_relevant)
    hits = relevant & _within_r(relevant, num_relevant)
    precision = relevant.cumsum(dim=1).double() / _ranks(relevant)
    return (precision * hits).sum(dim=1) / num_relevant


def reciprocal_rank(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """1 / the rank of the first relevant item, counted from 1.

    Returns: (q,)
    Raises:
        ValueError: if a list ends before the first relevant item that its gallery holds.

    >>> reciprocal_rank(torch.tensor([[False, True, True]]), torch.tensor([2]))
    tensor([0.5000], dtype=torch.float64)
    """
    check_ranked(relevant, num_relevant)
    missing = ((num_relevant > 0) & ~relevant.any(dim=1)).nonzero()
    if len(missing):
        raise ValueError(
            f"the list of query {int(missing[0])} ends at rank {relevant.shape[1]}, before the first of its "
            f"{int(num_relevant[missing[0]])} relevant items; search deeper"
        )
    passed = (relevant.cumsum(dim=1) == 0).sum(dim=1)  # ranks before the first relevant item
    first = 1.0 / (passed + 1).double()
    return _nan_without_relevant(first, num_relevant)


def check_ranked(relevant: Tensor, num_relevant: Tensor) -> None:
    """Raises ValueError if ranked lists (q, k) and the number of relevant items (q,) do not fit each other."""
    if relevant.dtype != torch.bool or relevant.ndim != 2:
        raise ValueError(f"relevant must be bool of shape (q, k), got {relevant.dtype} of {tuple(relevant.shape)}")
    if num_relevant.dtype != torch.int64 or num_relevant.shape != relevant.shape[:1]:
        raise ValueError(
            f"num_relevant must be int64 of shape ({len(relevant)},), "
            f"got {num_relevant.dtype} of {tuple(num_relevant.shape)}"
        )
    found = relevant.sum(dim=1)
    excess = (found > num_relevant).nonzero()
    if len(excess):
        raise ValueError(
            f"query {int(excess[0])} has {int(found[excess[0]])} relevant items in its list, but num_relevant says "
            f"{int(num_relevant[excess[0]])}; was the query itself taken out of both?"
        )


def _within_r(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    largest = int(num_relevant.max()) if len(num_relevant) else 0
    if relevant.shape[1] < largest:
        raise ValueError(f"R is up to {largest}, but the lists hold {relevant.shape[1]} ranks; search deeper")
    return _ranks(relevant) <= num_relevant[:, None]


def _ranks(relevant: Tensor) -> Tensor:
    return torch.arange(1, relevant.shape[1] + 1, device=relevant.device)


def _nan_without_relevant(values: Tensor, num_relevant: Tensor) -> Tensor:
    return values.masked_fill(num_relevant == 0, torch.nan)
