"""What the tests of commands share."""

from __future__ import annotations

import re

import pytest

from tripletmas.runs import task as task_training

# options of a small run on digits
SMALL = [
    *("--data.tasks", "[2,2,6]", "--model.hidden", "[16]", "--model.dim", "8"),
    *("--training.epochs", "1", "--device", "cpu"),
]


def failed(result: tuple[int, str, str], message: str) -> None:
    """Whether a command failed with one sentence, in which this is found."""
    status, _, complaint = result
    assert status == 2
    assert complaint.splitlines()[-1].startswith("tripletmas: error: ")
    assert re.search(message, complaint), complaint
    assert "Traceback" not in complaint


def interrupt_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Ctrl-C in the epoch after so many."""
    real, calls = task_training._train_epoch, []

    def train_epoch(*arguments):
        calls.append(1)
        if len(calls) > epochs:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(task_training, "_train_epoch", train_epoch)
