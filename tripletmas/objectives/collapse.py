"""Whether an embedding has collapsed: its vectors are (nearly) one, or tell nothing apart. Pure functions.

Four signs, each with a sentence of its own, since each has another cause and none implies the others:

equal    vectors of different samples are nearly equal, as they are compared (directions)
rank     they have hardly more than one direction, though there are three classes or more
margin   the loss of triplets sits at its margin, since all distances are small beside it
chance   the score is what guessing gives

Shapes: n samples, dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripletmas.index.base import unit

SIGNS = EQUAL, RANK, MARGIN, CHANCE = "equal", "rank", "margin", "chance"

# 1 - mean cosine: less than a degree between two samples. Of 28 runs that learned, none was below 60 times as much.
NEARLY = 1e-4
_DIRECTIONS = 1.5  # halfway between all on one direction and two that count the same
_AT_MARGIN = 0.99  # of it; what is left of distances near 1e-5 in float32 is below that
_LEVEL = 0.05  # of the test of a score, and of what it misses
_JUDGED = 256  # vectors whose singular values are taken: 20 ms at dim 1280


@dataclass(frozen=True)
class Guess:
    """What guessing scores on a task.

    Attributes:
        metric: on the task's own gallery; each query is right or wrong.
        chance: the expected score.
        num: how many queries have a score.
    """

    metric: str
    chance: float
    num: int


def spread(vectors: Tensor) -> float:
    """1 - the mean cosine between different vectors of (n, dim): 0 where all are one, about 1 where they are spread.

    Half the mean squared distance between two of them, scaled to length 1. nan for fewer than two.

    >>> spread(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    1.0
    """
    if len(vectors) < 2:
        return math.nan
    rows = unit(vectors.detach().cpu().double())
    away = rows - rows.mean(dim=0)  # of vectors that are nearly one, 1 - cosine itself would be lost in rounding
    return float(away.square().sum()) / (len(rows) - 1)


def effective_rank(vectors: Tensor) -> float:
    """exp(entropy of the singular values, divided by their sum) of the unit vectors (n, dim): directions that count.

    1 where all lie on one line through the origin. Not centred. Of more than 256 vectors, of as many of them. nan
    without any, or where one is not finite.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007; RankMe (Garrido et al., ICML 2023) of an embedding.

    >>> effective_rank(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    2.0
    """
    if not len(vectors) or not bool(vectors.isfinite().all()):
        return math.nan
    some = vectors[:: -(-len(vectors) // _JUDGED)].detach().cpu().double()
    values = torch.linalg.svdvals(unit(some))
    shares = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


def num_classes(labels: Tensor) -> int:
    """How many different labels there are in (n,), or different rows in (n, classes)."""
    return len(labels.unique(dim=0))


def signs_of(vectors: Tensor, labels: Tensor) -> dict[str, str]:
    """What vectors (n, dim) say by themselves, as they are compared: sign -> a sentence without its end.

    A single class may lie on one point, and two on one line.
    """
    classes, found = num_classes(labels), {}
    if classes > 1 and (between := spread(vectors)) <= NEARLY:
        found[EQUAL] = f"embeddings of different samples are nearly equal (mean cosine 1 - {between:.1e})"
    elif classes > 2 and (rank := effective_rank(vectors)) <= _DIRECTIONS:
        found[RANK] = f"embeddings of {classes} classes have hardly more than one direction (effective rank {rank:.2f})"
    return found


def are_told_apart(vectors: Tensor, labels: Tensor) -> bool:
    """Whether the nearest other vector is of the same class more often than halfway between chance and always.

    Then what is nearly equal can still be told apart by what is left of its differences, and nothing has collapsed.
    False where no class has two samples, and for labels of several classes each, (n, classes).
    """
    if labels.ndim != 1 or len(vectors) < 2:
        return False
    labels, rows = labels.cpu(), unit(vectors.detach().cpu().double())
    away = rows - rows.mean(dim=0)  # what is nearly equal would be lost in the rounding of distances
    distances = torch.cdist(away, away).fill_diagonal_(torch.inf)
    same = labels[:, None] == labels[None, :]
    others = same.sum(dim=1) - 1
    asked = others > 0
    if not bool(asked.any()):
        return False
    right = same[torch.arange(len(labels)), distances.argmin(dim=1)][asked].double().mean()
    chance = others[asked].double().mean() / (len(labels) - 1)
    return bool(right > (1 + chance) / 2)


def margin_sign(loss: float, margin: float, between: Sequence[float]) -> dict[str, str]:
    """Whether a triplet loss sits at its margin, on unit vectors with these spreads.

    It does where positives are not nearer than negatives on average, and the typical distance, the root of twice the
    spread, is below the margin, so that hardly a triplet can be in order by as much.
    """
    distance = math.sqrt(2 * max(between))
    if not (loss >= _AT_MARGIN * margin and distance <= margin):
        return {}
    return {
        MARGIN: f"the loss, {loss:.3f}, sits at its margin, {margin:g}: embeddings differ by {distance:.2g} only",
    }


def chance_sign(score: float, guess: Guess) -> dict[str, str]:
    """Whether a score is at chance."""
    if math.isnan(score) or not at_chance(round(score * guess.num), guess.num, guess.chance):
        return {}
    return {
        CHANCE: f"{guess.metric} among the task's own queries is {score:.3f}, and guessing gives {guess.chance:.3f}",
    }


def at_chance(right: int, num: int, chance: float) -> bool:
    """Whether so many right of `num` answers are what guessing gives.

    That is, a one-sided binomial test does not find them better (at the level 0.05), though it would find a score
    halfway between chance and 1 (with a probability of 0.95): few answers say nothing.
    """
    if not (num and 0 < chance < 1):
        return False
    better = tails(num, chance) <= _LEVEL
    least = int(better.nonzero()[0]) if bool(better.any()) else num + 1
    return right < least <= num and float(tails(num, (1 + chance) / 2)[least]) >= 1 - _LEVEL


def tails(num: int, probability: float) -> Tensor:
    """P(X >= k) for k = 0, 1, ..., num of a binomial X of `num` draws, (num + 1,); probability in (0, 1).

    >>> tails(2, 0.5)
    tensor([1.0000, 0.7500, 0.2500], dtype=torch.float64)
    """
    k = torch.arange(num + 1, dtype=torch.float64)
    chosen = math.lgamma(num + 1) - torch.lgamma(k + 1) - torch.lgamma(num - k + 1)
    terms = (chosen + k * math.log(probability) + (num - k) * math.log1p(-probability)).exp()
    return terms.flip(0).cumsum(0).flip(0)
