"""Which drift map is for these pairs: the one that does best on pairs that it was not fitted on, or none.

Shapes: n pairs, g stored vectors, dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.index.base import unit
from tripletmas.index.drift import (
    DRIFT_MAPS,
    NONE,
    DriftMap,
    DriftMapName,
    fit_drift,
    neighbouring_folds,
    shift_pays,
)
from tripletmas.index.fitting import fit_map, maps_between

AUTO = "auto"
CompensateName = DriftMapName | Literal["auto"]  # how stored vectors can be moved
COMPENSATE: tuple[str, ...] = (*DRIFT_MAPS, AUTO)
CANDIDATES = (NONE, "procrustes", "shrunk", "linear", "sdc", "mlp")  # the simpler ones first
_EQUAL = 1e-6  # cosine, or share of the squared drift: of two candidates that differ by less, the simpler one is taken


@dataclass(frozen=True)
class Choice:
    """The map that was taken for some pairs, and why.

    Attributes:
        name: one of the candidates: a map, or "none", which leaves vectors where they are.
        scores: candidate -> how near it brings held-out pairs, more is better: of unit vectors the mean cosine, else
            the negative mean squared distance; nan where there were too few pairs to hold any out.
        num_pairs: how many there were.
        refused: candidates that would move stored vectors further than they can have moved.
    """

    name: str
    scores: dict[str, float]
    num_pairs: int
    refused: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The choice in a line."""
        found = ", ".join(f"{name} {score:.5f}" for name, score in self.scores.items() if name not in self.refused)
        too_far = f"; {listed(self.refused)} would move vectors further than the layers moved" if self.refused else ""
        return f"{self.name}, which was best on held-out pairs of {self.num_pairs}: {found}{too_far}"


@dataclass(frozen=True, eq=False)
class Limit:
    """How far stored vectors can have moved, where a protection knows how far the layers' answers have.

    The pairs of a new task say nothing of that: under such a protection they move, and old vectors hardly do.

    Attributes:
        vectors: stored ones (g, dim), of unit length.
        most: the largest mean of 1 - cosine between where they were and where they are.
    """

    vectors: Tensor
    most: float

    def allows(self, move: DriftMap) -> bool:
        """Whether a map keeps to it."""
        moved = unit(move(self.vectors))
        return 1 - float((moved * self.vectors).sum(dim=1).double().mean()) <= self.most


def choose_drift(
    before: Tensor, after: Tensor, *, normalize: bool = True, seed: int = 0, limit: Limit | None = None
) -> Choice:
    """Which of the candidates brings pairs (n, dim) nearest to where the new model has them, without having seen them.

    `fit_drift(choose_drift(before, after).name, before, after)` is then the map itself.

    Each is fitted five times, on all pairs but a fold of neighbours, and judged on that fold (see `drift`): pairs of
    one class should lie side by side. A function of the pairs and the seed. It takes six times as long as all maps
    together, most of it for mlp.

    Args:
        normalize: the vectors are of unit length, and scaled to it again when they are moved. Otherwise sdc, which
            depends on what is near, is no candidate.
        limit: candidates that move stored vectors further than it says are refused. Not without normalize.

    Raises:
        ValueError: as `fit_drift`.
    """
    names = [name for name in CANDIDATES if normalize or name != "sdc"]
    fit_drift(NONE, before, after)  # what no map can be fitted on is an error, even where none is tried
    if len(before) < 2:
        return Choice(NONE, dict.fromkeys(names, math.nan), len(before))
    refused = ()
    if limit is not None and normalize:
        refused = tuple(each for each in names[1:] if not limit.allows(fit_drift(each, before, after, seed=seed)))
    tried = [name for name in names if name not in refused]
    scores = _held_out_scores(tried, before, after, normalize, lambda *pairs: fit_drift(*pairs, seed=seed))
    best = _simplest_of_best(scores, 1 if normalize else -scores[NONE])
    return Choice(best, {name: scores.get(name, math.nan) for name in names}, len(before), refused)


def choose_map(
    before: Tensor, after: Tensor, *, normalize: bool = True, seed: int = 0, kinds: Sequence[str] | None = None
) -> Choice:
    """Which map of `fit_map` brings pairs (n, dim) and (n, new_dim) nearest to where the new model has them.

    As `choose_drift`, for any two models. The pairs should stand in no order: what is held out is then like what is
    stored. `fit_map(choose_map(before, after).name, before, after)` is then the map itself.

    Args:
        kinds: the candidates, the simpler ones first; None for all that these dimensions have.

    Raises:
        ValueError: as `fit_map`, or for fewer than two pairs.
    """
    kinds = maps_between(before.shape[-1], after.shape[-1]) if kinds is None else kinds
    if len(before) < 2:
        raise ValueError(f"a map is chosen by pairs that are held out, of two at least, got {len(before)}")
    shift = shift_pays(before, after) if "procrustes" in kinds else None  # once, and not for each fold anew
    fits = partial(fit_map, normalize=normalize, seed=seed, shift=shift)
    scores = _held_out_scores(kinds, before, after, normalize, fits)
    scale = 1.0 if normalize else float(after.double().var(dim=0, correction=0).sum())
    return Choice(_simplest_of_best(scores, scale), scores, len(before))


def _simplest_of_best(scores: dict[str, float], scale: float) -> str:
    """The first of those that are best, or equal to that but for a trifle of this scale."""
    enough = max(scores.values()) - _EQUAL * scale
    return next(name for name, score in scores.items() if score >= enough)


def _held_out_scores(
    names: Sequence[str],
    before: Tensor,
    after: Tensor,
    normalize: bool,
    fit: Callable[[str, Tensor, Tensor], DriftMap],
) -> dict[str, float]:
    scores = dict.fromkeys(names, 0.0)
    for inside, outside in neighbouring_folds(len(before)):
        for name in names:
            moved = fit(name, before[inside], after[inside])(before[outside])
            moved = unit(moved) if normalize else moved
            squared = float((moved.double() - after[outside].double()).square().sum())
            scores[name] -= (squared / 2 if normalize else squared) / len(before)
    # 1 - ||a - b||^2 / 2 is the cosine of unit vectors
    return {name: 1 + score for name, score in scores.items()} if normalize else scores
