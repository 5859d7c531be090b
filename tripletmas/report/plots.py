"""The plots of one run. Each function draws one PNG from tensors and names; none reads a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from tripletmas.objectives.scores import average
from tripletmas.report.configs import Record
from tripletmas.report.heat_map import lower_end, rows_height, short_layer
from tripletmas.report.layers import LayerImportance
from tripletmas.report.numbers import number, short_names
from tripletmas.report.style import LIGHT, Theme, canvas, label_line_ends, task_axis

_MAX_LABELLED = 8  # more lines than this are coloured by their order, and only the first and last are named


def draw_over_tasks(path: Path, matrix: Tensor, task_names: Sequence[str], label: str, *, theme: Theme = LIGHT) -> None:
    """The score on each task after each task (thin lines), and its mean over the tasks learned so far (thick)."""
    size = len(matrix)
    with canvas(path, theme) as figure:
        axes = figure.add_subplot()
        names = short_names(task_names[:size])
        colours = theme.series if size <= _MAX_LABELLED else theme.in_order(size)
        ends = []
        for i in range(size):
            colour = colours[i]
            width, marker = (1.2, "o") if size <= _MAX_LABELLED else (0.8, "")
            x = range(i + 1, size + 1)
            axes.plot(x, matrix[i:, i].numpy(), color=colour, linewidth=width, marker=marker, markersize=3)
            if size <= _MAX_LABELLED or i in (0, size - 1):
                ends.append((float(matrix[-1, i]), names[i], colour))
        means = [average(matrix[: t + 1, : t + 1]) for t in range(size)]
        axes.plot(range(1, size + 1), means, color=theme.ink, linewidth=2.6, marker="o", zorder=5)
        ends.append((means[-1], "average", theme.ink))
        task_axis(axes, size)
        axes.set_ylim(lower_end([matrix]), 1.01)
        axes.set_ylabel(label)
        axes.grid(axis="y")
        label_line_ends(axes, [end for end in ends if not math.isnan(end[0])], theme, x=size)


def draw_loss(
    path: Path, epochs: Sequence[Record], task_names: Sequence[str], name: str, *, theme: Theme = LIGHT
) -> None:
    """The loss of each epoch over all tasks; below it the penalty, where there is one. Lines show where tasks begin."""
    losses = [_value(record, "loss") for record in epochs]
    penalties = [_value(record, "penalty") for record in epochs]
    penalised = any(penalty > 0 for penalty in penalties)
    tasks = [int(record.get("task", 0)) for record in epochs]
    starts = [i for i in range(len(tasks)) if i == 0 or tasks[i] != tasks[i - 1]]
    with canvas(path, theme, height=4.2 if penalised else 3.6) as figure:
        panels = figure.subplots(
            2 if penalised else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + penalised]
        )
        for axes, values, title, colour in zip(
            panels[:, 0], (losses, penalties), (name, "penalty"), theme.series, strict=False
        ):
            axes.set_title(title)
            axes.grid(axis="y")
            for start in starts[1:]:
                axes.axvline(start + 0.5, color=theme.muted, linewidth=0.7, linestyle=(0, (2, 2)))
            for start, end in zip(starts, [*starts[1:], len(tasks)], strict=True):
                marker = "o" if end - start < 30 else None
                axes.plot(range(start + 1, end + 1), values[start:end], color=colour, marker=marker, markersize=2.5)
            top = max((value for value in values if math.isfinite(value)), default=1.0)
            axes.set_ylim(0 if min(values) >= 0 else None, top * 1.08 if top > 0 else None)
            axes.set_xlim(0.4, len(tasks) + 0.6)
        panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1, 0].set_xlabel("epoch, over all tasks")
        _name_tasks(panels[0, 0], starts, tasks, task_names, theme)


def draw_unseen(path: Path, values: Sequence[float], label: str, *, theme: Theme = LIGHT) -> None:
    """The score on classes that are in no task, after each task."""
    with canvas(path, theme) as figure:
        axes = figure.add_subplot()
        axes.plot(range(1, len(values) + 1), values, color=theme.series[0], marker="o")
        task_axis(axes, len(values))
        known = [value for value in values if not math.isnan(value)]
        axes.set_ylim(max(0.0, math.floor(min(known) * 10 - 0.2) / 10), 1.01)
        axes.set_ylabel(f"{label} on unseen classes")
        axes.grid(axis="y")
        label_line_ends(axes, [(known[-1], number(known[-1], 2), theme.series[0])], theme, x=len(values))


def draw_importance(path: Path, importance: LayerImportance, *, theme: Theme = LIGHT) -> None:
    """Two dot plots over the layers in network order: the share of the total importance, and importance per weight."""
    size = len(importance.layers)
    with canvas(path, theme, height=rows_height(size)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        names = [short_layer(name) for name in importance.layers]
        columns = (importance.share, importance.mean)
        for axes, values, title, colour in zip(
            panels, columns, ("share of the total", "mean per weight"), theme.series, strict=False
        ):
            positive = values > 0
            axes.set_title(title)
            axes.hlines(
                range(size), 0, 1, transform=axes.get_yaxis_transform(), color=theme.rule, linewidth=0.7, zorder=0
            )
            axes.scatter(values[positive].numpy(), np.arange(size)[positive.numpy()], s=26, color=colour, zorder=3)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=5))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            low, high = float(values[positive].min()), float(values[positive].max())
            axes.set_xlim(10 ** math.floor(math.log10(low) - 0.15), 10 ** math.ceil(math.log10(high) + 0.05))
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", which="minor", length=0)
            for row in (~positive).nonzero().flatten().tolist():
                axes.text(
                    0.02, row, "zero", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=theme.muted
                )
        panels[0].set_yticks(range(size), names)
        panels[0].set_ylim(size - 0.4, -0.6)


def _name_tasks(axes: Axes, starts: list[int], tasks: list[int], task_names: Sequence[str], theme: Theme) -> None:
    """Above the first panel: the name of each task where it fits, else its number, else every few numbers."""
    names = {task: task_names[task] if task < len(task_names) else str(task + 1) for task in set(tasks)}
    fits = max(map(len, names.values())) * len(starts) <= 50
    step = max(1, math.ceil(len(starts) / 15))
    for start, end in list(zip(starts, [*starts[1:], len(tasks)], strict=True))[::step]:
        text = names[tasks[start]] if fits else str(tasks[start] + 1)
        axes.annotate(
            text,
            ((start + end + 1) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color=theme.muted,
        )


def _value(record: Record, key: str) -> float:
    value = record.get(key)
    return math.nan if value is None else float(value)
