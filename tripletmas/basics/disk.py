"""What is written is on the disk, and what is deleted is gone."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def check_regular(path: str | Path) -> None:
    """Raise an OSError for what is no file on a disk, such as a pipe, which would be waited for without an end."""
    if not os.path.isfile(path):
        raise OSError("it is no regular file" if os.path.exists(path) else "no such file")


def flush_folder(path: Path) -> None:
    """Have new names on the disk, where the system can say so; they are there already for every other program."""
    with suppress(OSError):  # Windows opens no folders, some file systems flush none
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def flush(path: Path, mode: int) -> None:
    """Have a file, or a folder of files, on the disk, with these permissions: safetensors leaves them owner-only."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with suppress(OSError):  # some file systems have no permissions
            file.chmod(mode)
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    if path.is_dir():
        flush_folder(path)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
