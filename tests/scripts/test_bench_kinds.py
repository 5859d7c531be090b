"""The benchmark of kinds of indexes runs, in its smallest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_kinds.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_bench_kinds(tmp_path: Path):
    kinds = ["exact", "SQ8", "PQ4x4", "IVF8,Flat", "HNSW16"]
    small = ["--queries", "40", "--rounds", "1", "--recall", "1.5", "--kinds", *kinds]
    np.savez(tmp_path / "x.npz", vector=np.random.default_rng(0).normal(size=(440, 8)).astype(np.float32))
    for given in (["--clustered", "440", "--dim", "8"], ["--vectors", str(tmp_path / "x.npz")]):
        ran = run(*given, *small, "--json", str(tmp_path / "x.json"))
        assert ran.returncode == 0, ran.stderr
        rows = {row["kind"]: row for row in json.loads((tmp_path / "x.json").read_text())}
        assert set(kinds) <= set(rows) <= {*kinds, "hnswlib"}
        assert (rows["exact"]["recall"], rows["exact"]["bytes"]) == (1, 32)
        assert rows["IVF8,Flat"]["effort"] == 8  # all of its lists, since 1.5 cannot be reached
        assert rows["IVF8,Flat"]["recall"] == 1
        assert rows["PQ4x4"]["recall"] < rows["SQ8"]["recall"] <= 1
        assert rows["PQ4x4"]["bytes"] < rows["SQ8"]["bytes"] < rows["HNSW16"]["bytes"]
        assert all(f"| {kind} |" in ran.stdout for kind in kinds)


@pytest.mark.slow
def test_bench_kinds_says_what_it_cannot_do():
    ran = run("--clustered", "100", "--queries", "100")
    assert (ran.returncode, "--queries must lie between 1 and 99, got 100" in ran.stderr) == (2, True)
