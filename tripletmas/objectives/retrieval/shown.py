"""What a report shows of a run's embedding, kept in its directory: some queries, followed from task to task.

gallery/shown00.safetensors   after task 0: where the model puts a fixed draw of the queries of all tasks so far
gallery/found00.safetensors   after task 0: the five nearest of a few of them in the fresh gallery of everything seen
gallery/neighbours.safetensors   of the last task: the same before and after it, with pictures
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tripletmas.basics.weights import Params
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.index.making import make_index
from tripletmas.objectives.embedded import EmbeddedTasks, joined
from tripletmas.runs.directory import RunDirectory

_FOLLOWED = 100  # queries of each task in the map
_PICTURED = 8  # of these, in the gallery of pictures
_PICTURED_IN_ALL = 120  # at least two a task
_NEAREST = 5
_SIDE = 64  # pixels


def write_shown(run: RunDirectory, number: int, seen: Stream, embedded: EmbeddedTasks) -> None:
    """Keep what a report shows after task `number`, the last of those seen."""
    draws = write_followed(run, number, seen, embedded)
    pictured = min(_PICTURED, max(2, _PICTURED_IN_ALL // len(seen)))
    few = [draw[:pictured] for draw in draws]
    found = _nearest(embedded, few)
    files = run.of_tasks("gallery/found")
    files.write(number, {**_queries(seen, few), **found})
    if len(seen[0].query.sample_shape) == 3 and seen[0].query.sample_shape[0] in (1, 3):
        earlier = files.find(number - 1) if number else None
        run.write_tensors("gallery/neighbours.safetensors", _pictured(seen, few, earlier, found))


def write_followed(run: RunDirectory, number: int, seen: Stream, embedded: EmbeddedTasks) -> list[Tensor]:
    """Keep where the model puts the queries that a report follows; the positions of each task's."""
    draws = [followed(task) for task in seen]
    vectors = [query.vectors[draw] for query, draw in zip(embedded.queries, draws, strict=True)]
    shown = {**_queries(seen, draws), "vectors": torch.cat(vectors)}
    run.of_tasks("gallery/shown").write(number, shown)
    return draws


def one_label(labels: Tensor) -> Tensor:
    """(n,) the labels; of samples with several (n, classes), the first of each."""
    return labels.long().argmax(dim=1) if labels.ndim == 2 else labels


def followed(task: Task) -> Tensor:
    """The positions of a task's queries that a report follows: a draw that depends on its name and their number."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"shown {task.name}".encode()))
    return torch.randperm(len(task.query), generator=generator)[:_FOLLOWED]


def _queries(seen: Stream, draws: Sequence[Tensor]) -> Params:
    return {
        "tasks": torch.cat([torch.full((len(draw),), number) for number, draw in enumerate(draws)]),
        "labels": torch.cat([one_label(task.query.labels[draw]) for task, draw in zip(seen, draws, strict=True)]),
        "queries": torch.cat(list(draws)),
    }


def _nearest(embedded: EmbeddedTasks, few: Sequence[Tensor]) -> Params:
    """ "task" and "item" (m, 5): where the nearest items of each query lie, -1 where there is none; "score" (m, 5)."""
    everything = joined(embedded.galleries)
    sizes = torch.tensor([len(part) for part in embedded.galleries])
    starts = sizes.cumsum(0) - sizes
    index = make_index(everything.vectors.shape[1])
    index.add(everything.vectors)
    vectors = torch.cat([query.vectors[draw] for query, draw in zip(embedded.queries, few, strict=True)])
    own = torch.cat(
        [
            torch.where(own[draw] >= 0, own[draw] + start, -1)
            for own, draw, start in zip(embedded.own, few, starts, strict=True)
        ]
    )
    scores, positions = index.search(vectors, _NEAREST + 1)
    itself = positions == own[:, None]
    order = itself.long().argsort(dim=1, stable=True)[:, :_NEAREST]  # the query itself goes to the end
    positions, scores = positions.gather(1, order), scores.gather(1, order)
    task = torch.searchsorted(starts, positions.clamp_min(0), right=True) - 1
    missing = positions < 0
    item = (positions - starts[task]).masked_fill(missing, -1)
    return {"task": task.masked_fill(missing, -1), "item": item, "score": scores}


def _pictured(seen: Stream, few: Sequence[Tensor], earlier: Params | None, found: Params) -> Params:
    """What a page shows: queries, their nearest before and after the last task, and a picture of each, once."""
    pictures: list[Tensor] = []
    place: dict[tuple[int, int, bool], int] = {}

    def picture(number: int, item: int, *, is_query: bool) -> int:
        """Where the picture of a sample is; -1 for none."""
        if item < 0:
            return -1
        data = _part(seen[number], is_query)
        key = (number, item, is_query and data is not _part(seen[number], False))
        if key not in place:
            place[key] = len(pictures)
            pictures.append(small(data[item][0]))
        return place[key]

    def neighbours(kept: Params, when: str) -> Params:
        places, labels = [], []
        for tasks, items in zip(kept["task"].tolist(), kept["item"].tolist(), strict=True):
            pairs = list(zip(tasks, items, strict=True))
            places.append([picture(number, item, is_query=False) for number, item in pairs])
            labels.append([int(_part(seen[n], False).labels[i]) if i >= 0 else -1 for n, i in pairs])
        return {
            f"{when}_picture": torch.tensor(places),
            f"{when}_label": torch.tensor(labels),
            f"{when}_score": kept["score"],
        }

    queries = _queries(seen, few)
    asked = zip(queries["tasks"].tolist(), queries["queries"].tolist(), strict=True)
    query_picture = torch.tensor([picture(number, item, is_query=True) for number, item in asked])
    content = {"query_picture": query_picture, "query_label": queries["labels"], "query_task": queries["tasks"]}
    content |= neighbours(_aligned(earlier, queries), "before") | neighbours(found, "after")
    return content | {"pictures": torch.stack(pictures)}


def _aligned(earlier: Params | None, queries: Params) -> Params:
    """What was found earlier, a row for each of these queries; -1 for those that were not asked then."""
    size = len(queries["queries"])
    rows = {"task": torch.full((size, _NEAREST), -1), "item": torch.full((size, _NEAREST), -1)}
    rows["score"] = torch.full((size, _NEAREST), -torch.inf)
    if earlier is None:
        return rows
    asked = list(zip(earlier["tasks"].tolist(), earlier["queries"].tolist(), strict=True))
    for row, key in enumerate(zip(queries["tasks"].tolist(), queries["queries"].tolist(), strict=True)):
        if key in asked:
            for name in rows:
                rows[name][row] = earlier[name][asked.index(key)]
    return rows


def _part(task: Task, is_query: bool) -> LabelledDataset:
    return task.query if is_query or task.gallery is None else task.gallery


def small(sample: Tensor) -> Tensor:
    """A picture of a sample: uint8 (channels, height, width), at most 64 pixels high and wide."""
    largest = max(sample.shape[1:])
    if largest > _SIDE:
        size = [max(1, round(side * _SIDE / largest)) for side in sample.shape[1:]]
        sample = functional.interpolate(sample[None], size=size, mode="bilinear", antialias=True)[0]
    return (sample * 255).round().clamp(0, 255).byte()
