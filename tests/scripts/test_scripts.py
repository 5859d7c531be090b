"""The scripts run, in their smallest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import write_run

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPTS / script, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("model", ["mlp", "conv4"])
@pytest.mark.slow
def test_bench_training_step(model: str, tmp_path: Path):
    small = ["--model", model, "--size", "16", "--batch", "8", "--steps", "1", "--repeats", "2", "--threads", "1"]
    small += ["--warm-up", "3"]
    ran = run("bench_training_step.py", *small, "--device", "cpu", "--json", str(tmp_path / "step.json"))
    assert ran.returncode == 0, ran.stderr
    assert "after 5 steps" in ran.stdout
    found = json.loads((tmp_path / "step.json").read_text())
    assert (found["settings"]["model"], found["settings"]["threads"]) == (model, 1)
    assert [row["protection"] for row in found["rows"]] == ["none", "attached", "in the loss", "gram"]
    assert found["rows"][0]["ratio"] == 1
    assert all(0 < row["fastest_seconds"] <= row["median_seconds"] for row in found["rows"])
    assert all(row["protection"] in ran.stdout for row in found["rows"])


@pytest.mark.slow
def test_bench_training_step_says_what_it_cannot_do():
    ran = run("bench_training_step.py", "--batch", "4")
    assert ran.returncode == 2
    assert "--batch must be >= 8 to form a negative pair, got 4" in ran.stderr


@pytest.mark.slow
def test_bench_importance(tmp_path: Path):
    small = ["--models", "mlp", "conv4", "--batch", "4", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    ran = run("bench_importance.py", *small, "--json", str(tmp_path / "importance.json"))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "importance.json").read_text())
    assert list(found["results"]) == ["mlp", "conv4"]
    for name, result in found["results"].items():
        assert set(result["seconds"]) == {"plain", "ours", "loop", "vmap", "gram"}
        assert min(result["seconds"].values()) > 0
        assert (result["ratio_to_plain"]["plain"], result["batch_size"]) == (1, 4)
        assert result["float64"] < 1e-10
        assert result["ours_float32_to_loop_float64"] < 1e-4
        assert name in ran.stdout


@pytest.mark.slow
def test_bench_checkpoint(tmp_path: Path):
    ran = run("bench_checkpoint.py", "--megabytes", "1", "--rounds", "2", "--json", str(tmp_path / "x.json"))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "x.json").read_text())
    assert [len(found[key]) for key in ("with", "without")] == [2, 2]
    assert min(found["with"] + found["without"]) > 0
    assert ran.stdout.startswith("fastest ")


@pytest.mark.slow
def test_bench_startup(tmp_path: Path):
    small = ["--rounds", "1", "--only", "version", "index info"]
    ran = run("bench_startup.py", *small, "--json", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "bench-startup.json").read_text())["rows"]
    assert [row["command"] for row in rows] == ["python alone", "import torch", "version", "index info"]
    assert all(min(row["of the processor"]) > 0 for row in rows)
    assert ["before it begins" in row for row in rows] == [False, False, True, True]
    assert "| torch |" not in ran.stdout  # neither command needs it


@pytest.mark.slow
def test_bench_many_tasks(tmp_path: Path):
    ran = run("bench_many_tasks.py", "--tasks", "3", "--strategies", "gram", "--json", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "bench-many-tasks.json").read_text())["rows"]
    ends = {row["part"]: [float(each) for each in row["gram"].split(" → ")] for row in rows}
    assert all(len(each) == 2 for each in ends.values())
    assert min(ends["checkpoint bytes"] + ends["training"]) > 0
    assert "| scores of all tasks (grows) |" in ran.stdout


@pytest.mark.slow
def test_bench_loop(tmp_path: Path):
    small = ["--models", "mlp", "--steps", "2", "--rounds", "1", "--threads", "1", "--clock", "cpu"]
    ran = run("bench_loop.py", *small, "--json", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads((tmp_path / "bench-loop.json").read_text())["rows"]
    assert row.pop("model, batch") == "mlp, 32 of 8x8"
    assert row.keys() == {"bare", "product", "fp32+channels_last", "bf16", "bf16+channels_last"}
    assert all(len(each) == 1 and each[0] > 0 for each in row.values())


@pytest.mark.slow
def test_bench_memory(tmp_path: Path):
    ran = run("bench_memory.py", "--models", "mlp", "--batch", "4", "--json", str(tmp_path / "x.json"))
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "x.json").read_text())["mlp"]
    assert list(rows) == ["step", "importance", "gram", "step with MAS", "step with Gram"]
    assert rows["step with MAS"]["megabytes"] > rows["step"]["megabytes"]


@pytest.mark.slow
def test_bench_report(tmp_path: Path):
    """In two tasks without stored galleries; painted pictures are those that are drawn."""
    ran = run("bench_report.py", str(write_run(tmp_path / "run", num_tasks=2)), "--rounds", "1")
    assert ran.returncode == 0, ran.stderr
    assert "; 0 whose dark picture is another" in ran.stdout


@pytest.mark.slow
def test_bench_train(tmp_path: Path):
    small = [
        "--data",
        "digits",
        "--data.tasks",
        "[4,6]",
        "--training.epochs",
        "2",
        "--strategy",
        "mas",
        "--device",
        "cpu",
    ]
    ran = run("bench_train.py", "--rounds", "1", "--json", str(tmp_path), "--words", *small)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "bench-train.json").read_text())
    parts = {row["part"]: row["seconds"] for row in found["rows"]}
    assert list(parts)[-1] == "in all"
    (whole,) = parts.pop("in all")
    assert abs(sum(seconds for (seconds,) in parts.values()) - whole) < 0.1  # each second counts once
    shown = ("training", "checkpoints", "import torch", "the report: t-SNE", "start of Python", "end of the process")
    assert all(parts[name][0] > 0 for name in shown), parts


@pytest.mark.slow
def test_bench_train_says_what_went_wrong():
    ran = run("bench_train.py", "--rounds", "1", "--words", "--data", "digit")
    assert ran.returncode == 1
    assert "unknown data 'digit' (did you mean 'digits'?)" in ran.stderr
    assert run("bench_train.py", "--rounds", "0").returncode == 2
