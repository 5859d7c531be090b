"""A run that is interrupted and resumed equals the uninterrupted one bit for bit, wherever it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import yaml
from killed_runs import Killed, Points, assert_same_run, contents, train

from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, make_stream
from tripletmas.protection.penalty import quadratic_penalty
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import run_experiment


@pytest.fixture
def scratch(tmp_path) -> Iterator[Path]:
    """A folder in memory where the system has one: hundreds of runs are written here."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["finetune", "frozen", "joint"])
def test_killed_at_some_points_under_every_strategy(strategy, tiny_stream, scratch):
    check_every_point(
        tiny_stream, scratch, stride=17, strategy=strategy, model="mlp", loss="triplet", optimizer="adam", epochs=2
    )


@pytest.mark.slow
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


@pytest.mark.slow
def test_killed_at_some_points_partly_frozen_in_a_warm_up(class_images, scratch):
    stream = make_stream(Source(class_images(4, side=16, per_class=6)), tasks=2)[0]
    check_every_point(
        stream,
        scratch,
        stride=29,
        strategy="mas",
        model="conv4",
        loss="multi_similarity",
        freeze="block1,block2.norm",
        warmup=0.6,
        schedule="cosine",
        epochs=2,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision"), [("mas", "fp32"), ("gram", "fp16"), ("si", "bf16")])
def test_killed_twice_with_changes_of_low_rank(strategy, precision, tiny_stream, scratch):
    check_every_point(
        tiny_stream[:2],
        scratch,
        stride=29,
        twice=True,
        strategy=strategy,
        model="mlp",
        lora=2,
        loss="contrastive",
        precision=precision,
        backbone_lr="0.5x",
        weight_decay=0.1,
        epochs=3,
    )


@pytest.mark.slow
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
