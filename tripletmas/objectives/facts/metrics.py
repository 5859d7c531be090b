"""Retrieval metrics between images and facts: pure functions, one value per query.

As in `tripletmas.objectives.metrics`: `relevant` (q, k), bool: whether the item at each rank, best first, is what the query looks
for; `num_relevant` (q,), int64: how many such items the gallery holds. Where the gallery ends before rank k (position
-1 of a search), the remaining columns are False. Values are float64, and nan for a query whose gallery holds nothing
relevant. A list too short for its metric is an error, since a number read off it would be too low.

Language to image, a fact asks for images: `average_precision` and its two kinds "at k". Image to language, an image
asks for facts, of which several are true: `top_k_detection` here; the strict "is one of the k best true" and the rank
of the first true fact are `recall_at_k` and `reciprocal_rank` of `tripletmas.objectives.metrics`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tripletmas.objectives.metrics import check_ranked


def average_precision(relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """(1/R) sum over the ranks i of relevant items of P(i), the precision of the first i ranks; R is `num_relevant`.

    The list may end before the gallery does, but not before the last relevant item.

    Returns: (q,)
    Raises:
        ValueError: if a list ends before the last relevant item that its gallery holds.

    >>> average_precision(torch.tensor([[True, False, True]]), torch.tensor([2]))  # (1/1 + 2/3) / 2
    tensor([0.8333], dtype=torch.float64)
    """
    check_ranked(relevant, num_relevant)
    found = relevant.sum(dim=1)
    missing = (found < num_relevant).nonzero()
    if len(missing):
        raise ValueError(
            f"the list of query {int(missing[0])} holds {int(found[missing[0]])} of its "
            f"{int(num_relevant[missing[0]])} relevant items in {relevant.shape[1]} ranks; search deeper"
        )
    return _precision_at_hits(relevant) / num_relevant  # 0 / 0 is nan


def average_precision_at_k(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """The sum over relevant items within rank k of the precision there, divided by min(R, k), the most it can be.

    Returns: (q,)
    Raises:
        ValueError: if the lists hold fewer than k ranks.

    >>> average_precision_at_k(torch.tensor([[True, False, True]]), torch.tensor([5]), 2)  # (1/1) / 2
    tensor([0.5000], dtype=torch.float64)
    """
    hits = _first(relevant, num_relevant, k)
    return _precision_at_hits(hits) / num_relevant.clamp_max(k)


def sherlock_average_precision_at_k(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """The same sum divided by the number of relevant items found within rank k; 0 if none is.

    Inflated: what was not found costs nothing, so one hit at rank 1 gives 1 whatever R is. Only for comparison with the
    authors' mAP10 and mAP100; `average_precision_at_k` is the metric.

    Returns: (q,)
    Raises:
        ValueError: if the lists hold fewer than k ranks.
    Source: Elhoseiny et al., Sherlock, AAAI 2017, as their code has it (mhelhoseiny/sherlock, eval/APcode/calcAP.m).

    >>> sherlock_average_precision_at_k(torch.tensor([[True, False, True]]), torch.tensor([5]), 2)  # (1/1) / 1
    tensor([1.], dtype=torch.float64)
    """
    hits = _first(relevant, num_relevant, k)
    values = _precision_at_hits(hits) / hits.sum(dim=1).clamp_min(1)
    return values.masked_fill(num_relevant == 0, torch.nan)


def top_k_detection(relevant: Tensor, num_relevant: Tensor, k: int, *, num_true: Tensor | None = None) -> Tensor:
    """The share of an image's true facts whose rank is at most k + (number of its true facts - 1).

    With this tolerance all its true facts can count at k = 1, where they hold the first ranks in any order.

    Args:
        relevant: where the true facts are that are averaged over; with `num_true` these may be some of them, such as
            those of one order.
        num_true: (q,) int64, how many facts are true of each image, which sets the tolerance. None: `num_relevant`.

    Returns: (q,)
    Raises:
        ValueError: if the lists hold fewer ranks than k + (the largest number of true facts - 1).
    Source: Elhoseiny et al., Sherlock, AAAI 2017, top-k of the image-to-language experiments.

    >>> top_k_detection(torch.tensor([[False, True, True]]), torch.tensor([2]), 1)  # ranks 2 and 3, rank 2 is allowed
    tensor([0.5000], dtype=torch.float64)
    """
    check_ranked(relevant, num_relevant)
    _check_k(k)
    num_true = num_relevant if num_true is None else num_true
    if num_true.dtype != torch.int64 or num_true.shape != num_relevant.shape:
        raise ValueError(
            f"num_true must be int64 of shape {tuple(num_relevant.shape)}, got {num_true.dtype} of "
            f"{tuple(num_true.shape)}"
        )
    fewer = (num_true < num_relevant).nonzero()
    if len(fewer):
        raise ValueError(
            f"query {int(fewer[0])} has {int(num_relevant[fewer[0]])} relevant facts, but num_true says "
            f"{int(num_true[fewer[0]])}"
        )
    allowed = k + num_true - 1
    deepest = int(allowed.max()) if len(allowed) else 0
    if relevant.shape[1] < deepest:
        raise ValueError(f"top@{k} needs {deepest} ranks, got lists of {relevant.shape[1]}; search deeper")
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    return (relevant & (ranks <= allowed[:, None])).sum(dim=1).double() / num_relevant  # 0 / 0 is nan


def chance_map(truth: Tensor) -> Tensor:
    """The expected average precision of a fact if the images (n, f) are ranked at random; nan where none shows it.

    With R relevant of n, and H_n = 1 + 1/2 + ... + 1/n: (1/n) [H_n + (R - 1)/(n - 1) (n - H_n)]. An item at rank i is
    relevant with probability R/n, and then the i - 1 before it are each with probability (R - 1)/(n - 1).

    Returns: (f,) float64; the chance level of mAP is its mean over the facts that mAP is the mean of.

    >>> chance_map(torch.tensor([[True], [False]]))  # 1 or 1/2
    tensor([0.7500], dtype=torch.float64)
    """
    if truth.dtype != torch.bool or truth.ndim != 2:
        raise ValueError(f"truth must be bool of shape (n, f), got {truth.dtype} of {tuple(truth.shape)}")
    size, num_relevant = len(truth), truth.sum(dim=0)
    harmonic = (1.0 / torch.arange(1, size + 1, dtype=torch.float64)).sum().to(truth.device)
    others = (num_relevant - 1).double() / max(size - 1, 1)  # a single image has no others
    values = (harmonic + others * (size - harmonic)) / max(size, 1)
    return values.masked_fill(num_relevant == 0, torch.nan)


def _precision_at_hits(hits: Tensor) -> Tensor:
    """(q,) the sum over the ranks of hits of the precision there."""
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return (hits.cumsum(dim=1).double() / ranks).mul_(hits).sum(dim=1)


def _first(relevant: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    check_ranked(relevant, num_relevant)
    _check_k(k)
    if relevant.shape[1] < k:
        raise ValueError(f"average precision at {k} needs {k} ranks, got lists of {relevant.shape[1]}; search deeper")
    return relevant[:, :k]


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
