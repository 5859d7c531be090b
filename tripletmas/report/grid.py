"""A grid as a page shows it: which rows, below which headings, and what is said of each; `grid.html.j2` draws it.

Of a long grid a report shows a few rows of each task, those whose answer changed first: they show what changed, and
are no fair sample.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import torch
from PIL import Image
from torch import Tensor

from tripletmas.objectives.grid import Grid, Row
from tripletmas.report.html import data_uri, render
from tripletmas.report.numbers import number
from tripletmas.report.read import Run

QUERY_PIXELS = 160  # of a picture on the page of a query: the centre square, which is what a model is shown

_EACH, _IN_ALL = 4, 60  # rows of a task, and of a long stream's page
_SHARP = 2.25  # image pixels for each CSS pixel: more of them are not seen
_LOSSLESS = 48  # pictures with a longer side up to this are PNG, larger ones WebP
_TINY = 16  # pictures with a longer side up to this are enlarged pixel by pixel, not blurred


@dataclass(frozen=True)
class Group:
    """Rows below one heading; `note` says which of how many they are, "" for all."""

    title: str
    note: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI, and the CSS pixels that it takes."""

    source: str
    width: int
    height: int
    tiny: bool


def groups(grid: Grid, run: Run) -> list[Group]:
    """The rows of a report: by their own headings, else a few of each task."""
    titles = dict.fromkeys(row.group for row in grid.rows if row.group)
    made = [Group(title, "", [row for row in grid.rows if row.group == title]) for title in titles]
    by_task: dict[int, list[Row]] = {}
    for row in grid.rows:
        if not row.group:
            by_task.setdefault(row.task, []).append(row)
    each = max(1, min(_EACH, _IN_ALL // max(len(by_task), 1)))
    for task, rows in sorted(by_task.items()):
        chosen = sorted(rows, key=_changed)[:each]  # in their order where equal
        made.append(Group(f"Task {task + 1}\N{EN SPACE}{run.task_name(task)}", _note(rows, len(chosen)), chosen))
    return made


def query_page(grid: Grid, *, about: str, measure: str, notes: Sequence[str] = ()) -> str:
    """The page of `tripletmas query` as HTML. A picture that could not be read is shown as missing.

    Args:
        about: what was searched.
        measure: what the scores are.
        notes: sentences that a reader should see first.
    """
    nearest = "Nearest texts" if grid.texts else "Nearest images"
    title = f"{nearest} of {len(grid.rows)} queries" if len(grid.rows) != 1 else nearest
    said = f"{about}; scores: {measure}, larger is nearer"
    values = {"title": title, "about": [said], "grid": grid, "notes": notes, "versions": {}, "side": QUERY_PIXELS}
    return render("query.html.j2", {**values, **GRID_TOOLS})


def thumbnail(picture: Tensor, side: int = 64) -> Thumbnail:
    """A picture (c, h, w) uint8 whose longer side takes `side` CSS pixels, as PNG where it is small, else as WebP."""
    height, width = picture.shape[-2:]
    longest, largest = max(height, width), round(_SHARP * side)
    pixels = picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
    image = Image.fromarray(pixels.to(torch.uint8).contiguous().numpy())
    if longest > largest:
        image.thumbnail((largest, largest))
    kind, content = "png" if longest <= _LOSSLESS else "webp", io.BytesIO()
    image.save(content, kind, optimize=True, quality=82)
    size = (max(1, round(side * each / longest)) for each in (width, height))
    return Thumbnail(data_uri(content.getvalue(), kind), *size, tiny=longest <= _TINY)


def verdict(row: Row) -> tuple[str, bool | None]:
    """What is said of a row: its numbers, else how its first answer changed, and whether that is right now."""
    if row.values:
        numbers = (f"{name} {' → '.join(map(number, values))}" for name, values in row.values.items())
        return f"task {row.task + 1}; {', '.join(numbers)}", None
    before, after = row.found[0], row.found[-1]
    if not after:
        return "found nothing", False
    answer, changed = "right" if after[0].right else "wrong", ""
    if before:
        changed = "still " if before[0].right == after[0].right else "now "
    return changed + answer, after[0].right


def digits(grid: Grid) -> int:
    """How many digits tell the scores of a page apart: more where they are all nearly 1."""
    distances = [abs(1 - hit.score) for row in grid.rows for hits in row.found for hit in hits]
    return 3 if not distances or median_low(distances) > 0.02 else 5


def _changed(row: Row) -> int:
    """0 if the first answer turned from right to wrong or back, 1 if another number of them is right, 2 otherwise."""
    before, after = ([hit.right for hit in hits] for hits in (row.found[0], row.found[-1]))
    if not before:
        return 2
    if before[:1] != after[:1]:
        return 0
    return 1 if before.count(True) != after.count(True) else 2


def _note(rows: Sequence[Row], chosen: int) -> str:
    note = f"{chosen} of {len(rows)} queries"
    if not rows[0].found[0]:
        return note
    turned = sum(_changed(row) == 0 for row in rows)
    return f"{note}; the first answer turned right or wrong for {turned} of {len(rows)}"


GRID_TOOLS = {"thumbnail": thumbnail, "verdict": verdict, "digits": digits}  # what `grid.html.j2` calls
