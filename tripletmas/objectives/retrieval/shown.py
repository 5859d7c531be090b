"""What a report shows of embedded queries, kept in the run directory: how they move, and what a few of them find.

gallery/shown00.safetensors   after task 0: where the model puts a fixed draw of the queries of all tasks so far
shown/                        a grid: what a few of them find in the fresh gallery of everything seen, before and after
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.images import thumbnail
from tripletmas.data.tasks import Stream, Task
from tripletmas.index.making import make_index
from tripletmas.objectives.embedded import EmbeddedTasks, joined, one_label
from tripletmas.objectives.grid import (
    FOLLOWED,
    Folder,
    Grid,
    Hit,
    Row,
    are_pictures,
    read_found,
    write_found,
    write_grid,
)

_FOLLOWED = 100  # queries of each task in the map
_PICTURED = 8  # of these, in the grid
_PICTURED_IN_ALL = 120  # at least two a task
_NEAREST = 5


def write_shown(run: Folder, number: int, seen: Stream, embedded: EmbeddedTasks) -> None:
    """Keep what a report shows after task `number`, the last of those seen."""
    draws = write_followed(run, number, seen, embedded)
    pictured = min(_PICTURED, max(2, _PICTURED_IN_ALL // len(seen)))
    found = _nearest(seen, embedded, [draw[:pictured] for draw in draws])
    write_found(run, number, found)
    are_texts = seen[0].query.texts is not None
    if not are_texts and not are_pictures(seen[0].query):
        return
    before = {name: row.found[0] for name, row in read_found(run, number - 1).items()} if number else {}
    rows = [replace(row, found=(before.get(row.name, ()), *row.found)) for row in found]
    shown = [name for row in rows for name in (row.name, *(hit.name for hits in row.found for hit in hits))]
    moments = ("before the last task", "after the last task")
    names = dict.fromkeys(shown)
    texts = {name: _text(seen, name) for name in names} if are_texts else {}
    pictures = {} if are_texts else {name: thumbnail(_sample(seen, name)) for name in names}
    write_grid(run, Grid(moments, tuple(rows), pictures=pictures, texts=texts))


def write_followed(run: Folder, number: int, seen: Stream, embedded: EmbeddedTasks) -> list[Tensor]:
    """Keep where the model puts the queries that a report follows; the positions of each task's."""
    draws = [followed(task) for task in seen]
    vectors = [query.vectors[draw] for query, draw in zip(embedded.queries, draws, strict=True)]
    shown = {
        "tasks": torch.cat([torch.full((len(draw),), number) for number, draw in enumerate(draws)]),
        "labels": torch.cat([one_label(task.query.labels[draw]) for task, draw in zip(seen, draws, strict=True)]),
        "queries": torch.cat(draws),
        "vectors": torch.cat(vectors),
    }
    run.of_tasks(FOLLOWED).write(number, shown)
    return draws


def followed(task: Task) -> Tensor:
    """The positions of a task's queries that a report follows: a draw that depends on its name and their number."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"shown {task.name}".encode()))
    return torch.randperm(len(task.query), generator=generator)[:_FOLLOWED]


def _nearest(seen: Stream, embedded: EmbeddedTasks, few: Sequence[Tensor]) -> list[Row]:
    """What each of these queries finds among everything seen; itself does not count."""
    everything = joined(embedded.galleries)
    index = make_index(everything.vectors.shape[1])
    index.add(everything.vectors)
    vectors = torch.cat([query.vectors[draw] for query, draw in zip(embedded.queries, few, strict=True)])
    own = embedded.own_in_all().split([len(query) for query in embedded.queries])
    itself = torch.cat([positions[draw] for positions, draw in zip(own, few, strict=True)])
    scores, positions = index.search(vectors, _NEAREST + 1)
    positions = positions.where(positions != itself[:, None], -1)
    starts = [0, *accumulate(len(part) for part in embedded.galleries)]
    names = seen[0].query.class_names

    def hit(position: int, score: float, label: int) -> Hit:
        number = bisect_right(starts, position) - 1
        item = position - starts[number]
        found = int(_items(seen[number]).labels[item])
        return Hit(f"{number}/{item}", score, names[found], found == label)

    asked = [(number, item) for number, draw in enumerate(few) for item in draw.tolist()]
    rows = []
    for (number, item), nearest, near in zip(asked, positions.tolist(), scores.tolist(), strict=True):
        name = f"{number}/{item}" if seen[number].gallery is None else f"query {number}/{item}"
        label = int(seen[number].query.labels[item])
        hits = [hit(position, score, label) for position, score in zip(nearest, near, strict=True) if position >= 0]
        rows.append(Row(name, (tuple(hits[:_NEAREST]),), names[label], number))
    return rows


def _items(task: Task) -> LabelledDataset:
    return task.query if task.gallery is None else task.gallery


def _sample(seen: Stream, name: str) -> Tensor:
    """The sample that a row or a hit has its name from."""
    return _one(seen, name)[0][0]


def _text(seen: Stream, name: str) -> str:
    """The same as a text."""
    return next(iter(_one(seen, name).texts or ("",)))


def _one(seen: Stream, name: str) -> LabelledDataset:
    """It alone, by the number of its task and its place there, which its name consists of."""
    number, place = map(int, name.removeprefix("query ").split("/"))
    return (seen[number].query if name.startswith("query ") else _items(seen[number])).subset([place])
