"""The page of `tripletmas query`: what was asked, and what was found, with large pictures."""

from __future__ import annotations

from collections.abc import Sequence

from tripletmas.objectives.grid import Grid
from tripletmas.report.grid import shown
from tripletmas.report.html import render

PIXELS = 160  # of a picture: the centre square, which is what a model is shown


def query_page(grid: Grid, *, about: str, measure: str, notes: Sequence[str] = ()) -> str:
    """The page as HTML, with its pictures inside. A picture that could not be read is shown as missing.

    Args:
        about: what was searched.
        measure: what the scores are.
        notes: sentences that a reader should see first.
    """
    title = f"Nearest images of {len(grid.rows)} queries" if len(grid.rows) != 1 else "Nearest images"
    values = {
        "title": title,
        "about": [f"{about}; scores: {measure}, larger is nearer"],
        "rows": shown(grid, grid.rows, side=PIXELS, digits=6),
        "notes": notes,
        "versions": {},
    }
    return render("query.html.j2", values)
