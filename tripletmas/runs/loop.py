"""The loop: train each task, let the strategy act, score every task seen so far. Readable from top to bottom."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

from torch import nn

from tripletmas.runs.directory import Checkpoint, RunDirectory
from tripletmas.objectives.recognition.class_means import ClassMeans
from tripletmas.objectives.facts.objective import score_objective_alone
from tripletmas.runs.after_task import Finish
from tripletmas.objectives.scores import Scores
from tripletmas.runs.galleries import GalleryConfig
from tripletmas.objectives.retrieval.losses import MetricLoss
from tripletmas.runs.options import TrainConfig
from tripletmas.basics.weights import load_state, state_of
from tripletmas.runs.resume import check_language, check_unseen, earlier_scores, load_loss, take_ahead
from tripletmas.runs.strength import SearchConfig, find_strength
from tripletmas.strategies.base import Strategy
from tripletmas.runs.task import Learner, train_task
from tripletmas.data.tasks import Stream, Task


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
    finish = Finish(learner, gallery or GalleryConfig(), unseen)
    means = finish.means
    scores = Scores(tuple(task.name for task in stream))
    start = run.load_checkpoint() if run else None
    if run:
        run.rewind(start)
    if run and start:
        scores = earlier_scores(run, stream)
        check_unseen(run, unseen)
        check_language(run, loss, stream)
        load_state(model, start.model, f"the checkpoint in {run.path}")
        load_loss(loss, start.loss, run)
        if means and start.means:
            means.load_state_dict(start.means, stream)
        finish.galleries.restore(run, model, stream, start.task)
        if not start.epoch:
            strategy.load_state_dict(start.strategy)
        if learner.config.forward_transfer:
            _score_added(learner, stream, scores, run)
    elif run:
        run.keep_start_weights(state_of(model))
    for number in range(start.task if start else 0, len(stream)):
        resumed = start if start and start.epoch and start.task == number else None
        if learner.config.forward_transfer and not resumed:
            ahead = _score_ahead(learner, stream, number)
            take_ahead(scores, ahead)
            if run:
                run.append(ahead)
        if not resumed:
            finish.before_task(stream[number])
        if search and number:
            _choose_strength(learner, stream, number, search, run)
        _train(learner, stream, number, means, run, resumed)
        finish.after_task(stream[: number + 1], scores, run)
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
    found = [record for record in (run.records("search") if run else []) if record["task"] == number]
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
    sizes = {"batch_size": config.eval_batch_size, "num_workers": config.num_workers}
    found = [score_objective_alone(learner.loss, model, task, **sizes) for task in tasks]
    values = {metric: [each[metric] for each in found] for metric in found[0]}
    return {"kind": "ahead", "task": number, "scores": {"task": values}}


def _score_added(learner: Learner, stream: Stream, scores: Scores, run: RunDirectory) -> None:
    """Scores of the untrained model on tasks that were added since the run began."""
    baseline = scores.baseline.get("task", {})
    known = baseline.get("recall@1", baseline.get("map"))
    if known is None or not known.isnan().any():
        return
    untrained = copy.deepcopy(learner.model)
    load_state(untrained, run.start_weights(), f"the start in {run.path}")
    record = _score_ahead(replace(learner, model=untrained, strategy=Strategy()), stream, 0)
    take_ahead(scores, record)
    run.append(record)


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
