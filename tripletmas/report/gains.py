"""What learning brought: a task's score on its own gallery right before it was learned, and right after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from tripletmas.objectives.scores import last_row
from tripletmas.report.numbers import number
from tripletmas.report.read import Run

_HARDLY = 0.05  # of what there was to gain
_KNEW = 0.9  # from here on there was little to gain
_WAYS_OUT = (
    "a protection that holds less (a wider budget, a lower strength) or another strategy lets the model learn more, "
    "and an old index lasts less long under it. Or there was little to learn: --strategy finetune tells."
)


class Gain(NamedTuple):
    """Means over the tasks after the first, each on its own gallery, by the model before it and by the one after it."""

    before: float
    after: float

    @property
    def is_hardly_any(self) -> bool:
        """Whether a task was learned, and the score rose by less than a twentieth of what was missing."""
        return self.before < _KNEW and self.after - self.before < _HARDLY * (1 - self.before)


def gain_of(run: Run) -> Gain | None:
    """Of recall@1 (of facts mAP); None where no task but the first was trained, or none was scored ahead."""
    metric = run.primary.searched
    if metric not in run.metrics("task") or not any(epoch.get("task") for epoch in run.epochs):
        return None
    matrix = run.scores.matrix(metric, "task")
    done = len(last_row(matrix))
    pairs = [(float(matrix[i - 1, i]), float(matrix[i, i])) for i in range(1, done)]
    known = [pair for pair in pairs if not math.isnan(sum(pair))]
    return Gain(*map(fmean, zip(*known, strict=True))) if known else None


def sentence(run: Run) -> str:
    """What later tasks gained, and what to do where that is hardly anything; empty where it is not known."""
    gain = gain_of(run)
    if gain is None:
        return ""
    told = f" On its own gallery a later task had {run.primary.searched_label} {number(gain.before)} before it was "
    told += f"learned, and {number(gain.after)} after."
    return f"{told} That is hardly a gain: {_WAYS_OUT}" if gain.is_hardly_any else told


def note(runs: Sequence[Run]) -> str:
    """What is to be said of the runs of a method; empty if nothing."""
    hardly = [gain for run in runs if (gain := gain_of(run)) and gain.is_hardly_any]
    if not hardly:
        return ""
    before, after = (number(fmean(values)) for values in zip(*hardly, strict=True))
    which = f"{len(hardly)} of {len(runs)} runs " if len(runs) > 1 else ""
    return (
        f"{which}hardly learned the later tasks ({runs[0].primary.searched_label} on their own galleries {before} "
        f"before, {after} after): what holds less learns more"
    )
