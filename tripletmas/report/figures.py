"""A plot as a page shows it: drawn in the light and in the dark theme, each inside the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from tripletmas.report.html import data_uri
from tripletmas.report.style import DARK, LIGHT, Theme


class Draw(Protocol):
    """Draws one plot as PNG at `path`."""

    def __call__(self, path: Path, /, *, theme: Theme) -> None: ...


@dataclass(frozen=True)
class Plot:
    """A picture on a page.

    Attributes:
        text: what it shows, for a reader who knows none of the terms.
        alt: what one sees in it, for a reader who sees no pictures.
        image, dark_image: the picture of each theme as a data URI: lossless WebP, half as large as the PNG.
        width, height: in CSS pixels, half as many as the picture has, so that it is sharp on every screen.
        wide: whether it takes the whole width of the page.
    """

    title: str
    text: str
    alt: str
    image: str
    dark_image: str
    width: int
    height: int
    wide: bool


def make_plot(path: Path, title: str, text: str, draw: Draw, *, alt: str = "", wide: bool = False) -> Plot:
    """Draw `<path>` and, for dark pages, `<stem>-dark.png` beside it.

    Args:
        alt: what one sees; without it, that it is the plot of this title.
    """
    dark = path.with_name(f"{path.stem}-dark{path.suffix}")
    draw(path, theme=LIGHT)
    draw(dark, theme=DARK)
    with Image.open(path) as image:
        width, height = image.width // 2, image.height // 2
    alt = alt or f"Plot: {title}."
    return Plot(title, text, alt, _as_webp(path), _as_webp(dark), width, height, wide)


def _as_webp(path: Path) -> str:
    with Image.open(path) as image:
        return data_uri(image.convert("RGB"), "webp", lossless=True)
