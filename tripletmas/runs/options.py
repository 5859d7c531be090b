"""How a task is optimised: the options, the optimizer, the learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tripletmas.data.batches import SAMPLERS
from tripletmas.models.parts import last_layer

_OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
_SCHEDULES = ("constant", "cosine", "step")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CHANNELS_LAST = "+channels_last"  # after a precision: how images and convolutions lie in memory
AUTO = "auto"  # in place of a precision


@dataclass(frozen=True)
class TrainConfig:
    """How each task is trained; every task gets a fresh optimizer.

    Args:
        epochs: passes over the data of a task.
        sampler: class_balanced for P x K batches, which metric losses need; shuffled for every sample once in an epoch.
        batch_size: samples in a batch; of P x K there are P = batch_size / K classes in it, and where a task has fewer,
            more samples of each.
        samples_per_class: K, at least; a class with fewer samples gives all it has. Not for shuffled.
        optimizer: how gradients become steps.
        lr: learning rate of the model.
        backbone_lr: learning rate of all of the model but its last layer, from the first task on: a rate, or a multiple
            of lr such as 0.01x; null is lr. A model that ends in a normalisation is backbone as a whole.
        freeze: parts of the model that are never trained, separated by commas: names of modules or weights, or patterns
            of them ("stem,blocks.0", "*.bias"); batch norm in them stands still.
        loss_lr: learning rate of the loss's own parameters (proxies); null is that of the model.
        momentum: for sgd.
        weight_decay: decay of all weights of the model at every step; it also moves protected weights.
        schedule: in each task, constant; or from lr to 0 along half a cosine; or step, a tenth of lr from step_at on.
        warmup: in each task, the first steps, in which the rate rises to what it is to be: below 1 a share of the
            task's steps, else a number of steps; the cosine begins after them.
        step_at: for step, the share of a task's epochs after which the rate falls, in (0, 1).
        clip: largest norm of the metric loss's gradient; null does not clip.
        precision: of the forward pass (autocast); weights and importance stay in float32. With +channels_last
            convolutions lie so in memory. auto measures which of these, fp16 aside, is fastest here, before the first
            task, and keeps to it.
        freeze_batchnorm: after the first task, normalise by its running statistics and leave them as they are; always
            does so in the first, too, for a model whose weights come with statistics; null does so after the first
            where the strategy holds what layers answer (gram), which moving statistics would change. A task whose loss
            is stuck then begins again, at a tenth of the rate.
        eval_batch_size: samples that are embedded at once in evaluation.
        num_workers: processes that load images; 0 loads in the training process.
        forward_transfer: also score the untrained model, on each task's own gallery.
        seed: initial weights, batches and augmentation are a function of it, the task and the epoch; the order of
            classes and the held-out samples are the stream's.
    """

    epochs: int = 15
    sampler: Literal["class_balanced", "shuffled"] = "class_balanced"
    batch_size: int = 32
    samples_per_class: int = 4
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    backbone_lr: float | str | None = None
    freeze: str | None = None
    loss_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup: float = 0.0
    step_at: float = 0.54
    clip: float | None = None
    precision: Literal["fp32", "bf16", "fp16", "fp32+channels_last", "bf16+channels_last", "auto"] = "fp32"
    freeze_batchnorm: bool | Literal["always"] | None = None
    eval_batch_size: int = 256
    num_workers: int = 0
    forward_transfer: bool = False
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
        for name, table in [
            ("sampler", SAMPLERS),
            ("optimizer", _OPTIMIZERS),
            ("precision", (*PRECISIONS, *(f"{each}{CHANNELS_LAST}" for each in ("fp32", "bf16")), AUTO)),
            ("schedule", _SCHEDULES),
        ]:
            if getattr(self, name) not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, got {getattr(self, name)!r}")
        if self.sampler == "shuffled" and self.batch_size < 2:
            raise ValueError(f"batch_size must be >= 2, got {self.batch_size}")
        if self.sampler == "class_balanced" and self.batch_size < 2 * self.samples_per_class:
            raise ValueError(
                f"batch_size must be >= 2 * samples_per_class to form a negative pair, got {self.batch_size} for "
                f"samples_per_class={self.samples_per_class}"
            )
        if not 0 < self.step_at < 1:
            raise ValueError(f"step_at must lie between 0 and 1, got {self.step_at}")
        if self.weight_decay < 0 or self.momentum < 0 or (self.loss_lr is not None and self.loss_lr < 0):
            raise ValueError(
                "weight_decay, momentum and loss_lr must be >= 0, got "
                f"weight_decay={self.weight_decay}, momentum={self.momentum}, loss_lr={self.loss_lr}"
            )
        if self.lr <= 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(f"lr and clip must be > 0, got lr={self.lr}, clip={self.clip}")
        rate_of_backbone(self)
        _check_warmup(self.warmup)


def rate_of_backbone(config: TrainConfig) -> float:
    """The learning rate of the backbone in numbers.

    Raises:
        ValueError: if it is neither a rate nor a multiple of one.
    """
    given = config.backbone_lr
    if given is None:
        return config.lr
    text = str(given)
    try:
        rate = float(text.removesuffix("x")) * (config.lr if text.endswith("x") else 1)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(
            f"backbone_lr must be a rate > 0 such as 1e-5, or a multiple of lr such as 0.01x, got {text!r}"
        )
    return rate


def make_optimizer(
    model: nn.Module, objective: nn.Module, config: TrainConfig, *, factors: Sequence[nn.Parameter] = ()
) -> Optimizer:
    """The optimizer of one task: the model's trainable weights, and the objective's own at their own rate.

    Args:
        factors: of the backbone's weights, which learn at its rate (see `models.lora`).

    Raises:
        ValueError: for a rate of the backbone where the model has none.
    """
    groups: list[dict[str, Any]]
    if config.backbone_lr is None:
        groups = [{"params": [*(p for p in model.parameters() if p.requires_grad), *factors]}]
    else:
        last, backbone = split_backbone(model)
        groups = [{"params": last}] if last else []
        groups.append({"params": [*backbone, *factors], "lr": rate_of_backbone(config)})
    if own := list(objective.parameters()):
        rate = config.lr if config.loss_lr is None else config.loss_lr
        groups.append({"params": own, "lr": rate, "weight_decay": 0.0})
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        options["momentum"] = config.momentum
    optimizer = _OPTIMIZERS[config.optimizer](groups, **options)
    for group in optimizer.param_groups:
        group["full_rate"] = group["lr"]
    return optimizer


def refuse_nothing(model: nn.Module, objective: nn.Module) -> None:
    """Raise a ValueError if neither the model nor the objective has weights to train."""
    if not any(parameter.requires_grad for parameter in (*model.parameters(), *objective.parameters())):
        raise ValueError("the model has no weights to train, or all are frozen: the strategy pretrained embeds without")


def split_backbone(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(the trainable weights of the `last_layer`, those of the backbone, which is all the rest).

    Raises:
        ValueError: if there is nothing but the last layer.

    Source: the slow backbone of Zhang et al., SLCA, ICCV 2023, where all but the classifier learns at a hundredth.
    """
    path, last = last_layer(model)
    of_last = {id(parameter) for parameter in last}
    backbone = [p for p in model.parameters() if p.requires_grad and id(p) not in of_last]
    if not backbone:
        what = repr(path or type(model).__name__)
        raise ValueError(f"backbone_lr is for all but the last layer, and this model has only {what} to train: set lr")
    return [parameter for parameter in last if parameter.requires_grad], backbone


def set_rate(optimizer: Optimizer, config: TrainConfig, progress: float, *, steps: int = 0) -> float:
    """Set each group's rate for this share of the task; a function of it alone, so there is nothing to resume.

    Args:
        steps: of the whole task; without them there is no warm-up.

    Returns:
        The rate of the model; of its last layer where the backbone has a rate of its own.

    Raises:
        ValueError: for a warm-up that is as long as the task.
    """
    warm, done = warm_steps(config, steps), round(progress * steps)
    left = (progress * steps - warm) / (steps - warm) if warm else progress  # of what follows the warm-up
    factor = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * left)) / 2,
        "step": 1.0 if progress < config.step_at else 0.1,
    }[config.schedule]
    if done < warm:
        factor = (done + 1) / warm
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * factor
    return optimizer.param_groups[0]["lr"]


def _check_warmup(warmup: float) -> None:
    if not (0 <= warmup < 1 or (warmup >= 1 and float(warmup).is_integer())):
        raise ValueError(
            f"warmup must be a share of a task's steps, in [0, 1), or a whole number of steps, got {warmup}"
        )


def warm_steps(config: TrainConfig, steps: int) -> int:
    """In how many of a task's steps the rate rises; a ValueError where that is all of them."""
    if not steps:
        return 0
    if config.warmup < 1:
        return min(math.ceil(config.warmup * steps), steps - 1)
    warm = int(config.warmup)
    if warm >= steps:
        raise ValueError(
            f"a warmup of {warm} steps is no shorter than the task, which has {steps}: name a share of its steps, such "
            "as 0.1, or train for more epochs"
        )
    return warm
