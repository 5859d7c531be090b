"""What goes wrong with a run's first step is told before anything of it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import failed

MODELS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what, self.linear = what, nn.Linear(64, 4)

    def forward(self, images):
        return self.what(self.linear(images.flatten(1)))


def made(sample_shape, *, what: str = "plain", frozen: bool = False):
    ends = {
        "plain": lambda x: x,
        "nan": lambda x: x * float("nan"),
        "infinite": lambda x: x / 0,
        "detached": lambda x: x.detach(),
        "empty": lambda x: x[:, :0],
        "normalised": lambda x: nn.functional.normalize(x),
        "broken": lambda x: x if len(x) <= 4 else 1 // 0,
        "foreign": lambda x: nn.LayerNorm(4)(x),
    }
    return Net(ends[what]).requires_grad_(not frozen)


def nothing(sample_shape):
    return nn.Flatten()
"""
LINE = ("--data.tasks=5", "--training.epochs=1", "--report=false", "--device=cpu", "--out=run")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(MODELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.what=nan"], "nets.py:made' gives embeddings that are nan or infinite before it has learned"),
        (["--model.what=infinite"], "are nan or infinite before it has learned anything"),
        (["--model.what=detached"], "no gradient with respect to any weight, .*look for detach"),
        (["--model.what=detached", "--strategy=finetune"], "no gradient with respect to any weight"),
        (["--model.what=empty"], "nets.py:made': the model returns embeddings of length 0"),
        (["--model.what=normalised"], "the importance is zero everywhere: the length of the model's output \\(1\\)"),
        (["--model.what=normalised", "--strategy=mas+distill"], "the importance is zero everywhere"),
        (["--model.frozen=true"], "the model has no weights to train, or all are frozen: the strategy pretrained"),
        (["--training.warmup=1000"], "a warmup of 1000 steps is no shorter than the task, which has"),
    ],
)
def test_no_run_is_begun(options, message, call):
    failed(call("train", "--model=nets.py:made", *options, *LINE), message)
    assert not Path("run").exists()


def test_layers_that_local_mas_does_not_know(call):
    Path("norm.py").write_text(
        MODELS + "\n\ndef normed(sample_shape):\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(64, 4), nn.LayerNorm(4))\n"
    )
    failed(call("train", "--model=norm.py:normed", "--strategy=local_mas", *LINE), "not for 2 .*left_out=")
    assert not Path("run").exists()


@pytest.mark.slow
def test_nothing_to_train_is_no_fault_of_who_never_trains(call):
    assert call("train", "--model=nets.py:nothing", "--strategy=pretrained", *LINE)[0] == 0
    failed(call("train", "--model=nets.py:nothing", *LINE[:-1], "--out=other"), "the model has no weights to train")
    assert call("train", "--model=nets.py:made", "--model.what=normalised", "--strategy=finetune", *LINE[:-1],
                "--out=third")[0] == 0  # only what measures the length needs one that changes  # fmt: skip


def test_an_error_in_code_of_ones_own_names_its_line(call):
    """It is in nobody else's power to mend, so nobody is asked to report it."""
    line = 1 + MODELS.splitlines().index('        "broken": lambda x: x if len(x) <= 4 else 1 // 0,')
    failed(call("train", "--model=nets.py:made", "--model.what=broken", *LINE), f"nets.py, line {line}: ZeroDivision")
