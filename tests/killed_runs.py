"""Runs that are killed at a point of one's choice, and what tells one from another that was not."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tripletmas.basics import files as aside
from tripletmas.data.batches import seed_everything
from tripletmas.data.tasks import Stream
from tripletmas.models.making import make_model
from tripletmas.objectives import embedded as evaluation
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs import after_task as finishing
from tripletmas.runs import checkpoint
from tripletmas.runs import loop as training
from tripletmas.runs import task as task_training
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.gram import Gram
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.mas import MAS
from tripletmas.strategies.si import SI

STRATEGIES = {
    "finetune": Finetune,
    "frozen": Frozen,
    "mas": lambda: MAS(strength=1.0),
    "joint": Joint,
    "gram": lambda: Gram(budget=0.05),
    "si": SI,
}


class Killed(BaseException):
    """Stands for the death of the process."""


class Points:
    """Counts the points at which a run can die. At number `at` it does, and then nothing cleans up any more."""

    def __init__(self, at: int | None = None):
        self.at = at
        self.count = 0
        self.dead = False

    def __call__(self, *_) -> None:
        self.count += 1
        if self.count - 1 == self.at:
            self.dead = True
            raise Killed


@contextmanager
def dying(points: Points):
    """Points around every step, scoring, record and change of a file; seconds are 0, to compare records."""
    replace, rmtree, remove, save_file = os.replace, shutil.rmtree, aside.remove, safetensors.torch.save_file
    append, score = RunDirectory.append, Retrieval.score

    def dying_replace(*paths):
        points()
        replace(*paths)
        points()

    def dying_rmtree(folder):
        points()
        for file in sorted(folder.iterdir())[:1]:
            file.unlink()
        points()
        rmtree(folder)

    def dying_save(tensors, path, *rest):
        save_file(tensors, path, *rest)
        try:
            points()
        except Killed:
            os.truncate(path, path.stat().st_size // 2)
            raise

    def dying_append(run, record):
        file = run.path / "metrics.jsonl"
        size = file.stat().st_size if file.exists() else 0
        append(run, record)
        try:
            points()
        except Killed:
            os.truncate(file, (size + file.stat().st_size) // 2)
            raise
        points()

    def dying_score(*arguments):
        points()
        return score(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        for module in (training, task_training, evaluation, finishing):
            patch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: 0.0))
        patch.setattr(aside.os, "replace", dying_replace)
        patch.setattr(aside.os, "fsync", lambda handle: None)  # the machine does not lose power here
        patch.setattr(checkpoint.shutil, "rmtree", dying_rmtree)
        patch.setattr(aside, "remove", lambda path: None if points.dead else remove(path))
        patch.setattr(safetensors.torch, "save_file", dying_save)
        patch.setattr(RunDirectory, "append", dying_append)
        patch.setattr(Retrieval, "score", dying_score)
        patch.setattr(Strategy, "after_step", points)
        yield


def train(
    stream: Stream,
    path: Path,
    points: Points,
    *,
    strategy: str,
    model: str,
    loss: str,
    lora: int | None = None,
    **options,
) -> None:
    config = TrainConfig(batch_size=8, samples_per_class=2, seed=3, **options)
    first = stream[0].train
    with dying(points):
        run = RunDirectory.create(path, {"seed": 3})
        seed_everything(3)
        small = {"hidden": (8,), "dim": 4} if model == "mlp" else {"width": 4, "dim": 4}
        made_model = make_model(model, first.sample_shape, options=small | {"lora": lora})
        tasks = [task.classes for task in stream]
        made_loss: torch.nn.Module = (
            Recognition(4, tasks, first.class_names, ridge_dim=8)
            if loss == "cross_entropy"
            else make_loss(loss, dim=4, num_classes=len(first.class_names))
        )
        train_stream(made_model, stream, STRATEGIES[strategy](), made_loss, config, run)


def assert_same_run(one: Path, other: Path) -> None:
    assert contents(one) == contents(other)
    first, second = RunDirectory(one).load_checkpoint(), RunDirectory(other).load_checkpoint()
    assert first is not None
    assert second is not None
    assert (first.task, first.epoch, first.record_bytes) == (second.task, second.epoch, second.record_bytes)
    for part in ("model", "strategy", "objective"):
        assert_same_tensors(getattr(first, part), getattr(second, part))


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of the run; that of the checkpoint, of which an older one may be left, is compared apart."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return {
        name: file.read_bytes()
        for file in files
        if not (name := file.relative_to(path).as_posix()).startswith("checkpoint/") or ".part" in name
    }
