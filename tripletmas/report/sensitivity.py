"""How much the choice of a strength matters: what each method gains or loses against finetune, over its strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tripletmas.report.style import LIGHT, canvas, label_line_ends, log_axis, series_style


@dataclass(frozen=True)
class Curve:
    """The final average of one method at several strengths.

    Attributes:
        strengths: > 0, ascending.
        means: the average over the seeds, in the same unit as `Panel.finetune`.
        deviations: over the seeds, 0 for a single one.
    """

    strengths: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One data set.

    Attributes:
        curves: label -> curve; a label has one colour in all panels.
        finetune: mean and standard deviation of finetune on this data set.
    """

    title: str
    curves: Mapping[str, Curve]
    finetune: tuple[float, float]


def draw_sensitivity(
    path: Path,
    panels: Sequence[Panel],
    *,
    score: str = "average recall@1",
    base: str = "finetune",
    axis: str = "strength",
    bottom: float | None = None,
) -> None:
    """One panel for each data set, side by side: strength (log) against the change of the final average to finetune.

    The change is shown and not the average itself, so that data sets of different difficulty share one axis. Bands are
    one standard deviation to each side, the grey one finetune's own. A curve is named at its end in the last panel
    that has it.

    Args:
        score: what was measured, for the axis.
        base: what it is compared with: the panels' `finetune`.
        axis: what was varied.
        bottom: where the axis ends, such as -0.1, so that a method that collapses does not flatten the others; None
            shows everything.

    Raises:
        ValueError: if there is no panel, or a curve's numbers do not belong together or have a strength <= 0.
    """
    if not panels:
        raise ValueError("nothing to draw: give at least one panel")
    last = {label: i for i, panel in enumerate(panels) for label in panel.curves}
    labels = list(last)  # in the order in which they come first
    with canvas(path) as figure:
        figure.set_figwidth(min(11.8, 1.6 + 3.6 * len(panels)))
        columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(columns, panels, strict=True):
            _draw_panel(axes, panel, labels)
            axes.set_xlabel(axis)
        columns[0].set_ylim(bottom=bottom)
        columns[0].set_ylabel(f"{score}, change to {base}")
        for i, (axes, panel) in enumerate(zip(columns, panels, strict=True)):  # the shared scale is now known
            named = {label: curve for label, curve in panel.curves.items() if last[label] == i}
            _name_ends(axes, panel, named, labels, base if axes is columns[-1] else None)


def _draw_panel(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    base, spread = panel.finetune
    for label, curve in panel.curves.items():
        _check(f"{panel.title}, {label}", curve)
    axes.set_title(panel.title)
    axes.axhspan(-spread, spread, color=LIGHT.rule, alpha=0.6, linewidth=0)
    axes.axhline(0, color=LIGHT.muted, linewidth=1)
    for label, curve in panel.curves.items():
        colour, marker = series_style(labels.index(label))
        change, deviation = np.asarray(curve.means) - base, np.asarray(curve.deviations)
        axes.plot(curve.strengths, change, color=colour, marker=marker)
        axes.fill_between(
            curve.strengths, change - deviation, change + deviation, color=colour, alpha=0.13, linewidth=0
        )
    values = sorted({value for curve in panel.curves.values() for value in curve.strengths})
    if values and values[-1] < 100 * values[0]:  # too few decades for a scale of them
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    else:
        log_axis(axes, ticks=7)
    axes.yaxis.set_major_formatter(lambda value, _: _signed(round(value, 4)))
    axes.tick_params(which="both", length=0)
    axes.grid(axis="y")


def _name_ends(axes: Axes, panel: Panel, curves: Mapping[str, Curve], labels: Sequence[str], base: str | None) -> None:
    """The names stand right of the axes; a thin line leads from a curve that ends earlier to its height there."""
    right = axes.get_xlim()[1]
    ends = [(0.0, base, LIGHT.muted)] if base else []
    for label, curve in curves.items():
        colour, y = series_style(labels.index(label))[0], float(curve.means[-1]) - panel.finetune[0]
        y = max(y, axes.get_ylim()[0])  # where the axis is cut, the name stands at the cut
        axes.plot([curve.strengths[-1], right], [y, y], color=colour, linewidth=0.7, linestyle=(0, (1, 2)))
        ends.append((y, label, colour))
    axes.set_xlim(right=right)
    label_line_ends(axes, ends, x=right)


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"


def _check(name: str, curve: Curve) -> None:
    counts = {len(curve.strengths), len(curve.means), len(curve.deviations)}
    if len(counts) > 1 or not len(curve.strengths):
        raise ValueError(f"{name}: needs as many means and deviations as strengths, and at least one")
    if min(curve.strengths) <= 0:
        raise ValueError(f"{name}: strengths must be > 0 for a logarithmic axis, got {min(curve.strengths)}")
