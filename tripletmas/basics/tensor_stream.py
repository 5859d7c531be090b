"""A file of tensors, of which some are filled in block after block: they need not fit into memory.

What is written is to the byte what `files.save_tensors` writes of the same tensors.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics import files
from tripletmas.basics.mapped import blocks, header_of

_AT_ONCE = 2**24  # bytes that are read at once for a checksum


@dataclass(frozen=True)
class Room:
    """A tensor that is not there yet: its type and its shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Filled:
    """A place to write to and read from, by bytes: a part of a file."""

    def __init__(self, file: BufferedRandom, start: int):
        self._file, self._start = file, start

    def write(self, at: int, content: Tensor) -> None:
        """Write a tensor's bytes so many bytes from the start on."""
        if content.numel():
            plain: Any = content.contiguous().reshape(-1).view(torch.uint8).numpy()  # a buffer, as its type says late
            self._file.seek(self._start + at)
            self._file.write(plain)

    def read(self, at: int, count: int) -> Tensor:
        """So many bytes, uint8, that were written."""
        content = torch.empty(count, dtype=torch.uint8)
        plain: Any = content.numpy()
        self._file.seek(self._start + at)
        found = self._file.readinto(plain) if count else 0
        assert found == count, "read before it was written"
        return content


def stream_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor | Room],
    header: Mapping[str, Any] | None = None,
    place: files.Place | None = None,
    *,
    fill: Callable[[Mapping[str, Filled]], None],
) -> None:
    """Write a safetensors file, whole or not at all, as `files.save_tensors` does.

    Args:
        fill: writes what has only room so far, name -> its place; called once.

    Raises:
        OSError: if it cannot be written, as when the disk is full.
    """
    about = {"checksums": files.BLANK, "order": list(tensors), "header": dict(header or {}), "place": place}
    layout = {name: (each.dtype, tuple(each.shape)) for name, each in tensors.items()}
    head, begins = header_of(layout, {files.ABOUT: json.dumps(about)})
    total = max((begins[name] + _bytes_of(*layout[name]) for name in tensors), default=len(head))
    with files.atomic_write(path) as aside, open(aside, "rb+") as file:
        file.write(head)
        file.truncate(total)
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                _write(Filled(file, begins[name]), value)
        fill({name: Filled(file, begins[name]) for name, value in tensors.items() if isinstance(value, Room)})
        content = _checksum(file, [(begins[name], _bytes_of(*layout[name])) for name in tensors])
        sums = f"{content}-{files.header_checksum(about, tensors, content)}"
        file.seek(head.index(files.BLANK.encode()))
        file.write(sums.encode())


def _write(to: Filled, value: Tensor) -> None:
    at = 0
    for block in blocks(value.detach().cpu().contiguous().reshape(-1)):
        to.write(at, block)
        at += block.numel() * block.element_size()


def _bytes_of(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _checksum(file: BufferedRandom, places: Sequence[tuple[int, int]]) -> str:
    found, buffer = 0, bytearray(_AT_ONCE)
    for start, length in places:
        file.seek(start, os.SEEK_SET)
        while length:
            piece = memoryview(buffer)[: min(length, _AT_ONCE)]
            count = file.readinto(piece)
            assert count, "the file is shorter than it was written"
            found, length = zlib.crc32(piece[:count], found), length - count
    return f"{found:08x}"
