"""Replay: keep some samples of earlier tasks, and train on them together with the new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tripletmas.basics.weights import Params
from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.tasks import Stream, Task, classes_of
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.base import Strategy


class Replay(Strategy):
    """Train on a memory of samples of earlier tasks and on the new task's, which are both augmented as these are.

    herding: the memory is shared out evenly among the classes seen; of each it keeps those samples whose mean is
    nearest to the mean of the class (see `herd`), the best first, so that a smaller share keeps the first ones. A class
    of several tasks has one share, which its samples of these tasks take by turns.
    reservoir: each sample seen so far is in memory with the same probability; a class of which it holds one sample
    only sits out, since a batch needs pairs, unless the new task has more of it.
    Stores which samples are in memory, two integers each, beside the samples themselves; herding costs a forward pass
    over the task's data after it. An epoch is a pass over memory and task.

    Args:
        memory: how many samples are kept in all; at least two for each earlier class.
        selection: which samples are kept, herding or reservoir.

    Source: herding is that of Rebuffi et al., iCaRL, CVPR 2017; the reservoir is algorithm R in Vitter, Random Sampling
    with a Reservoir, ACM TOMS 1985.
    """

    def __init__(self, *, memory: int = 200, selection: Literal["herding", "reservoir"] = "herding"):
        if selection not in ("herding", "reservoir"):
            raise ValueError(f"selection must be 'herding' or 'reservoir', got {selection!r}")
        self.memory = memory
        self.selection = selection
        self._objective: Objective | None = None
        self._forget()

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        if any(task.train.within is not None for task in stream):
            raise ValueError(
                "replay keeps samples class by class, and an image of facts has several: it takes no facts"
            )
        num_earlier = len({label for task in stream[:-1] for label in task.train.classes})
        if self.memory < 2 * num_earlier:
            raise ValueError(
                f"memory must be >= {2 * num_earlier}, two samples for each of {num_earlier} earlier classes, so that "
                f"each has a positive pair; got {self.memory}: raise it, or learn fewer classes"
            )
        self._objective = objective
        self._number_of = {label: number for number, label in enumerate(classes_of(stream))}
        self._ends = torch.tensor([len(task.train) for task in stream]).cumsum(0)
        self._forget()

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset:
        positions, classes = self._held
        numbers, counts = classes.unique(return_counts=True)
        again = torch.tensor([self._number_of[label] for label in task.train.classes])
        positions = positions[torch.isin(classes, numbers[(counts > 1) | torch.isin(numbers, again)])]
        if not len(positions):
            return task.train
        kept = concatenate([other.train for other in earlier]).subset(positions.sort().values)
        return concatenate([kept, task.train]).with_transform(task.train.transform)

    def after_task(self, model: nn.Module, task: Task) -> None:
        numbers = torch.tensor([self._number_of[label] for label in task.train.labels.tolist()])
        new = torch.stack([self._num_seen + torch.arange(len(task.train)), numbers])
        if self.selection == "reservoir":
            generator = torch.Generator().manual_seed(torch.initial_seed())
            self._held = reservoir(self._held, new, self._num_seen, self.memory, generator)
        else:
            of_new = {self._number_of[label] for label in task.train.classes}
            seen = sorted({*self._held[1].tolist(), *of_new})
            assert self._objective is not None
            share = self.memory // len(seen)
            vectors = functional.normalize(self._objective.embed(model, task.train.plain()).vectors.double())
            parts = []
            for number in seen:
                part = self._held[:, self._held[1] == number]
                if number in of_new:
                    of_class = (numbers == number).nonzero().flatten()
                    part = torch.cat([part, new[:, of_class[herd(vectors[of_class], share)]]], dim=1)
                tasks = torch.bucketize(part[0], self._ends, right=True)
                parts.append(part[:, by_turns(tasks)[:share]])
            self._held = torch.cat(parts, dim=1)
        self._num_seen += new.shape[1]

    def state_dict(self) -> Params:
        return {"held": self._held, "num_seen": torch.tensor([self._num_seen])}

    def load_state_dict(self, state: Params) -> None:
        self._held = state["held"].cpu()
        self._num_seen = int(state["num_seen"][0])

    def _forget(self) -> None:
        # Which of the training samples so far, of which of the classes so far, both counted in the order of the stream:
        # indices and labels may change when the data grow. Of herding best first.
        self._held = torch.zeros(2, 0, dtype=torch.int64)
        self._num_seen = 0


def herd(vectors: Tensor, count: int) -> Tensor:
    """Positions of `count` of these (n, dim), best first: each in turn brings the mean of the chosen nearest to that of
    all. Each is chosen once; all if there are fewer."""
    mean, chosen, total = vectors.mean(dim=0), [], torch.zeros_like(vectors[0])
    free = torch.ones(len(vectors), dtype=torch.bool)
    for number in range(1, min(count, len(vectors)) + 1):
        gaps = (mean - (total + vectors) / number).square().sum(dim=1)
        chosen.append(int(gaps.masked_fill(~free, torch.inf).argmin()))
        free[chosen[-1]] = False
        total = total + vectors[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.int64)


def by_turns(of: Tensor) -> Tensor:
    """(n,) positions: the first of each value, the second of each, and so on; values ascending within a turn.

    >>> by_turns(torch.tensor([7, 7, 7, 8, 8]))
    tensor([0, 3, 1, 4, 2])
    """
    order = of.argsort(stable=True)
    _, counts = of[order].unique_consecutive(return_counts=True)
    turns = torch.cat([torch.arange(count) for count in counts.tolist()]) if len(of) else order
    return order[turns.argsort(stable=True)]


def reservoir(held: Tensor, new: Tensor, num_seen: int, size: int, generator: torch.Generator) -> Tensor:
    """What a reservoir of `size` columns holds once the columns `new` have passed it, after `num_seen` earlier ones.

    The first `size` are taken; later ones, number i of all, replace a random one with probability size / i.
    """
    num_free = max(0, size - held.shape[1])
    held = torch.cat([held, new[:, :num_free]], dim=1)
    seen = num_seen + torch.arange(new.shape[1])[num_free:] + 1
    slots = (torch.rand(len(seen), generator=generator, dtype=torch.float64) * seen).long()
    for position in (slots < size).nonzero().flatten().tolist():
        held[:, slots[position]] = new[:, num_free + position]
    return held
