"""A run that is interrupted and resumed equals the uninterrupted one bit for bit, wherever it is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import Tensor

from tripletmas.basics import files as aside
from tripletmas.data.batches import seed_everything
from tripletmas.data.dataset import Source
from tripletmas.data.tasks import Stream, make_stream
from tripletmas.models.networks import make_model
from tripletmas.objectives import embedded as evaluation
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.protection.penalty import quadratic_penalty
from tripletmas.runs import after_task as finishing
from tripletmas.runs import checkpoint
from tripletmas.runs import loop as training
from tripletmas.runs import task as task_training
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import run_experiment
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.mas import MAS

STRATEGIES = {"finetune": Finetune, "frozen": Frozen, "mas": lambda: MAS(strength=1.0), "joint": Joint}


@pytest.fixture
def scratch(tmp_path) -> Iterator[Path]:
    """A folder in memory where the system has one: hundreds of runs are written here."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


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
    replace, rmtree, remove, save_file = os.replace, shutil.rmtree, aside._remove, aside.save_file
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
        patch.setattr(aside, "_remove", lambda path: None if points.dead else remove(path))
        patch.setattr(aside, "save_file", dying_save)
        patch.setattr(RunDirectory, "append", dying_append)
        patch.setattr(Retrieval, "score", dying_score)
        patch.setattr(Strategy, "after_step", points)
        yield


def train(stream: Stream, path: Path, points: Points, *, strategy: str, model: str, loss: str, **options) -> None:
    config = TrainConfig(batch_size=8, samples_per_class=2, seed=3, **options)
    first = stream[0].train
    with dying(points):
        run = RunDirectory.create(path, {"seed": 3})
        seed_everything(3)
        small = {"hidden": (8,), "dim": 4} if model == "mlp" else {"width": 4, "dim": 4}
        made_model = make_model(model, first.sample_shape, options=small)
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


def check_every_point(stream: Stream, scratch: Path, *, stride: int = 1, twice: bool = False, **options) -> int:
    """Kill a run at every point, resume it, compare; returns the number of points."""
    whole = Points()
    train(stream, scratch / "whole", whole, **options)
    for at in range(0, whole.count, stride):
        path = scratch / f"killed{at}"
        with pytest.raises(Killed):
            train(stream, path, Points(at), **options)
        if twice:
            with suppress(Killed):  # unless it is done before the sixth point
                train(stream, path, Points(5), **options)
        train(stream, path, Points(), **options)
        assert_same_run(scratch / "whole", path)
    return whole.count


def test_killed_at_any_point(tiny_stream, scratch):
    points = check_every_point(
        tiny_stream[:2],
        scratch,
        strategy="mas",
        model="mlp",
        loss="proxy_anchor",
        optimizer="sgd",
        schedule="cosine",
        clip=1.0,
        backbone_lr="0.1x",
        epochs=2,
    )
    assert points > 80  # 8 steps, 4 epochs and 2 tasks with their files: see `dying`


def test_killed_at_some_points_in_recognition(tiny_stream, scratch):
    """Heads, class means, where the new task was before it was learned, and scores on tasks to come."""
    check_every_point(
        tiny_stream,
        scratch,
        stride=11,
        strategy="mas",
        model="mlp",
        loss="cross_entropy",
        sampler="shuffled",
        forward_transfer=True,
        epochs=2,
    )


@pytest.mark.parametrize("strategy", ["finetune", "frozen", "joint"])
def test_killed_at_some_points_under_every_strategy(strategy, tiny_stream, scratch):
    check_every_point(
        tiny_stream, scratch, stride=17, strategy=strategy, model="mlp", loss="triplet", optimizer="adam", epochs=2
    )


@pytest.mark.parametrize("freeze_batchnorm", [False, True])
def test_killed_at_some_points_with_batch_norm(freeze_batchnorm, class_images, scratch):
    stream = make_stream(Source(class_images(4, side=16, per_class=6)), tasks=2)[0]
    check_every_point(
        stream,
        scratch,
        stride=13,
        strategy="mas",
        model="conv4",
        loss="multi_similarity",
        freeze_batchnorm=freeze_batchnorm,
        epochs=2,
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_killed_twice_in_half_precision(precision, tiny_stream, scratch):
    check_every_point(
        tiny_stream[:2],
        scratch,
        stride=19,
        twice=True,
        strategy="mas",
        model="mlp",
        loss="contrastive",
        precision=precision,
        weight_decay=0.1,
        epochs=3,
    )


def test_the_penalty_does_not_depend_on_the_layout_in_memory():
    """A convolution may be laid out channels last; what is read from a file is contiguous."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(32, 64, kernel_size=3, bias=False)
    importance = {"weight": torch.rand(64, 32, 3, 3)}
    reference = {"weight": torch.rand(64, 32, 3, 3)}
    values = set()
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = {"weight": importance["weight"].contiguous(memory_format=layout)}
        values.add(quadratic_penalty(model, reference, laid_out).item())
    assert len(values) == 1


# --- a real process, really killed


def wait_for(reached, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, f"ended before it was killed: {process.stderr and process.stderr.read()}"
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.slow
def test_a_killed_process(tmp_path):
    """Killed in the first task, while the importance of the second is measured or it is scored, and in the third."""
    config = {
        "data": {"name": "digits", "tasks": [2, 2, 6]},
        "model": {"name": "mlp", "hidden": [32], "dim": 8},
        "strategy": "mas",
        "training": {"epochs": 3, "schedule": "cosine"},
        "device": "cpu",
    }
    run_experiment(config, tmp_path / "whole")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "tripletmas", "train", "--config", tmp_path / "config.yaml", "--out", out]
    records = out / "metrics.jsonl"

    def written(kind: str, task: int, epoch: int | None = None) -> bool:
        lines = records.read_text().splitlines()[:-1] if records.exists() else []
        wanted = {"kind": kind, "task": task} | ({} if epoch is None else {"epoch": epoch})
        return any(wanted.items() <= json.loads(line).items() for line in lines)

    moments = [
        lambda: records.exists() and records.stat().st_size > 0,
        lambda: (out / "checkpoint" / "task0001-epoch000003").exists(),
        lambda: written("task", 1),
    ]
    for reached in moments:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            wait_for(reached, process)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert not (out / "weights" / "task02.safetensors").exists()
    run_experiment(config, out)

    def without_seconds(path: Path) -> list[dict]:
        records = RunDirectory(path).records()
        for record in records:
            record.pop("seconds", None)
            record.get("reembed", {}).pop("seconds", None)
        return records

    assert without_seconds(out) == without_seconds(tmp_path / "whole")
    first, second = contents(tmp_path / "whole"), contents(out)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and name != "metrics.jsonl"] == []
