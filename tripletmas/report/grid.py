"""A grid as a page shows it: what was asked, and the pictures of what was found for it, marked right or wrong.

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

from tripletmas.objectives.grid import Grid, Hit, Row
from tripletmas.report.html import data_uri, render
from tripletmas.report.numbers import middle_cut, number
from tripletmas.report.read import Run

QUERY_PIXELS = 160  # of a picture on the page of a query: the centre square, which is what a model is shown

_EACH, _IN_ALL = 4, 60  # rows of a task, and of a long stream's page
_SHARP = 2.25  # image pixels for each CSS pixel: more of them are not seen
_LOSSLESS = 48  # pictures with a longer side up to this are PNG, larger ones WebP
_TINY = 16  # pictures with a longer side up to this are enlarged pixel by pixel, not blurred


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI, and the CSS pixels that it takes."""

    source: str
    width: int
    height: int
    tiny: bool


@dataclass(frozen=True)
class Card:
    """A picture with what is said below it.

    Attributes:
        picture: None for what has none; `missing` where that is because it could not be read.
        right: None where nobody says.
        label: what it is; `short` is the same, cut to fit.
        path: where it lies.
    """

    picture: Thumbnail | None
    missing: bool
    alt: str
    right: bool | None = None
    said: str = ""
    label: str = ""
    short: str = ""
    path: str = ""


@dataclass(frozen=True)
class Shown:
    """A row; `said` is the verdict on it, or its numbers; `right` the verdict, None for numbers."""

    asked: Card
    name: str
    said: str
    right: bool | None
    found: tuple[tuple[str, tuple[Card, ...]], ...]


@dataclass(frozen=True)
class Group:
    """Rows below one heading; `note` says which of how many they are, "" for all."""

    title: str
    note: str
    rows: tuple[Shown, ...]


def groups(grid: Grid, run: Run) -> list[Group]:
    """The rows of a report: by their own headings, else a few of each task."""
    tasks = sorted({row.task for row in grid.rows})
    each = max(1, min(_EACH, _IN_ALL // max(len(tasks), 1)))
    made = []
    for title in dict.fromkeys(row.group for row in grid.rows if row.group):
        made.append(Group(title, "", shown(grid, [row for row in grid.rows if row.group == title])))
    for task in tasks:
        if rows := [row for row in grid.rows if row.task == task and not row.group]:
            title = f"Task {task + 1}\N{EN SPACE}{run.task_name(task)}"
            chosen = sorted(rows, key=_changed)[:each]  # in their order where equal
            made.append(Group(title, _note(rows, len(chosen)), shown(grid, chosen)))
    return made


def _note(rows: Sequence[Row], chosen: int) -> str:
    note = f"{chosen} of {len(rows)} queries"
    if not rows[0].found[0]:
        return note
    turned = sum(_changed(row) == 0 for row in rows)
    return f"{note}; the first answer turned right or wrong for {turned} of {len(rows)}"


def shown(grid: Grid, rows: Sequence[Row], *, side: int = 64, digits: int | None = None) -> tuple[Shown, ...]:
    """Rows as a page shows them.

    Args:
        side: the CSS pixels of a picture's longer side.
        digits: of a score; None for as many as tell those of the grid apart, without ranks and paths.
    """

    def picture(name: str) -> tuple[Thumbnail | None, bool]:
        found = grid.pictures.get(name)
        return (None, name in grid.pictures) if found is None else (thumbnail(found, side), False)

    def card(rank: int, hit: Hit) -> Card:
        score = f"{hit.score:.{few if digits is None else digits}f}"
        judged = "" if hit.right is None else ", right" if hit.right else ", wrong"
        label = hit.label or ""
        alt = f"rank {rank}: {label}{judged}, score {score}".replace(": , ", ": ")
        said, path = (score, "") if digits is None else (f"{rank} · {score}", hit.name)
        return Card(*picture(hit.name), alt, hit.right, said, label, middle_cut(label, 22), path)

    def cards(hits: Sequence[Hit]) -> tuple[Card, ...]:
        return tuple(card(rank, hit) for rank, hit in enumerate(hits, start=1))

    few = _digits(grid)
    return tuple(
        Shown(
            Card(*picture(row.name), f"query: {row.label or row.name}", said="query"),
            row.label or row.name,
            *_said(row),
            tuple((moment, cards(hits)) for moment, hits in zip(grid.moments, row.found, strict=True)),
        )
        for row in rows
    )


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
        "rows": shown(grid, grid.rows, side=QUERY_PIXELS, digits=6),
        "notes": notes,
        "versions": {},
    }
    return render("query.html.j2", values)


def thumbnail(picture: Tensor, side: int) -> Thumbnail:
    """A picture (c, h, w) uint8 for `side` CSS pixels, as PNG where it is small, else as WebP."""
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


def _changed(row: Row) -> int:
    """0 if the first answer turned from right to wrong or back, 1 if another number of them is right, 2 otherwise."""
    before, after = ([hit.right for hit in hits] for hits in (row.found[0], row.found[-1]))
    if not before:
        return 2
    if before[:1] != after[:1]:
        return 0
    return 1 if before.count(True) != after.count(True) else 2


def _said(row: Row) -> tuple[str, bool | None]:
    """The row's numbers, or how its first answer changed; and whether that is right."""
    if row.values:
        numbers = (f"{name} {' → '.join(map(number, values))}" for name, values in row.values.items())
        return f"task {row.task + 1}; {', '.join(numbers)}", None
    before, after = row.found[0], row.found[-1]
    if not after:
        return "found nothing", False
    answer = "right" if after[0].right else "wrong"
    if not before:
        return answer, after[0].right
    return f"{'still' if before[0].right == after[0].right else 'now'} {answer}", after[0].right


def _digits(grid: Grid) -> int:
    """How many digits tell the scores of a page apart: more where they are all nearly 1."""
    distances = [abs(1 - hit.score) for row in grid.rows for hits in row.found for hit in hits]
    return 3 if not distances or median_low(distances) > 0.02 else 5
