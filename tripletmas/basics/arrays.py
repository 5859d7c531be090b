"""A safetensors file of ours, read and checked without torch, by those who only ask what it holds.

It takes what this version writes, whole and sealed. What is otherwise in any way is `Unclear`: `files.read_tensors`
then reads it, or says what is wrong with it. What is read is the same: tests read one file by both.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tripletmas.basics.disk import check_regular
from tripletmas.basics.files import Place, about_of, header_checksum

# how a type is called in such a file -> (as torch calls it, bytes of an element)
_TYPES = {
    "I64": ("torch.int64", 8),
    "F64": ("torch.float64", 8),
    "F32": ("torch.float32", 4),
    "I32": ("torch.int32", 4),
    "BF16": ("torch.bfloat16", 2),
    "F16": ("torch.float16", 2),
    "I16": ("torch.int16", 2),
    "I8": ("torch.int8", 1),
    "U8": ("torch.uint8", 1),
    "BOOL": ("torch.bool", 1),
}
_BLOCK = 2**24


class Unclear(Exception):
    """What takes a closer look."""


class Array(NamedTuple):
    """A tensor in a file: its type as torch calls it, its shape, and its bytes; None where they were not asked for."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes | None


def read_sealed(
    path: str | Path, *, header: str | None = None, place: Place | None = None, skip: tuple[str, ...] = ()
) -> tuple[dict[str, Array], Any]:
    """The tensors of a file, and what stands in its header under a name, as `files.read_tensors` with `verify`.

    Args:
        place: which file it has to be.
        skip: what is compared with its checksum, and not kept.

    Raises:
        Unclear: for anything but a whole file as this version writes it.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return _read(file, header, place, skip)
    except Exception as error:
        raise Unclear(f"{path}: {error}") from error


def _read(
    file: BinaryIO, header: str | None, place: Place | None, skip: tuple[str, ...]
) -> tuple[dict[str, Array], Any]:
    texts, places, start = _header(file)
    about = about_of(texts)
    if about["checksums"] is None:
        raise Unclear("it has no seal")
    content, _, own = about["checksums"].partition("-")
    arrays, summed = {}, 0
    for name in about["order"]:
        dtype, shape, begin, end = places[name]
        file.seek(start + begin)
        blocks = []
        for at in range(begin, end, _BLOCK):
            block = file.read(min(_BLOCK, end - at))
            summed = zlib.crc32(block, summed)
            blocks += [] if name in skip else [block]
        arrays[name] = Array(dtype, shape, None if name in skip else b"".join(blocks))
    if (content, own) != (f"{summed:08x}", header_checksum(about, arrays, content)):
        raise Unclear("a checksum is wrong")
    if place:
        place.check(about["place"])
    return arrays, about["header"].get(header)


def _header(file: BinaryIO) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], int, int]], int]:
    """(texts, name -> type, shape, begin and end, where the tensors begin); they lie one after the other to the end."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    entries = json.loads(file.read(length).decode())
    texts, places = entries.pop("__metadata__"), {}
    for name, entry in entries.items():
        dtype, size_of_one = _TYPES[entry["dtype"]]
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        if end - begin != math.prod(shape) * size_of_one:
            raise Unclear(f"{name} has {end - begin} bytes")
        places[name] = (dtype, shape, begin, end)
    reached = 0
    for _, _, begin, end in sorted(places.values(), key=lambda each: each[2:]):
        if begin != reached:
            raise Unclear("its tensors do not lie one after the other")
        reached = end
    if 8 + length + reached != size:
        raise Unclear(f"it has {size} bytes")
    return texts, places, 8 + length


def weight_hash(state: Mapping[str, Array]) -> str:
    """The hash of weights, as `weights.weight_hash` gives it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        dtype, shape, content = state[name]
        digest.update(repr((name, dtype, shape)).encode())
        digest.update(content or b"")
    return digest.hexdigest()
