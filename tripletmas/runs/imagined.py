"""What a forecast is made of: the stored vectors of a run, or of an index, and images that are imagined for them: an
image of the new task is changed until the old model puts it where a stored vector lies.

Read are the models that the run saved, the vectors that are stored, and images of the task that the update learned;
no image of an earlier one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tripletmas.data.tasks import Task
from tripletmas.index.base import unit
from tripletmas.index.images import ImageIndex
from tripletmas.objectives.objective import gallery_of
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.drifts import drifts_between
from tripletmas.runs.experiment import Experiment
from tripletmas.runs.simulated import Part

_STEPS, _RATE = 30, 0.05  # of the search for an image; in units of the range of its values
_BATCH = 64
_IMAGINED, _LEAST = 300, 20  # images for the parts of an index together, and for each of them
_STARTS = 1000  # images of the new task that they are made of
_QUERIES = 1000  # of what the present model made, where nothing has to be imagined


def imagine(model: nn.Module, targets: Tensor, images: Tensor, *, steps: int = _STEPS, rate: float = _RATE) -> Tensor:
    """Images (n, ...) that a model embeds in the direction of the targets (n, dim) of unit length, made of others.

    Each starts as the one of `images` (m, ...) that the model puts nearest to its target, and is changed by Adam on the
    cosine, within the range of values that `images` have.

    Args:
        model: in eval mode; its weights and their gradients stay as they are. It gets copies, which it may change.
        rate: how far a value goes in a step, as a share of that range.

    Source: Goswami et al., Resurrecting Old Classes with New Data (ADC), CVPR 2024, push new images onto class means
        so; here each goes to a vector that is stored, and as far as it takes.
    """
    low, high = float(images.min()), float(images.max())
    with torch.no_grad():
        embedded = torch.cat([unit(model(block.clone())) for block in images.split(_BATCH)])
    found = []
    for block in targets.split(_BATCH):
        made = images[(block @ embedded.T).argmax(dim=1)].clone().requires_grad_()
        optimizer = torch.optim.Adam([made], lr=rate * (high - low))
        for _ in range(steps):
            cosines = (nn.functional.normalize(model(made.clone()), dim=1) * block).sum()
            (made.grad,) = torch.autograd.grad(-cosines, [made])
            optimizer.step()
            with torch.no_grad():
                made.clamp_(low, high)
        found.append(made.detach())
    return torch.cat(found)


def parts_of_run(run: RunDirectory, experiment: Experiment, after: int) -> list[Part]:
    """The stored galleries of the tasks of a run up to task `after`, which the update learned; the last is current.

    Raises:
        ValueError: if there was no update, the run keeps no galleries, or its kind finds no items.
    """
    _check(run, experiment, after)
    embedders, task = _Embedders(run, experiment, after), experiment.stream[after]
    kept = [run.galleries.read(number) for number in range(after + 1)]
    vectors = [unit(each["stored"]) for each in kept]
    kind = experiment.gallery.compensate
    moved, moved_before = (_moved(run, vectors, number, kind) for number in (after, after - 1))
    parts = []
    for number in range(after):
        rows = _drawn(len(vectors[number]), max(_LEAST, _IMAGINED // after), number)
        now, before = embedders.imagined(vectors[number][rows], number)
        part = Part(vectors[number], kept[number]["labels"], moved[number], rows, now, before, moved_before[number])
        parts.append(replace(part, was_current=number == after - 1))
    rows = _drawn(len(vectors[after]), _QUERIES, after)
    before = unit(experiment.objective.embed(embedders.model(after - 1), gallery_of(task).subset(rows)).vectors)
    new = vectors[after]
    last = Part(new, kept[after]["labels"], moved[after], rows, new[rows], before, is_current=True)
    return [*parts, last]


def _moved(run: RunDirectory, vectors: Sequence[Tensor], after: int, kind: str | None) -> list[Tensor | None]:
    """Of each part (g, dim), where the maps put it that are known after a task; None without a map."""
    if kind is None:
        return [None] * len(vectors)
    old = range(after)
    moves = drifts_between(run, old, after, kind=kind, normalize=True, dim=vectors[0].shape[1])[0] if after else {}
    return [moves[number](each) if number in moves else each for number, each in enumerate(vectors)]


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
        part = Part(vectors, labels[of], moved, rows, now, before, is_current=is_current, weight=float(len(of)))
        parts.append(part)
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
