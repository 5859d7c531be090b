"""What a machine with a GPU is asked runs here as a rehearsal; a part that fails takes nothing with it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_gpu
import bench_gpu_parts
import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_rehearsal_asks_everything(tmp_path: Path):
    pytest.importorskip("triton", reason="Triton comes with torch for GPUs")
    ran = run("--small", "--device", "cpu", "--together", "--json", str(tmp_path / "gpu.json"))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == list(bench_gpu.LIMITS)
    assert [part["error"] for part in found.values()] == [None] * len(found), ran.stdout
    assert all(f"## {name} (" in ran.stdout for name in found)
    assert "all parts are whole" in ran.stdout
    assert {"what": "GPU", "found": "none: all numbers are the CPU's, kernels run in Triton's interpreter"} in found[
        "machine"
    ]["rows"]
    for row in found["numbers"]["rows"]:
        assert max(row["ours, float32"], row["twin, float32"]) < 1e-5
    for name in ("importance-vit", "importance-resnet", "importance-minilm"):
        rows = found[name]["rows"]
        assert [row["way"] for row in rows] == ["plain", "ours", "twin", "vmap"]
        assert all(row["seconds"] > 0 and "error" not in row for row in rows)
    kernels = [row for row in found["layers"]["rows"] if row["way"] == "kernel"]
    assert len(kernels) == 4  # two layers, each with the tile of the table and another
    assert max(row["off by"] for row in kernels) < 1e-5
    assert [row["where"] for row in found["search"]["rows"]] == ["faiss, CPU", "faiss, GPU"]
    assert {row["what"] for row in found["waiting"]["rows"]} > {"a training step, attached", "importance of one batch"}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    ran = run()
    assert ran.returncode == 1
    assert "There is no GPU here that torch can use as 'cuda'" in ran.stderr
    assert "--small --device cpu" in ran.stderr
    ran = run("--device", "cpu")
    assert (ran.returncode, "on a CPU there is the rehearsal alone: --small" in ran.stderr) == (2, True)


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path):
    ran = run(
        "--small", "--device", "cpu", "--parts", "machine", "--limit", "0.3", "--json", str(tmp_path / "gpu.json")
    )
    assert ran.returncode == 0, ran.stderr
    part = json.loads((tmp_path / "gpu.json").read_text())["machine"]
    assert (part["rows"], part["error"]) == ([], "stopped after 0.3 s")
    assert "not whole: machine" in ran.stdout


def test_what_a_part_found_before_it_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(asked: bench_gpu_parts.Asked) -> None:
        asked.note(what="first", found=1.5)
        raise RuntimeError("out of memory\nand a trace")

    def whole(asked: bench_gpu_parts.Asked) -> None:
        asked.note(what="second", found=2)

    options: Any = argparse.Namespace(device="cpu", small=True, together=True, limit=None)
    monkeypatch.setitem(bench_gpu_parts.PARTS, "numbers", failing)
    monkeypatch.setitem(bench_gpu_parts.PARTS, "step", whole)
    part = bench_gpu.asked("numbers", options, 100)
    assert (part["rows"], part["error"]) == ([{"what": "first", "found": 1.5}], "RuntimeError: out of memory")
    part = bench_gpu.asked("step", options, 100)
    assert (part["rows"], part["error"]) == ([{"what": "second", "found": 2}], None)
    assert bench_gpu.asked("step", options, 3)["error"] == "not begun: there was no time left"


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As of a fault on the GPU, after which a process is no use."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "file = pathlib.Path(sys.argv[sys.argv.index('--write') + 1])\n"
        'file.write_text(\'{"rows": [{"a": 1}], "error": null}\')\n'
        "os.abort()\n"
    )
    monkeypatch.setattr(bench_gpu, "__file__", str(script))
    part = bench_gpu.asked("step", argparse.Namespace(device="cpu", small=True, together=False, limit=20), 100)
    assert (part["rows"], part["error"]) == ([{"a": 1}], "its process ended with status -6")
