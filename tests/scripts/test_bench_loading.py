"""The benchmark of loading runs, in its smallest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tripletmas.data.shop import draw_picture

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_loading.py"


@pytest.mark.slow
def test_bench_loading(tmp_path: Path):
    for product in ("mug", "vase"):
        (tmp_path / "photos" / product).mkdir(parents=True)
        for number in range(8):
            draw_picture("month1", product, number, 40).save(tmp_path / "photos" / product / f"{number}.jpg")
    out, words = tmp_path / "rates.json", ["--size", "32", "--images", "8", "--model", "conv4", "--rounds", "1"]
    ran = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "photos", *words, "--json", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    rates = json.loads(out.read_text())
    assert {row: set(each) for row, each in rates.items()} == {
        "decoded": {"ours", "bare"},
        "photo": {"ours", "bare", "bare, tensors"},
        "photo, in memory": {"ours"},
        "photo, trained": {"ours", "bare"},
        "photo, in memory, trained": {"ours"},
    }
    assert all(rate > 0 for each in rates.values() for way in each.values() for rate in way)
    assert all(row in ran.stdout for row in rates)
