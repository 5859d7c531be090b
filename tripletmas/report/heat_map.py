"""Heat maps of one run: of tasks against tasks, and of layers against tasks. Each function draws one PNG."""

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
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from tripletmas.report.layers import LayerMovement
from tripletmas.report.numbers import number, short_names
from tripletmas.report.style import LIGHT, MAP, ON_BRIGHT, ON_DARK, Theme, canvas, contrast

_MAX_NUMBERS = 12  # a map with more rows or columns than this shows colours only


def lower_end(matrices: Sequence[Tensor]) -> float:
    """Where the scale of scores begins, the same for all matrices that are compared: the tenth below the least."""
    scores = torch.cat([matrix.flatten() for matrix in matrices]) if matrices else torch.empty(0)
    scores = scores[~scores.isnan()]
    return max(0.0, math.floor(float(scores.min()) * 10 - 0.2) / 10) if len(scores) else 0.0


def draw_matrix(
    path: Path,
    matrix: Tensor,
    task_names: Sequence[str],
    *,
    theme: Theme = LIGHT,
    low: float = 0.0,
    high: float = 1.0,
    row: str = "after learning task",
    column: str = "on task",
) -> None:
    """A matrix over tasks (t, t), such as that of scores, as a heat map from `low` to `high`; nan stays empty.

    Args:
        row, column: what a row and a column are, for the axes.
    """
    size = len(matrix)
    numbered = size <= _MAX_NUMBERS
    with canvas(path, theme, height=min(5.2, 1.3 + 0.45 * size) if size < 10 else 5.2) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(matrix.numpy(), cmap=MAP, vmin=low, vmax=high, aspect="auto")
        names = short_names(task_names[:size], 12 if numbered else 9)
        step = max(1, math.ceil(size / 15))
        numbers = [str(i + 1) for i in range(size)]
        long = max(map(len, names)) * size > 46
        columns = numbers if long else names
        axes.set_xticks(range(0, size, step), columns[::step])
        axes.set_yticks(range(0, size, step), [f"{numbers[i]}  {names[i]}" for i in range(0, size, step)])
        axes.set_xlabel(column)
        axes.set_ylabel(row)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if numbered:
            for i, j in (~matrix.isnan()).nonzero().tolist():
                colour = _number_colour((float(matrix[i, j]) - low) / (high - low))
                _write_in_cell(axes, j, i, number(float(matrix[i, j]), 2), colour, 8.5)
        _colour_bar(figure, image, axes)


def draw_movement(path: Path, movement: LayerMovement, *, theme: Theme = LIGHT) -> None:
    """The relative distance in percent as a heat map: a row for each layer, a column for each task, and the whole."""
    rows, columns = movement.distance.shape
    percent = 100 * movement.distance.masked_fill(movement.distance <= 0, torch.nan)
    if percent.isnan().all():
        low, high = 0.1, 1.0
    else:
        low, high = float(np.nanmin(percent)), float(np.nanmax(percent))
    with canvas(path, theme, height=rows_height(rows, 0.27)) as figure:
        axes = figure.add_subplot()
        norm = LogNorm(max(low, high / 1e4), max(high, low * 1.01))
        # The last column is another quantity, the way from start to end: a gap sets it apart.
        edges = np.append(np.arange(columns), [columns - 0.75, columns + 0.25])
        spaced = np.insert(percent.numpy(), columns - 1, np.nan, axis=1)
        mesh = axes.pcolormesh(
            edges, np.arange(rows + 1), spaced, cmap=MAP, norm=norm, edgecolors=theme.background, linewidth=0.6
        )
        axes.set_yticks(np.arange(rows) + 0.5, [short_layer(name) for name in movement.layers])
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
                text = f"{float(percent[i, j]):.2g}" if percent[i, j] < 100 else f"{float(percent[i, j]):.0f}"
                colour = _number_colour(float(norm(float(percent[i, j]))))
                _write_in_cell(axes, centres[j], i + 0.5, text, colour, 8)
        else:
            _colour_bar(figure, mesh, axes).set_label("percent")


def _number_colour(place: float) -> str:
    """What is read best on a cell whose colour lies at this place of the map, from 0 to 1."""
    cell = to_hex(colormaps[MAP](min(max(place, 0.0), 1.0)))
    return max((ON_DARK, ON_BRIGHT), key=lambda colour: contrast(colour, cell))


def _write_in_cell(axes: Axes, x: float, y: float, text: str, colour: str, size: float) -> None:
    written = axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=size)
    written.set_in_layout(False)  # it lies inside the axes: measuring hundreds of them changes no layout


def _colour_bar(figure: Figure, mappable: ScalarMappable, axes: Axes) -> Colorbar:
    bar = figure.colorbar(mappable, ax=axes, fraction=0.03, pad=0.02, format="%g")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(which="both", length=0, labelsize=8)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return bar


def rows_height(rows: int, each: float = 0.22) -> float:
    """The height in inches of a plot with a row for each layer."""
    return max(2.2, 0.9 + each * rows) if rows < 30 else 0.9 + 0.17 * rows


def short_layer(name: str) -> str:
    """The end of a long name: what tells layers apart."""
    return name if len(name) <= 26 else f"…{name[-25:]}"
