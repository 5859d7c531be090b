"""The benchmark of the strategies runs, in its smallest form, over the whole catalog."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tripletmas.runs.catalog import STRATEGIES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_strategies.py"
SMALL = ["--model", "mlp", "--size", "8", "--batch-size", "8", "--steps", "2", "--rounds", "2", "--threads", "1"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("objective", ["metric", "recognition"])
@pytest.mark.slow
def test_every_strategy_has_a_row(objective: str, tmp_path: Path):
    ran = run(*SMALL, "--objective", objective, "--device", "cpu", "--json", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / f"bench-strategies-{objective}.json").read_text())
    assert (found["settings"]["objective"], found["settings"]["threads"]) == (objective, 1)
    rows = {row["strategy"]: row for row in found["rows"]}
    assert rows.keys() == {*STRATEGIES, "mas+distill"}
    assert all(f"| {name} | " in ran.stdout for name in rows)
    assert rows["finetune"]["time"] == [1, 1]
    assert [name for name, row in rows.items() if "time" not in row] == ["pretrained", "frozen"]  # they do not train
    assert all(min(row["ms"] + row["time"]) > 0 for row in rows.values() if "ms" in row)
    copies = {name: rows[name]["kept"] for name in ("finetune", "mas", "ewc", "si")}
    assert copies == {"finetune": [0], "mas": [2], "ewc": [2], "si": [4]}


@pytest.mark.slow
def test_it_says_what_it_cannot_do():
    ran = run("--batch-size", "4")
    assert ran.returncode == 2
    assert "--batch-size must be >= 8 to form a negative pair, got 4" in ran.stderr
