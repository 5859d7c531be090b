"""What is measured after each task, and what a run directory keeps of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tripletmas.basics.weights import state_of
from tripletmas.data.batches import seed_everything
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task, fingerprint
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores, embed_tasks, one_label
from tripletmas.objectives.scores import Scores
from tripletmas.runs.brightness import brightness_of
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.galleries import STALE, Galleries, GalleryConfig, choice_record, drift_by_class, named
from tripletmas.runs.task import Learner
from tripletmas.runs.watch import judged, score_of

logger = logging.getLogger(__name__)


class AfterTask:
    """What comes after the last epoch of a task: importance, galleries, scores, and files.

    Attributes:
        galleries: as they were stored, and moved.
        trained: the record of the task's last epoch; empty where nothing was trained.

    Args:
        unseen: classes of no task, scored after each; None for none.
        images: unlabelled ones that join the fit of the map.
    """

    def __init__(
        self, learner: Learner, config: GalleryConfig, unseen: Task | None, images: LabelledDataset | None = None
    ):
        self.learner, self.config, self.unseen = learner, config, unseen
        self.trained: Mapping[str, Any] = {}
        maps = (config.compensate,) if config.compensate else ()
        self.galleries = Galleries(maps, embed=learner.objective.embed, images=images)

    def before(self, task: Task) -> None:
        """Note what the model that is deployed so far says of a task's data, where earlier tasks are stored."""
        self.trained = {}
        if len(self.galleries):
            deployed = self.learner.strategy.deployed(self.learner.model)
            self.galleries.before_task(deployed, task)
            self.learner.objective.before_task(deployed, task)

    def __call__(self, seen: Stream, scores: Scores, run: RunDirectory | None) -> None:
        """Let the strategy act, score the tasks seen so far, the last of which was just learned, and keep all that."""
        began = time.perf_counter()
        learner = self.learner
        model, objective, strategy, config = learner.model, learner.objective, learner.strategy, learner.config
        seed_everything(config.seed, len(seen) - 1, config.epochs)
        for protection in strategy.protections:
            protection.settle()
        shares = self._shares()  # of the weights held until now
        strategy.after_task(model, seen[-1])
        deployed = strategy.deployed(model)
        embedded = embed_tasks(deployed, seen, objective.embed)
        self.galleries.after_task(deployed, seen[-1], embedded.galleries[-1], strategy.kept_pairs(), shares)
        objective.after_task(deployed, seen)
        found = objective.score(seen, embedded, named(self.galleries.parts, self.config.compensate))
        scores.enter(len(seen) - 1, found.values)
        score = score_of(objective, seen[-1], found, -1)
        judgement = judged(objective, seen[-1], embedded.queries[-1], score, self.trained)
        if signs := judgement.get("collapse"):
            logger.warning("after task %d (%s): %s", len(seen), seen[-1].name, "; ".join(signs.values()))
        if run:
            self._keep(deployed, seen, embedded, found, run)
            record = {**self._record(deployed, seen, embedded, found), **judgement}
            changed = {"changed_responses": shares} if shares else {}
            run.append({**record, **changed, "seconds": time.perf_counter() - began})

    def _record(self, deployed: nn.Module, seen: Stream, embedded: EmbeddedTasks, found: TaskScores) -> dict[str, Any]:
        """What the line of a finished task says, without how long it took."""
        objective = self.learner.objective
        stored, classes = self.galleries.parts[STALE][:-1], [task.classes for task in seen[:-1]]
        record = {
            "kind": "task",
            "task": len(seen) - 1,
            "name": seen[-1].name,
            "scores": found.values,
            "data": fingerprint(seen[-1]),
            "queries": [len(task.query) for task in seen],
            "without_relevant": found.without_relevant,
            "drift": drift_by_class(stored, embedded.galleries[:-1], classes),
            "reembed": {"images": objective.num_stored(seen[:-1]), "seconds": embedded.seconds},
            "unprotected": self._unprotected(),
            **_shown(seen[-1].query),
            **choice_record(self.galleries.choices[-1]),
            **objective.identity(seen[-1]),
        }
        if self.unseen is None:
            return record
        unseen = objective.score_one(deployed, self.unseen)
        return {**record, "unseen": unseen, "unseen_data": fingerprint(self.unseen)}

    def _keep(
        self, deployed: nn.Module, seen: Stream, embedded: EmbeddedTasks, found: TaskScores, run: RunDirectory
    ) -> None:
        """The model after a task, what is important to it, its stored gallery, and what a report shows."""
        number, objective = len(seen) - 1, self.learner.objective
        run.weights.write(number, state_of(deployed))
        for position, protection in enumerate(self.learner.strategy.protections):
            run.importance(position).write(number, protection.importance)
        if state := objective.state():
            run.objectives.write(number, state)
        run.galleries.write(number, self.galleries.last())
        objective.keep_shown(run, number, seen, embedded)
        of = torch.cat([torch.full((len(query),), place) for place, query in enumerate(embedded.queries)])
        final = {"vectors": found.queries.vectors, "labels": one_label(found.queries.labels), "tasks": of}
        run.keep_embedding(final, seen[0].query.class_names, [task.classes for task in seen])

    def _shares(self) -> dict[str, float]:
        """Of each layer's squared response to earlier tasks, the share that has changed, if a protection knows it."""
        return {name: share for each in self.learner.strategy.protections for name, share in each.shares().items()}

    def _unprotected(self) -> dict[str, Any]:
        protections = self.learner.strategy.protections
        if not protections:
            return {}
        coverage = replace(protections[0].coverage(), loss_parameters=self.learner.objective.unprotected())
        return coverage.to_json()


def _shown(images: LabelledDataset) -> dict[str, float]:
    """How bright they are, where they are images."""
    found = brightness_of(images)
    return {} if found is None else {"brightness": found}
