"""Drift: how far the embedding of what was learned before has moved, by task and by class.

The drift of an item is 1 - cos(its vector when its task was learned, its vector now): 0 where it points where it did.
That of a class is the mean over its gallery items, that of a task the mean over its classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from matplotlib.figure import Figure
from torch import Tensor

from tripletmas.report.numbers import middle_cut
from tripletmas.report.read import Run
from tripletmas.report.style import Theme, row_axis, series_style

_MOST, _LEAST = 14, 6  # of many classes, how many of the most and of the least drifted are shown


@dataclass(frozen=True)
class ClassDrift:
    """The drift of one class at the end; `task` counts from 0."""

    name: str
    task: int
    drift: float


def drift_by_task(run: Run) -> Tensor | None:
    """(t, t): after task (row), of an earlier task (column); nan on the diagonal and above it. None if not recorded."""
    records = {int(task["task"]): task["drift"] for task in run.tasks if task.get("drift")}
    if not records:
        return None
    size = max(records) + 1
    matrix = torch.full((size, size), torch.nan, dtype=torch.float64)
    for task, by_task in records.items():
        for earlier, values in enumerate(by_task):
            matrix[task, earlier] = fmean(_known(values)) if _known(values) else math.nan
    return matrix


def drift_by_class(run: Run) -> list[ClassDrift]:
    """The classes of all tasks but the last finished, after it, the most drifted first; [] if not recorded."""
    last = next((task["drift"] for task in reversed(run.tasks) if task.get("drift")), [])
    found, classes = [], run.classes
    for task, values in enumerate(last):
        labels = classes.tasks[task] if task < len(classes.tasks) else ()
        for place, value in enumerate(values):
            name = classes.name(labels[place]) if place < len(labels) else f"class {place + 1} of task {task + 1}"
            if value is not None and not math.isnan(value):
                found.append(ClassDrift(name, task, float(value)))
    return sorted(found, key=lambda each: -each.drift)


def most_and_least(drifts: Sequence[ClassDrift]) -> tuple[list[ClassDrift], list[ClassDrift]]:
    """The most and the least drifted; of few classes all are among the most."""
    if len(drifts) <= _MOST + _LEAST:
        return list(drifts), []
    return list(drifts[:_MOST]), list(drifts[-_LEAST:])


def draw_class_drift(figure: Figure, theme: Theme, drifts: Sequence[ClassDrift]) -> None:
    """A row for each class with a dot at its drift; a gap stands for the classes between the most and the least."""
    most, least = most_and_least(drifts)
    gap = 1.0 if least else 0.0
    rows = [*range(len(most)), *(len(most) + gap + i for i in range(len(least)))]
    shown = [*most, *least]
    names = [f"{middle_cut(each.name, 24)}  · task {each.task + 1}" for each in shown]
    figure.set_figheight(max(2.0, 0.9 + 0.22 * (len(rows) + gap)))
    axes = figure.add_subplot()
    axes.hlines(rows, 0, [each.drift for each in shown], color=theme.rule, linewidth=1.4, zorder=1)
    axes.scatter([each.drift for each in shown], rows, s=30, color=series_style(0, theme)[0], zorder=3, label="drift")
    if least:
        left = len(drifts) - len(shown)
        place = {"transform": axes.get_yaxis_transform(), "va": "center", "color": theme.muted, "fontsize": 8.5}
        axes.text(0.02, len(most), f"{left} classes between", **place)
    row_axis(axes, names, rows, edge=0.7)
    axes.set_xlim(left=min(0.0, *(each.drift for each in shown)))
    axes.tick_params(axis="y", labelcolor=theme.ink)
    axes.grid(axis="x")
    axes.set_xlabel("drift (1 − cosine) after the last finished task")


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and not math.isnan(value)]
