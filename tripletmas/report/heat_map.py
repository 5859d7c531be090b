"""A heat map of tasks against tasks, and what other heat maps share with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from tripletmas.report.numbers import measured_part, number, short_names
from tripletmas.report.style import MAP, ON_BRIGHT, ON_DARK, Theme, contrast

MAX_NUMBERS = 12  # a map with more rows or columns than this shows colours only


def draw_matrix(
    figure: Figure,
    theme: Theme,
    matrix: Tensor,
    task_names: Sequence[str],
    *,
    low: float = 0.0,
    high: float = 1.0,
    row: str = "after learning task",
    column: str = "on task",
) -> None:
    """A matrix over tasks (t, t), such as that of scores, as a heat map from `low` to `high`; nan stays empty.

    Rows above all that was measured, and columns to the right of it, are left out: no class drifts in its own task.

    Args:
        row, column: what a row and a column are, for the axes.
    """
    above, width = measured_part(matrix)
    rows, columns = range(above, len(matrix)), range(width)
    size = max(len(rows), width)
    numbered = size <= MAX_NUMBERS
    figure.set_figheight(min(5.2, 1.3 + 0.45 * size) if size < 10 else 5.2)
    axes = figure.add_subplot()
    place = (-0.5, width - 0.5, len(matrix) - 0.5, above - 0.5)  # a cell lies at the numbers of its tasks
    image = axes.imshow(matrix[above:, :width].numpy(), cmap=MAP, vmin=low, vmax=high, aspect="auto", extent=place)
    names = short_names(task_names[: len(matrix)], 12 if numbered else 9)
    step = max(1, math.ceil(size / 15))
    long = max(map(len, names)) * size > 36
    axes.set_xticks(columns[::step], [str(i + 1) if long else names[i] for i in columns[::step]])
    axes.set_yticks(rows[::step], [f"{i + 1}  {names[i]}" for i in rows[::step]])
    axes.set_xlabel(column)
    axes.set_ylabel(row)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    digits = 2 if high >= 0.1 else 3  # a small drift is not none
    letters = 8.5 if digits == 2 else min(8.5, 72 / size)
    if numbered:
        for i, j in (~matrix.isnan()).nonzero().tolist():
            colour = number_colour((float(matrix[i, j]) - low) / (high - low))
            write_in_cell(axes, j, i, number(float(matrix[i, j]), digits), colour, letters)
    colour_bar(figure, image, axes)


def number_colour(place: float) -> str:
    """What is read best on a cell whose colour lies at this place of the map, from 0 to 1."""
    cell = to_hex(colormaps[MAP](min(max(place, 0.0), 1.0)))
    return max((ON_DARK, ON_BRIGHT), key=lambda colour: contrast(colour, cell))


def write_in_cell(axes: Axes, x: float, y: float, text: str, colour: str, size: float) -> None:
    written = axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=size)
    written.set_in_layout(False)  # it lies inside the axes: measuring hundreds of them changes no layout


def colour_bar(figure: Figure, mappable: ScalarMappable, axes: Axes) -> Colorbar:
    bar = figure.colorbar(mappable, ax=axes, fraction=0.03, pad=0.02, format="%g")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(which="both", length=0, labelsize=8)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return bar
