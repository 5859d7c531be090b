"""Score one model on several tasks: each task's queries in the gallery of everything seen, and in its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tripletmas.class_means import KINDS, ClassMeans
from tripletmas.params import device_of
from tripletmas.recognition import Recognition
from tripletmas.retrieval import Embeddings, embed, evaluate
from tripletmas.tasks import Stream, Task


@dataclass(frozen=True)
class TaskScores:
    """Scores of one model on several tasks.

    Attributes:
        values: gallery ("seen", "task") -> metric -> one value a task; nan where no query has anything to find.
        without_relevant: for each task, how many queries were left out of the means since nothing was there to find.
        queries: the embeddings of all queries, task after task.
    """

    values: dict[str, dict[str, list[float]]]
    without_relevant: list[int]
    queries: Embeddings


def score_tasks(model: nn.Module, tasks: Stream, *, batch_size: int = 256, num_workers: int = 0) -> TaskScores:
    """Search each task's queries in the gallery of all these tasks ("seen") and in that of their own task ("task")."""
    queries, galleries, own = [], [], []
    offset = 0
    for task in tasks:
        query, gallery, position = _embedded(model, task, batch_size, num_workers)
        queries.append(query)
        galleries.append(gallery)
        own.append(position)
    everything = _joined(galleries)
    values: dict[str, dict[str, list[float]]] = {"seen": {}, "task": {}}
    without = []
    for query, gallery, position in zip(queries, galleries, own, strict=True):
        in_all = torch.where(position >= 0, position + offset, position)
        on_seen = evaluate(query, everything, self_positions=in_all)
        on_task = evaluate(query, gallery, self_positions=position)
        offset += len(gallery)
        without.append(on_seen.num_without_relevant)
        for name, result in (("seen", on_seen), ("task", on_task)):
            for metric, value in result.values.items():
                values[name].setdefault(metric, []).append(value)
    return TaskScores(values, without, _joined(queries))


def score_alone(model: nn.Module, task: Task, *, batch_size: int = 256, num_workers: int = 0) -> dict[str, float]:
    """metric -> value: a task's queries searched in its own gallery."""
    query, gallery, position = _embedded(model, task, batch_size, num_workers)
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


def _embedded(model: nn.Module, task: Task, batch_size: int, num_workers: int) -> tuple[Embeddings, Embeddings, Tensor]:
    """(queries, gallery, where in the gallery each query is, -1 where it is not)."""
    query = embed(model, task.query, batch_size=batch_size, num_workers=num_workers)
    if task.gallery is None:
        return query, query, torch.arange(len(query))
    gallery = embed(model, task.gallery, batch_size=batch_size, num_workers=num_workers)
    return query, gallery, torch.full((len(query),), -1)


def _joined(parts: list[Embeddings]) -> Embeddings:
    return Embeddings(torch.cat([part.vectors for part in parts]), torch.cat([part.labels for part in parts]))
