"""The loop: train each task, let the strategy act, score every task seen so far. Readable from top to bottom."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from tripletmas.basics import distributed
from tripletmas.basics.weights import Params, load_state, state_of
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import Embedder
from tripletmas.models.parts import batch_norms, freeze
from tripletmas.objectives.collapse import MARGIN
from tripletmas.objectives.kinds import objective_of
from tripletmas.objectives.objective import MetricLoss, Objective
from tripletmas.objectives.scores import Scores
from tripletmas.runs.after_task import AfterTask
from tripletmas.runs.checkpoint import Checkpoint
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.galleries import GalleryConfig, own_images
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.precision import settled
from tripletmas.runs.resume import (
    check_identities,
    check_place,
    check_unseen,
    earlier_scores,
    keep_scores,
    mend_importance,
    say_if_done,
)
from tripletmas.runs.sharing import check_sharing
from tripletmas.runs.strength import SearchConfig, find_strength
from tripletmas.runs.task import Learner, freezes_batchnorm, train_task
from tripletmas.runs.watch import News
from tripletmas.strategies.base import Strategy

logger = logging.getLogger(__name__)

Listener = Callable[[], None]

_SOFTENED = "; from now on all triplets of a batch are learned from, not the hardest alone, which brings it there"
_AGAIN = (
    "; without batch norm that follows the data its steps were too long: the task begins again from the weights before "
    "it, at a tenth of the rate, with the epochs that are left"
)


def train_stream(
    model: nn.Module,
    stream: Stream,
    strategy: Strategy,
    loss: MetricLoss | Objective,
    config: TrainConfig | None = None,
    run: RunDirectory | None = None,
    search: SearchConfig | None = None,
    *,
    gallery: GalleryConfig | None = None,
    unseen: Task | None = None,
    listener: Listener | None = None,
) -> Scores:
    """Learn the tasks of a stream one after the other; after each, score all tasks seen so far.

    The model is trained where it is: move it to the device first. With a run directory, everything is recorded there,
    a checkpoint is kept at every epoch's end, and a run that was interrupted goes on where it stopped; on the CPU it
    then ends with the same weights, bit for bit, as if it had not been interrupted. Where several processes work
    together (`basics.distributed`), all call this with the same; each embeds its share of each batch, and the first one
    writes.

    Args:
        model: maps a batch of samples to raw embeddings (batch, dim).
        loss: (raw embeddings (batch, dim), labels (batch,)) -> scalar; any loss of pytorch-metric-learning, a loss of
            facts, or the objective of another kind of task, such as `Recognition`.
        search: before each task after the first, search the strategy's strength on that task's data.
        gallery: what becomes of stored galleries; None for the defaults, with the map of the strategy.
        unseen: classes of no task, scored on their own gallery after each task: does the embedding still generalise?
        listener: called at the start and whenever a checkpoint has been saved: what the run's records tell then stands.

    Returns:
        The scores after each task: for retrieval recall@1, 2, 4, 8, R-precision, MAP@R, MRR and nDCG, on the gallery of
        everything seen so far ("seen") and on the task's own ("task"), both embedded by the present model; the same on
        galleries as they were stored ("seen_stale", "task_stale") and as they were moved since ("seen_compensated",
        "task_compensated"); for recognition the accuracies too.

    Raises:
        FloatingPointError: if a loss is not finite; what was saved before stays as it was.
        ValueError: if the run directory holds a checkpoint of another model or of other tasks, or if another process
            writes to it.
    """
    learner = Learner(model, objective_of(loss), strategy, config or TrainConfig())
    with run.locked() if run else nullcontext():
        of_gallery = gallery or GalleryConfig(compensate=strategy.compensate)
        return _train(learner, stream, run, search, of_gallery, unseen, listener or _nothing)


def _train(
    learner: Learner,
    stream: Stream,
    run: RunDirectory | None,
    search: SearchConfig | None,
    gallery: GalleryConfig,
    unseen: Task | None,
    listener: Listener,
) -> Scores:
    model, strategy = learner.model, learner.strategy
    if learner.config.freeze:
        freeze(model, learner.config.freeze)
    check_sharing(model, stream, learner.config)
    learner.objective.embed = Embedder(learner.config.eval_batch_size, learner.config.num_workers)
    strategy.prepare(model, learner.objective, stream)
    if search and search.start is not None:
        strategy.set_strength(search.start)
    after = AfterTask(learner, gallery, unseen, own_images(gallery, stream[0].train))
    start = run.load_checkpoint() if run else None
    scores, news = _begin(learner, after, stream, run, start), News()
    if start is None or start.task < len(stream):
        config = settled(learner.config, model, stream[0], run, trains=strategy.trains)
        learner = replace(learner, config=config)
    distributed.barrier()  # until the first process has written what all read from here on
    for record in run.records("epoch") if run else []:
        _listen(learner, after, news.of(record["task"], record), record)
    listener()
    for number in range(start.task if start else 0, len(stream)):
        task, earlier = stream[number], stream[:number]
        resumed = start if start and start.epoch and start.task == number else None
        if not resumed:
            _score_ahead(learner, stream, number, scores, run)
            after.before(task)
        if search and earlier:
            _choose_strength(learner, task, earlier, search, run)

        weights = _weights_before(learner, run, number)

        def on_record(epoch: int, record: dict[str, Any], task: Task = task, n: int = number, weights=weights):
            if run:
                run.append({"kind": "epoch", "task": n, "name": task.name, "epoch": epoch, **record})
            of, loss = f"{n + 1} of {len(stream)} ({task.name}), epoch {epoch + 1}", record["loss"]
            logger.info("task %s of %d: loss %.4g", of, learner.config.epochs, loss)
            found = news.of(n, record)
            softened = _listen(learner, after, found, record)
            again = weights if MARGIN in found and epoch + 1 < learner.config.epochs else None
            for sign, sentence in found.items():
                led_out = (_SOFTENED if softened else "") + (_AGAIN if again else "")
                logger.warning("task %s: %s%s", of, sentence, led_out if sign == MARGIN else "")
            return again() if again else None

        def on_epoch(epoch: int, steps: dict[str, Any], n: int = number):
            if run:
                _save(run, learner, n, epoch + 1, steps)
                listener()

        train_task(learner, task, earlier, resumed=resumed, on_record=on_record, on_epoch=on_epoch)
        after((*earlier, task), scores, run)
        if run:
            _save(run, learner, number + 1, 0, None)
            listener()
    if run:
        keep_scores(run, scores)
    distributed.barrier()  # whoever reads the run next finds all of it
    return scores


def _nothing() -> None:
    """Nobody listens."""


def _begin(
    learner: Learner, after: AfterTask, stream: Stream, run: RunDirectory | None, start: Checkpoint | None
) -> Scores:
    """The scores so far, once everything is as it was at the checkpoint, or before the first task."""
    scores = Scores(tuple(task.name for task in stream))
    if run is None:
        return scores
    if start is None:
        run.check_records(None)
        distributed.barrier()
        run.rewind(None)
        run.keep_start_weights(state_of(learner.model))
    else:
        scores = _go_on(learner, after, stream, run, start)
        say_if_done(run, start, stream)
    if start is None or start.task < len(stream):
        run.keep_scores(Scores(scores.task_names).to_json())  # its scores are in the records until all tasks are done
    return scores


def _go_on(learner: Learner, after: AfterTask, stream: Stream, run: RunDirectory, start: Checkpoint) -> Scores:
    """Have the state of a checkpoint again; the scores of the tasks that are done.

    Nothing is written, nor records cut off, before all of it has been found to fit.
    """
    scores = earlier_scores(run, stream, start.record_bytes)
    check_place(run, start, stream, learner.config.epochs)
    check_unseen(run, after.unseen)
    check_identities(run, learner.objective, stream)
    load_state(learner.model, start.model, f"the checkpoint in {run.path}")
    learner.objective.load(start.objective, stream, f"the state of the loss in {run.path}")
    after.galleries.restore(run, learner.model, stream, start.task)
    if not start.epoch:
        learner.strategy.load_state_dict(start.strategy)
    distributed.barrier()  # until all have read what is cut off now
    run.rewind(start)
    if not start.epoch:
        mend_importance(learner.strategy, run, start.task - 1)
    if learner.config.forward_transfer:
        _score_added(learner, stream, scores, run)
    return scores


def _listen(learner: Learner, after: AfterTask, signs: Mapping[str, str], record: dict[str, Any]) -> bool:
    """Take note of an epoch, and of the signs of a collapse in it: whether its loss now takes what leads out."""
    after.trained = record
    return MARGIN in signs and learner.objective.soften()


def _weights_before(learner: Learner, run: RunDirectory | None, number: int) -> Callable[[], Params] | None:
    """What gives the weights that a task begins with, where it may have to begin again; None where it may not.

    That is where batch norm stands still: then a step that is too long draws all embeddings together for good. What a
    run has kept is the model that is deployed: where another is trained (imm), these weights are not at hand.
    """
    if not (freezes_batchnorm(learner, number) and batch_norms(learner.model)):
        return None
    if learner.strategy.deployed(learner.model) is not learner.model:
        return None
    if run:
        return lambda: run.weights.read(number - 1) if number else run.start_weights()
    before = {name: value.clone() for name, value in state_of(learner.model).items()}
    return lambda: before


def _choose_strength(
    learner: Learner, task: Task, earlier: Stream, search: SearchConfig, run: RunDirectory | None
) -> None:
    """Search the strength for this task, unless it was found before the run was interrupted."""
    number = len(earlier)
    found = [record for record in (run.records("search") if run else []) if record["task"] == number]
    if found:
        learner.strategy.set_strength(found[-1]["strength"])
        return
    began = time.perf_counter()
    result = find_strength(learner, task, earlier, search)
    if run:
        seconds = time.perf_counter() - began
        run.append({"kind": "search", "task": number, "name": task.name, **result, "search_seconds": seconds})


def _score_ahead(learner: Learner, stream: Stream, number: int, scores: Scores, run: RunDirectory | None) -> None:
    """Score the task that comes next on its own gallery; before the first all tasks, where that is asked for.

    The former tells what learning the task brings, both together are what forward transfer is made of.
    """
    if not number and not learner.config.forward_transfer:
        return
    model = learner.strategy.deployed(learner.model)
    tasks = stream[number : number + 1] if number else stream
    found = [learner.objective.score_one(model, task) for task in tasks]
    values = {metric: [each[metric] for each in found] for metric in found[0]}
    record = {"kind": "ahead", "task": number, "scores": {"task": values}}
    scores.take(record)
    if run:
        run.append(record)


def _score_added(learner: Learner, stream: Stream, scores: Scores, run: RunDirectory) -> None:
    """Scores of the untrained model on tasks that were added since the run began."""
    known = next(iter(scores.baseline.get("task", {}).values()), None)
    if known is None or not known.isnan().any():
        return
    untrained = copy.deepcopy(learner.model)
    load_state(untrained, run.start_weights(), f"the start in {run.path}")
    _score_ahead(replace(learner, model=untrained, strategy=Strategy()), stream, 0, scores, run)


def _save(run: RunDirectory, learner: Learner, task: int, epoch: int, optimizer: dict[str, Any] | None) -> None:
    run.save_checkpoint(
        Checkpoint(
            task=task,
            epoch=epoch,
            model=state_of(learner.model),
            strategy=learner.strategy.state_dict(),
            objective=learner.objective.state(),
            optimizer=optimizer,
        )
    )
