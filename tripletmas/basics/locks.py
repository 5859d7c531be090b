"""Locks that keep other processes from what one is changing, and say which process that is.

The system gives a lock back when its process ends, however it ends: a note that is left behind then holds nobody up.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tripletmas.basics.files import make_folder


@contextmanager
def locked(lock: Path, what: str | Path, *, patience: float = 0) -> Iterator[None]:
    """Keeps out every other process that asks for this lock.

    The file `lock` stays behind, empty: to delete it would let two in. The note beside it says who holds it.

    Args:
        what: is being changed, as it is called in the error.
        patience: seconds to wait for a process that holds it.

    Raises:
        ValueError: if another process holds it still, with what is known of that process.
    """
    make_folder(lock.parent)
    held = FileLock(lock)
    try:
        held.acquire(timeout=patience)
    except Timeout:
        who = _told(lock)
        raise ValueError(f"{what} is being changed by another process{who}: try again when that is done") from None
    except (OSError, NotImplementedError) as error:
        raise OSError(f"{what} cannot be locked, so another process might change it, too: {error}") from None
    try:
        note = {"process": os.getpid(), "machine": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        with suppress(OSError):  # a full disk is told of by what cannot be written to it
            _note(lock).write_text(json.dumps({**note, "command": " ".join(sys.argv)[:200]}), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            _note(lock).unlink(missing_ok=True)
        held.release()


def holder(lock: Path) -> dict[str, Any] | None:
    """What a lock's note says of the process that holds it, or that was killed while it did; None: nothing."""
    try:
        found = json.loads(_note(lock).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock at this moment."""
    if not lock.exists():
        return False
    other = FileLock(lock)
    try:
        other.acquire(timeout=0)
    except Timeout:
        return True
    other.release()
    return False


def _note(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.holder")


def _told(lock: Path) -> str:
    found = holder(lock)
    if found is None:
        return ""
    return f" ({found.get('process')} on {found.get('machine')}, since {found.get('since')}: {found.get('command')})"
