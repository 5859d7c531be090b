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
    ran = run(*given, "--json", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "bench-retrieval.json").read_text())
    assert (found["settings"]["dim"], found["settings"]["clock"]) == (8, "cpu")
    assert [row["gallery x queries"] for row in found["rows"]] == ["300 x 300", "400 x 50"]
    ways = ("bare", "ours", "peer", "before")
    for row in found["rows"]:
        assert all(len(row[f"{way} s"]) == 1 for way in ways)
        for way in ways[1:]:
            assert row[f"{way} / bare"] == pytest.approx([row[f"{way} s"][0] / row["bare s"][0]])
        assert all(math.isnan(value) or value >= 0 for way in ways for value in row[f"{way} MB"])
        assert float(row["ours to peer"]) <= 1e-6
        assert 0 < row["recall@1"][0] < 1
        assert f"| {row['gallery x queries']} |" in ran.stdout


@pytest.mark.slow
def test_bench_retrieval_says_what_it_cannot_do():
    ran = run("--sizes", "300")
    assert ran.returncode == 2
    assert "a size is GALLERYxQUERIES, got '300'" in ran.stderr
    ran = run("--rounds", "0")
    assert ran.returncode == 2
    assert "--rounds must be >= 1, got 0" in ran.stderr
