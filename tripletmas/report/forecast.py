"""Forecasts of a run's updates, and how forecasts compare with what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from tripletmas.report.galleries import KINDS
from tripletmas.report.numbers import number
from tripletmas.report.read import Record, Run
from tripletmas.report.style import LIGHT, canvas, series_style

HEAD = ("update by task", "cosine to the re-embedding", "of nine in ten above", "two stored vectors")


@dataclass(frozen=True)
class Point:
    """One update on one gallery: what was told, (low, most likely, high), and what was measured.

    Attributes:
        series: what it belongs to, such as a data set; a series has one colour in all panels.
    """

    series: str
    told: tuple[float, float, float]
    measured: float


def forecast_rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """(columns, a row for each update that was forecast); ([], []) where none was.

    Its cells: the task; expected cosines; for each gallery the expected recall@1, and in brackets what was measured.
    """
    records = [each for each in run.directory.forecasts() if each["after"] < len(run.tasks)]
    names = [kind for kind in KINDS if any(kind in each["recall"] for each in records)]
    rows = [
        [
            run.task_name(each["after"]),
            *(number(each[key]) for key in ("cosine", "nine_in_ten", "between")),
            *(_cell(each["recall"].get(name), _measured(run.tasks[each["after"]], name)) for name in names),
        ]
        for each in records
    ]
    return ([*HEAD, *names], rows) if rows else ([], [])


def _cell(told: Sequence[float | None] | None, measured: float | None) -> str:
    if told is None or told[0] is None or told[2] is None:
        return "–"
    expected = f"{number(told[0])} to {number(told[2])}"
    return expected if measured is None else f"{expected} ({number(measured)})"


def _measured(task: Record, kind: str) -> float | None:
    """The mean recall@1 of a gallery of everything seen after a task; None where it was not measured."""
    found = task.get("scores", {}).get(f"seen{KINDS[kind]}", {}).get("recall@1")
    return None if not found or None in found else sum(found) / len(found)


def draw_forecasts(path: Path, panels: Mapping[str, Sequence[Point]]) -> None:
    """One panel for each gallery, side by side: what was told, with its interval, over what was measured.

    Raises:
        ValueError: if there is no point.
    """
    names = list(dict.fromkeys(point.series for points in panels.values() for point in points))
    if not names:
        raise ValueError("nothing to draw: no forecast is there yet")
    with canvas(path) as figure:
        figure.set_size_inches(min(11.8, 0.6 + 3.7 * len(panels)), 4.8)
        columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, points) in zip(columns, panels.items(), strict=True):
            _draw_panel(axes, title, points, names)
        columns[0].set_ylabel("expected recall@1, with its interval")
        handles, labels = columns[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(names))


def _draw_panel(axes: Axes, title: str, points: Sequence[Point], names: Sequence[str]) -> None:
    axes.plot([0, 1], [0, 1], color=LIGHT.muted, linewidth=1, zorder=1)
    for place, name in enumerate(names):
        own = [point for point in points if point.series == name]
        colour, _ = series_style(place)
        measured, middle = [point.measured for point in own], [point.told[1] for point in own]
        off = [
            [point.told[1] - point.told[0] for point in own],
            [point.told[2] - point.told[1] for point in own],
        ]
        marker = ("o", "^", "s", "D")[place % 4]
        axes.errorbar(measured, middle, yerr=off, fmt="none", ecolor=colour, elinewidth=1, alpha=0.45, zorder=2)
        axes.scatter(measured, middle, s=20, color=colour, marker=marker, label=name, zorder=3)
    inside = sum(point.told[0] <= point.measured <= point.told[2] for point in points)
    axes.set_title(f"{title}: {inside} of {len(points)} inside")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_aspect("equal")
    axes.grid()
    axes.set_xlabel("measured recall@1")
