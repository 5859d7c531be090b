"""Files and folders that are either whole or not there: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; it becomes `path` when the block ends well, else it goes.

    Where `path` is a symbolic link, what it points to is written, and the link stays. A file keeps the permissions of
    the one it replaces; a new one has those that the user's umask gives.

    Raises:
        OSError: if it cannot be written, as when the disk is full; what was at `path` before is untouched.
    """
    final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(final.name + ".part")
    _remove(aside)
    try:
        yield aside
        _allow(aside, final)
        _flush(aside)
        os.replace(aside, final)
        _flush_folder(final.parent)
    except BaseException as error:
        _remove(aside)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f"no space left to write {final}; what was saved before is whole") from None
        raise


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: as `written_aside`.
    """
    with written_aside(path) as aside:
        write_tensors(tensors, aside, metadata)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in place.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path, dict(metadata))
    except SafetensorError as error:  # it hides the operating system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from None


def _allow(aside: Path, final: Path) -> None:
    """Give a file the permissions that it would have, had it been written in place: safetensors leaves owner-only."""
    with suppress(OSError):  # some file systems have no permissions
        if final.is_file():
            mode = final.stat().st_mode & 0o777
        else:
            probe = aside.with_name(aside.name + ".mode")  # the umask can be read from what it does, and only so safely
            handle = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
            mode = os.fstat(handle).st_mode & 0o777
            os.close(handle)
            probe.unlink()
        for file in [aside] if aside.is_file() else aside.iterdir():
            file.chmod(mode)


def _flush(path: Path) -> None:
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


def _flush_folder(path: Path) -> None:
    """Have the new name on the disk, where the system can say so; it is there already for every other program."""
    with suppress(OSError):  # Windows opens no folders, some file systems flush none
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
