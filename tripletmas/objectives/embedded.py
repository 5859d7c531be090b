"""Score one model on several tasks: each task's queries in the gallery of everything seen, and in its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import device_of
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import Embeddings, embed
from tripletmas.objectives.recognition.class_means import KINDS, ClassMeans
from tripletmas.objectives.recognition.heads import Recognition
from tripletmas.objectives.retrieval.evaluate import RetrievalScores, evaluate


@dataclass(frozen=True)
class EmbeddedTasks:
    """Several tasks as one model embeds them: an entry a task.

    Attributes:
        own: where in its task's gallery each query is, -1 where it is not.
        seconds: how long the galleries of all but the last task took, which an index that is kept need not embed again.
    """

    queries: list[Embeddings]
    galleries: list[Embeddings]
    own: list[Tensor]
    seconds: float

    def own_in_all(self) -> Tensor:
        """Where each query is in the galleries joined, one after the other; -1 where it is not."""
        starts = torch.tensor([0, *(len(part) for part in self.galleries)]).cumsum(0)[:-1]
        return torch.cat([torch.where(own >= 0, own + start, own) for own, start in zip(self.own, starts, strict=True)])


@dataclass(frozen=True)
class TaskScores:
    """Scores of one model on several tasks.

    Attributes:
        values: gallery ("seen", "task", "seen_stale", ...) -> metric -> one value a task; nan where no query has
            anything to find.
        found: "seen" and "seen_..." -> what each task's queries found in that gallery.
        without_relevant: for each task, how many queries were left out of the means since nothing was there to find.
        queries: the embeddings of all queries, task after task.
    """

    values: dict[str, dict[str, list[float]]]
    found: dict[str, list[RetrievalScores]]
    without_relevant: list[int]
    queries: Embeddings


def embed_tasks(model: nn.Module, tasks: Stream, *, batch_size: int = 256, num_workers: int = 0) -> EmbeddedTasks:
    """The queries and the gallery of each task by one model."""
    queries, galleries, own, seconds = [], [], [], []
    for task in tasks:
        query, gallery, position, took = _embedded(model, task, batch_size, num_workers)
        queries.append(query)
        galleries.append(gallery)
        own.append(position)
        seconds.append(took)
    return EmbeddedTasks(queries, galleries, own, sum(seconds[:-1]))


def score_embedded(embedded: EmbeddedTasks, stored: Mapping[str, Sequence[Embeddings]] | None = None) -> TaskScores:
    """Search each task's queries in the gallery of all these tasks ("seen") and in that of their own task ("task").

    Args:
        stored: name -> the vectors of each task's gallery as an index has them; searched as "seen_NAME", "task_NAME".
    """
    values: dict[str, dict[str, list[float]]] = {}
    everything: dict[str, list[RetrievalScores]] = {}
    for name, parts in {"": embedded.galleries, **(stored or {})}.items():
        suffix = f"_{name}" if name else ""
        results = {"seen": _search_joined(embedded, parts), "task": _search_own(embedded, parts)}
        everything[f"seen{suffix}"] = results["seen"]
        for scope, found in results.items():
            values[scope + suffix] = {metric: [each[metric] for each in found] for metric in found[0].values}
    without = [each.num_without_relevant for each in everything["seen"]]
    return TaskScores(values, everything, without, joined(embedded.queries))


def score_tasks(model: nn.Module, tasks: Stream, *, batch_size: int = 256, num_workers: int = 0) -> TaskScores:
    """Search each task's queries in fresh galleries: that of all these tasks, and that of their own task."""
    return score_embedded(embed_tasks(model, tasks, batch_size=batch_size, num_workers=num_workers))


def score_alone(model: nn.Module, task: Task, *, batch_size: int = 256, num_workers: int = 0) -> dict[str, float]:
    """metric -> value: a task's queries searched in its own gallery."""
    query, gallery, position, _ = _embedded(model, task, batch_size, num_workers)
    return evaluate(query, gallery, self_positions=position).values


def score_recognition(
    recognition: Recognition, means: ClassMeans | None, tasks: Stream, queries: Embeddings
) -> dict[str, dict[str, list[float]]]:
    """Accuracy of recognition on several tasks, laid out as `TaskScores.values`.

    "task", "accuracy": task-incremental, the share of a task's queries that the task's own head gets right, told which
    task it is. "seen", "accuracy_fresh", "accuracy_stale", "accuracy_compensated": class-incremental, the share whose
    nearest class mean among all classes seen, without a task label, is that of their class (see `class_means`).

    Args:
        means: None leaves the class-incremental ones out.
        queries: the embeddings of all tasks' queries, task after task.
    """
    sizes = [len(task.query) for task in tasks]
    parts = list(zip(tasks, queries.vectors.split(sizes), queries.labels.split(sizes), strict=True))
    own = [head_accuracy(recognition, task.classes, vectors, labels) for task, vectors, labels in parts]
    nearest: dict[str, list[float]] = {}
    if means:
        for kind in KINDS:
            nearest[f"accuracy_{kind}"] = [
                _share(means.nearest(vectors, kind) == labels) for _, vectors, labels in parts
            ]
    return {"task": {"accuracy": own}, "seen": nearest}


def head_accuracy(recognition: Recognition, classes: tuple[int, ...], vectors: Tensor, labels: Tensor) -> float:
    """The share of embeddings (n, dim) that the head of these classes gets right."""
    head, device = recognition.head_for(classes), device_of(recognition)
    with torch.inference_mode():
        found = recognition.logits(vectors.to(device), head).argmax(dim=1)
        return _share(found == recognition.positions(labels.to(device), head))


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def _embedded(
    model: nn.Module, task: Task, batch_size: int, num_workers: int
) -> tuple[Embeddings, Embeddings, Tensor, float]:
    """(queries, gallery, where in the gallery each query is, seconds that the gallery took)."""
    began = time.perf_counter()
    query = embed(model, task.query, batch_size=batch_size, num_workers=num_workers)
    if task.gallery is None:
        return query, query, torch.arange(len(query)), time.perf_counter() - began
    began = time.perf_counter()
    gallery = embed(model, task.gallery, batch_size=batch_size, num_workers=num_workers)
    return query, gallery, torch.full((len(query),), -1), time.perf_counter() - began


def _search_joined(embedded: EmbeddedTasks, parts: Sequence[Embeddings]) -> list[RetrievalScores]:
    """One search of all queries in all parts; what each task's queries found."""
    found = evaluate(joined(embedded.queries), joined(parts), self_positions=embedded.own_in_all())
    ends = torch.tensor([len(query) for query in embedded.queries]).cumsum(0).tolist()
    return [_of_queries(found, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]


def _of_queries(found: RetrievalScores, rows: slice) -> RetrievalScores:
    """What some of the queries found."""
    per_query = {metric: values[rows] for metric, values in found.per_query.items()}
    counted = ~per_query["mrr"].isnan()
    values = {metric: float(each[counted].mean()) for metric, each in per_query.items()}
    return RetrievalScores(values, per_query, len(counted), int((~counted).sum()), nearest=found.nearest[rows])


def _search_own(embedded: EmbeddedTasks, parts: Sequence[Embeddings]) -> list[RetrievalScores]:
    return [
        evaluate(query, part, self_positions=own)
        for query, part, own in zip(embedded.queries, parts, embedded.own, strict=True)
    ]


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """One after the other."""
    return Embeddings(torch.cat([part.vectors for part in parts]), torch.cat([part.labels for part in parts]))
