"""What a forecast is made of: the stored vectors of a run, or of an index, and images that are imagined for them.

Read are the models that the run saved, the vectors that are stored, and images of the task that the update learned;
no image of an earlier one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tripletmas.data.tasks import Task
from tripletmas.index.base import unit
from tripletmas.index.images import ImageIndex
from tripletmas.objectives.objective import gallery_of
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.drifts import drifts_between
from tripletmas.runs.experiment import Experiment
from tripletmas.runs.forecast import Part, imagine

_IMAGINED, _LEAST = 300, 20  # images for the parts of an index together, and for each of them
_STARTS = 1000  # images of the new task that they are made of
_QUERIES = 1000  # of what the present model made, where nothing has to be imagined


def parts_of_run(run: RunDirectory, experiment: Experiment, after: int) -> list[Part]:
    """The stored galleries of the tasks of a run up to task `after`, which the update learned; the last is current.

    Raises:
        ValueError: if there was no update, the run keeps no galleries, or its kind finds no items.
    """
    _check(run, experiment, after)
    embedders, task = _Embedders(run, experiment, after), experiment.stream[after]
    kept = [run.galleries.read(number) for number in range(after + 1)]
    vectors = [unit(each["stored"]) for each in kept]
    moved = dict(enumerate(vectors[:-1]))
    if kind := experiment.gallery.compensate:
        moves, _ = drifts_between(run, moved, after, kind=kind, normalize=True, dim=vectors[0].shape[1])
        moved = {number: moves[number](each) for number, each in moved.items()}
    parts = []
    for number in range(after):
        rows = _drawn(len(vectors[number]), max(_LEAST, _IMAGINED // after), number)
        now, before = embedders.imagined(vectors[number][rows], number)
        compensated = moved[number] if kind else None
        parts.append(Part(vectors[number], kept[number]["labels"], compensated, rows, now, before))
    rows = _drawn(len(vectors[after]), _QUERIES, after)
    before = unit(experiment.objective.embed(embedders.model(after - 1), gallery_of(task).subset(rows)).vectors)
    new = vectors[after]
    last = Part(new, kept[after]["labels"], new if kind else None, rows, new[rows], before, is_current=True)
    return [*parts, last]


def parts_of_index(
    run: RunDirectory, experiment: Experiment, after: int, index: ImageIndex, tasks: Mapping[int, int], kind: str
) -> list[Part]:
    """The parts of an index, each counting as much as it has vectors.

    Args:
        after: the last task that is done.
        tasks: number of a part -> the last task after which the run's model was that in whose space the part lies.
        kind: the map by which they would be compensated.

    Raises:
        ValueError: if there was no update, the index holds raw vectors, or the run keeps no pairs that show the drift.
    """
    _check(run, experiment, after)
    if not index.settings.normalize:
        raise ValueError("a forecast is for vectors of length 1, and this index holds raw vectors")
    embedders = _Embedders(run, experiment, after)
    stale = [task for task in tasks.values() if task < after]
    moves, _ = drifts_between(run, stale, after, kind=kind, normalize=True, dim=index.settings.dim)
    # an image without a class is right for no query, and no query itself
    labels = torch.where(index.labels < 0, -1 - torch.arange(len(index)), index.labels)
    parts = []
    for number, task in tasks.items():
        of = index.of_parts([number])
        vectors, is_current = index.vectors[of], task == after
        rows = _drawn(len(of), max(_LEAST, _IMAGINED // len(tasks)), number)
        now, before = embedders.imagined(vectors[rows], task)
        moved = vectors if is_current else moves[task](vectors)
        parts.append(Part(vectors, labels[of], moved, rows, now, before, is_current, float(len(of))))
    return parts


@dataclass(frozen=True, eq=False)
class _Embedders:
    """The models of a run up to that after task `after`, and what images are made of."""

    run: RunDirectory
    experiment: Experiment
    after: int

    def model(self, number: int) -> nn.Module:
        """In eval mode."""
        model = copy.deepcopy(self.experiment.strategy.deployed(self.experiment.model))
        self.run.load_weights(model, number)
        return model.eval()

    def imagined(self, vectors: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """(where the present model, and the one before it, puts images for these vectors (n, dim) of model `number`).

        Where one of the two made the vectors, it needs no image.
        """
        made = self.model(number)
        device = next(made.parameters()).device
        images = imagine(made, vectors.to(device), _images(self.experiment.stream[self.after]).to(device))
        with torch.no_grad():
            now, before = (
                vectors if at == number else unit(self.model(at)(images.clone())).cpu()
                for at in (self.after, self.after - 1)
            )
        return now, before


def _check(run: RunDirectory, experiment: Experiment, after: int) -> None:
    kind = experiment.kind
    if not kind.finds_items:
        raise ValueError(f"a forecast is for images that search images, not for objective {kind.name}")
    if experiment.stream[after].train.texts is not None:
        raise ValueError(
            "a forecast imagines images, and texts cannot be imagined: measure what the update did, by evaluate "
            "--gallery stale,compensated"
        )
    if after == 0:
        raise ValueError(f"{run.path}: no update has followed the first task, so that no stored vector has moved")
    missing = [number for number in range(after + 1) if run.galleries.find(number) is None]
    if missing:
        raise ValueError(f"{run.galleries.path(missing[0])} is missing: runs of older versions keep no galleries")


def _images(task: Task) -> Tensor:
    data = task.train.plain()
    return torch.stack([data[row][0] for row in _drawn(len(data), _STARTS, 0).tolist()])


def _drawn(size: int, count: int, seed: int) -> Tensor:
    """At most so many of the numbers below `size`, ascending, always the same."""
    random = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=random)[:count].sort().values
