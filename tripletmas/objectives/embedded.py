"""Several tasks as one model embeds them, and what scores of them are made of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tripletmas.data.tasks import Stream, Task
from tripletmas.index.base import unit
from tripletmas.models.embedding import Embedder, Embeddings

if TYPE_CHECKING:
    from tripletmas.objectives.retrieval.evaluate import RetrievalScores


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


def embed_tasks(model: nn.Module, tasks: Stream, embed: Embedder) -> EmbeddedTasks:
    """The queries and the gallery of each task by one model."""
    queries, galleries, own, seconds = [], [], [], []
    for task in tasks:
        query, gallery, position, took = embed_task(model, task, embed)
        queries.append(query)
        galleries.append(gallery)
        own.append(position)
        seconds.append(took)
    return EmbeddedTasks(queries, galleries, own, sum(seconds[:-1]))


def embed_task(model: nn.Module, task: Task, embed: Embedder) -> tuple[Embeddings, Embeddings, Tensor, float]:
    """(queries, gallery, where in the gallery each query is, seconds that the gallery took)."""
    began = time.perf_counter()
    query = embed(model, task.query)
    if task.gallery is None:
        return query, query, torch.arange(len(query)), time.perf_counter() - began
    began = time.perf_counter()
    gallery = embed(model, task.gallery)
    return query, gallery, torch.full((len(query),), -1), time.perf_counter() - began


def asked_by_part(
    embedded: EmbeddedTasks, stored: Sequence[Embeddings], queries: Sequence[Sequence[Tensor]]
) -> EmbeddedTasks:
    """Tasks embedded so that a query's cosine with an item is, but for a factor, that of the query moved for its part.

    Each part has dimensions of its own: an item has its unit vector there and zeros elsewhere, a query has all its
    vectors, one after the other. So queries that differ from part to part are searched, and the results merged, as one.

    Args:
        stored: the gallery of each task as it is kept; (g, dim).
        queries: for each task, its queries (q, dim) in the space of each part.
    """
    asked = [
        Embeddings(torch.cat([unit(each) for each in moved], dim=1), of.labels)
        for moved, of in zip(queries, embedded.queries, strict=True)
    ]
    parts = []
    for number, part in enumerate(stored):
        vectors = torch.zeros(len(part), len(stored), part.vectors.shape[1])
        vectors[:, number] = unit(part.vectors)
        parts.append(Embeddings(vectors.flatten(1), part.labels))
    return EmbeddedTasks(asked, parts, embedded.own, embedded.seconds)


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """One after the other."""
    return Embeddings(torch.cat([part.vectors for part in parts]), torch.cat([part.labels for part in parts]))


def one_label(labels: Tensor) -> Tensor:
    """(n,) the labels; of samples with several (n, classes), the first of each."""
    return labels.long().argmax(dim=1) if labels.ndim == 2 else labels
