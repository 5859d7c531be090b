"""Forecast: how far an update moved stored vectors, and what searching them costs, told without any old image.

The images of a new task say little of it. A strategy that holds old responses moves them and nothing else, so that they
tell of far too much; distillation holds them while all else moves, so that they tell of far too little. Hence images
are imagined for stored vectors (`imagined`). Where the new model puts one stands for the vector's re-embedding, as what
is stored and as a query (`simulated`).

Where a protection knows how far the responses of each layer to old inputs have moved (`Gram.shares`), vectors move no
further than that allows: an imagined image reaches what no old image does, and such a protection leaves that free.

Imagined images of a class are told apart from others better than real ones, or worse. Where layers are held, so that
little changes, the change of what they find is therefore added to what was measured before the update, with the images
that were there then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tripletmas.basics.files import without_nan
from tripletmas.index.base import unit
from tripletmas.index.choice import Limit
from tripletmas.runs.moves import Recorded, allowed_move, shares_of
from tripletmas.runs.simulated import (
    COMPENSATED,
    FRESH,
    GALLERIES,
    STALE,
    Part,
    again_recalls,
    before_update,
    cosine_to_stored,
    mean_cosine,
    mean_of,
    now_at,
    recalls,
    simulated,
    stale_parts,
)

_SCALES = (0.8, 1.0, 1.25)  # how far vectors may have moved, where an imagined image moved by 1
# Chosen by scripts/reproduce_forecast.py on runs of seed 0, so that nine of ten measurements lie inside, and judged on
# others. Where imagined images tell by themselves: gallery -> (what is added, how far the interval's ends lie off).
CALIBRATION = {STALE: (0.015, 0.041), COMPENSATED: (0.03, 0.132), FRESH: (-0.01, 0.109)}
MARGIN = 0.037  # how far the ends lie off, of any gallery, where their change is added to what was measured


@dataclass(frozen=True)
class Measured:
    """What was measured of a run's galleries with the images that were at hand.

    Attributes:
        before: gallery -> recall@1 of each earlier task on everything seen, before the update.
        new: gallery -> the same of the new task after it, where that takes no old image: not for "fresh".
        shares: of each layer's squared response, what the update before had changed; {} if not known.
    """

    before: Mapping[str, Sequence[float]]
    new: Mapping[str, float]
    shares: Mapping[str, float] = field(default_factory=dict)


class Interval(NamedTuple):
    """What is expected of a number: the most likely, and between what it lies nine times out of ten."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What an update did to stored vectors.

    Attributes:
        cosine: between a stored vector and its re-embedding, the mean over parts that are not current.
        nine_in_ten: nine of ten vectors have a larger cosine.
        between: the mean cosine of two stored vectors of a part: what the other two are to be compared with.
        recall: gallery ("stale", "compensated" where a map is in use, "fresh") -> recall@1, the mean over parts.
        num_vectors, num_imagined: how many are stored that are not current, and how many of them have an image.
    """

    cosine: float
    nine_in_ten: float
    between: float
    recall: dict[str, Interval]
    num_vectors: int
    num_imagined: int

    def sentences(self) -> list[str]:
        """How far vectors moved, and by how much that was told."""
        return [
            f"expected cosine between a stored vector and its re-embedding: {self.cosine:.2f}, 90 % of them above "
            f"{self.nine_in_ten:.2f} (between two stored vectors: {self.between:.2f})",
            f"told by {self.num_imagined} images that were imagined for {self.num_vectors} stored vectors; no old "
            "image was read",
        ]

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write."""
        return without_nan({**vars(self), "recall": {name: list(each) for name, each in self.recall.items()}})


def measured_of(run: Recorded, after: int) -> Measured:
    """What a run recorded of the time before the update by task `after`, and of that task after it."""
    names = {gallery: "seen" if gallery == FRESH else f"seen_{gallery}" for gallery in GALLERIES}
    records = {each["task"]: each["scores"] for each in run.records("task")}

    def rows(task: int) -> dict[str, list[float]]:
        found = {gallery: records.get(task, {}).get(name, {}).get("recall@1") for gallery, name in names.items()}
        return {gallery: [math.nan if each is None else each for each in row] for gallery, row in found.items() if row}

    new = {gallery: row[after] for gallery, row in rows(after).items() if gallery != FRESH and len(row) > after}
    return Measured({gallery: row[:after] for gallery, row in rows(after - 1).items()}, new, shares_of(run, after - 1))


def forecast_of(
    parts: Sequence[Part], *, shares: Mapping[str, float] | None = None, measured: Measured | None = None
) -> Forecast:
    """What is expected of stored vectors after an update.

    Args:
        shares: of each layer's squared response to old inputs, the share that has changed; None or {} if not known.
        measured: what was measured of these parts before the update; None if they are no galleries of a run. It counts
            where shares are known: where layers move freely its changes are too large for imagined images.
    """
    old = stale_parts(parts)
    scale = allowed_scale(old, shares or {})
    cosines = [cosine_to_stored(part, scale) for part in old]
    found = simulated(parts, scale)
    recall = by_itself(parts, scale, found) | (by_change(parts, found, measured) if measured and shares else {})
    return Forecast(
        cosine=float(torch.stack([each.mean() for each in cosines]).mean()),
        nine_in_ten=float(torch.cat(cosines).quantile(0.1)),
        between=fmean(mean_cosine(part.vectors[part.rows]) for part in old),
        recall=recall,
        num_vectors=sum(len(part.vectors) for part in old),
        num_imagined=sum(len(part.rows) for part in old),
    )


def limit_of(shares: Mapping[str, float], stored: Sequence[Tensor]) -> Limit | None:
    """The same, of these stored vectors (g, dim), for the choice of a map."""
    most = allowed_move(shares)
    return None if most is None else Limit(unit(torch.cat(list(stored))), most)


def allowed_scale(parts: Sequence[Part], shares: Mapping[str, float]) -> float:
    """By how much the movement of imagined images is scaled down, so that it fits what layers say; 1 if it does.

    The squared change of a unit vector is twice its 1 - cosine, and grows as the shares do.
    """
    moved = 1 - float(torch.stack([cosine_to_stored(part, 1.0).mean() for part in parts]).mean())
    allowed = allowed_move(shares)
    return math.sqrt(allowed / moved) if allowed is not None and moved > allowed else 1.0


# --- what is expected of recall


def by_itself(
    parts: Sequence[Part],
    scale: float = 1.0,
    found: Mapping[str, Sequence[float]] | None = None,
    *,
    calibration: Mapping[str, tuple[float, float]] = CALIBRATION,
) -> dict[str, Interval]:
    """gallery -> what imagined images find after the update, with constants (what is added, how far the ends lie off).

    What is stored is stale by as much as queries have moved, so that its interval spans what is found where they moved
    by 0.8 to 1.25 of that. What re-embedding finds is the mean of two: by the new model, which keeps imagined images of
    old classes and real ones of new classes apart more than it should, and by the model before the update, which had
    not learned to.

    Args:
        found: what they find, as `simulated` says it of these parts and this scale; None to ask it.
    """
    stored = [part.vectors for part in parts]
    found = simulated(parts, scale) if found is None else found
    stale = [mean_of(parts, recalls(parts, now_at(parts, scale * each), stored)) for each in _SCALES]
    again = mean_of(parts, found[FRESH]), mean_of(parts, again_recalls(parts, [part.before for part in parts]))
    spans = {STALE: (min(stale), stale[_SCALES.index(1.0)], max(stale)), FRESH: 3 * (sum(again) / 2,)}
    if COMPENSATED in found:
        spans[COMPENSATED] = 3 * (mean_of(parts, found[COMPENSATED]),)
    return {gallery: _widened(spans[gallery], *calibration[gallery]) for gallery in GALLERIES if gallery in spans}


def by_change(parts: Sequence[Part], now: Mapping[str, Sequence[float]], measured: Measured) -> dict[str, Interval]:
    """gallery -> what was measured before the update and, added to it, the change of what imagined images find."""
    was = simulated_before(parts, measured)
    told = {gallery: changed(gallery, now, was[gallery], measured) for gallery in now if gallery in was}
    return {gallery: each for gallery, each in told.items() if each is not None}


def simulated_before(parts: Sequence[Part], measured: Measured) -> dict[str, list[float]]:
    """gallery -> what imagined images of each earlier part found before the update."""
    before = before_update(parts)
    old = stale_parts(before)
    return simulated(before, allowed_scale(old, measured.shares) if old else 1.0)


def changed(
    gallery: str,
    now: Mapping[str, Sequence[float]],
    was: Sequence[float],
    measured: Measured,
    *,
    margin: float = MARGIN,
) -> Interval | None:
    """Of one gallery, the mean over tasks; None where something it needs was not measured.

    The new task was not there before: its recall on what is stored is measured after the update, since that takes no
    old image, and where everything is embedded again it is as much more as imagined images find there.

    Args:
        now, was: what imagined images of each task find, gallery -> (after + 1,), and (after,) before the update.
    """
    before, new = measured.before.get(gallery, ()), measured.new.get(gallery)
    if gallery == FRESH:
        new = measured.new.get(STALE, math.nan) + now[FRESH][-1] - now[STALE][-1]
    if new is None or len(before) != len(was):
        return None
    middle = (sum(before) + sum(now[gallery][:-1]) - sum(was) + new) / len(now[gallery])
    return None if math.isnan(middle) else _widened((middle,) * 3, 0.0, margin)


def _widened(span: tuple[float, ...], shift: float, margin: float) -> Interval:
    low, middle, high = span
    ends = (low + shift - margin, middle + shift, high + shift + margin)
    return Interval(*(min(max(each, 0.0), 1.0) for each in ends))
