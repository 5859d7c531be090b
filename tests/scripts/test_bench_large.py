"""The benchmark of large indexes runs, in its smallest form, and so does the page about them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_large.py"
SMALL = ["--queries", "30", "--exact-queries", "20", "--small-kind", "IVF4,Flat", "--threads", "1"]
MORE = ["--nprobe", "1", "4", "--move", "exact"]


@pytest.mark.slow
def test_bench_large(tmp_path: Path):
    line = ["--sizes", "500", "--out", str(tmp_path / "out"), *SMALL, *MORE, "--json", str(tmp_path / "large.json")]
    ran = subprocess.run([sys.executable, SCRIPT, *line], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "large.json").read_text())["500"]
    steps = ["make", "build", "open", "ask", "move", "build-lists", "open-lists", "ask-lists"]
    assert list(found) == steps
    assert 500 * 128 * 4 < found["build"]["bytes"] < found["move"]["bytes"]  # it has the name of the map
    assert found["build-lists"]["bytes"] > 2 * 500 * 128 * 4
    assert found["ask-lists"]["nprobe 4:"].endswith("recall 1.000")  # of four lists
    assert "a billion, computed from the rates of 500 (not measured)" in ran.stdout
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "large.md").read_text(encoding="utf-8"), re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("0.jpg\n", 0), ran.stderr
