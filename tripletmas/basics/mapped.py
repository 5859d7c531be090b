"""Tensors of a safetensors file, used where they lie on the disk, also where they exceed the memory.

What is read of them stays in memory as long as there is room, and is told as this process's own: `release` gives it
back, and `blocks` does so block after block.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open
from torch import Tensor

# safetensors lays tensors out by these, and then by name: what must be aligned most comes first.
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
BLOCK = 2**26  # bytes that are looked at before they are given back
LARGE = 2**30

_LONGEST_HEADER = 100_000_000  # as safetensors has it
# Without a promise of memory for what might be written to it, which Linux refuses for a file larger than the memory.
_FLAGS = getattr(mmap, "MAP_PRIVATE", 0) | (0x4000 if sys.platform == "linux" else 0)
_mapped: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by the address of each


def tensors_of(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(what the header says in words, the tensors) of a safetensors file, as that library reads it."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def mapped_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(what the header says in words, the tensors) of a safetensors file that holds none but those of `DTYPES`.

    The file may be replaced meanwhile, but must not change. A tensor that is changed becomes a copy.

    Raises:
        ValueError: if it is no such file, or was cut short.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise ValueError("it has no header")
        header = json.loads(file.read(length).decode())
        texts, places = _places(header, size - 8 - length)
        access: Any = {"access": mmap.ACCESS_COPY}
        if sys.platform != "win32":
            access = {"flags": _FLAGS, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
        content = mmap.mmap(file.fileno(), 0, **access)
    whole = torch.frombuffer(content, dtype=torch.uint8)
    _mapped[whole.data_ptr()] = content
    start = 8 + length
    return texts, {name: _tensor(whole, start, *place) for name, place in places.items()}


def _tensor(whole: Tensor, start: int, dtype: torch.dtype, shape: list[int], begin: int, end: int) -> Tensor:
    part = whole[start + begin : start + end]
    if part.storage_offset() % dtype.itemsize:  # of another program: safetensors aligns them
        part = part.clone()
    return part.view(dtype).reshape(shape)


def _places(header: Any, size: int) -> tuple[dict[str, str], dict[str, tuple[torch.dtype, list[int], int, int]]]:
    """(texts, name -> type, shape, begin and end) of a header; a ValueError where the parts do not fill the file."""
    texts = header.pop("__metadata__", None) or {}
    if not all(isinstance(each, str) for each in (*texts, *texts.values())):
        raise ValueError("its header holds something else than texts")
    places = {name: _place(name, **entry) for name, entry in header.items()}
    reached = 0
    for _, _, begin, end in sorted(places.values(), key=lambda place: place[2:]):
        if begin != reached:
            raise ValueError("its tensors do not lie one after the other")
        reached = end
    if reached != size:
        raise ValueError(f"it has {size} bytes of tensors in place of {reached}")
    return texts, places


def _place(name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> tuple[torch.dtype, list[int], int, int]:
    if dtype not in DTYPES:
        raise ValueError(f"{name} is of type {dtype}")
    begin, end = data_offsets
    if not all(isinstance(each, int) and 0 <= each < 2**63 for each in (*shape, begin, end)):
        raise ValueError(f"{name} has a shape or a place that is none")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name} has {end - begin} bytes, which do not fit its shape {shape}")
    return DTYPES[dtype], shape, begin, end


def header_of(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], texts: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """(the first bytes of a safetensors file as that library writes it, name -> where in the file a tensor begins).

    Args:
        tensors: type and shape of each.
    """
    named = {dtype: name for name, dtype in DTYPES.items()}
    ranks = list(DTYPES.values())
    order = sorted(tensors, key=lambda name: (ranks.index(tensors[name][0]), name))
    entries: dict[str, Any] = {"__metadata__": dict(texts)}
    begins, reached = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        end = reached + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": named[dtype], "shape": list(shape), "data_offsets": [reached, end]}
        begins[name], reached = reached, end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + begin for name, begin in begins.items()}


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor lies in a file that `mapped_tensors` opened."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _mapped


def release(tensor: Tensor) -> None:
    """Give back the memory of what was read of a tensor, if it is mapped: it is read again when it is used."""
    start = tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" else 0
    content = _mapped.get(start)
    if content is None or not hasattr(mmap, "MADV_DONTNEED") or not tensor.numel():
        return
    first = (tensor.data_ptr() - start) // mmap.PAGESIZE * mmap.PAGESIZE
    last = tensor.data_ptr() - start + tensor.numel() * tensor.element_size()
    with suppress(OSError, ValueError):
        content.madvise(mmap.MADV_DONTNEED, first, last - first)


def is_large(tensor: Tensor) -> bool:
    """Whether a tensor is mapped, and larger than a gigabyte: of what is smaller, all that was read may stay."""
    return tensor.numel() * tensor.element_size() > LARGE and is_mapped(tensor)


def blocks(tensor: Tensor, rows: int | None = None) -> Iterator[Tensor]:
    """A contiguous tensor in blocks of so many rows, or of 64 MB; what is mapped of one is given back after it."""
    if not len(tensor):
        return
    if rows is None:
        rows = max(1, BLOCK * len(tensor) // max(tensor.numel() * tensor.element_size(), 1))
    for block in tensor.split(rows):
        yield block
        release(block)
