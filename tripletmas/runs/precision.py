"""Precision `auto`: which forward and backward pass is fastest on this machine, measured before the first task.

The first real batches of the run go through copies of the model, each way in turn; nothing that is learned, or drawn at
random, is touched. The run records what was chosen, and a run that is resumed takes the same. What was chosen has a
name, under which another run can be told to take it: by the clock it may choose otherwise.
"""

from __future__ import annotations

import copy
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tripletmas.basics import distributed
from tripletmas.basics.weights import device_of, trainable
from tripletmas.data.batches import draw_batches, own_parts, seed_everything
from tripletmas.data.tasks import Task
from tripletmas.models.parts import set_train
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.options import AUTO, CHANNELS_LAST, PRECISIONS, TrainConfig

logger = logging.getLogger(__name__)

_BATCHES = 3  # that are measured, the first ones of the first epoch
_ROUNDS = 4  # of which the first is for warming up
_HOPELESS = 4.0  # times the fastest in the first round: it is not tried again
_WORTH = 0.95  # of the usual way's time: what is no faster than that is not worth other roundings


class Way(NamedTuple):
    """One way to go through the model: a precision of its passes, and whether images lie with their channels last."""

    precision: str
    channels_last: bool

    @classmethod
    def named(cls, name: str) -> Way:
        """What `str` of a way gives, as a way."""
        return cls(name.removesuffix(CHANNELS_LAST), name.endswith(CHANNELS_LAST))

    def __str__(self) -> str:
        return f"{self.precision}{CHANNELS_LAST}" if self.channels_last else self.precision


USUAL = Way("fp32", False)


def settled(
    config: TrainConfig, model: nn.Module, task: Task, run: RunDirectory | None, *, trains: bool = True
) -> TrainConfig:
    """The options with the precision of the passes alone; the model's weights come to lie in memory as it says.

    "auto" is what the run was begun with, or else what is found to be the fastest now, which is then recorded.

    Args:
        task: the first one of the run, whose first batches are measured.
        trains: whether there is anything to be trained.

    Raises:
        ValueError: where it would have to be measured, and torch is told to be deterministic.
    """
    way = Way.named(config.precision)
    if config.precision == AUTO:
        known = distributed.broadcast_object(run.records("precision") if run else [])
        way = Way.named(known[-1]["precision"]) if known else _chosen(config, model, task, run, trains)
    if way.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - documented
    return replace(config, precision=way.precision)


def _chosen(config: TrainConfig, model: nn.Module, task: Task, run: RunDirectory | None, trains: bool) -> Way:
    if torch.are_deterministic_algorithms_enabled():
        raise ValueError(
            "precision auto goes by the clock, so that two runs may differ, and torch is told to be deterministic: "
            "name a precision, such as fp32"
        )
    seconds = distributed.broadcast_object(_measured(config, model, task) if trains and trainable(model) else {})
    way = _fastest(seconds)
    logger.info("precision auto: %s", _reason(way, seconds))
    if run:
        found = {str(each): value for each, value in seconds.items() if math.isfinite(value)}
        run.append({"kind": "precision", "precision": str(way), "seconds": found})
    return way


def _fastest(seconds: dict[Way, float]) -> Way:
    """The usual way, unless another one is faster by more than is within the noise."""
    best = min(seconds, key=lambda way: seconds[way], default=USUAL)
    return best if best in seconds and seconds[best] < _WORTH * seconds[USUAL] else USUAL


def _reason(way: Way, seconds: dict[Way, float]) -> str:
    if not seconds:
        return f"{way}, since nothing is trained"
    others = ", ".join(f"{1000 * value:.3g} ms with {each}" for each, value in seconds.items() if each != way)
    return f"{way}: a pass forward and back takes {1000 * seconds[way]:.3g} ms ({others})"


def _measured(config: TrainConfig, model: nn.Module, task: Task) -> dict[Way, float]:
    """Seconds of a pass forward and back of this process's share of a batch, by each way that is worth a thought."""
    with _random_kept():
        batches = [inputs.to(device_of(model)) for inputs in _first_batches(config, task)]
        models = {False: copy.deepcopy(model)}
        if any(each.ndim == 4 and not _has_channels_last(each) for each in model.parameters()):
            models[True] = copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for each in models.values():
            set_train(each, freeze_batchnorm=config.freeze_batchnorm == "always")
        ways = [Way(precision, last) for last in models for precision in ("fp32", "bf16")]
        with distributed.alone():
            return _timed({way: models[way.channels_last] for way in ways}, batches)


def _has_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


def _timed(models: dict[Way, nn.Module], batches: Sequence[Tensor]) -> dict[Way, float]:
    """The fastest round of each way: they take turns, and what else the machine does makes none faster."""
    rounds: dict[Way, list[float]] = {way: [] for way in models}
    for number in range(_ROUNDS):
        inputs = batches[number % len(batches)]
        for way, taken in rounds.items():
            taken.append(_seconds(models[way], inputs, way))
        if not number:
            most = _HOPELESS * min(taken[0] for taken in rounds.values())
            rounds = {way: taken for way, taken in rounds.items() if way == USUAL or taken[0] <= most}
    return {way: min(taken[1:]) for way, taken in rounds.items()}


def _seconds(model: nn.Module, inputs: Tensor, way: Way) -> float:
    """Of one pass; infinitely many by a precision that the model cannot take."""
    device, dtype = inputs.device, PRECISIONS[way.precision]
    _wait(device)
    began = time.perf_counter()
    try:
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            embeddings = model(inputs.clone())
        embeddings.float().square().mean().backward()
    except RuntimeError:
        if way == USUAL:
            raise
        return math.inf
    _wait(device)
    taken = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_batches(config: TrainConfig, task: Task) -> list[Tensor]:
    """Of this process: those with which the first epoch begins."""
    seed = seed_everything(config.seed, 0, 0)
    drawn = draw_batches(
        task.train.labels,
        sampler=config.sampler,
        batch_size=config.batch_size,
        samples_per_class=config.samples_per_class,
        generator=torch.Generator().manual_seed(seed),
    )
    return [inputs for inputs, _ in task.train.loader(batches=own_parts(drawn[:_BATCHES]), seed=seed)]


@contextmanager
def _random_kept() -> Iterator[None]:
    """Inside, random numbers may be drawn; afterwards they come as if none had been."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (what others draw from)
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
