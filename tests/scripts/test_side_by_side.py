"""Processes of the scripts."""

from __future__ import annotations

import os

import pytest
from side_by_side import run_side_by_side


@pytest.mark.slow
def test_every_job_is_done_and_told_with_one_thread_each(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SOME_JOB", "done")
    run_side_by_side(os.getenv, ["OMP_NUM_THREADS", "SOME_JOB"], at_once=2, indent="  ")
    assert sorted(capsys.readouterr().out.splitlines()) == ["  1", "  done"]
