"""Lines about long work, in place of a bar."""

from __future__ import annotations

import logging
import sys

import pytest

from tripletmas.basics import progress
from tripletmas.basics.progress import told


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time; the test sets it."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(caplog, clock: list[float], seconds: float) -> list[str]:
    """What is said of seven items of so many seconds."""
    with caplog.at_level(logging.INFO):
        for _ in told(range(7), "embedded batch", 7):
            clock[0] += seconds
    return [record.getMessage() for record in caplog.records]


def test_a_line_comes_every_ten_seconds_and_none_of_the_last(caplog, clock):
    """After 12, 24 and 36 seconds; the end is told by what follows."""
    assert lines(caplog, clock, 6.0) == [f"embedded batch {done} of 7" for done in (2, 4, 6)]


def test_short_work_says_nothing(caplog, clock):
    assert lines(caplog, clock, 1.0) == []


def test_a_terminal_has_a_bar(caplog, clock, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert lines(caplog, clock, 60.0) == []
