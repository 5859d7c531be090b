"""The loop: train each task, let the strategy act, score every task seen so far. Readable from top to bottom."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from tripletmas.checkpoint import Checkpoint, RunDirectory
from tripletmas.class_means import ClassMeans
from tripletmas.evaluation import embed_tasks, score_alone, score_embedded, score_recognition
from tripletmas.forgetting import Scores
from tripletmas.gallery import Galleries, GalleryConfig, drift_by_class, gallery_file, named
from tripletmas.losses import MetricLoss
from tripletmas.optimization import TrainConfig
from tripletmas.params import load_state, state_of
from tripletmas.recognition import Recognition
from tripletmas.resuming import earlier_scores, load_loss, take_ahead
from tripletmas.sampling import seed_everything
from tripletmas.search import SearchConfig, find_strength
from tripletmas.shown import write_shown
from tripletmas.strategies import Strategy
from tripletmas.task_training import Learner, train_task
from tripletmas.tasks import Stream, Task, fingerprint


def train_stream(
    model: nn.Module,
    stream: Stream,
    strategy: Strategy,
    loss: MetricLoss,
    config: TrainConfig | None = None,
    run: RunDirectory | None = None,
    search: SearchConfig | None = None,
    *,
    gallery: GalleryConfig | None = None,
    unseen: Task | None = None,
) -> Scores:
    """Learn the tasks of a stream one after the other; after each, score all tasks seen so far.

    The model is trained where it is: move it to the device first. With a run directory, everything is recorded there,
    a checkpoint is kept at every epoch's end, and a run that was interrupted goes on where it stopped; on the CPU it
    then ends with the same weights, bit for bit, as if it had not been interrupted.

    Args:
        model: maps a batch of samples to raw embeddings (batch, dim).
        loss: (raw embeddings (batch, dim), labels (batch,)) -> scalar; any loss of pytorch-metric-learning, or a
            `Recognition`.
        search: before each task after the first, search the strategy's strength on that task's data.
        gallery: what becomes of stored galleries; None for the defaults.
        unseen: classes of no task, scored on their own gallery after each task: does the embedding still generalise?

    Returns:
        The scores after each task: recall@1, 2, 4, 8, R-precision, MAP@R and MRR, on the gallery of everything seen
        so far ("seen") and on the task's own ("task"), both embedded by the present model; the same on galleries as
        they were stored ("seen_stale", "task_stale") and as they were moved since ("seen_compensated",
        "task_compensated"); for recognition the accuracies too (`score_recognition`).

    Raises:
        FloatingPointError: if a loss is not finite; what was saved before stays as it was.
        ValueError: if the run directory holds a checkpoint of another model or of other tasks.
    """
    learner = Learner(model, loss, strategy, config or TrainConfig())
    strategy.prepare(model, loss, stream)
    if search and search.start is not None:
        strategy.set_strength(search.start)
    means = _class_means(learner)
    outcome = _Outcome(learner, gallery or GalleryConfig(), unseen, means)
    scores = Scores(tuple(task.name for task in stream))
    start = run.load_checkpoint() if run else None
    if run:
        run.rewind(start)
    if run and start:
        scores = earlier_scores(run, stream)
        load_state(model, start.model, f"the checkpoint in {run.path}")
        load_loss(loss, start.loss, run)
        if means and start.means:
            means.load_state_dict(start.means, stream)
        outcome.galleries.restore(run, model, stream, start.task)
        if not start.epoch:
            strategy.load_state_dict(start.strategy)
        if learner.config.forward_transfer:
            _score_added(learner, stream, scores, run)
    elif run:
        run.write_tensors("weights/start.safetensors", state_of(model))
    for number in range(start.task if start else 0, len(stream)):
        resumed = start if start and start.epoch and start.task == number else None
        if learner.config.forward_transfer and not resumed:
            ahead = _score_ahead(learner, stream, number)
            take_ahead(scores, ahead)
            if run:
                run.append(ahead)
        if not resumed:
            outcome.before_task(stream[number])
        if search and number:
            _choose_strength(learner, stream, number, search, run)
        _train(learner, stream, number, means, run, resumed)
        _finish_task(outcome, stream, number, scores, run)
        if run:
            _save(run, learner, means, None, number + 1, 0)
    return scores


def _train(
    learner: Learner,
    stream: Stream,
    number: int,
    means: ClassMeans | None,
    run: RunDirectory | None,
    resumed: Checkpoint | None,
) -> None:
    def record_epoch(epoch: int, record: dict[str, Any], steps: dict[str, Any]) -> None:
        if run:
            run.append({"kind": "epoch", "task": number, "name": stream[number].name, "epoch": epoch, **record})
            _save(run, learner, means, steps, number, epoch + 1)

    train_task(learner, stream[number], stream[:number], resumed=resumed, on_epoch=record_epoch)


def _choose_strength(
    learner: Learner, stream: Stream, number: int, search: SearchConfig, run: RunDirectory | None
) -> None:
    """Search the strength for this task, unless it was found before the run was interrupted."""
    records = run.records() if run else []
    found = [record for record in records if record["kind"] == "search" and record["task"] == number]
    if found:
        learner.strategy.set_strength(found[-1]["strength"])
        return
    began = time.perf_counter()
    result = find_strength(learner, stream[number], stream[:number], search)
    if run:
        seconds = time.perf_counter() - began
        run.append({"kind": "search", "task": number, "name": stream[number].name, **result, "search_seconds": seconds})


def _score_ahead(learner: Learner, stream: Stream, number: int) -> dict[str, Any]:
    """A record of the scores on the task that comes next, or, before the first, on all tasks: on their own galleries.

    They are what forward transfer is made of.
    """
    model, config = learner.strategy.deployed(learner.model), learner.config
    tasks = stream[number : number + 1] if number else stream
    found = [score_alone(model, t, batch_size=config.eval_batch_size, num_workers=config.num_workers) for t in tasks]
    values = {metric: [each[metric] for each in found] for metric in found[0]}
    return {"kind": "ahead", "task": number, "scores": {"task": values}}


def _score_added(learner: Learner, stream: Stream, scores: Scores, run: RunDirectory) -> None:
    """Scores of the untrained model on tasks that were added since the run began."""
    known = scores.baseline.get("task", {}).get("recall@1")
    if known is None or not known.isnan().any():
        return
    untrained = copy.deepcopy(learner.model)
    load_state(untrained, run.read_tensors("weights/start.safetensors"), "weights/start.safetensors")
    record = _score_ahead(replace(learner, model=untrained, strategy=Strategy()), stream, 0)
    take_ahead(scores, record)
    run.append(record)


@dataclass(frozen=True)
class _Outcome:
    """What is measured after each task, besides what the learner is."""

    learner: Learner
    config: GalleryConfig
    unseen: Task | None
    means: ClassMeans | None
    galleries: Galleries = field(init=False)

    def __post_init__(self):
        options, maps = self.learner.config, (self.config.compensate,) if self.config.compensate else ()
        made = Galleries(maps, batch_size=options.eval_batch_size, num_workers=options.num_workers)
        object.__setattr__(self, "galleries", made)

    def before_task(self, task: Task) -> None:
        """Note what the model that is deployed so far says of a task's data, where earlier tasks are stored."""
        if not len(self.galleries):
            return
        deployed = self.learner.strategy.deployed(self.learner.model)
        self.galleries.before_task(deployed, task)
        if self.means:
            self.means.before_task(deployed, task)


def _finish_task(outcome: _Outcome, stream: Stream, number: int, scores: Scores, run: RunDirectory | None) -> None:
    began = time.perf_counter()
    learner, galleries, means = outcome.learner, outcome.galleries, outcome.means
    model, strategy, config = learner.model, learner.strategy, learner.config
    seen = stream[: number + 1]
    seed_everything(config.seed, number, config.epochs)
    strategy.after_task(model, seen[-1])
    deployed = strategy.deployed(model)
    embedded = embed_tasks(deployed, seen, batch_size=config.eval_batch_size, num_workers=config.num_workers)
    galleries.after_task(deployed, seen[-1], embedded.galleries[-1])
    found = score_embedded(embedded, named(galleries.parts, outcome.config.compensate))
    if isinstance(learner.loss, Recognition):
        if means:
            means.after_task(deployed, seen)
        for gallery, values in score_recognition(learner.loss, means, seen, found.queries).items():
            found.values[gallery].update(values)
    for gallery, values in found.values.items():
        for metric, per_task in values.items():
            for on_task, value in enumerate(per_task):
                scores.record(gallery, metric, number, on_task, value)
    if not run:
        return
    _write_tensors(learner, deployed, number, means, run)
    run.write_tensors(gallery_file(number), galleries.last())
    write_shown(run, number, seen, embedded)
    run.write_tensors("index/final.safetensors", {"vectors": found.queries.vectors, "labels": found.queries.labels})
    run.write_json(
        "index/final.json",
        {
            "class_names": list(seen[0].query.class_names),
            "tasks": [list(task.classes) for task in seen],
        },
    )
    run.write_json("scores.json", scores.to_json())
    classes = [task.classes for task in seen]
    record = {
        "kind": "task",
        "task": number,
        "name": seen[-1].name,
        "scores": found.values,
        "data": fingerprint(seen[-1]),
        "queries": [len(task.query) for task in seen],
        "without_relevant": found.without_relevant,
        "drift": drift_by_class(galleries.parts["stale"][:-1], embedded.galleries[:-1], classes[:-1]),
        "reembed": {"images": sum(len(part) for part in embedded.galleries[:-1]), "seconds": embedded.seconds},
        "unprotected": _unprotected(learner),
    }
    if outcome.unseen:
        size, workers = config.eval_batch_size, config.num_workers
        record["unseen"] = score_alone(deployed, outcome.unseen, batch_size=size, num_workers=workers)
    run.append({**record, "seconds": time.perf_counter() - began})


def _write_tensors(
    learner: Learner, deployed: nn.Module, number: int, means: ClassMeans | None, run: RunDirectory
) -> None:
    """The model after a task, what is important to it, and what recognition has besides."""
    run.write_tensors(f"weights/task{number:02d}.safetensors", state_of(deployed))
    for position, protection in enumerate(learner.strategy.protections):
        suffix = f"-{position}" if position else ""
        run.write_tensors(f"importance/task{number:02d}{suffix}.safetensors", protection.importance)
    if isinstance(learner.loss, Recognition):
        run.write_tensors(f"recognition/task{number:02d}.safetensors", state_of(learner.loss))
    if means:
        run.write_tensors(f"recognition/means{number:02d}.safetensors", means.state_dict())


def _unprotected(learner: Learner) -> dict[str, Any]:
    protections = learner.strategy.protections
    if not protections:
        return {}
    own = [name for name, _ in learner.loss.named_parameters()] if isinstance(learner.loss, nn.Module) else []
    return replace(protections[0].coverage(), loss_parameters=tuple(own)).to_json()


def _class_means(learner: Learner) -> ClassMeans | None:
    if not isinstance(learner.loss, Recognition):
        return None
    return ClassMeans(batch_size=learner.config.eval_batch_size, num_workers=learner.config.num_workers)


def _save(
    run: RunDirectory,
    learner: Learner,
    means: ClassMeans | None,
    optimizer: dict[str, Any] | None,
    task: int,
    epoch: int,
) -> None:
    run.save_checkpoint(
        Checkpoint(
            task=task,
            epoch=epoch,
            model=state_of(learner.model),
            strategy=learner.strategy.state_dict(),
            loss=state_of(learner.loss) if isinstance(learner.loss, nn.Module) else {},
            means=means.state_dict() if means else {},
            optimizer=optimizer,
        )
    )
