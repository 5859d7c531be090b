"""The plots of one run. Each function draws one PNG from tensors and names; none reads a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from tripletmas.forgetting import average
from tripletmas.report.compare import number, short_names
from tripletmas.report.configs import Record
from tripletmas.report.layers import LayerImportance, LayerMovement
from tripletmas.report.style import COLOURS, INK, MAP, MUTED, RULE, canvas, label_line_ends, task_axis

_MAX_NUMBERS = 12  # a map with more rows or columns than this shows colours only
_MAX_LABELLED = 8  # more lines than this are coloured by their order, and only the first and last are named


def lower_end(matrices: Sequence[Tensor]) -> float:
    """Where the scale of scores begins, the same for all matrices that are compared: the tenth below the least."""
    scores = torch.cat([matrix.flatten() for matrix in matrices]) if matrices else torch.empty(0)
    scores = scores[~scores.isnan()]
    return max(0.0, math.floor(float(scores.min()) * 10 - 0.2) / 10) if len(scores) else 0.0


def draw_score_matrix(path: Path, matrix: Tensor, task_names: Sequence[str], *, low: float = 0.0) -> None:
    """The score matrix (t, t) as a heat map from `low` to 1: rows are tasks learned, columns are tasks measured."""
    size = len(matrix)
    numbered = size <= _MAX_NUMBERS
    with canvas(path, height=min(5.2, 1.3 + 0.45 * size) if size < 10 else 5.2) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(matrix.numpy(), cmap=MAP, vmin=low, vmax=1, aspect="auto")
        names = short_names(task_names[:size], 12 if numbered else 9)
        step = max(1, math.ceil(size / 15))
        numbers = [str(i + 1) for i in range(size)]
        long = max(map(len, names)) * size > 46
        columns = numbers if long else names
        axes.set_xticks(range(0, size, step), columns[::step])
        axes.set_yticks(range(0, size, step), [f"{numbers[i]}  {names[i]}" for i in range(0, size, step)])
        axes.set_xlabel("on task")
        axes.set_ylabel("after learning task")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if numbered:
            for i, j in torch.tril_indices(size, size).T.tolist():
                colour = "white" if matrix[i, j] < low + 0.55 * (1 - low) else INK
                axes.text(j, i, number(float(matrix[i, j]), 2), ha="center", va="center", color=colour, fontsize=8.5)
        _colour_bar(figure, image, axes)


def draw_over_tasks(path: Path, matrix: Tensor, task_names: Sequence[str], label: str) -> None:
    """The score on each task after each task (thin lines), and its mean over the tasks learned so far (thick)."""
    size = len(matrix)
    with canvas(path) as figure:
        axes = figure.add_subplot()
        names = short_names(task_names[:size])
        ends = []
        for i in range(size):
            colour = COLOURS[i % 8] if size <= _MAX_LABELLED else colormaps[MAP](0.9 * i / (size - 1))
            width, marker = (1.2, "o") if size <= _MAX_LABELLED else (0.8, "")
            x = range(i + 1, size + 1)
            axes.plot(x, matrix[i:, i].numpy(), color=colour, linewidth=width, marker=marker, markersize=3)
            if size <= _MAX_LABELLED or i in (0, size - 1):
                ends.append((float(matrix[-1, i]), names[i], colour))
        means = [average(matrix[: t + 1, : t + 1]) for t in range(size)]
        axes.plot(range(1, size + 1), means, color=INK, linewidth=2.6, marker="o", zorder=5)
        ends.append((means[-1], "average", INK))
        task_axis(axes, size)
        axes.set_ylim(lower_end([matrix]), 1.01)
        axes.set_ylabel(label)
        axes.grid(axis="y")
        label_line_ends(axes, [end for end in ends if not math.isnan(end[0])], x=size)


def draw_loss(path: Path, epochs: Sequence[Record], task_names: Sequence[str], name: str) -> None:
    """The loss of each epoch over all tasks; below it the penalty, where there is one. Lines show where tasks begin."""
    losses = [_value(record, "loss") for record in epochs]
    penalties = [_value(record, "penalty") for record in epochs]
    penalised = any(penalty > 0 for penalty in penalties)
    tasks = [int(record.get("task", 0)) for record in epochs]
    starts = [i for i in range(len(tasks)) if i == 0 or tasks[i] != tasks[i - 1]]
    with canvas(path, height=4.2 if penalised else 3.6) as figure:
        panels = figure.subplots(
            2 if penalised else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + penalised]
        )
        for axes, values, title, colour in zip(
            panels[:, 0], (losses, penalties), (name, "penalty"), COLOURS, strict=False
        ):
            axes.set_title(title)
            axes.grid(axis="y")
            for start in starts[1:]:
                axes.axvline(start + 0.5, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)))
            for start, end in zip(starts, [*starts[1:], len(tasks)], strict=True):
                marker = "o" if end - start < 30 else None
                axes.plot(range(start + 1, end + 1), values[start:end], color=colour, marker=marker, markersize=2.5)
            top = max((value for value in values if math.isfinite(value)), default=1.0)
            axes.set_ylim(0 if min(values) >= 0 else None, top * 1.08 if top > 0 else None)
            axes.set_xlim(0.4, len(tasks) + 0.6)
        panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1, 0].set_xlabel("epoch, over all tasks")
        _name_tasks(panels[0, 0], starts, tasks, task_names)


def draw_importance(path: Path, importance: LayerImportance) -> None:
    """Two dot plots over the layers in network order: the share of the total importance, and importance per weight."""
    size = len(importance.layers)
    with canvas(path, height=_rows_height(size)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        names = [_short_layer(name) for name in importance.layers]
        columns = (importance.share, importance.mean)
        for axes, values, title, colour in zip(
            panels, columns, ("share of the total", "mean per weight"), COLOURS, strict=False
        ):
            positive = values > 0
            axes.set_title(title)
            axes.hlines(range(size), 0, 1, transform=axes.get_yaxis_transform(), color=RULE, linewidth=0.7, zorder=0)
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
                axes.text(0.02, row, "zero", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=MUTED)
        panels[0].set_yticks(range(size), names)
        panels[0].set_ylim(size - 0.4, -0.6)


def draw_movement(path: Path, movement: LayerMovement) -> None:
    """The relative distance in percent as a heat map: a row for each layer, a column for each task, and the whole."""
    rows, columns = movement.distance.shape
    percent = 100 * movement.distance.masked_fill(movement.distance <= 0, torch.nan)
    if percent.isnan().all():
        low, high = 0.1, 1.0
    else:
        low, high = float(np.nanmin(percent)), float(np.nanmax(percent))
    with canvas(path, height=_rows_height(rows, 0.27)) as figure:
        axes = figure.add_subplot()
        norm = LogNorm(max(low, high / 1e4), max(high, low * 1.01))
        # The last column is another quantity, the way from start to end: a gap sets it apart.
        edges = np.append(np.arange(columns), [columns - 0.75, columns + 0.25])
        spaced = np.insert(percent.numpy(), columns - 1, np.nan, axis=1)
        mesh = axes.pcolormesh(
            edges, np.arange(rows + 1), spaced, cmap=MAP, norm=norm, edgecolors="white", linewidth=0.6
        )
        axes.set_yticks(np.arange(rows) + 0.5, [_short_layer(name) for name in movement.layers])
        axes.set_ylim(rows, 0)
        centres = [*(np.arange(columns - 1) + 0.5), columns - 0.25]
        step = max(1, math.ceil((columns - 1) / 15))
        shown = [*range(0, columns - 1, step), columns - 1]
        axes.set_xticks([centres[i] for i in shown], [movement.steps[i] for i in shown])
        axes.set_xlabel("while learning task (all: from the first weights to the last)")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if columns <= _MAX_NUMBERS and rows <= 24:
            for i, j in np.argwhere(~np.isnan(percent.numpy())):
                light = norm(float(percent[i, j])) < 0.55
                text = f"{float(percent[i, j]):.2g}" if percent[i, j] < 100 else f"{float(percent[i, j]):.0f}"
                colour = "white" if light else INK
                axes.text(centres[j], i + 0.5, text, ha="center", va="center", color=colour, fontsize=8)
        else:
            _colour_bar(figure, mesh, axes).set_label("percent")


def _colour_bar(figure: Figure, mappable: ScalarMappable, axes: Axes) -> Colorbar:
    bar = figure.colorbar(mappable, ax=axes, fraction=0.03, pad=0.02, format="%g")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(which="both", length=0, labelsize=8)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return bar


def _name_tasks(axes: Axes, starts: list[int], tasks: list[int], task_names: Sequence[str]) -> None:
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
            color=MUTED,
        )


def _value(record: Record, key: str) -> float:
    value = record.get(key)
    return math.nan if value is None else float(value)


def _rows_height(rows: int, each: float = 0.22) -> float:
    return max(2.2, 0.9 + each * rows) if rows < 30 else 0.9 + 0.17 * rows


def _short_layer(name: str) -> str:
    return name if len(name) <= 26 else f"…{name[-25:]}"
