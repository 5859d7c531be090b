"""Where on a plot its values lie, and what is said of each, for a script that shows them below the pointer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from tripletmas.report.numbers import number

MOST = 1200  # of a plot: where there are more, the pointer cannot tell them apart
Spot = tuple[float, float, str]  # x and y as parts of the width and height, from the top left; what is said


def spots_of(figure: Figure) -> list[Spot]:
    """The values of a figure that has been drawn: of lines and points with a label, and of the cells of maps.

    A line's group id is what its x axis counts, where the axis itself does not say it.
    """
    found = [spot for axes in figure.axes for spot in _of_axes(axes)]
    return found if len(found) <= MOST else []


def _of_axes(axes: Axes) -> Iterator[Spot]:
    for artist in axes.get_children():
        label = str(artist.get_label())
        if isinstance(artist, AxesImage):
            yield from _of_map(axes, artist)
        elif label.startswith("_") or not label:
            continue
        elif isinstance(artist, Line2D):
            yield from _of_line(axes, artist, label)
        elif isinstance(artist, PathCollection):
            yield from _of_rows(axes, artist, label)


def _of_line(axes: Axes, line: Line2D, label: str) -> Iterator[Spot]:
    counted = line.get_gid() or axes.get_xlabel()
    for x, y in np.asarray(line.get_xydata(), dtype=float):
        if not math.isnan(y):
            yield _spot(axes, x, y, f"{label}, {counted} {x:g}: {_value(y)}")


def _of_rows(axes: Axes, points: PathCollection, label: str) -> Iterator[Spot]:
    """Points in rows that the y axis names: their value is x. Without names places mean nothing."""
    names = _ticks(axes.yaxis)
    for x, y in np.asarray(points.get_offsets(), dtype=float) if names else ():
        name = names.get(round(y), names.get(y))
        if name is not None and not math.isnan(x):
            yield _spot(axes, x, y, f"{name}, {label}: {_value(x)}")


def _of_map(axes: Axes, image: AxesImage) -> Iterator[Spot]:
    rows, columns = _ticks(axes.yaxis), _ticks(axes.xaxis)
    values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
    if values.size > MOST:
        return
    left, _, _, top = (round(edge + 0.5) for edge in image.get_extent())
    for (down, across), value in np.ndenumerate(values):
        row, column = down + top, across + left
        if not math.isnan(value):
            said = (
                f"{axes.get_ylabel()} {rows.get(row, row + 1)}, {axes.get_xlabel()} {columns.get(column, column + 1)}"
            )
            yield _spot(axes, column, row, f"{said}: {_value(value)}")


def _spot(axes: Axes, x: float, y: float, said: str) -> Spot:
    figure = axes.get_figure()
    assert figure is not None
    width, height = figure.bbox.size
    across, up = axes.transData.transform((x, y))
    return round(float(across / width), 4), round(float(1 - up / height), 4), said


def _ticks(axis: Any) -> dict[float, str]:
    """Place -> name, of ticks that have one."""
    named = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
    return {float(place): text.get_text() for place, text in named if text.get_text()}


def _value(value: float) -> str:
    return number(value) if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"
