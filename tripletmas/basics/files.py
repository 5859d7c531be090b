"""Files and folders that are whole, unchanged, and those that they should be, or are refused.

They are written aside, flushed to the disk, then renamed. What is written says of itself, in a `seal`, which file it
is (`Place`) and what its checksum is (CRC-32): a file that was cut short, changed, exchanged for another or put back
from an older copy is noticed when it is read. Files of earlier versions have no seal, and are taken as they are.

Tensors are kept in the safetensors format, which sorts them by size and name: their order stands in its header as JSON,
beside what else a file says of itself.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from tripletmas.basics.disk import check_regular, flush, flush_folder, remove

if TYPE_CHECKING:  # it is imported where tensors are read and written: JSON needs none, nor does `index.glance`
    from torch import Tensor

SEAL = "seal"
ABOUT = "tripletmas"  # the one entry in the header of a safetensors file: the order of several is left to chance there
BLANK = "00000000-00000000"  # of the same length as the checksums that are written over it


class Place(NamedTuple):
    """Which file something is: of which run, under which name, of which edition; a later one has a higher number."""

    run: str
    name: str
    edition: int = 0

    def check(self, found: Sequence[Any] | None) -> None:
        """Whether a file that says this of itself is the one that is expected here, or a later edition of it.

        Raises:
            ValueError: saying what it is.
        """
        if found is None:
            raise ValueError("it bears no checksum, as every file of this run does")
        run, name, edition = found
        if run != self.run:
            raise ValueError("it belongs to another run")
        if name != self.name:
            raise ValueError(f"it is another file of the run, {name}")
        if edition < self.edition:
            raise ValueError("it is older than the run's other files")


@contextmanager
def atomic_write(path: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """A path beside `path` to write a file, or the files of a folder, to; it becomes `path` when the block ends well.

    Else it goes. It is empty at first. Where `path` is a symbolic link, what it points to is written, and the link
    stays. A file keeps the permissions of the one it replaces; a new one has those that the user's umask gives.

    Raises:
        OSError: if it cannot be written, as when the disk is full; what was at `path` before is untouched.
        ValueError: for a device or a pipe, in whose place there would be a file afterwards.
    """
    final = Path(os.path.realpath(path))
    if final.exists() and not (final.is_file() or final.is_dir()):
        raise ValueError(f"{path} is no file on a disk, but a device or a pipe: name a file")
    make_folder(final.parent)
    aside = final.with_name(final.name + ".part")
    if aside.is_dir() and not folder:
        raise IsADirectoryError(errno.EISDIR, f"{aside} is a folder and in the way of what is written: move it away")
    remove(aside)
    try:
        aside.mkdir() if folder else aside.touch(0o666)
        mode = (final if final.is_file() else aside).stat().st_mode & 0o666
        yield aside
        flush(aside, mode)
        os.replace(aside, final)
        flush_folder(final.parent)
    except BaseException as error:
        remove(aside)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f"no space left to write {final}; what was saved before is whole") from None
        raise


def save_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; errors as `atomic_write`."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


# --- JSON


def save_json(path: str | Path, content: Any, place: Place | None = None) -> None:
    """Write JSON as `write_json` does, whole or not at all; errors as `atomic_write`."""
    with atomic_write(path) as aside:
        write_json(aside, content, place)


def write_json(path: Path, content: Any, place: Place | None = None) -> None:
    """Write a JSON file in place, nan as null, sealed where it has a place."""
    plain = without_nan(content)
    text = json.dumps(sealed(plain, place) if place else plain, indent=1, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def read_json(path: str | Path, remedy: str, place: Place | None = None) -> Any:
    """The content of a JSON file, without its seal.

    Args:
        remedy: what to do about a file that cannot be read.
        place: which file it has to be; None takes one without a seal, too.

    Raises:
        ValueError: if it is missing, damaged or another file.
    """
    try:
        check_regular(path)
        return unsealed(json.loads(Path(path).read_text(encoding="utf-8")), place)
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error, remedy) from None


def sealed(content: Any, place: Place) -> dict[str, Any]:
    """Content that fits JSON with a seal as its last entry; what is no mapping is an entry of its own."""
    entries = dict(content) if isinstance(content, Mapping) else {"content": content}
    return {**entries, SEAL: [*place, _checksum_of(entries, place)]}


def unsealed(found: Any, place: Place | None) -> Any:
    """What was `sealed`.

    Raises:
        ValueError: if it was changed since, or has another place, or has no seal where a place is expected.
    """
    if not isinstance(found, dict) or SEAL not in found:
        if place:
            place.check(None)
        return found
    entries = {key: value for key, value in found.items() if key != SEAL}
    match found[SEAL]:
        case [str(), str(), int(), str() as checksum] if checksum == _checksum_of(entries, found[SEAL][:3]):
            if place:
                place.check(found[SEAL][:3])
            return entries["content"] if entries.keys() == {"content"} else entries
    raise ValueError("its checksum is wrong")


def without_nan(content: Any) -> Any:
    """The same with None for nan, which JSON lacks."""
    if isinstance(content, float):
        return None if math.isnan(content) else content
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    return [without_nan(value) for value in content] if isinstance(content, (list, tuple)) else content


def _checksum_of(content: Any, place: Sequence[Any]) -> str:
    return checksum(json.dumps([*place, content]).encode())


# --- tensors


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any] | None = None,
    place: Place | None = None,
) -> None:
    """Write tensors as `write_tensors` does, whole or not at all; errors as `atomic_write`."""
    with atomic_write(path) as aside:
        write_tensors(aside, tensors, header, place)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any] | None = None,
    place: Place | None = None,
) -> None:
    """Write a safetensors file in place, sealed.

    Args:
        header: name -> what fits JSON.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = {"checksums": BLANK, "order": list(tensors), "header": dict(header or {}), "place": place}
    try:
        with ThreadPoolExecutor(1) as beside:  # a checksum takes about a third of the time that writing takes
            content = beside.submit(_content_checksum, tensors)
            save_file(tensors, path, {ABOUT: json.dumps(about)})
    except SafetensorError as error:  # it hides the operating system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from None
    sums = f"{content.result()}-{header_checksum(about, tensors, content.result())}"
    with open(path, "rb+") as file:
        start = file.read(256).index(BLANK.encode())
        file.seek(start)
        file.write(sums.encode())


def read_tensors(
    path: str | Path,
    remedy: str,
    *,
    header: str | None = None,
    place: Place | None = None,
    verify: bool = True,
    large: bool = False,
) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a safetensors file, mapped, and what stands in its header under a name.

    They come in the order in which they were saved: sums over them, such as the penalty, are then the same bit for bit.
    Those of another program come by name.

    Args:
        remedy: what to do about a file that cannot be read.
        header: the name; what stands there is None where the file has none.
        place: which file it has to be; None takes one without a seal, too.
        verify: read all tensors now, to compare their checksum; that of the header is compared in any case.
        large: by `mapped.mapped_tensors`, which maps what exceeds the memory, too.

    Raises:
        ValueError: if the file is missing, damaged or another one.
    """
    from tripletmas.basics.mapped import mapped_tensors, tensors_of

    try:
        check_regular(path)
        texts, tensors = (mapped_tensors if large else tensors_of)(path)
        about = about_of(texts)
        names = sorted(tensors) if about["order"] is None else about["order"]
        tensors = {name: tensors[name] for name in names}
        _check_sums(about, tensors, verify=verify)
        if place:
            place.check(about["place"] if about["checksums"] else None)
        return tensors, about["header"].get(header)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise damaged(path, error, remedy) from None


def edition_of(path: str | Path) -> int | None:
    """The edition of a safetensors file, by its header alone, 0 if it has no place; None where it bears no seal."""
    try:
        with safe_open(path, framework="pt") as file:
            return int((json.loads((file.metadata() or {})[ABOUT])["place"] or (0,))[-1])
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        return None


def about_of(texts: Mapping[str, str]) -> dict[str, Any]:
    """What a header says, also that of a file of an earlier version, or of another program."""
    if ABOUT in texts:
        return json.loads(texts[ABOUT])
    order = json.loads(texts["order"]) if "order" in texts else None
    header = {name: json.loads(text) for name, text in texts.items() if name not in ("order", "format")}
    return {"checksums": None, "order": order, "header": header, "place": None}


def _check_sums(about: Mapping[str, Any], tensors: Mapping[str, Tensor], *, verify: bool) -> None:
    if about["checksums"] is None:
        return
    content, _, own = about["checksums"].partition("-")
    if own != header_checksum(about, tensors, content):
        raise ValueError("the checksum of its header is wrong")
    if verify and content != _content_checksum(tensors):
        raise ValueError("its checksum is wrong")


def _content_checksum(tensors: Mapping[str, Tensor]) -> str:
    import torch

    from tripletmas.basics.mapped import blocks

    found = 0
    for value in tensors.values():
        for block in blocks(value.contiguous().reshape(-1)):
            content: Any = block.view(torch.uint8).numpy()  # a buffer, as its type says late
            found = zlib.crc32(content, found)
    return f"{found:08x}"


def header_checksum(about: Mapping[str, Any], tensors: Mapping[str, Any], content: str) -> str:
    """Of what a file of tensors, or of what has the type and the shape of tensors, says of itself."""
    shapes = [[name, str(value.dtype), list(value.shape)] for name, value in tensors.items()]
    return checksum(json.dumps([content, shapes, about["header"], about["place"]]).encode())


# --- errors and the disk


def checksum(content: bytes | memoryview) -> str:
    """CRC-32, as eight digits."""
    return f"{zlib.crc32(content):08x}"


def damaged(path: str | Path, error: Exception | str, remedy: str) -> ValueError:
    """The error of a file that cannot be read, with what to do."""
    what = "it is missing, changed, cut short or another kind of file"
    reason = str(error).partition("\n")[0]  # after that torch and faiss tell of their own code
    return ValueError(f"{path} cannot be read ({reason}): {what}; {remedy}")


def make_folder(path: Path) -> None:
    """A folder, made with those that it lies in where they are not there, all of them on the disk."""
    if not path.is_dir():
        if path.exists():
            raise ValueError(f"{path} is a file, and a folder is to be made there: name another place")
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush_folder(path.parent)


def append_text(path: Path, text: str) -> None:
    """Add a text to the end of a file, and have it on the disk."""
    is_new = not path.exists()
    with open(path, "a", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        flush_folder(path.parent)
