"""The benchmark of serving runs, in its smallest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tripletmas.cli.main import main

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_serve.py"


@pytest.mark.slow
def test_bench_serve(tmp_path, write_images):
    for number, name in enumerate("ab"):
        write_images(tmp_path / "photos" / name, seed=number)
    data = ("--data", "folder", "--data.root", tmp_path / "photos", "--data.size", 8, "--data.channels", 1)
    small = ("--model", "mlp", "--training.epochs", 1, "--report", "false", "--device", "cpu")
    index, out = tmp_path / "a.index", tmp_path / "rates.json"
    assert main([str(each) for each in ("train", *data, "--data.tasks", 1, *small, "--out", tmp_path / "run")]) == 0
    assert (
        main(["index", "build", str(tmp_path / "run"), "--images", str(tmp_path / "photos"), "--out", str(index)]) == 0
    )
    words = ["--vectors", "50", "--callers", "1,2", "--together", "4", "--seconds", "0.2", "--rounds", "1"]
    line = [sys.executable, SCRIPT, index, tmp_path / "photos", *words, "--json", out]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rates = json.loads(out.read_text())
    assert list(rates) == [
        "bare",
        "bare, 32 together",
        "served, 1 callers, 4 together",
        "served, 2 callers, 4 together",
    ]
    assert all(0 < each["p50"][0] <= each["p99"][0] and each["rate"][0] > 0 for each in rates.values())
    assert all(name in ran.stdout for name in rates)
    assert "50 vectors of dim" in ran.stdout
