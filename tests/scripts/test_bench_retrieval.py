"""The benchmark of retrieval runs, in its smallest form."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_retrieval.py"
SMALL = ["--dim", "8", "--rounds", "1", "--threads", "1"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_bench_retrieval(tmp_path: Path):
    given = ["--sizes", "300x300", "400x50", *SMALL, "--clock", "cpu", "--before", str(SCRIPT.parents[1])]
    ran = run(*given, "--json", str(tmp_path / "retrieval.json"))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "retrieval.json").read_text())
    assert (found["dim"], found["clock"]) == (8, "cpu")
    assert list(found["results"]) == ["300x300", "400x50"]
    for name, result in found["results"].items():
        assert set(result["median_seconds"]) == {"bare", "ours", "peer", "before"}
        assert result["ratio_to_bare"]["bare"] == 1
        assert all(len(values) == 1 for values in result["all_seconds"].values())
        assert all(math.isnan(value) or value >= 0 for value in result["peak_megabytes"].values())
        assert result["difference_to_peer"] <= 1e-6
        assert 0 < result["values"]["recall@1"] < 1
        assert name in ran.stdout


@pytest.mark.slow
def test_bench_retrieval_says_what_it_cannot_do():
    ran = run("--sizes", "300")
    assert ran.returncode == 2
    assert "a size is GALLERYxQUERIES, got '300'" in ran.stderr
    ran = run("--rounds", "0")
    assert ran.returncode == 2
    assert "--rounds must be >= 1, got 0" in ran.stderr
