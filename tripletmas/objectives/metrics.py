"""Metrics of ranked lists: pure functions, one value per query; what is relevant, each kind of task says.

Every metric takes the same two things. `relevant` (q, k), bool: whether the item at each rank, best first, is what the
query looks for. `num_relevant` (q,), int64: how many such items the gallery holds. What never counts, such as the query
itself, is in neither (see `without`). Where the gallery ends before rank k, the remaining columns are False. Values are
(q,) float64, and nan for a query whose gallery holds nothing relevant: it cannot be answered, and the caller leaves it
out and says how many there were. A list too short for its metric is a ValueError, since a number read off it would be
too low: one that ends before rank k or R, before the first relevant item, or for average precision before the last.

Samples of a class look for each other: `recall_at_k`, `r_precision`, `map_at_r`, `reciprocal_rank`, and the two of its
kind that text retrieval is used to, `reciprocal_rank_at_k` and `ndcg_at_k`. A fact looks for images:
`average_precision` and its two kinds "at k". An image looks for facts, of which several are true: `top_k_detection`;
the strict "is the best one true" and the rank of the first are `recall_at_k`, `reciprocal_rank`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at_k(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """1 where at least one of the k nearest items is relevant, else 0.

    This is recall@k of metric learning (hit rate, CMC@k), not the share of relevant items found that information
    retrieval calls by the same name. The query itself never counts among the k.

    >>> recall_at_k(torch.tensor([[False, True, False]]), torch.tensor([4]), 2)
    tensor([1.], dtype=torch.float64)
    """
    first = _first(relevant, num_relevant, k, "recall@")
    return first.any(dim=1).double().masked_fill(num_relevant == 0, torch.nan)


def r_precision(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """The share of relevant items among the R nearest, where R is the query's `num_relevant`.

    >>> r_precision(torch.tensor([[True, False, False, True]]), torch.tensor([2]))
    tensor([0.5000], dtype=torch.float64)
    """
    hits = _within(relevant, num_relevant, num_relevant, "r_precision")
    return hits.sum(dim=1).double() / num_relevant  # 0 / 0 is nan


def map_at_r(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """Mean average precision at R: (1/R) sum_{i <= R} P(i) rel(i), with P(i) the precision of the first i ranks.

    The divisor is R, not the number of hits, so that relevant items which were not found cost.

    Source: Musgrave, Belongie, Lim, A Metric Learning Reality Check, ECCV 2020, section 3.2.

    >>> map_at_r(torch.tensor([[False, True, True, False]]), torch.tensor([2]))  # P(2) / 2
    tensor([0.2500], dtype=torch.float64)
    """
    return _precision_at_hits(_within(relevant, num_relevant, num_relevant, "map@r")) / num_relevant


def reciprocal_rank(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """1 / the rank of the first relevant item, counted from 1.

    >>> reciprocal_rank(torch.tensor([[False, True, True]]), torch.tensor([2]))
    tensor([0.5000], dtype=torch.float64)
    """
    _check(relevant, num_relevant)
    missing = ((num_relevant > 0) & ~relevant.any(dim=1)).nonzero()
    if len(missing):
        raise ValueError(
            f"the list of query {int(missing[0])} ends at rank {relevant.shape[1]}, before the first of its "
            f"{int(num_relevant[missing[0]])} relevant items; search deeper"
        )
    passed = (relevant.cumsum(dim=1) == 0).sum(dim=1)  # ranks before the first relevant item
    return (1.0 / (passed + 1).double()).masked_fill(num_relevant == 0, torch.nan)


def reciprocal_rank_at_k(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """1 / the rank of the first relevant item, 0 where it is not among the k nearest: MRR@k of MTEB.

    >>> reciprocal_rank_at_k(torch.tensor([[False, True, True], [False, False, True]]), torch.tensor([2, 1]), 2)
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    hits = _first(relevant, num_relevant, k, "mrr@")
    best = (hits.double() / _ranks(hits)).amax(dim=1)
    return best.masked_fill(num_relevant == 0, torch.nan)


def ndcg_at_k(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """sum over relevant items within rank k of 1 / log2(rank + 1), divided by what the best order has: nDCG@k of MTEB.

    Items are relevant or not, so there are no grades. The best order has its min(R, k) first ranks relevant.

    Source: Jarvelin, Kekalainen, Cumulated gain-based evaluation of IR techniques, TOIS 2002, with the discount
        log2(rank + 1) that trec_eval has.

    >>> ndcg_at_k(torch.tensor([[False, True, False]]), torch.tensor([1]), 2)  # (1 / log2(3)) / 1
    tensor([0.6309], dtype=torch.float64)
    """
    hits = _first(relevant, num_relevant, k, "ndcg@")
    discounts = 1 / (_ranks(hits) + 1).double().log2()
    best = discounts.cumsum(dim=0)[num_relevant.clamp(1, k) - 1]
    return ((hits * discounts).sum(dim=1) / best).masked_fill(num_relevant == 0, torch.nan)


def average_precision(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """(1/R) sum over the ranks i of relevant items of P(i), the precision of the first i ranks; R is `num_relevant`.

    The list may end before the gallery does, but not before the last relevant item.

    >>> average_precision(torch.tensor([[True, False, True]]), torch.tensor([2]))  # (1/1 + 2/3) / 2
    tensor([0.8333], dtype=torch.float64)
    """
    _check(relevant, num_relevant)
    found = relevant.sum(dim=1)
    missing = (found < num_relevant).nonzero()
    if len(missing):
        raise ValueError(
            f"the list of query {int(missing[0])} holds {int(found[missing[0]])} of its "
            f"{int(num_relevant[missing[0]])} relevant items in {relevant.shape[1]} ranks; search deeper"
        )
    return _precision_at_hits(relevant) / num_relevant


def average_precision_at_k(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """The sum over relevant items within rank k of the precision there, divided by min(R, k), the most it can be.

    >>> average_precision_at_k(torch.tensor([[True, False, True]]), torch.tensor([5]), 2)  # (1/1) / 2
    tensor([0.5000], dtype=torch.float64)
    """
    return _precision_at_hits(_first(relevant, num_relevant, k, "average precision at ")) / num_relevant.clamp_max(k)


def sherlock_average_precision_at_k(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """The same sum divided by the number of relevant items found within rank k; 0 if none is.

    Inflated: what was not found costs nothing, so one hit at rank 1 gives 1 whatever R is. Only for comparison with the
    authors' mAP10 and mAP100; `average_precision_at_k` is the metric.

    Source: Elhoseiny et al., Sherlock, AAAI 2017, as their code has it (mhelhoseiny/sherlock, eval/APcode/calcAP.m).

    >>> sherlock_average_precision_at_k(torch.tensor([[True, False, True]]), torch.tensor([5]), 2)  # (1/1) / 1
    tensor([1.], dtype=torch.float64)
    """
    hits = _first(relevant, num_relevant, k, "average precision at ")
    return (_precision_at_hits(hits) / hits.sum(dim=1).clamp_min(1)).masked_fill(num_relevant == 0, torch.nan)


def top_k_detection(relevant: Tensor, num_relevant: Tensor, k: int, *, num_true: Tensor | None = None) -> Tensor:
    """The share of an image's true facts whose rank is at most k + (number of its true facts - 1).

    With this tolerance all its true facts can count at k = 1, where they hold the first ranks in any order.

    Args:
        relevant: where the true facts are that are averaged over; with `num_true` these may be some of them, such as
            those of one order.
        num_true: (q,) int64, how many facts are true of each image, which sets the tolerance. None: `num_relevant`.

    Source: Elhoseiny et al., Sherlock, AAAI 2017, top-k of the image-to-language experiments.

    >>> top_k_detection(torch.tensor([[False, True, True]]), torch.tensor([2]), 1)  # ranks 2 and 3, rank 2 is allowed
    tensor([0.5000], dtype=torch.float64)
    """
    _check_k(k)
    num_true = num_relevant if num_true is None else num_true
    _check_counts("num_true", num_true, len(relevant))
    fewer = (num_true < num_relevant).nonzero()
    if len(fewer):
        raise ValueError(
            f"query {int(fewer[0])} has {int(num_relevant[fewer[0]])} relevant facts, but num_true says "
            f"{int(num_true[fewer[0]])}"
        )
    hits = _within(relevant, num_relevant, k + num_true - 1, f"top@{k}")
    return hits.sum(dim=1).double() / num_relevant


def chance_map(truth: Tensor) -> Tensor:
    """The expected average precision of a fact if the images (n, f) are ranked at random; nan where none shows it.

    With R relevant of n, and H_n = 1 + 1/2 + ... + 1/n: (1/n) [H_n + (R - 1)/(n - 1) (n - H_n)]. An item at rank i is
    relevant with probability R/n, and then the i - 1 before it are each with probability (R - 1)/(n - 1).

    Returns: (f,) float64; the chance level of mAP is its mean over the facts that mAP is the mean of.

    >>> chance_map(torch.tensor([[True], [False]]))  # 1 or 1/2
    tensor([0.7500], dtype=torch.float64)
    """
    size, num_relevant = len(truth), truth.sum(dim=0)
    harmonic = (1.0 / torch.arange(1, size + 1, dtype=torch.float64)).sum().to(truth.device)
    others = (num_relevant - 1).double() / max(size - 1, 1)  # a single image has no others
    values = (harmonic + others * (size - harmonic)) / max(size, 1)
    return values.masked_fill(num_relevant == 0, torch.nan)


def without(ranked: Tensor, removed: Tensor, depth: int) -> Tensor:
    """The first `depth` ranks of lists (q, k) without those that are removed (q, k) bool; what is below moves up.

    Where a list ends earlier, the remaining columns are 0.

    >>> without(torch.tensor([[5, 6, 7]]), torch.tensor([[False, True, False]]), 4)
    tensor([[5, 7, 0, 0]])
    """
    place = (~removed).cumsum(dim=1).sub_(1).masked_fill_(removed, depth).clamp_max_(depth)
    kept = ranked.new_zeros(len(ranked), depth + 1).scatter_(1, place, ranked)
    return kept[:, :depth]  # the last column holds what goes


def unanswered(names: Sequence[str], num_queries: int) -> dict[str, Tensor]:
    """metric -> (q,) float64, nan: the values of queries none of which is answered yet."""
    return {name: torch.full((num_queries,), torch.nan, dtype=torch.float64) for name in names}


def mean_of_answered(values: Tensor) -> float:
    """The mean over the queries (q,) that have a value; nan if none has."""
    unanswered = values.isnan()
    return float((values[~unanswered] if bool(unanswered.any()) else values).mean())


def _first(relevant: Tensor, num_relevant: Tensor, k: int, metric: str) -> Tensor:
    _check_k(k)
    _check(relevant, num_relevant, k, f"{metric}{k}")
    return relevant[:, :k]


def _within(relevant: Tensor, num_relevant: Tensor, last: Tensor, metric: str) -> Tensor:
    """`relevant` as far as the rank (q,) at which each list ends for the metric."""
    _check(relevant, num_relevant, int(last.max()) if len(last) else 0, metric)
    return relevant & (_ranks(relevant) <= last[:, None])


def _precision_at_hits(hits: Tensor) -> Tensor:
    """(q,) the sum over the ranks of hits of the precision there."""
    return hits.cumsum(dim=1, dtype=torch.float64).div_(_ranks(hits)).mul_(hits).sum(dim=1)


def _ranks(relevant: Tensor) -> Tensor:
    return torch.arange(1, relevant.shape[1] + 1, device=relevant.device)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")


def _check_counts(name: str, counts: Tensor, size: int) -> None:
    if counts.dtype != torch.int64 or counts.shape != (size,):
        raise ValueError(f"{name} must be int64 of shape ({size},), got {counts.dtype} of {tuple(counts.shape)}")


def _check(relevant: Tensor, num_relevant: Tensor, ranks: int = 0, metric: str = "") -> None:
    """Raises ValueError if the lists and the numbers do not fit each other, or the metric needs more ranks."""
    if relevant.dtype != torch.bool or relevant.ndim != 2:
        raise ValueError(f"relevant must be bool of shape (q, k), got {relevant.dtype} of {tuple(relevant.shape)}")
    _check_counts("num_relevant", num_relevant, len(relevant))
    found = relevant.sum(dim=1)
    excess = (found > num_relevant).nonzero()
    if len(excess):
        raise ValueError(
            f"query {int(excess[0])} has {int(found[excess[0]])} relevant items in its list, but num_relevant says "
            f"{int(num_relevant[excess[0]])}; was the query itself taken out of both?"
        )
    if relevant.shape[1] < ranks:
        raise ValueError(f"{metric} needs {ranks} ranks, got lists of {relevant.shape[1]}; search deeper")
