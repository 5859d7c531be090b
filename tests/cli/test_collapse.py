"""`evaluate` says what has collapsed."""

from __future__ import annotations

import pytest
import torch

from tripletmas.runs.directory import RunDirectory


@pytest.mark.slow
def test_evaluate_warns_of_a_collapse(tmp_path, call):
    run = tmp_path / "run"
    train = ("train", "--data", "digits", "--data.tasks", "2", "--training.epochs", "1", "--out", str(run))
    assert call(*train, "--report", "false")[0] == 0
    status, _, said = call("evaluate", str(run))
    assert status == 0
    assert "warning" not in said, "a run that learned"
    directory = RunDirectory(run)
    weights = directory.weights.read(1)
    last = list(weights)[-2:]
    changed = {last[0]: weights[last[0]] * 0, last[1]: torch.ones_like(weights[last[1]])}
    directory.weights.write(1, {name: value.clone() for name, value in (weights | changed).items()})
    status, _, said = call("evaluate", str(run), "--task", "1")
    assert status == 0
    assert said.count("warning: task") == 1
    assert "embeddings of different samples are nearly equal" in said
    assert "guessing gives" in said
