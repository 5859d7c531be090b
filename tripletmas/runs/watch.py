"""What the batches of an epoch, and the queries after a task, say of whether the embedding has collapsed.

Nothing is embedded for it, no random number is drawn, and nothing is computed before the epoch's end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics import distributed
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Task
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives import collapse
from tripletmas.objectives.embedded import TaskScores
from tripletmas.objectives.objective import Objective

_AT_EACH_END = 4  # batches of an epoch that are looked at
# (epochs, batches) in a row in which a sign must show to be certain
_LEAST = (2, 12)  # what learns well may rest at its margin for an epoch where a task begins
_OF_EQUAL = (1, 4)
_GROWN = 1.5  # times in an epoch: then a spread is on its way
_APART = 10  # times nearly equal: in training they were not
_BATCH_NORM = (
    ", though in training they were not: batch norm's running statistics are not those of the data (too few steps)"
)
_LOOKED_AT = 1000  # samples, where vectors are nearly equal


_Batch = tuple[Tensor, Tensor, float]  # vectors as they are compared, labels, loss
_Signs = dict[str, str]


class Watch:
    """Keeps the first and the last batches of an epoch, as they were embedded.

    Args:
        num_batches: of the epoch.
    """

    def __init__(self, num_batches: int):
        part = max(1, min(_AT_EACH_END, num_batches // 2))
        self._first, self._last = range(part), range(num_batches - part, num_batches)
        self._inputs = torch.empty(0)
        self._batches: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def see(self, step: int, inputs: Tensor, embeddings: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Keep a batch: raw embeddings (b, dim), labels, the objective's own loss; of samples the last."""
        self._inputs = inputs
        if step in self._first or step in self._last:
            self._batches[step] = (embeddings.detach(), labels, loss.detach())

    def record(self, objective: Objective) -> dict[str, Any]:
        """What the record of the epoch says: `embedding`, spread and effective rank of its last batches; `collapse`.

        It has collapsed if a sign shows in the first batches and in the last, and the spread has not grown between
        them: so not in the epoch in which it comes, nor in those in which it is on its way out. Where all of the last
        batch is one sample, or its classes are told apart all the same, nothing has collapsed.
        """
        kept = dict(zip(self._batches, self._compared(objective), strict=True))
        ends = [[kept[step] for step in steps] for steps in (self._first, self._last)]
        spreads = [_mean([collapse.spread(vectors) for vectors, _, _ in part]) for part in ends]
        found = {"embedding": {"spread": spreads[1], "rank": collapse.effective_rank(ends[1][-1][0])}}
        # between few batches it may grow by chance, and is judged over several epochs
        grown = len(self._last) == _AT_EACH_END and spreads[1] > _GROWN * spreads[0]
        signs = {} if grown or math.isnan(sum(spreads)) else self._signs(objective, ends, spreads)
        return {**found, "collapse": signs} if signs else found

    def _compared(self, objective: Objective) -> list[_Batch]:
        """The batches that were kept, all brought to how they are compared at once."""
        vectors, labels, losses = zip(*self._batches.values(), strict=True)
        compared = objective.compared(torch.cat(vectors).float().cpu()).split([len(each) for each in vectors])
        values = torch.stack([loss.reshape(()) for loss in losses]).tolist()
        return list(zip(compared, [each.cpu() for each in labels], values, strict=True))

    def _signs(self, objective: Objective, ends: Sequence[Sequence[_Batch]], spreads: Sequence[float]) -> _Signs:
        last = _signs_of(ends[1], objective.margin, spreads)
        first = _signs_of(ends[0], objective.margin, spreads) if last else {}
        signs = {sign: sentence for sign, sentence in last.items() if sign in first}
        if not signs or _are_one(self._inputs):
            return {}
        return {} if all(collapse.are_told_apart(vectors, labels) for vectors, labels, _ in ends[1]) else signs


def _signs_of(part: Sequence[_Batch], margin: float | None, spreads: Sequence[float]) -> _Signs:
    """What batches at one end of an epoch show."""
    vectors, labels, _ = part[-1]
    signs = collapse.signs_of(vectors, labels)
    if margin is None or collapse.num_classes(labels) < 2:
        return signs
    return signs | collapse.margin_sign(_mean([loss for _, _, loss in part]), margin, spreads)


class News:
    """Which signs of a collapse are to be told at the end of an epoch: each once a task, as soon as it is certain."""

    def __init__(self):
        self._epochs: dict[tuple[int, str], list[tuple[int, float]]] = {}  # in a row with a sign: (batches, spread)
        self._told: set[tuple[int, str]] = set()

    def of(self, number: int, record: Mapping[str, Any]) -> dict[str, str]:
        """What to tell now of task `number`, given the record of an epoch: sign -> sentence."""
        shown, news = record.get("collapse", {}), {}
        for sign in collapse.SIGNS:
            key = number, sign
            if sign not in shown:
                self._epochs.pop(key, None)
                continue
            epochs = self._epochs.setdefault(key, [])
            epochs.append((record["steps"], record["embedding"]["spread"]))
            if key not in self._told and _certain(epochs, *(_OF_EQUAL if sign == collapse.EQUAL else _LEAST)):
                self._told.add(key)
                news[sign] = shown[sign]
        return news


def _certain(epochs: Sequence[tuple[int, float]], least_epochs: int, least_batches: int) -> bool:
    (_, before), (_, now) = epochs[-least_epochs:][0], epochs[-1]
    enough = len(epochs) >= least_epochs and sum(batches for batches, _ in epochs) >= least_batches
    return enough and not now >= _GROWN * before


def judged(
    objective: Objective,
    task: Task,
    queries: Embeddings,
    score: float | None,
    trained: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What the record of a task says of its queries as the model embeds them: `embedding`, `guess`, `collapse`.

    Args:
        score: the metric of the objective's guess on the task, now; None where it is not known.
        trained: the record of its last epoch; empty if it was not trained.
    """
    vectors, guess = objective.compared(queries.vectors), objective.guess(task)
    embedding = {"spread": collapse.spread(vectors), "rank": collapse.effective_rank(vectors)}
    signs = _signs_after(vectors, task, queries.labels, trained)
    if guess is None or score is None:
        return {"embedding": embedding, **({"collapse": signs} if signs else {})}
    if score > (1 + guess.chance) / 2:
        signs = {}  # what is told apart all the same has not collapsed
    signs |= collapse.chance_sign(score, guess)
    known = {"metric": guess.metric, "score": score, "chance": guess.chance, "queries": guess.num}
    return {"embedding": embedding, "guess": known, **({"collapse": signs} if signs else {})}


def _signs_after(vectors: Tensor, task: Task, labels: Tensor, trained: Mapping[str, Any]) -> _Signs:
    """What a task's queries show, as they are compared, and how its training ended."""
    signs = collapse.signs_of(vectors, labels)
    if collapse.EQUAL in signs and trained.get("embedding", {}).get("spread", 0) > _APART * collapse.NEARLY:
        signs[collapse.EQUAL] += _BATCH_NORM
    if margin := trained.get("collapse", {}).get(collapse.MARGIN):
        signs[collapse.MARGIN] = margin
    return {} if signs and _are_one_sample(task.query) else signs


def score_of(objective: Objective, task: Task, found: TaskScores, position: int) -> float | None:
    """The score of the objective's guess on a task, by its position among those scored; None where there is none."""
    guess = objective.guess(task)
    values = found.values.get("task", {}).get(guess.metric) if guess else None
    return None if values is None else values[position]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _are_one(samples: Tensor) -> bool:
    """Whether all samples of a batch, of which each process has a part, are one and the same."""
    first = samples[0] if bool((samples == samples[:1]).all()) else None
    found = distributed.gather_objects(None if first is None else first.cpu())
    return all(each is not None and found[0] is not None and torch.equal(each, found[0]) for each in found)


def _are_one_sample(data: LabelledDataset) -> bool:
    """Whether all samples, or a thousand of them, are one and the same."""
    first = data[0][0]
    return all(torch.equal(data[position][0], first) for position in range(0, len(data), -(-len(data) // _LOOKED_AT)))
