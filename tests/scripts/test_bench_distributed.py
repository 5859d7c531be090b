"""The benchmark of several processes runs, in its smallest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_distributed.py"


@pytest.mark.slow
def test_bench_distributed(tmp_path: Path):
    out, words = tmp_path / "rates.json", ["--size", "16", "--batch", "16", "--steps", "2", "--rounds", "1"]
    ran = subprocess.run(
        [sys.executable, SCRIPT, *words, "--json", out], capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    (rates,) = json.loads(out.read_text())
    assert list(rates) == ["1 process", "1 process, 2 threads", "2 processes"]
    assert all(each["rate"] > 0 for each in rates.values())
    parts = rates["2 processes"]["milliseconds"]
    assert parts["gather"] > 0
    assert parts["sum of gradients"] > rates["1 process"]["milliseconds"]["sum of gradients"]
    assert all(way in ran.stdout for way in rates)
