"""Files and folders that are either whole or not there: written aside, flushed to the disk, then renamed.

Tensors are kept in the safetensors format, which sorts them by size and name: their order stands in its header as JSON,
beside what else a file says of itself.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_ORDER = "order"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
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


def save_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; errors as `atomic_write`."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_json(path: str | Path, content: Any) -> None:
    """Write content as JSON, nan as null, whole or not at all; errors as `atomic_write`."""
    save_text(path, json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path, remedy: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if it is missing or damaged; `remedy` says what to do then.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error, remedy) from None


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Write tensors as `write_tensors` does, whole or not at all; errors as `atomic_write`."""
    with atomic_write(path) as aside:
        write_tensors(aside, tensors, header)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file in place.

    Args:
        header: name -> what fits JSON.

    Raises:
        OSError: if it cannot be written.
    """
    texts = {name: json.dumps(content) for name, content in {_ORDER: list(tensors), **(header or {})}.items()}
    try:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path, texts)
    except SafetensorError as error:  # it hides the operating system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from None


def read_tensors(path: str | Path, remedy: str, *, header: str | None = None) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a safetensors file, mapped, and what stands in its header under a name.

    They come in the order in which they were saved: sums over them, such as the penalty, are then the same bit for bit.
    Those of another program come by name.

    Args:
        remedy: what to do about a file that cannot be read.
        header: the name; what stands there is None where the file has none.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            names = json.loads(texts[_ORDER]) if _ORDER in texts else sorted(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, json.loads(texts[header]) if header in texts else None
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(path, error, remedy) from None


def damaged(path: str | Path, error: Exception | str, remedy: str) -> ValueError:
    """The error of a file that cannot be read, with what to do."""
    return ValueError(f"{path} cannot be read ({error}): it is missing, cut short or another kind of file; {remedy}")


def without_nan(content: Any) -> Any:
    """The same with None for nan, which JSON lacks."""
    if isinstance(content, float):
        return None if math.isnan(content) else content
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    return [without_nan(value) for value in content] if isinstance(content, (list, tuple)) else content


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
