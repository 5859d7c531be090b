"""What is told of a run in other people's formats: every number once, also where the run was killed in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import SMALL, failed, interrupt_after

from tripletmas.objectives.retrieval.kind import RetrievalKind
from tripletmas.runs import log
from tripletmas.runs.directory import RunDirectory

FEW = ["--data.per_class", "12"]
TRAIN = ["train", "--data", "digits", "--strategy", "mas", *SMALL, *FEW, "--training.epochs", "2", "--report", "false"]
Told = dict[str, list[tuple[int, float]]]


def in_tensorboard(run: Path) -> Told:
    """name -> (step, value) of all event files, in the order of steps; doubled ones twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "log" / "tensorboard"), {"scalars": 0}, purge_orphaned_data=False).Reload()
    return {name: sorted((each.step, each.value) for each in events.Scalars(name)) for name in events.Tags()["scalars"]}


def recorded(run: Path) -> Told:
    """The same, of the records of the run."""
    told: Told = {}
    for point in log.points(RunDirectory.open(run).records(), RetrievalKind.primary):
        for name, value in point.values.items():
            told.setdefault(name, []).append((point.at, pytest.approx(value, rel=1e-6)))
    return told


def test_points():
    records = [
        {"kind": "epoch", "task": 0, "loss": 0.5, "penalty": 0.0, "rate": 0.1},
        {"kind": "ahead", "task": 1, "scores": {"task": {"recall@1": [0.1]}}},
        {
            "kind": "task",
            "task": 0,
            "scores": {"seen": {"recall@1": [0.9]}, "seen_stale": {"recall@1": [0.9]}},
            "unprotected": {"layers": {"0": [1, 4]}},  # 3 of 4 are held
        },
        {"kind": "epoch", "task": 1, "loss": None, "penalty": 0.25, "rate": 0.1},
        {
            "kind": "task",
            "task": 1,
            "scores": {"seen": {"recall@1": [0.7, 0.8]}, "seen_stale": {"recall@1": [0.5, 0.8]}},
        },
    ]
    points = log.points(records, RetrievalKind.primary)
    assert [(point.number, point.at) for point in points] == [(0, 1), (2, 1), (3, 2), (4, 2)]
    assert points[0].values == {"train/loss": 0.5, "train/penalty": 0.0, "train/rate": 0.1}
    assert points[1].values == {"task/recall_at_1": 0.9, "task/stale": 0.9}
    assert points[2].values == {"train/penalty": 0.25, "train/rate": 0.1, "train/share_held": 0.75}
    # means (0.7 + 0.8) / 2 and (0.5 + 0.8) / 2; the first task fell from 0.9 to 0.7
    assert points[3].values == pytest.approx({"task/recall_at_1": 0.75, "task/forgetting": 0.2, "task/stale": 0.65})


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_in_the_same_log(call, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert call(*TRAIN, "--logger", "tensorboard", "--out", run)[0] == 130
    assert [step for step, _ in in_tensorboard(run)["train/loss"]] == [1, 2, 3]
    assert call(*TRAIN, "--out", run)[0] == 0
    assert in_tensorboard(run) == recorded(run)
    assert [step for step, _ in in_tensorboard(run)["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in in_tensorboard(run)["task/stale"]] == [1, 2, 3]
    (run / "log" / "tensorboard.json").unlink()  # as if it had been killed before it noted what it had told
    assert call(*TRAIN, "--logger", "tensorboard", "--out", run)[0] == 0
    assert in_tensorboard(run) == recorded(run)


@pytest.mark.slow
def test_a_run_gets_a_log_when_it_is_done_and_none_where_none_is_wanted(call, tmp_path):
    run = tmp_path / "run"
    assert call(*TRAIN, "--training.epochs", "1", "--logger", "none", "--out", run)[0] == 0
    assert not (run / "log").exists()
    without = (run / "metrics.jsonl").read_bytes()
    assert call(*TRAIN, "--training.epochs", "1", "--logger", "tensorboard", "--out", run)[0] == 0
    assert in_tensorboard(run) == recorded(run)
    assert (run / "metrics.jsonl").read_bytes() == without


def test_what_is_missing_or_unknown_is_a_sentence(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    failed(
        call(*TRAIN, "--logger", "wandb", "--out", tmp_path / "run"), r'needs wandb: pip install "tripletmas\[wandb\]"'
    )
    failed(call(*TRAIN, "--logger", "tensorbord", "--out", tmp_path / "run"), "did you mean 'tensorboard'")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_outlives_its_log(call, tmp_path, monkeypatch):
    class Away:
        def __init__(self, *_):
            pass

        def write(self, point):
            if point.number:
                raise ConnectionError("the server is away\nTraceback")

        def close(self, *, done):
            pass

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setitem(log.LOGGERS, "tensorboard", Away)
        status, _, complaint = call(*TRAIN, "--logger", "tensorboard", "--out", run)
    assert status == 0
    assert "the log for tensorboard stops here (ConnectionError: the server is away): training goes on" in complaint
    assert call(*TRAIN, "--out", run)[0] == 0  # the rest, that is everything but what the first call took
    told, expected = in_tensorboard(run), recorded(run)
    assert told == {**expected, **{name: expected[name][1:] for name in ("train/loss", "train/penalty", "train/rate")}}


@pytest.mark.slow
def test_a_log_that_cannot_begin_is_a_sentence(call, tmp_path):
    run = tmp_path / "run"
    assert call(*TRAIN, "--training.epochs", "1", "--out", run)[0] == 0
    (run / "log").write_text("no folder")
    failed(
        call(*TRAIN, "--training.epochs", "1", "--logger", "tensorboard", "--out", run), "cannot begin .*--logger none"
    )


@pytest.mark.slow
def test_killed(tmp_path):
    """SIGKILL in the middle of an epoch: the log has what the records had, and goes on without a doubled point."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tripletmas", *TRAIN, "--training.epochs", "12", "--logger", "tensorboard"]
    process = subprocess.Popen([*command, "--out", str(run)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    records = run / "metrics.jsonl"
    while not records.exists() or len(records.read_text().splitlines()) < 16:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = in_tensorboard(run)["train/loss"]
    assert 12 <= len(before) < 36
    ended = subprocess.run([*command, "--out", str(run)], check=True, capture_output=True, text=True)
    assert "No path found" not in ended.stderr  # TensorBoard's own news of where a file of events ends
    assert in_tensorboard(run) == recorded(run)
    assert in_tensorboard(run)["train/loss"][: len(before)] == before


def resumed_elsewhere(run: Path, logger: str, environment: dict[str, str], cwd: Path) -> None:
    """A run with a logger, interrupted after three of its six epochs and gone on with in another process."""
    program = (
        "import sys, pytest\nfrom commands import interrupt_after\nfrom tripletmas.cli import main\n"
        "patch = pytest.MonkeyPatch()\nif sys.argv[1] == 'first':\n    interrupt_after(patch, 3)\n"
        "sys.exit(main.main(sys.argv[2:]))"
    )
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent)])
    for part, status in (("first", 130), ("second", 0)):
        arguments = [*TRAIN, "--logger", logger, "--out", str(run)]
        result = subprocess.run(
            [sys.executable, "-c", program, part, *arguments],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            cwd=cwd,
        )
        assert result.returncode == status, result.stderr


@pytest.mark.slow
def test_mlflow(tmp_path):
    if find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")
    run = tmp_path / "run"
    resumed_elsewhere(run, "mlflow", {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'store.db'}"}, tmp_path)
    with sqlite3.connect(tmp_path / "store.db") as database:  # the client warns of its own library
        ((status,),) = database.execute("select status from runs")
        params = dict(database.execute("select key, value from params"))
        rows = database.execute("select key, step, value from metrics order by step").fetchall()
    assert status == "FINISHED"
    assert params["strategy.name"] == "mas"
    told: Told = {}
    for name, step, value in rows:
        told.setdefault(name, []).append((step, value))
    assert told == recorded(run)


def logged_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: after 7 bytes blocks of 32 KiB, of parts with checksum, length and kind before."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # too little is left of the block for another part
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run = tmp_path / "run"
    resumed_elsewhere(run, "wandb", {"WANDB_MODE": "offline"}, tmp_path)
    told: Told = {}
    files = sorted((run / "log" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # one a process
    assert len({file.name for file in files}) == 1  # of one run
    for file in files:
        for data in logged_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {item.key or "/".join(item.nested_key): float(item.value_json) for item in record.history.item}
            for name, value in row.items():
                if name.startswith(("train/", "task/")):
                    axis = "epoch" if name.startswith("train/") else "tasks"
                    told.setdefault(name, []).append((int(row[axis]), value))
    assert told == recorded(run)
