"""Numbers and names as the pages, the tables and the plots show them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripletmas.objectives.scores import average


@dataclass(frozen=True)
class Spread:
    """A number measured once for each seed; nan where it was not measured."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds; nan without any."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (ddof=1); None for fewer than two seeds, or where one was not measured."""
        return statistics.stdev(self.values) if len(self.values) > 1 and self.measured else None

    @property
    def measured(self) -> bool:
        """Whether all seeds have it, and there is one."""
        return not math.isnan(self.mean)

    def text(self, digits: int = 3, *, signed: bool = False) -> str:
        """The mean ± the deviation, as shown: "0.912 ± 0.004", or a dash where nothing was measured."""
        if not self.measured:
            return "–"
        mean = number(self.mean, digits, signed=signed)
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


def begun(text: str) -> str:
    """The text with a capital, as a sentence begins; "mAP" stays."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number as shown, never "-0.000"; a dash for nan."""
    if math.isnan(value):
        return "–"
    value = round(value, digits) + 0.0
    return f"{value:+.{digits}f}" if signed and value else f"{value:.{digits}f}"


def short_names(names: Sequence[str], limit: int = 14) -> list[str]:
    """Task names that fit on an axis: cut to `limit` characters with an ellipsis."""
    return [name if len(name) <= limit else f"{name[: limit - 1]}…" for name in names]


def middle_cut(name: str, limit: int) -> str:
    """A name cut in its middle to `limit` characters: what tells names apart often stands at the end."""
    tail = limit // 2
    return name if len(name) <= limit else f"{name[: limit - tail - 1]}…{name[-tail:]}"


def end_cut(text: str, limit: int) -> str:
    """A text without what follows its first `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def averages(matrix: Tensor) -> list[float]:
    """The mean over the tasks learned so far, after each task."""
    return [average(matrix[: t + 1, : t + 1]) for t in range(len(matrix))]


def measured_part(matrix: Tensor) -> tuple[int, int]:
    """(rows above the first that has a number, columns up to the last that has one); of an empty matrix all is shown.

    Drift has none in the first row, and none in the last column: no class drifts in its own task.
    """
    known = ~matrix.isnan()
    if not bool(known.any()):
        return 0, matrix.shape[1]
    return int(known.any(dim=1).nonzero()[0]), int(known.any(dim=0).nonzero()[-1]) + 1


def lower_end(matrices: Sequence[Tensor]) -> float:
    """Where the scale of scores begins, the same for all matrices that are compared: the tenth below the least."""
    scores = torch.cat([matrix.flatten() for matrix in matrices]) if matrices else torch.empty(0)
    scores = scores[~scores.isnan()]
    return max(0.0, math.floor(float(scores.min()) * 10 - 0.2) / 10) if len(scores) else 0.0


def upper_end(curves: Sequence[Sequence[float]]) -> float:
    """Where the axis of scores ends: at 1, but where none reaches a half, so that what is low can be told apart."""
    highest = max((value for values in curves for value in values if not math.isnan(value)), default=1.0)
    return 1.0 if highest > 0.5 else max(0.1, math.ceil(highest * 11) / 10)


def scale_of(matrices: Sequence[Tensor]) -> tuple[float, float]:
    """Where the scale of colours begins and ends, one for all matrices that are compared."""
    return lower_end(matrices), upper_end([matrix.flatten().tolist() for matrix in matrices])
