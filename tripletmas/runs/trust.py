"""Whose code may be executed: what this account has trained with, as long as it is where it was and unchanged.

A run records file and SHA-256 of each part of one's own. `train` executes what its command line names, and remembers it
outside of any run. Whoever reads the run later executes only what `recorded` lets through. So neither a run nor an
index of somebody else brings code along.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tripletmas.runs.plugins import GROUPS, Code, find

# in the header of an index file, where quotes are escaped but in those of earlier versions
_INDEX = re.compile(rb'"tripletmas index\\?":')
_SHOWN = 12  # digits of a checksum


def recorded(part: str, name: str, records: object) -> Code:
    """The code of a part that a run names, if it may be executed.

    Args:
        records: what the run says of its code: part -> name -> record.

    Raises:
        ValueError: as `find`; if the run recorded none, or the code lies elsewhere or has changed since; as `known`.
    """
    code = _unchanged(part, name, records)
    return known(code, "read it, and add --trust-code to execute it")


def known(code: Code, advice: str) -> Code:
    """The code, if training by this account has named it.

    Raises:
        ValueError: if it has not, with what would be executed, and this advice.
    """
    if not remembered(code):
        raise ValueError(
            f"{code.part} {code.name!r} is code: {code.file} (sha256 {code.sha256[:_SHOWN]}) would be executed, and no "
            f"training by this account has named it; {advice}"
        )
    return code


def accept(records: object, *, unseen: bool = False) -> None:
    """Remember the parts that a run recorded, as those that training by this account named.

    Args:
        unseen: training did not name them. They must not lie beside an index then, with which they may have come.

    Raises:
        ValueError: for those that are not there any more as they were; OSError: where they cannot be remembered.
    """
    for part in GROUPS:
        for name in _mapping(_mapping(records).get(part)):
            code = _unchanged(part, name, records)
            if unseen and not remembered(code):
                _refuse_beside_index(code)
            remember(code)


def _unchanged(part: str, name: str, records: object) -> Code:
    """The code of a part that is the same as a run recorded."""
    record = _mapping(_mapping(_mapping(records).get(part)).get(name))
    if not record:
        raise ValueError(
            f"{part} {name!r} is code without a recorded checksum, so it is not executed: train anew with it, named on "
            "the command line"
        )
    code = find(part, name)
    if record.get("file") != code.file:
        raise ValueError(f"{part} {name!r} was {record.get('file')} when the run was trained, and is {code.file} now")
    if record.get("sha256") != code.sha256:
        raise ValueError(
            f"{code.file} has changed since the run was trained (sha256 {str(record.get('sha256'))[:_SHOWN]}, now "
            f"{code.sha256[:_SHOWN]}): restore it, or train another run"
        )
    return code


def _mapping(content: object) -> Mapping[str, object]:
    """What stands in a file that anybody may have edited: a mapping, or nothing."""
    return content if isinstance(content, Mapping) else {}


def _refuse_beside_index(code: Code) -> None:
    index = next(filter(_is_index, Path(code.file).resolve().parent.iterdir()), None)
    if index is not None:
        raise ValueError(f"{code.part} {code.name!r} lies beside the index {index}: training must have named it itself")


def _is_index(path: Path) -> bool:
    """Whether a file is a safetensors file whose header is that of an index."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")  # of the header, which is JSON
            return file.read(1) == b"{" and size <= 10**8 and _INDEX.search(file.read(size - 1)) is not None
    except OSError:
        return False


def memory() -> Path:
    """The folder that remembers: a file for each part, whose deletion forgets it.

    Below `$XDG_STATE_HOME`, by default `~/.local/state`; a relative one is no place, as that standard says.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "tripletmas" / "code"


def remember(code: Code) -> None:
    """From now on `recorded` lets this code through, as long as it is unchanged and where it is.

    Raises:
        OSError: where it cannot be written.
    """
    if remembered(code):
        return
    folder = memory()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, content = _memory_of(code)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    os.replace(aside, path)


def remembered(code: Code) -> bool:
    """Whether this account remembers exactly this code, as exactly this part; what others can write counts nothing."""
    path, content = _memory_of(code)
    try:
        status = path.lstat()
        own = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
        return own and path.read_bytes() == content
    except OSError:
        return False


def _memory_of(code: Code) -> tuple[Path, bytes]:
    text = f"{code.part}\n{code.file}:{code.attribute}\nsha256 {code.sha256}\n"
    content = text.encode("utf-8", "surrogateescape")
    return memory() / hashlib.sha256(content).hexdigest(), content
