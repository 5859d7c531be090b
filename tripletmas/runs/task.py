"""One task: its epochs, its batches, its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from tripletmas.basics import distributed
from tripletmas.basics.progress import told
from tripletmas.basics.shares import gather_shares, sum_gradients
from tripletmas.basics.weights import Params, device_of, load_state
from tripletmas.data.batches import draw_batches, own_parts, seed_everything
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.lora import Factors, factors_of
from tripletmas.models.parts import set_train
from tripletmas.objectives.objective import Objective
from tripletmas.runs.checkpoint import Checkpoint
from tripletmas.runs.options import PRECISIONS, TrainConfig, make_optimizer, refuse_nothing, set_rate
from tripletmas.runs.sharing import Sharing, check_weights, sharing_of
from tripletmas.runs.watch import Watch
from tripletmas.strategies.base import Strategy


@dataclass(frozen=True)
class Learner:
    """What learns, and how: the model, the objective it minimises, what the strategy does besides, the options."""

    model: nn.Module
    objective: Objective
    strategy: Strategy
    config: TrainConfig


# (epoch, state_dicts of optimizer, scaler and factors)
OnEpoch = Callable[[int, dict[str, Any]], None]
# (epoch, what happened in it) -> the weights from which the task begins again, at a lower rate; None to go on
OnRecord = Callable[[int, dict[str, Any]], Params | None]

_AGAIN = 0.1  # of the rate, for a task that begins again


def train_task(
    learner: Learner,
    task: Task,
    earlier: Stream,
    *,
    resumed: Checkpoint | None = None,
    on_record: OnRecord = lambda epoch, record: None,
    on_epoch: OnEpoch = lambda epoch, steps: None,
    what: str = "",
) -> None:
    """Train on one task, after the `earlier` ones; what comes after a task (importance, scores) is the caller's.

    Args:
        resumed: the state in the middle of this task at which to go on.
        on_record: called at the end of each epoch; may have the task begin again with the epochs that are left.
        on_epoch: called after that, with the state to go on from.
        what: shown in the progress bar.
    """
    strategy, config, number = learner.strategy, learner.config, len(earlier)
    seed_everything(config.seed, number)
    steps = _steps_for(learner, task)
    if resumed and resumed.optimizer:
        strategy.load_state_dict(resumed.strategy)
        steps.load_state_dict(resumed.optimizer)
    data = strategy.training_data(task, earlier)
    learner.objective.begin_task(number, () if data is None or data is task.train else data.classes)
    if data is None:
        return
    refuse_nothing(learner.model, learner.objective)
    sharing = sharing_of(learner.model, data)
    for epoch in range(resumed.epoch if resumed else 0, config.epochs):
        record = _train_epoch(learner, task, data, number, epoch, steps, sharing, what)
        if weights := on_record(epoch, record):
            load_state(learner.model, weights, "the weights before the task")
            steps = _steps_for(learner, task)
            steps.slow(_AGAIN)
        on_epoch(epoch, steps.state_dict())


def freezes_batchnorm(learner: Learner, number: int) -> bool:
    """Whether batch norm normalises by its running statistics in training, in the task of this number."""
    freeze = learner.config.freeze_batchnorm
    freeze = learner.strategy.freezes_batchnorm if freeze is None else freeze
    return freeze == "always" or (bool(freeze) and number > 0)


def _steps_for(learner: Learner, task: Task) -> _Steps:
    model, config = learner.model, learner.config
    factors = factors_of(model)
    optimizer = make_optimizer(model, learner.objective, config, factors=factors.parameters() if factors else ())
    learner.strategy.before_task(model, task, optimizer)
    if factors:
        factors.attach(optimizer)  # after what adds to gradients
    return _Steps(optimizer, torch.amp.GradScaler(device_of(model).type, enabled=config.precision == "fp16"), factors)


@dataclass(frozen=True)
class _Steps:
    """What makes the steps of a task, with what it has to remember from one to the next."""

    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    factors: Factors | None

    def parameters(self) -> Iterator[Tensor]:
        """All that the optimizer has."""
        return (each for group in self.optimizer.param_groups for each in group["params"])

    def slow(self, factor: float) -> None:
        """All rates, for the rest of the task."""
        for group in self.optimizer.param_groups:
            group["full_rate"] *= factor

    def state_dict(self) -> dict[str, Any]:
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return state | ({"factors": self.factors.state_dict()} if self.factors else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.factors:
                self.factors.load_state_dict(state["factors"])
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"the optimizer's state in the checkpoint is that of another ({error})") from None


def _train_epoch(
    learner: Learner,
    task: Task,
    data: LabelledDataset,
    number: int,
    epoch: int,
    steps: _Steps,
    sharing: Sharing,
    what: str,
) -> dict[str, Any]:
    model, strategy, config = learner.model, learner.strategy, learner.config
    optimizer, scaler = steps.optimizer, steps.scaler
    began = time.perf_counter()
    seed = seed_everything(config.seed, number, epoch)
    batches = draw_batches(
        data.labels,
        sampler=config.sampler,
        batch_size=config.batch_size,
        samples_per_class=config.samples_per_class,
        generator=torch.Generator().manual_seed(seed),
    )
    loader = data.loader(batches=own_parts(batches), num_workers=config.num_workers, seed=seed)
    set_train(model, freeze_batchnorm=freezes_batchnorm(learner, number))
    device = device_of(model)
    dtype = PRECISIONS[config.precision]
    total, rate, watch = 0.0, config.lr, Watch(len(batches))
    shown = f"task {task.name}{what} epoch {epoch + 1}/{config.epochs}"
    with tqdm(loader, desc=shown, disable=None, leave=False) as bar:
        for step, (inputs, _) in enumerate(told(bar, f"{shown}, batch", len(batches))):
            inputs = inputs.to(device, non_blocking=True)
            labels = data.labels[torch.tensor(batches[step])].to(device, non_blocking=True)  # of all processes' samples
            done = (epoch + step / len(batches)) / config.epochs
            rate = set_rate(optimizer, config, done, steps=config.epochs * len(batches))
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype) if dtype else nullcontext():
                embeddings = sharing.embed(model, inputs, len(labels), (config.seed, number, epoch, step))
            everything, own, loss = _losses(learner, inputs, labels, embeddings)
            watch.see(step, inputs, everything, labels, own)
            value = distributed.sum_over_ranks({"loss": loss})["loss"].item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} in task {number} ({task.name}), epoch {epoch}, step {step}: lower lr or "
                    "strength, or set clip; the last checkpoint is untouched"
                )
            scaler.scale(loss).backward()
            sum_gradients(steps.parameters())
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
    check_weights(model, f"task {number}, epoch {epoch}")
    penalty = _penalty(strategy)
    if not math.isfinite(penalty):
        raise FloatingPointError(
            f"the penalty is {penalty} after task {number} ({task.name}), epoch {epoch}: lower lr or strength; the "
            "last checkpoint is untouched"
        )
    return {
        "loss": total / len(batches),
        "penalty": penalty,
        "rate": rate,
        "steps": len(batches),
        "seconds": time.perf_counter() - began,
        **watch.record(learner.objective),
    }


def _losses(learner: Learner, inputs: Tensor, labels: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(all embeddings of the batch, the objective's loss of it, this process's part of that and the strategy's).

    The parts of all processes sum up to the loss of the batch. Each has all of the objective's, and of the strategy's,
    a mean over samples, that of its own samples.

    Args:
        inputs, embeddings: of this process's share of the batch.
        labels: of the whole batch.
    """
    unchanged = embeddings._version
    everything = gather_shares(embeddings.float(), len(labels))
    loss = learner.objective(everything, labels)
    if embeddings._version != unchanged:
        raise ValueError("the loss changes the embeddings in place, which a strategy reads, too: let it use a copy")
    own = loss / distributed.world_size()
    addition = learner.strategy.loss(learner.model, inputs, embeddings)
    return everything, loss, own if addition is None else own + addition * (len(embeddings) / len(labels))


def _penalty(strategy: Strategy) -> float:
    with torch.no_grad():
        return sum(float(protection.value()) for protection in strategy.protections)
