"""How every plot looks: type, colours, size; and the canvas that writes one as PNG.

Lines take the colours of Okabe and Ito, maps take cividis: both are told apart by colour-blind readers and in grey.
Figures are matplotlib objects on an Agg canvas; pyplot, and with it any state that outlives a plot, is not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

INK, MUTED, RULE = "#1b1f24", "#5b6570", "#dfe3e8"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#555555")
MARKERS = ("o", "^", "s", "D")
MAP = "cividis"
WIDTH = 5.6  # inches at 96 CSS pixels: two plots stand side by side on a page of 1200 pixels
DPI = 192  # two image pixels for each CSS pixel

_FONTS = ("Helvetica Neue", "Segoe UI", "Arial", "Liberation Sans", "DejaVu Sans")  # as in style.css


@contextmanager
def canvas(path: Path, *, width: float = WIDTH, height: float = 3.6) -> Iterator[Figure]:
    """An empty figure to draw on, written to `path` as PNG at the end. Text is never read as TeX."""
    with matplotlib.rc_context(_style()):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with warnings.catch_warnings():
            # A class name in a script that the font lacks is drawn as boxes: no reason to fail or to worry anyone.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(path, dpi=DPI)


def series_style(i: int) -> tuple[str, str]:
    """The colour and the marker of the i-th of several series: all pairs differ up to 32."""
    return COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]


def label_line_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], *, x: float, gap: float = 0.05) -> None:
    """Write (y, text, colour) right of x, moved apart so that no two lie closer than `gap` of the axis height."""
    low, high = axes.get_ylim()
    step = gap * (high - low)
    ends = sorted(ends)
    placed: list[float] = []
    for y, _, _ in ends:
        placed.append(y if not placed else max(y, placed[-1] + step))
    excess = placed[-1] - high if placed else 0
    if excess > 0:  # the stack has grown out of the top: move it down, keeping its distances
        placed[-1] -= excess
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - step)
    for y, (_, text, colour) in zip(placed, ends, strict=True):
        place = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(text, (x, y), color=colour, fontsize=8.5, **place)


def task_axis(axes: Axes, num_tasks: int, *, label: str = "after task") -> None:
    """The x axis 1, 2, ..., num_tasks with at most about ten numbers on it."""
    axes.set_xlabel(label)
    axes.set_xlim(0.85, num_tasks + 0.15)
    axes.set_xticks(range(1, num_tasks + 1, max(1, round(num_tasks / 10))))


def _style() -> dict[Any, Any]:
    installed = set(fontManager.get_font_names())
    return {
        "font.family": [name for name in _FONTS if name in installed],
        "font.size": 9.5,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.labelsize": 9,
        "axes.edgecolor": RULE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.grid": False,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
    }
