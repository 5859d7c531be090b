"""Score one model on several tasks of facts: images that a fact finds, and facts that an image finds.

As for classes there are two galleries: that of everything seen, and the task's own. From facts to images, a task's
facts are searched in the test images of all tasks, or of its own. From images to facts, a task's images choose among
the facts of all tasks, or of its own; a fact of another task that holds of an image is no error, and left out of its
ranking.

The language view does not change, so a stored gallery of images stays comparable with a fact; what moves away from it
is today's embedding of an old image. An image that is in the galleries of several tasks is stored by the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tripletmas.data.dataset import concatenate
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import Embeddings, embed
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores, joined, score_alone, score_embedded
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.facts.scoring import score_facts
from tripletmas.objectives.retrieval.losses import MetricLoss


def score_objective(
    loss: MetricLoss,
    seen: Stream,
    embedded: EmbeddedTasks,
    stored: Mapping[str, Sequence[Embeddings]] | None = None,
) -> TaskScores:
    """`score_embedded`, or for facts `score_embedded_facts`: what the loss is about decides."""
    if isinstance(loss, FactLoss):
        return score_embedded_facts(loss, seen, embedded, stored)
    return score_embedded(embedded, stored)


def score_objective_alone(
    loss: MetricLoss, model: nn.Module, task: Task, *, batch_size: int = 256, num_workers: int = 0
) -> dict[str, float]:
    """metric -> value: a task's queries in its own gallery, by what the loss is about; also for facts of no task.

    Facts are asked for in the task's own test images; these choose among all facts of the stream, where what holds of
    an image besides the task's own facts is left out.
    """
    if not isinstance(loss, FactLoss):
        return score_alone(model, task, batch_size=batch_size, num_workers=num_workers)
    query = embed(model, task.query, batch_size=batch_size, num_workers=num_workers)
    everything = torch.ones(len(loss.language.facts), dtype=torch.bool)
    return _scores(loss, query.vectors, task.query.truth, task.classes, everything)


def score_embedded_facts(
    loss: FactLoss,
    seen: Stream,
    embedded: EmbeddedTasks,
    stored: Mapping[str, Sequence[Embeddings]] | None = None,
) -> TaskScores:
    """The metrics of `facts.scoring.score_facts` for each task, on the gallery of all ("seen") and on its own ("task").

    Args:
        stored: name -> the vectors of each task's gallery as they are kept; searched as "seen_NAME", "task_NAME".
            Images ask with these vectors, too.
    """
    columns = len(loss.language.facts)
    known = torch.stack([_columns(task.classes, columns) for task in seen])
    first, truth = images_once(seen), concatenate([task.query for task in seen]).truth
    values: dict[str, dict[str, list[float]]] = {}
    for name, parts in {"": embedded.galleries, **(stored or {})}.items():
        suffix = f"_{name}" if name else ""
        images = torch.cat([part.vectors for part in parts])[first]
        for number, task in enumerate(seen):
            found = {
                "seen": _scores(loss, images, truth, task.classes, known.any(dim=0)),
                "task": _scores(loss, parts[number].vectors, task.query.truth, task.classes, known[number]),
            }
            for scope, scores in found.items():
                for metric, value in scores.items():
                    values.setdefault(scope + suffix, {}).setdefault(metric, []).append(value)
    without = [int((~task.query.truth[:, list(task.classes)].any(dim=0)).sum()) for task in seen]
    return TaskScores(values, {}, without, joined(embedded.queries))


def num_stored(loss: MetricLoss, earlier: Stream, embedded: EmbeddedTasks) -> int:
    """How many images the galleries of these tasks hold; an image of facts of several tasks counts once."""
    if isinstance(loss, FactLoss):
        return len(images_once(earlier)) if earlier else 0
    return sum(len(part) for part in embedded.galleries[: len(earlier)])


def _scores(
    loss: FactLoss,
    images: Tensor,
    truth: Tensor,
    classes: Sequence[int],
    candidates: Tensor,
) -> dict[str, float]:
    language = loss.language
    asked = _columns(classes, len(language.facts))
    return score_facts(images, truth, language.vectors, language.mask, asked=asked, candidates=candidates).values


def images_once(seen: Stream) -> Tensor:
    """(n,) where each test image of these tasks is first, among those of all tasks one after the other."""
    first: dict[int, int] = {}
    for position, index in enumerate(torch.cat([task.query.indices for task in seen]).tolist()):
        first.setdefault(index, position)
    return torch.tensor(list(first.values()))


def _columns(classes: Sequence[int], size: int) -> Tensor:
    columns = torch.zeros(size, dtype=torch.bool)
    columns[list(classes)] = True
    return columns
