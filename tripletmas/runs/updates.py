"""What updates of a run's model do to galleries that are not embedded again, measured with the models that it saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tripletmas.data.tasks import Stream
from tripletmas.models.embedding import Embedder, Embeddings
from tripletmas.objectives.compatibility import Flips, flips
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores, embed_tasks, joined
from tripletmas.objectives.retrieval.evaluate import evaluate
from tripletmas.objectives.retrieval.objective import score_embedded
from tripletmas.runs.directory import RunDirectory


def flips_of_update(
    run: RunDirectory,
    model: nn.Module,
    earlier: Stream,
    after: EmbeddedTasks,
    stored: Mapping[str, Sequence[Embeddings]],
    *,
    embed: Embedder,
    moved: EmbeddedTasks | None = None,
) -> dict[str, Flips]:
    """gallery ("fresh", and each that is stored) -> what the update by the last task changed for earlier tasks.

    Before the update, queries and gallery are by the model that was current then. After it, queries are by the present
    model, and the gallery holds the same items, embedded by it ("fresh") or as they are stored.

    Args:
        model: of the run's kind; a copy takes the weights after the last of the `earlier` tasks.
        after: at least the earlier tasks as the present model embeds them.
        moved: the same with queries that are moved back (`Galleries.asked_by_part`); what they find is "query".
    """
    before_model = copy.deepcopy(model)
    run.load_weights(before_model, len(earlier) - 1)
    before = score_embedded(embed_tasks(before_model, earlier, embed))
    count = len(earlier)
    now = score_embedded(_first(after, count), {name: parts[:count] for name, parts in stored.items()})
    found = {"fresh": (now, "seen"), **{name: (now, f"seen_{name}") for name in stored}}
    if moved:
        found["query"] = (score_embedded(_first(moved, count)), "seen")
    right, nearest = _answers(before, "seen")
    result = {}
    for name, (scores, gallery) in found.items():
        right_now, nearest_now = _answers(scores, gallery)
        result[name] = flips(right, right_now, nearest, nearest_now)
    return result


def _first(embedded: EmbeddedTasks, count: int) -> EmbeddedTasks:
    """So many of the tasks."""
    return EmbeddedTasks(embedded.queries[:count], embedded.galleries[:count], embedded.own[:count], 0.0)


def compatibility_matrix(run: RunDirectory, model: nn.Module, stream: Stream, done: int, *, embed: Embedder) -> Tensor:
    """C[t, k]: recall@1 of all queries of the stream by the model after task t, in all its galleries by that after k.

    One fixed test set, also of tasks that the models have not learned yet, as in CL2R: entries can be compared.

    Returns: (done, done) float64, nan above the diagonal.
    """
    model = copy.deepcopy(model)
    matrix = torch.full((done, done), torch.nan, dtype=torch.float64)
    galleries: list[Embeddings] = []
    for number in range(done):
        run.load_weights(model, number)
        embedded = embed_tasks(model, stream, embed)
        galleries.append(joined(embedded.galleries))
        own = embedded.own_in_all()
        queries = joined(embedded.queries)
        for old, gallery in enumerate(galleries):
            matrix[number, old] = evaluate(queries, gallery, ks=(1,), self_positions=own)["recall@1"]
    return matrix


def _answers(scores: TaskScores, gallery: str) -> tuple[Tensor, Tensor]:
    """(recall@1, position of the nearest) of every query."""
    found = scores.found[gallery]
    return torch.cat([each.per_query["recall@1"] for each in found]), torch.cat([each.nearest for each in found])
