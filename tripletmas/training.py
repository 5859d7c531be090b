"""The loop: train each task, let the strategy act, score every task seen so far. Readable from top to bottom."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from tripletmas.checkpoint import Checkpoint, RunDirectory
from tripletmas.data import LabelledDataset
from tripletmas.evaluation import score_tasks
from tripletmas.forgetting import Scores
from tripletmas.losses import MetricLoss
from tripletmas.optimization import PRECISIONS, TrainConfig, make_optimizer, set_rate
from tripletmas.params import device_of, load_state, state_of
from tripletmas.sampling import class_balanced_batches, seed_everything
from tripletmas.strategies import Strategy
from tripletmas.tasks import Stream, Task, fingerprint


def train_stream(
    model: nn.Module,
    stream: Stream,
    strategy: Strategy,
    loss: MetricLoss,
    config: TrainConfig | None = None,
    run: RunDirectory | None = None,
) -> Scores:
    """Learn the tasks of a stream one after the other; after each, score all tasks seen so far.

    The model is trained where it is: move it to the device first. With a run directory, everything is recorded there,
    a checkpoint is kept at every epoch's end, and a run that was interrupted goes on where it stopped; on the CPU it
    then ends with the same weights, bit for bit, as if it had not been interrupted.

    Args:
        model: maps a batch of samples to raw embeddings (batch, dim).
        loss: (raw embeddings (batch, dim), labels (batch,)) -> scalar; any loss of pytorch-metric-learning.

    Returns:
        The scores after each task: recall@1, 2, 4, 8, R-precision, MAP@R and MRR, on the gallery of everything seen
        so far ("seen") and on the task's own ("task").

    Raises:
        FloatingPointError: if a loss is not finite; what was saved before stays as it was.
        ValueError: if the run directory holds a checkpoint of another model or of other tasks.
    """
    config = config or TrainConfig()
    strategy.prepare(model, loss, stream)
    scores = Scores(tuple(task.name for task in stream))
    start = run.load_checkpoint() if run else None
    if run:
        run.rewind(start)
    if run and start:
        scores = _earlier_scores(run, stream)
        load_state(model, start.model, f"the checkpoint in {run.path}")
        _load_loss(loss, start.loss, run)
        if not start.epoch:
            strategy.load_state_dict(start.strategy)
    elif run:
        run.write_tensors("weights/start.safetensors", state_of(model))
    for number in range(start.task if start else 0, len(stream)):
        resumed = start if start and start.epoch and start.task == number else None
        _train_task(model, stream, number, strategy, loss, config, run, resumed)
        _finish_task(model, stream, number, strategy, loss, config, scores, run)
        if run:
            _save(run, model, strategy, loss, None, number + 1, 0)
    return scores


def _train_task(
    model: nn.Module,
    stream: Stream,
    number: int,
    strategy: Strategy,
    loss: MetricLoss,
    config: TrainConfig,
    run: RunDirectory | None,
    resumed: Checkpoint | None,
) -> None:
    task = stream[number]
    seed_everything(config.seed, number)
    optimizer = make_optimizer(model, loss, config)
    scaler = torch.amp.GradScaler(device_of(model).type, enabled=config.precision == "fp16")
    strategy.before_task(model, task, optimizer)
    if resumed and resumed.optimizer:
        strategy.load_state_dict(resumed.strategy)
        optimizer.load_state_dict(resumed.optimizer["optimizer"])
        scaler.load_state_dict(resumed.optimizer["scaler"])
    data = strategy.training_data(task, stream[:number])
    if data is None:
        return
    for epoch in range(resumed.epoch if resumed else 0, config.epochs):
        record = _train_epoch(model, task, data, number, epoch, strategy, loss, optimizer, scaler, config)
        if run:
            run.append({"kind": "epoch", "task": number, "name": task.name, "epoch": epoch, **record})
            steps = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            _save(run, model, strategy, loss, steps, number, epoch + 1)


def _train_epoch(
    model: nn.Module,
    task: Task,
    data: LabelledDataset,
    number: int,
    epoch: int,
    strategy: Strategy,
    loss: MetricLoss,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    config: TrainConfig,
) -> dict[str, Any]:
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed_everything(config.seed, number, epoch))
    batches = class_balanced_batches(
        data.labels,
        batch_size=config.batch_size,
        samples_per_class=config.samples_per_class,
        generator=generator,
    )
    loader = data.loader(batches=batches, num_workers=config.num_workers, generator=generator)
    _set_train(model, config.freeze_batchnorm and number > 0)
    device = device_of(model)
    dtype = PRECISIONS[config.precision]
    total, rate = 0.0, config.lr
    with tqdm(loader, desc=f"task {task.name} epoch {epoch + 1}/{config.epochs}", disable=None, leave=False) as bar:
        for step, (inputs, labels) in enumerate(bar):
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            rate = set_rate(optimizer, config, (epoch + step / len(batches)) / config.epochs)
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype) if dtype else nullcontext():
                embeddings = model(inputs)
            objective = loss(embeddings.float(), labels)
            addition = strategy.loss(model, inputs, embeddings)
            if addition is not None:
                objective = objective + addition
            value = objective.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} in task {number} ({task.name}), epoch {epoch}, step {step}: lower lr or "
                    "strength, or set clip; the last checkpoint is untouched"
                )
            scaler.scale(objective).backward()
            if config.clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            scaler.step(optimizer)
            scaler.update()
            strategy.after_step(model)
            total += value
            if not bar.disable:
                bar.set_postfix(loss=f"{value:.3f}", penalty=f"{_penalty(strategy):.3g}", rate=f"{rate:.2g}")
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad:  # a finite loss can have a gradient that is not; no later loss would tell before this is saved
        raise FloatingPointError(
            f"weights are no longer finite ({bad[0]}) after task {number} ({task.name}), epoch {epoch}: lower lr or "
            "strength, or set clip; the last checkpoint is untouched"
        )
    return {
        "loss": total / len(batches),
        "penalty": _penalty(strategy),
        "rate": rate,
        "steps": len(batches),
        "seconds": time.perf_counter() - began,
    }


def _finish_task(
    model: nn.Module,
    stream: Stream,
    number: int,
    strategy: Strategy,
    loss: MetricLoss,
    config: TrainConfig,
    scores: Scores,
    run: RunDirectory | None,
) -> None:
    began = time.perf_counter()
    seen = stream[: number + 1]
    seed_everything(config.seed, number, config.epochs)
    strategy.after_task(model, seen[-1])
    found = score_tasks(
        strategy.deployed(model), seen, batch_size=config.eval_batch_size, num_workers=config.num_workers
    )
    for gallery, values in found.values.items():
        for metric, per_task in values.items():
            for on_task, value in enumerate(per_task):
                scores.record(gallery, metric, number, on_task, value)
    if not run:
        return
    run.write_tensors(f"weights/task{number:02d}.safetensors", state_of(strategy.deployed(model)))
    unprotected: dict[str, Any] = {}
    for position, protection in enumerate(strategy.protections):
        suffix = f"-{position}" if position else ""
        run.write_tensors(f"importance/task{number:02d}{suffix}.safetensors", protection.importance)
    if strategy.protections:
        own = [name for name, _ in loss.named_parameters()] if isinstance(loss, nn.Module) else []
        unprotected = replace(strategy.protections[0].coverage(), loss_parameters=tuple(own)).to_json()
    run.write_tensors("index/final.safetensors", {"vectors": found.queries.vectors, "labels": found.queries.labels})
    run.write_json(
        "index/final.json",
        {
            "class_names": list(seen[0].query.class_names),
            "tasks": [list(task.classes) for task in seen],
        },
    )
    run.write_json("scores.json", scores.to_json())
    run.append(
        {
            "kind": "task",
            "task": number,
            "name": seen[-1].name,
            "seconds": time.perf_counter() - began,
            "scores": found.values,
            "data": fingerprint(seen[-1]),
            "queries": [len(task.query) for task in seen],
            "without_relevant": found.without_relevant,
            "unprotected": unprotected,
        }
    )


def _set_train(model: nn.Module, freeze_batchnorm: bool) -> None:
    model.train()
    if freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _penalty(strategy: Strategy) -> float:
    with torch.no_grad():
        return sum(float(protection.value()) for protection in strategy.protections)


def _save(
    run: RunDirectory,
    model: nn.Module,
    strategy: Strategy,
    loss: MetricLoss,
    optimizer: dict[str, Any] | None,
    task: int,
    epoch: int,
) -> None:
    run.save_checkpoint(
        Checkpoint(
            task=task,
            epoch=epoch,
            model=state_of(model),
            strategy=strategy.state_dict(),
            loss=state_of(loss) if isinstance(loss, nn.Module) else {},
            optimizer=optimizer,
        )
    )


def _load_loss(loss: MetricLoss, state: dict[str, Tensor], run: RunDirectory) -> None:
    if not isinstance(loss, nn.Module):
        return
    try:
        load_state(loss, state, f"the state of the loss in {run.path}")
    except ValueError as error:
        raise ValueError(f"{error} (a loss with a vector for each class cannot go on with new classes)") from None


def _earlier_scores(run: RunDirectory, stream: Stream) -> Scores:
    """The scores of the tasks that are done; tasks that were added to the stream since may follow."""
    names = tuple(task.name for task in stream)
    scores = Scores(names)
    for record in run.records():
        if record["kind"] not in ("epoch", "task"):
            continue
        now = repr(names[record["task"]]) if record["task"] < len(names) else "no such task"
        if repr(record["name"]) != now:
            raise ValueError(
                f"task {record['task']} of the run in {run.path} was {record['name']!r}, but the data now give {now}: "
                "tasks may be added at the end, where new ones come if their names sort last, not changed"
            )
        if record["kind"] == "task" and record.get("data") != fingerprint(stream[record["task"]]):
            raise ValueError(
                f"the data of task {record['name']!r} have changed since the run in {run.path} learned it: a sample "
                "that was a query may now be trained on. New data come as new tasks; train anew for changed ones"
            )
        for gallery, values in record.get("scores", {}).items():
            for metric, per_task in values.items():
                for on_task, value in enumerate(per_task):
                    scores.record(gallery, metric, record["task"], on_task, math.nan if value is None else value)
    return scores
