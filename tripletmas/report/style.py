"""How every plot looks: type, colours, size; and the canvas that writes one as PNG.

Lines take the colours of Okabe and Ito, maps take cividis: both are told apart by colour-blind readers and in grey.
A page has a light and a dark theme, and so has every plot: it is drawn in one, and painted in the other (`repaint`).
Figures are matplotlib objects on an Agg canvas; pyplot, and with it any state that outlives a plot, is not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

MAP = "cividis"
ON_DARK, ON_BRIGHT = "#ffffff", "#14171b"  # numbers on the cells of a map, whatever the theme


@dataclass(frozen=True)
class Theme:
    """The colours of a page and of its plots. Colours are "#rrggbb".

    Attributes:
        name: "light" or "dark".
        ink, muted: text; at least 4.5:1 against `background` and `tint`.
        rule, tint: thin lines, and boxes.
        accent, right, wrong: links and the keyboard's focus; answers. At least 4.5:1 against `background`.
        series: of several series, in order.
        ramp: where on the map the first and the last of many series lie, so that both stand out.
    """

    name: str
    background: str
    ink: str
    muted: str
    rule: str
    tint: str
    accent: str
    right: str
    wrong: str
    series: tuple[str, ...]
    ramp: tuple[float, float]

    def in_order(self, count: int) -> list[str]:
        """`count` colours along the map, for series that follow each other and are too many to tell apart."""
        first, last = self.ramp
        return [to_hex(colormaps[MAP](first + (last - first) * i / max(count - 1, 1))) for i in range(count)]

    def readable(self, colour: str) -> str:
        """The colour, moved towards the ink until text in it has a contrast of 4.5:1."""
        for part in range(0, 101, 5):
            channels = zip(to_rgb(colour), to_rgb(self.ink), strict=True)
            red, green, blue = ((1 - part / 100) * own + part / 100 * ink for own, ink in channels)
            if contrast(mixed := to_hex((red, green, blue)), self.background) >= 4.5:
                return mixed
        return self.ink


LIGHT = Theme(
    name="light",
    background="#ffffff",
    ink="#1b1f24",
    muted="#5b6570",
    rule="#dfe3e8",
    tint="#f6f7f9",
    accent="#0069a6",
    right="#007a5a",
    wrong="#b84a00",
    series=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#555555"),
    ramp=(0.0, 0.88),
)
DARK = Theme(
    name="dark",
    background="#14181d",
    ink="#e8ebee",
    muted="#a3adb8",
    rule="#343c45",
    tint="#1d232a",
    accent="#6cb8ea",
    right="#3cc79a",
    wrong="#f58f4d",
    series=("#4ba3db", "#f2813a", "#2dbd92", "#de9dc1", "#f2b33d", "#9ad3f5", "#c4a93f", "#a9b0b8"),
    ramp=(0.32, 1.0),
)
THEMES = (LIGHT, DARK)

MARKERS = ("o", "^", "s", "D")
WIDTH = 4.6  # inches at 96 CSS pixels: two plots stand side by side on a page of 1280 pixels; a phone shows it at 4/5
HEIGHT = 3.2  # of a plot that says nothing else
DPI = 192  # two image pixels for each CSS pixel

_FONTS = ("Helvetica Neue", "Segoe UI", "Arial", "Liberation Sans", "DejaVu Sans")  # as in style.css


@contextmanager
def canvas(path: Path, theme: Theme = LIGHT) -> Iterator[Figure]:
    """An empty figure to draw on, written to `path` as PNG at the end. Text is never read as TeX."""
    with matplotlib.rc_context(_style(theme)):
        figure = _empty()
        yield figure
        save_png(_picture(figure), path)


def drawn(draw: Callable[[Figure, Theme], None], theme: Theme) -> Figure:
    """What is drawn on a `canvas`, not laid out yet and not written anywhere."""
    with matplotlib.rc_context(_style(theme)):
        figure = _empty()
        draw(figure, theme)
        return figure


def painted(figure: Figure, theme: Theme) -> Image.Image:
    """The picture of a figure that was drawn in this theme. It is laid out the first time, and stays so."""
    with matplotlib.rc_context(_style(theme)):
        image = _picture(figure)
        figure.set_layout_engine("none")
        return image


def halo(theme: Theme) -> list[AbstractPathEffect]:
    """What lets letters be read that stand among points."""
    return [withStroke(linewidth=3, foreground=theme.background)]


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture as PNG."""
    image.save(path, "png", dpi=(DPI, DPI), compress_level=3)  # 40 % less time, 8 % more bytes


def _empty() -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _picture(figure: Figure) -> Image.Image:
    """What is on a `canvas`, all of which has been painted over."""
    canvas: Any = figure.canvas
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes: no reason to fail or to worry anyone.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save_svg(draw: Callable[[Figure, Theme], None], path: Path) -> None:
    """Draw what is drawn on a `canvas` in the light theme as SVG, for print; the same drawing gives the same bytes."""
    with matplotlib.rc_context({**_style(LIGHT), "svg.hashsalt": path.stem}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, LIGHT)
        figure.savefig(path, format="svg", metadata={"Date": None})


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    low, high = sorted(_luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def series_style(i: int, theme: Theme = LIGHT) -> tuple[str, str]:
    """The colour and the marker of the i-th of several series: all pairs differ up to 32."""
    return theme.series[i % len(theme.series)], MARKERS[i // len(theme.series) % len(MARKERS)]


def label_line_ends(
    axes: Axes, ends: Sequence[tuple[float, str, str]], theme: Theme = LIGHT, *, x: float, gap: float = 0.05
) -> None:
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
        axes.annotate(text, (x, y), color=theme.readable(colour), fontsize=8.5, **place)


def task_axis(axes: Axes, num_tasks: int, *, label: str = "after task", names: Sequence[str] = ()) -> None:
    """The x axis 1, 2, ..., num_tasks with at most about ten numbers on it, and the names of the tasks if they fit."""
    axes.set_xlabel(label)
    axes.set_xlim(0.85, num_tasks + 0.15)
    shown = range(1, num_tasks + 1, max(1, round(num_tasks / 10)))
    fits = len(names) >= num_tasks and sum(len(name) + 4 for name in names[:num_tasks]) <= 48
    axes.set_xticks(shown, [f"{i}  {names[i - 1]}" for i in shown] if fits else None)


def score_axis(axes: Axes, low: float, label: str, *, high: float = 1.0) -> None:
    """The y axis of scores, from `low` to `high`."""
    axes.set_ylim(low, high + (high - low) / 100)
    axes.set_ylabel(label)
    axes.grid(axis="y")


def row_axis(axes: Axes, names: Sequence[str], rows: Sequence[float] | None = None, *, edge: float) -> None:
    """The y axis of things with names, the first on top; `rows` is where they are, None for 0, 1, ..."""
    rows = range(len(names)) if rows is None else rows
    axes.set_yticks(rows, names)
    axes.set_ylim(rows[-1] + edge, -edge)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def log_axis(axes: Axes, *, ticks: int) -> None:
    """A logarithmic x axis with numbers at whole powers, at most so many."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=ticks))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def without_scales(axes: Axes) -> None:
    """Axes of a picture whose places mean nothing by themselves."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, WCAG 2."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _style(theme: Theme) -> dict[Any, Any]:
    installed = set(fontManager.get_font_names())
    return {
        "font.family": [name for name in _FONTS if name in installed],
        "font.size": 9.5,
        "text.parse_math": False,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.labelsize": 9,
        "axes.edgecolor": theme.rule,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titlecolor": theme.ink,
        "axes.grid": False,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": theme.rule,
        "grid.linewidth": 0.7,
        "xtick.color": theme.rule,
        "ytick.color": theme.rule,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "axes.facecolor": theme.background,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
    }
