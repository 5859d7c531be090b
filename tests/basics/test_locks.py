"""Locks: who holds one is told, and one whose holder was killed holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tripletmas.basics.locks import holder, is_held, locked

HOLD = "import sys, time; from pathlib import Path; from tripletmas.basics.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def other(tmp_path):
    """Another process that holds `tmp_path / "lock"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_is_first(other, tmp_path):
    lock = tmp_path / "lock"
    pattern = rf"^runs/x is being changed by another process \({other.pid} on .*, since 20.*: -c .*\): try again when"
    with pytest.raises(ValueError, match=pattern), locked(lock, "runs/x"):
        pass
    assert is_held(lock)
    assert holder(lock) is not None


def test_a_killed_process_holds_nobody_up(other, tmp_path):
    lock = tmp_path / "lock"
    other.send_signal(signal.SIGKILL)
    other.wait()
    note = holder(lock)
    assert note is not None
    assert note["process"] == other.pid
    assert not is_held(lock)
    with locked(lock, "x"):
        now = holder(lock)
        assert now is not None
        assert now["process"] == os.getpid()
    assert holder(lock) is None
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_one_that_is_patient_waits(other, tmp_path):
    ended = threading.Timer(0.3, other.kill)
    ended.start()
    with locked(tmp_path / "lock", "x", patience=60):
        assert other.wait() == -signal.SIGKILL
    ended.join()


def test_it_is_given_back_after_an_error(tmp_path):
    lock = tmp_path / "new" / "lock"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), locked(lock, "x"):
            raise KeyboardInterrupt
    assert not is_held(lock)
    assert not is_held(tmp_path / "none")


@pytest.mark.parametrize("note", ["", "{", "[1]"])
def test_a_damaged_note_is_no_note(note, tmp_path):
    lock = tmp_path / "lock"
    with locked(lock, "x"):
        Path(f"{lock}.holder").write_text(note)
        with (
            pytest.raises(ValueError, match=r"^x is being changed by another process: try"),
            locked(lock, "x"),
        ):
            pass
