"""`precision="auto"`: the fastest way is taken, told and recorded, and nothing else is changed by measuring."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_in_processes
from torch import Tensor, nn

from tripletmas.basics.weights import snapshot, state_of
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, make_stream
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.precision import settled
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.frozen import pretrained
from tripletmas.strategies.mas import MAS

AUTO = TrainConfig(epochs=2, batch_size=8, samples_per_class=2, precision="auto")
FAST = {
    "fp32": lambda weight: not torch.is_autocast_enabled("cpu") and not last(weight),
    "bf16": lambda weight: torch.is_autocast_enabled("cpu") and not last(weight),
    "fp32+channels_last": lambda weight: not torch.is_autocast_enabled("cpu") and last(weight),
    "bf16+channels_last": lambda weight: torch.is_autocast_enabled("cpu") and last(weight),
}


def last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


class Net(nn.Module):
    """Convolution, batch norm and dropout, and slow but for one way."""

    def __init__(self, fast: str):
        super().__init__()
        torch.manual_seed(0)
        self.convolve, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)  # of one channel it would lie both ways
        self.head = nn.Linear(12, 4)
        self.fast = fast

    def forward(self, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and not FAST[self.fast](self.convolve.weight):
            time.sleep(0.04)
        found = self.norm(self.convolve(images.expand(-1, 2, -1, -1))).relu().flatten(1)
        return self.head(nn.functional.dropout(found, 0.2, self.training))


def learned(stream: Stream, config: TrainConfig, path: Path | None = None, fast: str = "fp32", **options) -> Any:
    model = options.pop("model", None) or Net(fast)
    run = RunDirectory.create(path, {}) if path else None
    strategy = options.pop("strategy", None) or MAS(strength=1.0)
    train_stream(model, stream, strategy, make_loss("triplet", dim=4, num_classes=6), config, run, **options)
    return model


def random_of_numpy() -> Any:
    return np.random.get_state()[1]  # noqa: NPY002  # pyright: ignore[reportArgumentType]


def named(precision: Any) -> TrainConfig:
    return TrainConfig(epochs=2, batch_size=8, samples_per_class=2, precision=precision)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state_of(one).values(), state_of(other).values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fast", FAST)
def test_what_is_fastest_is_taken_and_learns_what_it_does_where_it_is_named(fast, tiny_stream, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = learned(tiny_stream, AUTO, tmp_path / "run", fast)
    assert same(model, learned(tiny_stream, named(fast)))
    assert last(model.convolve.weight) == fast.endswith("+channels_last")
    (record,) = RunDirectory(tmp_path / "run").records("precision")
    assert record["precision"] == fast
    assert record["seconds"][fast] == min(record["seconds"].values())
    (told,) = [each for each in caplog.messages if each.startswith("precision auto: ")]
    assert told.startswith(f"precision auto: {fast}: a pass forward and back takes ")


def test_measuring_changes_nothing(tiny_stream):
    model = Net("fp32")
    before, random_before = snapshot(state_of(model)), (random.getstate(), list(random_of_numpy()))
    drawn = torch.random.get_rng_state()
    assert settled(AUTO, model, tiny_stream[0], None) == named("fp32")
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert (random.getstate(), list(random_of_numpy())) == random_before
    assert model.training


@pytest.mark.slow
def test_a_run_that_is_resumed_keeps_to_it(tiny_stream, tmp_path):
    """Though another way is fastest by then; killed in the second of three tasks."""

    class Killed(Exception):
        pass

    saved = []

    def kill() -> None:
        saved.append(None)
        if len(saved) == 5:  # at the start, then two epochs and the end of the first task
            raise Killed

    with pytest.raises(Killed):
        learned(tiny_stream, AUTO, tmp_path / "run", "bf16+channels_last", listener=kill)
    model = learned(tiny_stream, AUTO, tmp_path / "run", "fp32")
    assert same(model, learned(tiny_stream, AUTO, tmp_path / "whole", "bf16+channels_last"))
    assert last(model.convolve.weight)
    assert len(RunDirectory(tmp_path / "run").records("precision")) == 1
    learned(tiny_stream, AUTO, tmp_path / "run", "fp32")  # of a finished one nothing is measured either
    assert len(RunDirectory(tmp_path / "run").records("precision")) == 1


class OnlySingle(Net):
    def forward(self, images: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for 'BFloat16'")
        return super().forward(images)


def test_what_a_model_cannot_take_is_not_taken(tiny_stream):
    assert settled(AUTO, OnlySingle("bf16"), tiny_stream[0], None).precision == "fp32"


@pytest.mark.slow
def test_the_clock_does_not_choose_where_torch_is_to_be_deterministic(tiny_stream, tmp_path):
    """A run that has chosen goes on with it."""
    learned(tiny_stream[:2], AUTO, tmp_path / "run", "bf16")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ValueError, match=r"precision auto goes by the clock, .*: name a precision, such as fp32"):
            learned(tiny_stream, AUTO)
        model = learned(tiny_stream, AUTO, tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(model, learned(tiny_stream, named("bf16")))


@pytest.mark.slow
def test_where_nothing_is_trained_nothing_is_measured(tiny_stream, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    learned(tiny_stream, AUTO, tmp_path / "run", "bf16", strategy=pretrained())
    assert "precision auto: fp32, since nothing is trained" in caplog.messages
    assert settled(AUTO, Net("bf16").requires_grad_(False), tiny_stream[0], None).precision == "fp32"


@pytest.mark.slow
def test_a_named_precision_is_not_measured(tiny_stream, tmp_path):
    learned(tiny_stream, named("bf16"), tmp_path / "run", "fp32", strategy=Strategy())
    assert not RunDirectory(tmp_path / "run").records("precision")


def in_each_process(path: str) -> tuple[dict[str, Tensor], str]:
    """The first one finds another way to be the fastest than the second one does."""
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    from tripletmas.data.dataset import LabelledDataset

    data = LabelledDataset(images, torch.arange(6).repeat_interleave(10), [f"c{number}" for number in range(6)])
    stream = make_stream(Source(data), tasks=3)[0]
    fast = ("bf16", "fp32+channels_last")[torch.distributed.get_rank()]
    model = Net(fast)
    if torch.distributed.get_rank() == 0:
        RunDirectory.create(path, {})
    torch.distributed.barrier()
    run = RunDirectory.open(path)
    train_stream(model, stream, Strategy(), make_loss("triplet", dim=4, num_classes=6), AUTO, run)
    return snapshot(state_of(model)), run.records("precision")[0]["precision"]


@pytest.mark.slow
def test_several_processes_take_what_the_first_one_found(tmp_path):
    (one, first), (other, second) = run_in_processes(in_each_process, 2, str(tmp_path / "run"))
    assert first == second == "bf16"
    assert all(torch.equal(one[name], other[name]) for name in one)
