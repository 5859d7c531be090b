"""The plots of a comparison: methods keep one colour through all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from tripletmas.report.compare import Comparison, Method
from tripletmas.report.embedding_plot import Picture, draw_points, name_tasks
from tripletmas.report.numbers import middle_cut, number, short_names
from tripletmas.report.plots import Line, draw_lines
from tripletmas.report.style import Theme, row_axis, series_style


def draw_average(figure: Figure, theme: Theme, comparison: Comparison) -> None:
    """The score over the tasks, mean over the tasks seen; the band is one standard deviation over the seeds."""
    lines, lows = [], [1.0]
    for i, method in enumerate(comparison.methods):
        if not len(method.curves):
            continue
        colour, marker = series_style(i, theme)
        mean = method.curves.mean(dim=0)
        band = method.curves.std(dim=0) if len(method.curves) > 1 else torch.zeros(0)
        lines.append(Line(mean.tolist(), _short(method), colour, band.tolist(), {"marker": marker}))
        lows.append(float(np.nanmin(mean - band if len(band) else mean)))
    low = math.floor(max(min(lows) - 0.01, 0) * 20) / 20
    figure.set_figheight(3.8)
    draw_lines(figure, theme, lines, f"average {comparison.kind.primary.label}", low)


def draw_forgetting(figure: Figure, theme: Theme, comparison: Comparison) -> None:
    """A bar for each method; the line across its end is one standard deviation to each side."""
    methods = comparison.methods
    figure.set_figheight(max(2.0, 0.7 + 0.42 * len(methods)))
    axes = figure.add_subplot()
    axes.axvline(0, color=theme.muted, linewidth=0.8)
    for i, method in enumerate(methods):
        spread, colour = method.forgetting, series_style(i, theme)[0]
        if math.isnan(spread.mean):
            axes.text(0, i, " not measured", va="center", color=theme.muted, fontsize=8.5)
            continue
        axes.barh(i, spread.mean, height=0.6, color=colour)
        reach = spread.mean + (spread.deviation or 0.0)
        if spread.deviation is not None:
            axes.hlines(i, spread.mean - spread.deviation, reach, color=theme.ink, linewidth=1.1)
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        axes.annotate(number(spread.mean), (max(reach, 0), i), **place)
    row_axis(axes, [_short(method) for method in methods], edge=0.6)
    axes.margins(x=0.14)
    axes.tick_params(axis="y", labelcolor=theme.ink)
    # its end is that of the axis: from its middle it would reach beyond the figure, since names stand on the left
    axes.set_xlabel(f"forgetting ({comparison.kind.primary.label} lost since the best moment)", loc="right")


def draw_per_task(figure: Figure, theme: Theme, comparison: Comparison) -> None:
    """The final scores: a row for each task, a dot for each method, a line for one standard deviation to each side."""
    methods, size = comparison.methods, len(comparison.task_names)
    each = 0.2 + 0.085 * len(methods) if size <= 12 else 0.26
    figure.set_size_inches(9.6, max(2.4, 1.0 + each * size))
    axes = figure.add_subplot()
    for edge in range(size - 1):
        axes.axhline(edge + 0.5, color=theme.rule, linewidth=0.7)
    for i, method in enumerate(methods):
        colour, marker = series_style(i, theme)
        offset = ((i + 0.5) / len(methods) - 0.5) * 0.72
        rows = np.arange(size) + offset
        mark = {"s": 24, "color": colour, "marker": marker, "label": _short(method), "zorder": 3}
        axes.scatter([spread.mean for spread in method.per_task], rows, **mark)
        for row, spread in zip(rows, method.per_task, strict=True):
            if spread.deviation is not None:
                reach = (spread.mean - spread.deviation, spread.mean + spread.deviation)
                axes.hlines(row, *reach, color=colour, linewidth=1.1)
    names = [f"{i + 1}  {name}" for i, name in enumerate(short_names(comparison.task_names, 18))]
    row_axis(axes, names, edge=0.5)
    axes.grid(axis="x")
    axes.set_xlabel(f"{comparison.kind.primary.label} after the last task")
    figure.legend(loc="outside upper left", ncols=min(4, len(methods)), handletextpad=0.2, columnspacing=1.2)


def draw_embeddings(figure: Figure, theme: Theme, pictures: Sequence[tuple[str, Picture]]) -> None:
    """The final embeddings side by side, at most four in a row."""
    columns = len(pictures) if len(pictures) <= 4 else 3
    rows = math.ceil(len(pictures) / columns)
    figure.set_size_inches(min(11.8, 5 * columns), (3.0 if columns == 4 else 3.8) * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (label, picture) in zip(panels, pictures, strict=False):
        axes.set_title(label)
        draw_points(axes, picture, theme)
        axes.spines[:].set_visible(True)
    for axes in panels[len(pictures) :]:
        axes.remove()
    if len(pictures) > 1:  # else the legend would be wider than the figure
        name_tasks(figure, panels[0], pictures[0][1])


def _short(method: Method) -> str:
    return middle_cut(method.label, 26)
