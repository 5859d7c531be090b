"""Score one model on several tasks: each task's queries in the gallery of everything seen, and in its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tripletmas.retrieval import Embeddings, embed, evaluate
from tripletmas.tasks import Stream


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
        queries.append(embed(model, task.query, batch_size=batch_size, num_workers=num_workers))
        if task.gallery is None:
            galleries.append(queries[-1])
            own.append(torch.arange(len(task.query)))
        else:
            galleries.append(embed(model, task.gallery, batch_size=batch_size, num_workers=num_workers))
            own.append(torch.full((len(task.query),), -1))
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


def _joined(parts: list[Embeddings]) -> Embeddings:
    return Embeddings(torch.cat([part.vectors for part in parts]), torch.cat([part.labels for part in parts]))
