"""Retrieval as an objective: a metric loss, judged by what a query finds among the embeddings of a gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.splits import drawn_of_class
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import Embedder, Embeddings
from tripletmas.objectives.collapse import Guess
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores, embed_task, joined
from tripletmas.objectives.grid import Folder
from tripletmas.objectives.objective import MetricLoss, Objective
from tripletmas.objectives.retrieval.evaluate import RetrievalScores, evaluate, scores_by_part
from tripletmas.objectives.retrieval.losses import MinedLoss, margin_of
from tripletmas.objectives.retrieval.own import evaluate_each
from tripletmas.objectives.retrieval.shown import write_shown


class Retrieval(Objective):
    """A metric loss, and retrieval by its embedding.

    Args:
        loss: (raw embeddings (batch, dim), labels (batch,)) -> scalar; any loss of pytorch-metric-learning. Its own
            parameters (proxies) are trained, and saved, with it.
    """

    validated = "recall@1"

    def __init__(self, loss: MetricLoss):
        super().__init__()
        self.loss = loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(embeddings, labels)

    def unprotected(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("loss.") for name, _ in self.named_parameters())

    def score(
        self, seen: Stream, embedded: EmbeddedTasks, stored: Mapping[str, Sequence[Embeddings]] | None = None
    ) -> TaskScores:
        return score_embedded(embedded, stored)

    def score_other(self, tasks: Stream, embedded: EmbeddedTasks) -> TaskScores:
        return score_embedded(embedded)

    def score_one(self, model: nn.Module, task: Task) -> dict[str, float]:
        return score_alone(model, task, self.embed)

    def held_out(self, task: Task, share: float, seed: int) -> tuple[Task, float]:
        return samples_held_out(task, share, seed)

    def validate(self, model: nn.Module, task: Task) -> float:
        return self.score_one(model, task)["recall@1"]

    @property
    def margin(self) -> float | None:
        return margin_of(self.loss)

    def soften(self) -> bool:
        return isinstance(self.loss, MinedLoss) and self.loss.soften()

    def guess(self, task: Task) -> Guess | None:
        return guess_of_search(task)

    def keep_shown(self, run: Folder, number: int, seen: Stream, embedded: EmbeddedTasks) -> None:
        write_shown(run, number, seen, embedded)


def score_embedded(embedded: EmbeddedTasks, stored: Mapping[str, Sequence[Embeddings]] | None = None) -> TaskScores:
    """Search each task's queries in the gallery of all these tasks ("seen") and in that of their own task ("task").

    Args:
        stored: name -> the vectors of each task's gallery as an index has them; searched as "seen_NAME", "task_NAME".
    """
    values: dict[str, dict[str, list[float]]] = {}
    everything: dict[str, list[RetrievalScores]] = {}
    for name, parts in {"": embedded.galleries, **(stored or {})}.items():
        suffix = f"_{name}" if name else ""
        alone = evaluate_each(embedded.queries, parts, embedded.own)
        results = {"seen": _search_joined(embedded, parts), "task": alone}
        everything[f"seen{suffix}"] = results["seen"]
        for scope, found in results.items():
            values[scope + suffix] = {metric: [each[metric] for each in found] for metric in found[0].values}
    without = [each.num_without_relevant for each in everything["seen"]]
    return TaskScores(values, everything, without, joined(embedded.queries))


def score_alone(model: nn.Module, task: Task, embed: Embedder) -> dict[str, float]:
    """metric -> value: a task's queries searched in its own gallery."""
    query, gallery, position, _ = embed_task(model, task, embed)
    return evaluate(query, gallery, self_positions=position).values


def samples_held_out(task: Task, share: float, seed: int) -> tuple[Task, float]:
    """(the task with a part of its training data as queries in a gallery of the rest, the score of guessing).

    Raises:
        ValueError: for a class with fewer than three training samples: two to learn from, one to hold out.
    """
    data = task.train
    for label in task.classes:
        size = int((data.labels == label).sum())
        if size < 3:
            raise ValueError(
                f"class {data.class_names[label]!r} has {size} training samples; a search for a strength "
                "needs 3 of each class, of which 1 is held out"
            )
    chosen = drawn_of_class(
        data, set(task.classes), f"search {seed}", lambda size: min(max(round(share * size), 1), size - 2)
    )
    query, rest = data.plain().subset(chosen.nonzero().flatten()), (~chosen).nonzero().flatten()
    train = data.subset(rest)
    return replace(task, train=train, query=query, gallery=train.plain()), _chance(query, train)


def guess_of_search(task: Task) -> Guess | None:
    """The recall@1 of guessing in a task's own gallery: the share of each query's class among the items but itself."""
    queries, gallery = task.query, task.query if task.gallery is None else task.gallery
    itself = int(task.gallery is None)
    items = torch.bincount(gallery.labels, minlength=len(queries.class_names))[queries.labels] - itself
    found = items > 0  # others have nothing to find, and no score
    if not bool(found.any()):
        return None
    return Guess("recall@1", float(items[found].double().mean()) / (len(gallery) - itself), int(found.sum()))


def _chance(query: LabelledDataset, gallery: LabelledDataset) -> float:
    """How often a random item of the gallery is of the query's class."""
    size = len(query.class_names)
    shares = [torch.bincount(part.labels, minlength=size).double() / len(part) for part in (query, gallery)]
    return float(shares[0] @ shares[1])


def _search_joined(embedded: EmbeddedTasks, parts: Sequence[Embeddings]) -> list[RetrievalScores]:
    """One search of all queries in all parts; what each task's queries found."""
    found = evaluate(joined(embedded.queries), joined(parts), self_positions=embedded.own_in_all())
    return scores_by_part(found.per_query, found.nearest, [len(query) for query in embedded.queries])
