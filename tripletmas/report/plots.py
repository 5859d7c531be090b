"""Plots over tasks and epochs, from numbers and names alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tripletmas.basics.sentences import counted
from tripletmas.report.numbers import averages, lower_end, number, short_names, upper_end
from tripletmas.report.style import Theme, label_line_ends, score_axis, task_axis

_MAX_LABELLED = 8  # more lines than this are coloured by their order, and only the first and last are named


@dataclass(frozen=True)
class Line:
    """Scores after one task after the other, up to the last.

    Attributes:
        label: stands at its end; "" for none.
        name: what the pointer is told of it; "" for its label.
        band: the standard deviation of each value, drawn to both sides; empty for none.
        style: more options of `Axes.plot`.
    """

    values: Sequence[float]
    label: str
    colour: str
    band: Sequence[float] = ()
    style: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


def draw_lines(
    figure: Figure, theme: Theme, lines: Sequence[Line], label: str, low: float, names: Sequence[str] = ()
) -> None:
    """Lines over tasks, on an axis of scores from `low` to 1, or less where all are low.

    Args:
        names: of the tasks, which are named where the names fit.
    """
    size = max(len(line.values) for line in lines)
    axes = figure.add_subplot()
    for line in lines:
        _draw_line(axes, line, size)
    task_axis(axes, size, names=names)
    score_axis(axes, low, label, high=upper_end([line.values for line in lines]))
    ends = [(float(line.values[-1]), line.label, line.colour) for line in lines if line.label]
    label_line_ends(axes, [end for end in ends if not math.isnan(end[0])], theme, x=size)


def _draw_line(axes: Axes, line: Line, size: int) -> None:
    """A line, with its band, that ends at the last of so many tasks."""
    x, values, band = range(size - len(line.values) + 1, size + 1), np.asarray(line.values), np.asarray(line.band)
    axes.plot(x, values, color=line.colour, label=line.name or line.label or None, **line.style)
    if line.band:
        axes.fill_between(x, values - band, values + band, color=line.colour, alpha=0.15, linewidth=0)


def draw_over_tasks(figure: Figure, theme: Theme, matrix: Tensor, task_names: Sequence[str], label: str) -> None:
    """The score on each task after each task (thin lines), and its mean over the tasks learned so far (thick)."""
    size = len(matrix)
    few, names = size <= _MAX_LABELLED, short_names(task_names[:size])
    colours = theme.series if few else theme.in_order(size)
    thin = {"linewidth": 1.2 if few else 0.8, "marker": "o" if few else "", "markersize": 3}
    lines = [
        Line(
            matrix[i:, i].tolist(),
            names[i] if few or i in (0, size - 1) else "",
            colours[i],
            style=thin,
            name=f"task {i + 1} ({task_names[i]})",
        )
        for i in range(size)
    ]
    mean = Line(averages(matrix), "average", theme.ink, style={"linewidth": 2.6, "marker": "o", "zorder": 5})
    draw_lines(figure, theme, [*lines, mean], label, lower_end([matrix]), task_names)


def draw_unseen(figure: Figure, theme: Theme, values: Sequence[float], label: str) -> None:
    """The score on what is in no task, classes or facts, after each task."""
    line = Line(values, number(values[-1], 2), theme.series[0], style={"marker": "o"})
    low = lower_end([torch.tensor(values, dtype=torch.float64)])
    draw_lines(figure, theme, [line], f"{label}, never trained on", low)


def draw_loss(
    figure: Figure, theme: Theme, epochs: Sequence[dict[str, Any]], task_names: Sequence[str], name: str
) -> None:
    """The loss of each epoch over all tasks; below it the penalty, where there is one. The axis counts tasks."""
    tasks = [int(record.get("task", 0)) for record in epochs]
    edges = [i for i in range(len(tasks)) if i == 0 or tasks[i] != tasks[i - 1]] + [len(tasks)]
    series = {title: _values(epochs, key) for key, title in (("loss", name), ("penalty", "penalty"))}
    penalised = any(penalty > 0 for penalty in series["penalty"])
    count = 1 + penalised
    figure.set_figheight(4.2 if penalised else 3.6)
    panels = figure.subplots(count, 1, sharex=True, squeeze=False, height_ratios=[2, 1][:count])[:, 0]
    for axes, (title, values), colour in zip(panels, series.items(), theme.series, strict=False):
        axes.set_title(title)
        _draw_epochs(axes, values, edges, colour, theme, title)
    _name_tasks(panels[-1], edges, [tasks[start] for start in edges[:-1]], task_names)


def _draw_epochs(
    axes: Axes, values: Sequence[float], edges: Sequence[int], colour: str, theme: Theme, name: str
) -> None:
    """A value an epoch; where a task begins the line does, too."""
    axes.grid(axis="y")
    axes.tick_params(axis="x", length=0)
    for start in edges[1:-1]:
        axes.axvline(start + 0.5, color=theme.muted, linewidth=0.7, linestyle=(0, (2, 2)))
    for start, end in pairwise(edges):
        style = {"marker": "o" if end - start < 30 else None, "markersize": 2.5, "label": name, "gid": "epoch"}
        axes.plot(range(start + 1, end + 1), values[start:end], color=colour, clip_on=False, **style)
    top = max((value for value in values if math.isfinite(value)), default=1.0)
    axes.set_ylim(0 if min(values) >= 0 else None, top * 1.08 if top > 0 else None)
    axes.set_xlim(0.4, len(values) + 0.6)


def _name_tasks(axes: Axes, edges: Sequence[int], tasks: Sequence[int], task_names: Sequence[str]) -> None:
    """On the x axis: the name of each task where it fits, else its number, else every few numbers."""
    names = [task_names[task] if task < len(task_names) else str(task + 1) for task in tasks]
    fits = max(map(len, names)) * len(tasks) <= 40
    shown = list(zip(tasks, names, pairwise(edges), strict=True))[:: math.ceil(len(tasks) / 15)]
    centres = [(start + end + 1) / 2 for _, _, (start, end) in shown]
    axes.set_xticks(centres, [name if fits else str(task + 1) for task, name, _ in shown])
    lengths = {end - start for start, end in pairwise(edges)}
    axes.set_xlabel("task" if len(lengths) > 1 else f"task, {counted(lengths.pop(), 'epoch')} each")


def _values(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    values = (record.get(key) for record in records)
    return [math.nan if value is None else float(value) for value in values]
