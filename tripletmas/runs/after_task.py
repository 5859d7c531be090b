"""What is measured after each task, and what a run directory keeps of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from tripletmas.runs.directory import RunDirectory
from tripletmas.objectives.recognition.class_means import ClassMeans
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores, embed_tasks, score_recognition
from tripletmas.objectives.facts.objective import num_stored, score_objective, score_objective_alone
from tripletmas.objectives.facts import shown as facts_shown
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.scores import Scores
from tripletmas.runs.galleries import STALE, Galleries, GalleryConfig, drift_by_class, named
from tripletmas.basics.weights import state_of
from tripletmas.objectives.recognition.heads import Recognition
from tripletmas.data.batches import seed_everything
from tripletmas.objectives.retrieval import shown as retrieval_shown
from tripletmas.runs.task import Learner
from tripletmas.data.tasks import Stream, Task, fingerprint


@dataclass(frozen=True)
class Finish:
    """What comes after the last epoch of a task: importance, galleries, scores, and files.

    Attributes:
        unseen: classes of no task, scored after each; None for none.
        means: the class means of recognition; None without it.
        galleries: as they were stored, and moved.
    """

    learner: Learner
    config: GalleryConfig
    unseen: Task | None
    means: ClassMeans | None = field(init=False)
    galleries: Galleries = field(init=False)

    def __post_init__(self):
        options, maps = self.learner.config, (self.config.compensate,) if self.config.compensate else ()
        sizes = {"batch_size": options.eval_batch_size, "num_workers": options.num_workers}
        recognition = isinstance(self.learner.loss, Recognition)
        object.__setattr__(self, "means", ClassMeans(**sizes) if recognition else None)
        object.__setattr__(self, "galleries", Galleries(maps, **sizes))

    def before_task(self, task: Task) -> None:
        """Note what the model that is deployed so far says of a task's data, where earlier tasks are stored."""
        if not len(self.galleries):
            return
        deployed = self.learner.strategy.deployed(self.learner.model)
        self.galleries.before_task(deployed, task)
        if self.means:
            self.means.before_task(deployed, task)

    def after_task(self, seen: Stream, scores: Scores, run: RunDirectory | None) -> None:
        """Let the strategy act, score the tasks seen so far, the last of which was just learned, and keep all that."""
        began = time.perf_counter()
        learner, number = self.learner, len(seen) - 1
        model, strategy, config = learner.model, learner.strategy, learner.config
        seed_everything(config.seed, number, config.epochs)
        strategy.after_task(model, seen[-1])
        deployed = strategy.deployed(model)
        embedded = embed_tasks(deployed, seen, batch_size=config.eval_batch_size, num_workers=config.num_workers)
        self.galleries.after_task(deployed, seen[-1], embedded.galleries[-1])
        found = score_objective(learner.loss, seen, embedded, named(self.galleries.parts, self.config.compensate))
        if isinstance(learner.loss, Recognition):
            if self.means:
                self.means.after_task(deployed, seen)
            for gallery, values in score_recognition(learner.loss, self.means, seen, found.queries).items():
                found.values[gallery].update(values)
        for gallery, values in found.values.items():
            for metric, per_task in values.items():
                for on_task, value in enumerate(per_task):
                    scores.record(gallery, metric, number, on_task, value)
        if run:
            self._write_tensors(deployed, number, run)
            self._write_galleries(seen, embedded, found, run)
            run.keep_scores(scores.to_json())
            record = self._record(deployed, seen, embedded, found)
            run.append({**record, "seconds": time.perf_counter() - began})

    def _record(self, deployed: nn.Module, seen: Stream, embedded: EmbeddedTasks, found: TaskScores) -> dict[str, Any]:
        """What the line of a finished task says, without how long it took."""
        config = self.learner.config
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
            "reembed": {"images": num_stored(self.learner.loss, seen[:-1], embedded), "seconds": embedded.seconds},
            "unprotected": self._unprotected(),
        }
        if isinstance(self.learner.loss, FactLoss):
            record["language"] = self.learner.loss.language.checksums(seen[-1].classes)
        if self.unseen is None:
            return record
        size, workers = config.eval_batch_size, config.num_workers
        unseen = score_objective_alone(self.learner.loss, deployed, self.unseen, batch_size=size, num_workers=workers)
        return {**record, "unseen": unseen, "unseen_data": fingerprint(self.unseen)}

    def _write_tensors(self, deployed: nn.Module, number: int, run: RunDirectory) -> None:
        """The model after a task, what is important to it, and what recognition has besides."""
        run.weights.write(number, state_of(deployed))
        for position, protection in enumerate(self.learner.strategy.protections):
            run.importance(position).write(number, protection.importance)
        if isinstance(self.learner.loss, Recognition):
            run.loss_states.write(number, state_of(self.learner.loss))
        if self.means:
            run.class_means.write(number, self.means.state_dict())

    def _write_galleries(self, seen: Stream, embedded: EmbeddedTasks, found: TaskScores, run: RunDirectory) -> None:
        """The stored gallery of the last task, what a report shows, and the present embedding of all queries."""
        number, loss = len(seen) - 1, self.learner.loss
        run.galleries.write(number, self.galleries.last())
        if isinstance(loss, FactLoss):
            facts_shown.write_shown(run, number, seen, embedded, loss)
        else:
            retrieval_shown.write_shown(run, number, seen, embedded)
        final = {"vectors": found.queries.vectors, "labels": retrieval_shown.one_label(found.queries.labels)}
        run.keep_embedding(final, seen[0].query.class_names, [task.classes for task in seen])

    def _unprotected(self) -> dict[str, Any]:
        protections, loss = self.learner.strategy.protections, self.learner.loss
        if not protections:
            return {}
        own = [name for name, _ in loss.named_parameters()] if isinstance(loss, nn.Module) else []
        return replace(protections[0].coverage(), loss_parameters=tuple(own)).to_json()
