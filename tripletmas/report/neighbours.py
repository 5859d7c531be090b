"""Queries with the five nearest items, before and after the last task, from gallery/neighbours.safetensors.

The gallery is the fresh one of everything seen at the time. A few queries of each task are shown, those whose answer
changed first: they show what changed, and are no fair sample.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from tripletmas.report.classes import Classes
from tripletmas.report.figures import data_uri
from tripletmas.report.layers import read_tensors
from tripletmas.report.numbers import middle_cut
from tripletmas.report.read import Run

_EACH, _IN_ALL = 4, 60  # queries of a task, and of a long stream's page
_SHOWN = 64  # CSS pixels of a picture's longer side
_LARGEST = 144  # image pixels: more of them are not seen at this size
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
class Hit:
    """An item that was found; `right` if it is of the query's class. `short` is its class, cut to fit below it."""

    picture: Thumbnail
    name: str
    short: str
    right: bool
    score: str
    alt: str


@dataclass(frozen=True)
class ShownQuery:
    """A query and what it found; `before` is empty for queries of the last task."""

    picture: Thumbnail
    name: str
    verdict: str
    before: tuple[Hit, ...]
    after: tuple[Hit, ...]


@dataclass(frozen=True)
class TaskQueries:
    """The shown queries of one task, which counts from 0; `of` is how many the run has pictures of."""

    task: int
    name: str
    queries: tuple[ShownQuery, ...]
    of: int
    changed: int


def read_neighbours(run: Run, classes: Classes) -> list[TaskQueries]:
    """The shown queries of each task; [] where the run has no pictures."""
    path = run.path / "gallery" / "neighbours.safetensors"
    if not path.is_file():
        return []
    tensors = read_tensors(path)
    needed = {"pictures", "query_picture", "query_label", "query_task"}
    needed |= {f"{moment}_{what}" for moment in ("before", "after") for what in ("picture", "label", "score")}
    if absent := needed - tensors.keys():
        raise ValueError(f"{path} must hold {', '.join(sorted(absent))}; delete it or run again")
    tasks = tensors["query_task"]
    present = tasks.unique().tolist()
    each = max(1, min(_EACH, _IN_ALL // max(len(present), 1)))
    shown = []
    for task in present:
        members = (tasks == task).nonzero().flatten().tolist()
        chosen = sorted(members, key=lambda row: (_rank(tensors, row), row))[:each]
        changed = sum(_rank(tensors, row) == 0 for row in members)
        queries = tuple(_query(tensors, row, classes) for row in chosen)
        name = run.task_names[task] if task < len(run.task_names) else f"task {task + 1}"
        shown.append(TaskQueries(task, name, queries, len(members), changed))
    return shown


def _rank(tensors: dict[str, Tensor], row: int) -> int:
    """0 if the first answer turned from right to wrong or back, 1 if another number of five is right, 2 otherwise."""
    right = {moment: _right(tensors, row, moment) for moment in ("before", "after")}
    if not right["before"]:
        return 2
    if right["before"][:1] != right["after"][:1]:
        return 0
    return 1 if sum(right["before"]) != sum(right["after"]) else 2


def _right(tensors: dict[str, Tensor], row: int, moment: str) -> list[bool]:
    label = tensors["query_label"][row]
    found = tensors[f"{moment}_picture"][row] >= 0
    return (tensors[f"{moment}_label"][row] == label)[found].tolist()


def _query(tensors: dict[str, Tensor], row: int, classes: Classes) -> ShownQuery:
    name = classes.name(int(tensors["query_label"][row]))
    before, after = (_hits(tensors, row, moment, classes) for moment in ("before", "after"))
    picture = thumbnail(tensors["pictures"][int(tensors["query_picture"][row])])
    return ShownQuery(picture, name, _verdict(before, after), before, after)


def _hits(tensors: dict[str, Tensor], row: int, moment: str, classes: Classes) -> tuple[Hit, ...]:
    hits, digits = [], digits_of(tensors)
    columns = (tensors[f"{moment}_{what}"][row].tolist() for what in ("picture", "label", "score"))
    for picture, label, score in zip(*columns, strict=True):
        if picture >= 0:
            right = label == int(tensors["query_label"][row])
            name, text = classes.name(label), f"{score:.{digits}f}"
            alt = f"rank {len(hits) + 1}: {name}, {'right' if right else 'wrong'}, score {text}"
            hits.append(Hit(thumbnail(tensors["pictures"][picture]), name, middle_cut(name, 22), right, text, alt))
    return tuple(hits)


def digits_of(tensors: dict[str, Tensor]) -> int:
    """How many digits tell the scores of a page apart: more where they are all nearly 1."""
    scores = torch.cat([value.flatten() for name, value in tensors.items() if name.endswith("_score")])
    scores = scores[scores.isfinite()]
    return 3 if not len(scores) or float((1 - scores).abs().median()) > 0.02 else 5


def _verdict(before: Sequence[Hit], after: Sequence[Hit]) -> str:
    """How the answer changed, in words."""
    if not after:
        return "found nothing"
    if not before:
        return "right" if after[0].right else "wrong"
    was, now = before[0].right, after[0].right
    if was == now:
        return "still right" if now else "still wrong"
    return "now wrong" if was else "now right"


def thumbnail(picture: Tensor) -> Thumbnail:
    """A picture (c, h, w) uint8, as PNG where it is small, else as WebP of at most 144 pixels."""
    height, width = picture.shape[-2:]
    longest = max(height, width)
    pixels = picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
    image = Image.fromarray(pixels.to(torch.uint8).contiguous().numpy())
    if longest > _LARGEST:
        image.thumbnail((_LARGEST, _LARGEST))
    small, content = longest <= _LOSSLESS, io.BytesIO()
    image.save(content, "PNG" if small else "WEBP", optimize=True, quality=82)
    size = (max(1, round(_SHOWN * side / longest)) for side in (width, height))
    return Thumbnail(data_uri(content.getvalue(), "png" if small else "webp"), *size, tiny=longest <= _TINY)
