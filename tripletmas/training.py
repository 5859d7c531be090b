"""The loop: train each task, let the strategy act, score every task seen so far. Readable from top to bottom."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from tripletmas.checkpoint import Checkpoint, RunDirectory
from tripletmas.data import LabelledDataset
from tripletmas.evaluation import score_tasks
from tripletmas.forgetting import Scores
from tripletmas.losses import MetricLoss
from tripletmas.params import device_of, load_state, state_of
from tripletmas.sampling import class_balanced_batches, seed_everything
from tripletmas.strategies import Strategy
from tripletmas.tasks import Stream, Task

_OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
_SCHEDULES = ("constant", "cosine")
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """How each task is trained; every task gets a fresh optimizer.

    Args:
        epochs: passes over the data of a task.
        batch_size: samples in a P x K batch: P = batch_size / K classes; where a task has fewer, more samples of each.
        samples_per_class: K, at least; a class with fewer samples gives all it has.
        optimizer: how gradients become steps.
        lr: learning rate of the model.
        loss_lr: learning rate of the loss's own parameters (proxies); null is that of the model.
        momentum: for sgd.
        weight_decay: decay of all weights of the model at every step; it also moves protected weights.
        schedule: constant, or from lr to 0 along half a cosine in each task.
        clip: largest norm of the metric loss's gradient; null does not clip.
        precision: of the forward pass (autocast); weights and importance stay in float32.
        freeze_batchnorm: after the first task, normalise by its running statistics and leave them as they are.
        eval_batch_size: samples that are embedded at once in evaluation.
        num_workers: processes that load images; 0 loads in the training process.
        seed: every random draw is a function of it, the task and the epoch.
    """

    epochs: int = 15
    batch_size: int = 32
    samples_per_class: int = 4
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    loss_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    freeze_batchnorm: bool = False
    eval_batch_size: int = 256
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self):
        for name, least in [
            ("epochs", 1),
            ("samples_per_class", 2),
            ("eval_batch_size", 1),
            ("num_workers", 0),
            ("seed", 0),
        ]:
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for name, table in [("optimizer", _OPTIMIZERS), ("precision", _PRECISIONS), ("schedule", _SCHEDULES)]:
            if getattr(self, name) not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, got {getattr(self, name)!r}")
        if self.lr <= 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(f"lr and clip must be > 0, got lr={self.lr}, clip={self.clip}")


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
    strategy.prepare(model)
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
        _finish_task(model, stream, number, strategy, config, scores, run)
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
    optimizer = _make_optimizer(model, loss, config)
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
    dtype = _PRECISIONS[config.precision]
    total, rate = 0.0, config.lr
    with tqdm(loader, desc=f"task {task.name} epoch {epoch + 1}/{config.epochs}", disable=None, leave=False) as bar:
        for step, (inputs, labels) in enumerate(bar):
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            rate = _set_rate(optimizer, config, (epoch + step / len(batches)) / config.epochs)
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
    config: TrainConfig,
    scores: Scores,
    run: RunDirectory | None,
) -> None:
    began = time.perf_counter()
    seen = stream[: number + 1]
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
    unprotected = {}
    if strategy.protection:
        run.write_tensors(f"importance/task{number:02d}.safetensors", strategy.protection.importance)
        unprotected = strategy.protection.unprotected()
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
            "queries": [len(task.query) for task in seen],
            "without_relevant": found.without_relevant,
            "unprotected": unprotected,
        }
    )


def _make_optimizer(model: nn.Module, loss: MetricLoss, config: TrainConfig) -> Optimizer:
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    own = list(loss.parameters()) if isinstance(loss, nn.Module) else []
    if own:
        rate = config.lr if config.loss_lr is None else config.loss_lr
        groups.append({"params": own, "lr": rate, "weight_decay": 0.0})
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        options["momentum"] = config.momentum
    optimizer = _OPTIMIZERS[config.optimizer](groups, **options)
    for group in optimizer.param_groups:
        group["full_rate"] = group["lr"]
    return optimizer


def _set_rate(optimizer: Optimizer, config: TrainConfig, progress: float) -> float:
    """Set each group's rate for this share of the task; a function of it alone, so there is nothing to resume."""
    factor = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * factor
    return optimizer.param_groups[0]["lr"]


def _set_train(model: nn.Module, freeze_batchnorm: bool) -> None:
    model.train()
    if freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _penalty(strategy: Strategy) -> float:
    with torch.no_grad():
        return float(strategy.protection.value()) if strategy.protection else 0.0


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
        for gallery, values in record.get("scores", {}).items():
            for metric, per_task in values.items():
                for on_task, value in enumerate(per_task):
                    scores.record(gallery, metric, record["task"], on_task, math.nan if value is None else value)
    return scores
