"""What the tests of reports read off pages, tables and plots."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from rich.console import Console

from tripletmas.report.tables import comparison_table

# After the last task: (0.6 + 0.7 + 0.95) / 3 = 0.75. Best before: 0.9 and 0.8, so (0.3 + 0.1) / 2 = 0.2 was forgotten.
# Right after learning: 0.9, 0.8, 0.95, mean 0.8833. Backward transfer: ((0.6 - 0.9) + (0.7 - 0.8)) / 2 = -0.2.
MATRIX = [[0.9], [0.85, 0.8], [0.6, 0.7, 0.95]]

# Names that a page must show as they are: markup, TeX, a script that fonts lack, a long one.
EVIL = '<script>document.title = "broken"</script>'
NAMES = [EVIL, "</script><b>", "[red] a & b", "$\\frac$", "木 &amp;", "<!-- ]]> " + "a" * 200]


class Page(HTMLParser):
    """The visible words of a page, its tags, and its image sources."""

    def __init__(self, page: Path):
        super().__init__()
        self.words, self.tags, self.sources = [], [], []
        self.feed(page.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = (value or "" for name, value in attrs if name in ("src", "href", "srcset"))
        self.sources += [value for value in named if not value.startswith("#")]  # that is a place on the page itself

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def terminal(compared, width: int = 120) -> str:
    return printed(comparison_table(compared), width)


def printed(renderable, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable)
    return console.export_text()


def ink(path: Path) -> float:
    """The part of a picture that is not white."""
    return float((np.abs(imread(path)[..., :3] - 1).max(axis=-1) > 0.1).mean())
