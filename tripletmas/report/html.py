"""HTML from the templates, and the pictures inside it: a page is one file. Plots are in both themes."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import BoundedSemaphore
from typing import Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from tripletmas.basics.locks import locked
from tripletmas.report import texts
from tripletmas.report.numbers import begun, end_cut, middle_cut, number
from tripletmas.report.repaint import repaint
from tripletmas.report.spots import Spot, spots_of
from tripletmas.report.style import DARK, LIGHT, THEMES, Theme, drawn, painted, save_png, save_svg
from tripletmas.report.values import Values

_PATIENCE = 600.0  # seconds; a page takes less than a minute


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keeps the folder of a page, made if absent, from other processes that write the page in it: they wait."""
    with locked(out / ".lock", f"the page in {out}", patience=_PATIENCE):
        yield


class Draw(Protocol):
    """Draws one plot."""

    def __call__(self, figure: Figure, theme: Theme) -> None: ...


@dataclass(frozen=True)
class Plot:
    """A picture on a page.

    Attributes:
        text: what it shows, for a reader who knows none of the terms.
        alt: what one sees in it, for a reader who sees no pictures.
        images: what becomes the picture of each theme as a data URI: lossless WebP, half as large as the PNG.
        width, height: in CSS pixels, half as many as the picture has, so that it is sharp on every screen.
        wide: whether it takes the whole width of the page.
        values: what it shows as a table; None where there is none.
        spots: where its values lie, for the pointer.
        draw: draws it on a figure.
        path: its light picture; that of other kinds stands beside it.
    """

    title: str
    text: str
    alt: str
    draw: Draw
    path: Path
    images: tuple[Future[str], Future[str]]
    width: int
    height: int
    wide: bool
    values: Values | None = None
    spots: Sequence[Spot] = ()

    @property
    def image(self) -> str:
        """The light one, once it is there; an OSError where its file could not be written."""
        return self.images[0].result()

    @property
    def dark_image(self) -> str:
        """The dark one."""
        return self.images[1].result()


def make_plot(
    path: Path, title: str, text: str, draw: Draw, *, alt: str = "", wide: bool = False, values: Values | None = None
) -> Plot:
    """Draw `<path>` and, for dark pages, `<stem>-dark.png` beside it; they are written while the next one is drawn.

    Args:
        alt: what one sees; without it, that it is the plot of this title.
    """
    figure = drawn(draw, LIGHT)
    light, spots = painted(figure, LIGHT), spots_of(figure)
    repaint(figure, LIGHT, DARK)
    dark = painted(figure, DARK)
    images = _written(light, path), _written(dark, path.with_name(f"{path.stem}-dark{path.suffix}"))
    width, height, alt = light.width // 2, light.height // 2, alt or f"Plot: {title}."
    return Plot(title, text, alt, draw, path, images, width, height, wide, values, spots)


def write_svg(plots: Iterable[Plot]) -> None:
    """Write plots as SVG, too."""
    for plot in plots:
        save_svg(plot.draw, plot.path.with_suffix(".svg"))


def _written(image: Image.Image, path: Path) -> Future[str]:
    """A picture as PNG in its file, and as a data URI, once that has been done beside."""
    writer, waiting = _writer()
    waiting.acquire()  # a few at most: each takes megabytes until it is written
    written = writer.submit(_encoded, image, path)
    written.add_done_callback(lambda _: waiting.release())
    return written


def _encoded(image: Image.Image, path: Path) -> str:
    save_png(image, path)
    content = io.BytesIO()
    # without loss "quality" is effort: a quarter of the default's time, and a quarter more bytes
    image.save(content, "webp", lossless=True, quality=20, method=2)
    return data_uri(content.getvalue(), "webp")


@cache
def _writer() -> tuple[ThreadPoolExecutor, BoundedSemaphore]:
    """What encodes pictures, which needs no lock of Python's, and how many may wait for it."""
    return ThreadPoolExecutor(1), BoundedSemaphore(8)


def render(template: str, values: Mapping[str, object]) -> str:
    """The page that a template makes of these values; what is in them is text, never markup."""
    return _environment().get_template(template).render({"texts": texts, "themes": THEMES, **values})


def contents(body: str) -> list[tuple[str, str]]:
    """(id, title as HTML) of the sections of a page."""
    return [(name, Markup(title)) for name, title in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body)]


def data_uri(content: bytes, kind: str) -> str:
    """An encoded picture of this kind, "png" or "webp", as the source of an <img>."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


@cache
def _environment() -> Environment:
    loader = PackageLoader("tripletmas.report", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(contents=contents, begun=begun, number=number, middle_cut=middle_cut, end_cut=end_cut)
    made.filters.update(breakable=breakable)
    return made


def breakable(name: str) -> Markup:
    """A name that a narrow column breaks after its underscores, slashes and plus signs, rather than anywhere.

    >>> str(breakable("runs/gram_0.5 & more"))
    'runs/<wbr>gram_<wbr>0.5 &amp; more'
    """
    return Markup(re.sub(r"([_/+])(?=\w)", r"\1<wbr>", str(escape(name))))
