"""The table of several processes is made, in its smallest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce_processes.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("protection", ["mas", "gram"])
def test_two_processes_do_what_one_does(protection: str, tmp_path: Path):
    small = [
        "--model",
        "mlp",
        "--samples",
        "11",
        "--steps",
        "2",
        "--batch",
        "8",
        "--size",
        "8",
        "--processes",
        "1",
        "2",
    ]
    ran = run(*small, "--protection", protection, "--json", str(tmp_path / "found.json"))
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["processes"], row["way"]) for row in rows] == [(n, way) for n in (1, 2) for way in ("ddp", "fsdp")]
    for row in rows:
        assert row["importance_ranks"] == row["weights_ranks"] == 0
        assert row["importance"] < 1e-6
        assert row["penalty"] < 1e-4


@pytest.mark.slow
def test_it_says_what_it_cannot_do():
    ran = run("--batch", "4", "--processes", "3")
    assert ran.returncode == 2
    assert "--batch must be a multiple of the number of processes, got 4 for 3" in ran.stderr
