"""What an update of the model does to an index that is not embedded again: numbers read off scores of old and new.

C[t, k] is the score of queries embedded by the model after task t, searched in a gallery embedded by the model after
task k <= t: (T, T) float64, nan above the diagonal.

Source: Biondi et al., CL2R, arXiv 2211.09032; the criterion is that of Shen et al., Towards Backward-Compatible
Representation Learning, CVPR 2020.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def average_compatibility(matrix: Tensor) -> float:
    """The share of the T (T - 1) / 2 pairs t > k with C[t, k] >= C[k, k]: old vectors serve the new model's queries no
    worse than they served their own model's. As in the authors' code; their text has >. nan for a single task.

    >>> average_compatibility(torch.tensor([[0.5, torch.nan], [0.6, 0.7]], dtype=torch.float64))
    1.0
    """
    size = _size(matrix)
    pairs = [bool(matrix[t, k] >= matrix[k, k]) for t in range(size) for k in range(t)]
    return sum(pairs) / len(pairs) if pairs else math.nan


def backward_compatibility(matrix: Tensor) -> float:
    """mean over k < T of C[T, k] - C[k, k], T the last task: what old galleries lose to the last model's queries.

    Negative where they lose. nan for a single task.
    """
    last = _size(matrix) - 1
    return float((matrix[last, :last] - matrix.diagonal()[:last]).mean())


class Flips(NamedTuple):
    """What an update changed for the same queries in the same gallery items; shares of the queries that count.

    Attributes:
        negative: right before the update and wrong after it.
        positive: wrong before and right after.
        agreement: the nearest item is the same.
    """

    negative: float
    positive: float
    agreement: float


def flips(before: Tensor, after: Tensor, nearest_before: Tensor, nearest_after: Tensor) -> Flips:
    """Compare the answers before and after an update.

    Args:
        before, after: (q,) recall@1 of each query, 1 or 0, nan for queries without anything to find, which are left
            out.
        nearest_before, nearest_after: (q,) the position of the nearest item in the gallery.

    Raises:
        ValueError: if the two are not of the same queries.
    Source: Yan et al., Positive-Congruent Training, CVPR 2021 (negative flips, there of classification).
    """
    counted = ~before.isnan()
    if before.shape != after.shape or not torch.equal(counted, ~after.isnan()):
        raise ValueError("before and after must be the values of the same queries in galleries of the same items")
    was, now = before[counted] > 0.5, after[counted] > 0.5
    same = nearest_before[counted] == nearest_after[counted]
    shares = ((was & ~now), (~was & now), same)
    return Flips(*(float(each.double().mean()) for each in shares))


def _size(matrix: Tensor) -> int:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a compatibility matrix must have shape (T, T), got {tuple(matrix.shape)}")
    if matrix.tril().isnan().any():
        raise ValueError("a compatibility matrix must be measured on and below its diagonal")
    return len(matrix)
