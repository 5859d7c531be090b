"""Scripts called in this process, their runs one after the other."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest


def run_here(run, jobs, *, at_once, indent=""):
    for job in jobs:
        run(job)


def called(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """What a script prints that runs jobs side by side."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
    monkeypatch.setattr(script, "run_side_by_side", run_here)
    script.main()  # pyright: ignore[reportAttributeAccessIssue]
    return capsys.readouterr().out
