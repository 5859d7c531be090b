"""Facts as an objective: images that find their facts, and facts that find their images.

As for classes there are two galleries: that of everything seen, and the task's own. From facts to images, a task's
facts are searched in the test images of all tasks, or of its own. From images to facts, a task's images choose among
the facts of all tasks, or of its own; a fact of another task that holds of an image is no error, and left out of its
ranking.

The language view does not change, so a stored gallery of images stays comparable with a fact; what moves away from it
is today's embedding of an old image. An image that is in the galleries of several tasks is stored by the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tripletmas.basics.sentences import listed
from tripletmas.data.dataset import concatenate
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores, joined
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.facts.scoring import image_vectors, score_facts
from tripletmas.objectives.facts.shown import images_once, write_shown
from tripletmas.objectives.grid import Folder
from tripletmas.objectives.metrics import chance_map
from tripletmas.objectives.objective import Objective


class Facts(Objective):
    """A loss between images and the facts that hold of them, judged by the facts that an image finds, and back."""

    measured = ("embedding", "parts")
    validated = "mAP"

    def __init__(self, loss: FactLoss):
        super().__init__()
        self.loss = loss

    @property
    def language(self):
        """The language view of all facts of the stream."""
        return self.loss.language

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(embeddings, labels)

    def output(self, name: str, model: nn.Module, batch: Any, number: int) -> Tensor:
        """The embedding with zeros in the parts (subject, predicate, object) that no fact of the image has."""
        embeddings = model(batch[0])
        parts = self.loss.parts_of(batch[1].to(embeddings.device))
        return embeddings * parts.repeat_interleave(embeddings.shape[1] // parts.shape[1], dim=1)

    def identity(self, task: Task) -> dict[str, Any]:
        return {"language": self.language.checksums(task.classes)}

    def check_identity(self, task: Task, record: Mapping[str, Any], source: str) -> None:
        """Raises ValueError if a task has other facts than when the run learned it, or these have other vectors."""
        now, then = self.language.checksums(task.classes), record["language"]
        if other := sorted(now.keys() ^ then.keys()):
            raise ValueError(
                f"the facts of task {record['name']!r} are not those that the run in {source} learned: only then or "
                f"only now it has {listed([f'<{each}>' for each in other], 5)}. New facts come as new tasks"
            )
        if any(abs(now[fact] - then[fact]) > 1e-3 for fact in now):
            raise ValueError(
                f"the vectors of words ({self.language.words}) are not those with which the run in {source} learned "
                f"task {record['name']!r}: put the former file back"
            )

    def score(
        self, seen: Stream, embedded: EmbeddedTasks, stored: Mapping[str, Sequence[Embeddings]] | None = None
    ) -> TaskScores:
        """The metrics of `scoring.score_facts` for each task. Images ask with the vectors of each gallery, too."""
        columns = len(self.language.facts)
        known = torch.stack([_columns(task.classes, columns) for task in seen])
        first, truth = images_once(seen), concatenate([task.query for task in seen]).truth
        values: dict[str, dict[str, list[float]]] = {}
        for name, parts in {"": embedded.galleries, **(stored or {})}.items():
            suffix = f"_{name}" if name else ""
            images = torch.cat([part.vectors for part in parts])[first]
            for number, task in enumerate(seen):
                found = {
                    "seen": self._scores(images, truth, task.classes, known.any(dim=0)),
                    "task": self._scores(parts[number].vectors, task.query.truth, task.classes, known[number]),
                }
                for scope, scores in found.items():
                    for metric, value in scores.items():
                        values.setdefault(scope + suffix, {}).setdefault(metric, []).append(value)
        without = [int((~task.query.truth[:, list(task.classes)].any(dim=0)).sum()) for task in seen]
        return TaskScores(values, {}, without, joined(embedded.queries))

    def score_one(self, model: nn.Module, task: Task) -> dict[str, float]:
        """Facts are asked for in the task's own test images; these choose among all facts of the stream.

        What holds of an image besides the task's own facts is left out.
        """
        everything = torch.ones(len(self.language.facts), dtype=torch.bool)
        return self._scores(self.embed(model, task.query).vectors, task.query.truth, task.classes, everything)

    def held_out(self, task: Task, share: float, seed: int) -> tuple[Task, float]:
        """Some images, whatever they show."""
        data = task.train
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        size = max(round(share * len(data)), 1)
        query = data.plain().subset(order[:size].sort().values)
        train = data.subset(order[size:].sort().values)
        chance = chance_map(query.truth[:, list(task.classes)]).nanmean()
        return replace(task, train=train, query=query, gallery=None), float(chance)

    def validate(self, model: nn.Module, task: Task) -> float:
        return self.score_one(model, task)["map"]

    def num_stored(self, earlier: Stream) -> int:
        """An image of facts of several tasks counts once."""
        return len(images_once(earlier)) if earlier else 0

    def compared(self, vectors: Tensor) -> Tensor:
        """With each of its three parts of length 1. (What guessing scores is known, not how far luck can differ.)"""
        return image_vectors(vectors)

    def keep_shown(self, run: Folder, number: int, seen: Stream, embedded: EmbeddedTasks) -> None:
        write_shown(run, number, seen, embedded, self.loss)

    def _scores(self, images: Tensor, truth: Tensor, classes: Sequence[int], candidates: Tensor) -> dict[str, float]:
        language = self.language
        asked = _columns(classes, len(language.facts))
        return score_facts(images, truth, language.vectors, language.mask, asked=asked, candidates=candidates).values


def _columns(classes: Sequence[int], size: int) -> Tensor:
    columns = torch.zeros(size, dtype=torch.bool)
    columns[list(classes)] = True
    return columns
