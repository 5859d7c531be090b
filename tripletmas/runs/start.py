"""Whether a run can begin: what goes wrong with its first step is told before anything of it is written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import device_of, eval_mode, trainable
from tripletmas.data.batches import draw_batches
from tripletmas.data.tasks import Stream
from tripletmas.objectives.objective import Objective
from tripletmas.runs.options import TrainConfig, refuse_nothing, warm_steps
from tripletmas.strategies.base import Strategy

_SHOWN = 4  # samples of the first task


def check_start(
    model: nn.Module, strategy: Strategy, objective: Objective, stream: Stream, config: TrainConfig, *, name: str
) -> None:
    """Embed a few samples of the first task, and ask whether anything can be learned by them; nothing is changed.

    Args:
        name: of the model, for errors.

    Raises:
        ValueError: for embeddings that are not finite or do not depend on any weight that is trained, for a model with
            nothing to train, for a strategy that cannot work with it, for a warm-up that no task is long enough for.
    """
    if config.warmup >= 1:
        for task in stream:
            warm_steps(config, config.epochs * _num_batches(task.train.labels, config))
    samples, _ = first = stream[0].train.plain()[range(min(_SHOWN, len(stream[0].train)))]
    with eval_mode(model), torch.enable_grad():
        embeddings = model(samples.clone().to(device_of(model)))  # it may change them
    if not bool(embeddings.isfinite().all()):
        raise ValueError(
            f"model {name!r} gives embeddings that are nan or infinite before it has learned anything: look at the "
            "weights that it starts from, and at what it computes"
        )
    if strategy.trains:
        refuse_nothing(model, objective)
        if trainable(model) and not embeddings.requires_grad:
            raise ValueError(
                f"model {name!r}: the embedding has no gradient with respect to any weight, so nothing can be learned: "
                "look for detach(), no_grad() and numpy in what it computes"
            )
    strategy.check(model, first)


def _num_batches(labels: Tensor, config: TrainConfig) -> int:
    return len(
        draw_batches(
            labels,
            sampler=config.sampler,
            batch_size=config.batch_size,
            samples_per_class=config.samples_per_class,
            generator=torch.Generator().manual_seed(0),
        )
    )
