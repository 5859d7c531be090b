"""Runs with their reports, written once: each report draws every plot in light and in dark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_pages import MATRIX, NAMES
from synthetic_runs import write_run

from tripletmas.report.page import write_report


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A finished run, nothing of whose stored vectors was measured."""
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "mas", matrix=MATRIX, points=30)).parents[1]


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    """A finished run with everything that is recorded of stored vectors, and with odd names of classes."""
    path = tmp_path_factory.mktemp("runs") / "stored"
    return write_report(write_run(path, matrix=MATRIX, galleries=True, class_names=NAMES)).parents[1]


@pytest.fixture(scope="session")
def recognition(tmp_path_factory) -> Path:
    strategy = {"name": "mas+distill", "mas": {"strength": 0.3}, "distill": {"weight": 1.0}}
    path = write_run(tmp_path_factory.mktemp("runs") / "rec", matrix=MATRIX, objective="recognition", strategy=strategy)
    return write_report(path).parents[1]


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory, without_drawing) -> Path:
    """A run with 3 of 4 tasks, whose map begins after the second, without a drift map."""
    path = write_run(tmp_path_factory.mktemp("runs") / "unfinished", num_tasks=4, done=3, galleries=True)
    (path / "gallery" / "shown00.safetensors").unlink()
    (path / "gallery" / "shown03.safetensors").write_bytes(b"of a task that was cut off")
    content = json.loads((path / "scores.json").read_text())
    for gallery in ("seen_compensated", "task_compensated"):
        del content["matrices"][gallery]
    (path / "scores.json").write_text(json.dumps(content))
    (path / "compatibility.json").write_text('{"metric": "recall@1", "matrix": [[0.9, null], [0.8, 0.9]]}')
    with without_drawing():
        return write_report(path).parents[1]
