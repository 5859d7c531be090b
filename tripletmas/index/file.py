"""The file of an image index: tensors in the safetensors format, the rest as JSON in its header.

vectors   (n, dim) float32, as they are searched: of length 1 where the index normalises
ids       (n,) int64, ascending: an image keeps its id, and none is given twice
part      (n,) int32, which of the parts listed in the header the vector belongs to
labels    (n,) int64, which of the class names in the header; -1: no label
paths     uint8, a JSON list of n texts in UTF-8
texts     uint8, only of indexes of texts: the texts, as the paths
index     uint8, only of approximate indexes: what faiss serialised; where the lists of an IVF kind are
          searched on the disk, what it has learned, and beside it
list_sizes, lists    as `lists` says

Checksums of all of it are compared when the file is opened: a score that was computed from damaged vectors would look
like any other. Earlier versions wrote one of each tensor, and none of the header.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics.distributed import is_main
from tripletmas.basics.files import read_tensors, save_tensors
from tripletmas.basics.locks import locked as held
from tripletmas.basics.mapped import BLOCK
from tripletmas.basics.progress import told
from tripletmas.basics.tensor_stream import Filled, Room, stream_tensors
from tripletmas.basics.weights import Params
from tripletmas.index.glance import FORMAT, HEADER

ON_DISK = "1, with lists on the disk"  # which earlier versions must not take for an index without any
_REMEDY = "restore it from a copy, or build it anew"
_DTYPES = {"vectors": torch.float32, "ids": torch.int64, "part": torch.int32, "labels": torch.int64}


@contextmanager
def locked(path: str | Path, *, new: bool = False) -> Iterator[None]:
    """Keeps other writers from an index file while it is read, changed and written; readers need no lock.

    An empty file `<path>.lock` stays behind (see `basics.locks`). Of several processes the main one holds the lock.

    Args:
        new: the file need not be there yet.

    Raises:
        ValueError: if another process changes it at this moment, if there is no such file, or if a folder lies there.
    """
    if new and Path(path).is_dir():  # before there is a lock beside it
        raise ValueError(f"{path} is a folder: name a file for the index")
    if not new:
        _check_there(path)
    if not is_main():
        yield
        return
    with held(Path(f"{os.path.realpath(path)}.lock"), path):  # one file has one lock, whatever links lead to it
        yield


def _check_there(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ValueError(f"no such index file: {path}; tripletmas index build makes one")


def write_index_file(
    path: str | Path,
    tensors: Mapping[str, Tensor | Room],
    paths: tuple[str, ...],
    header: dict[str, Any],
    *,
    fill: Callable[[Mapping[str, Filled]], None] = lambda _: None,
) -> None:
    """Write an index file; until the new one is whole, the old one stays.

    Args:
        header: with a format, where it is not FORMAT.
        fill: writes what has only room in `tensors`.

    Raises:
        OSError: if it cannot be written, as when the disk is full; the old file is untouched.
    """
    content = {**tensors, "paths": strings_as_tensor(paths)}
    about = {HEADER: {"format": FORMAT, **header}}
    whole = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if len(whole) == len(content) and sum(value.nbytes for value in whole.values()) <= BLOCK:
        save_tensors(path, whole, about)
    else:
        stream_tensors(path, content, about, fill=fill)


def stored(place: Filled, blocks: Iterator[Tensor], shape: tuple[int, int]) -> Callable[[], Iterator[Tensor]]:
    """Write vectors that come in blocks, (n, dim) float32 in all, to their place; gives what reads them from there.

    Raises:
        ValueError: if there are more or fewer of them.
    """
    count, dim = shape
    at = 0
    for block in told(blocks, "vectors stored", count, size=len):
        if at + len(block) > count or block.shape[1] != dim:
            raise ValueError(f"{at + len(block)} vectors of dim {block.shape[1]} came for {count} of dim {dim}")
        place.write(4 * dim * at, block)
        at += len(block)
    if at != count:
        raise ValueError(f"{at} vectors came for {count} images")

    def again() -> Iterator[Tensor]:
        step = max(1, BLOCK // (4 * dim))
        for start in range(0, count, step):
            rows = min(step, count - start)
            yield place.read(4 * dim * start, 4 * dim * rows).view(torch.float32).reshape(rows, dim)

    return again


def read_index_file(path: str | Path, *, verify: bool = True) -> tuple[Params, tuple[str, ...], dict[str, Any]]:
    """The tensors, the paths, and the header of an index file.

    The tensors are mapped: what lies on the disk is read when it is used. The file may be replaced meanwhile.

    Args:
        verify: read them once now, to compare their checksums.

    Raises:
        ValueError: if there is no such file, if it is no index, was cut short, or is of another format.
    """
    _check_there(path)
    tensors, header = read_tensors(path, _REMEDY, header=HEADER, verify=verify, large=True)
    if header is None:
        raise ValueError(f"{path} is a safetensors file, but no index: tripletmas index build writes those")
    try:
        if header["format"] in (FORMAT, ON_DISK):
            if verify:
                _check_sums(tensors, header.get("checksums", {}))  # of an earlier version
            paths = read_strings(tensors.pop("paths"))
            _check(tensors, len(paths), header)
            return tensors, paths, header
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_REMEDY}") from None
    raise ValueError(
        f"{path} is an index of format {header['format']}, and this version of tripletmas reads format {FORMAT}: build "
        f"it anew, or use version {header.get('version')}"
    )


def _check_sums(tensors: Params, checksums: dict[str, int]) -> None:
    for name, expected in checksums.items():
        if _checksum(tensors[name]) != expected:
            raise ValueError(f"the checksum of its {name} is wrong")


def _check(tensors: Params, count: int, header: dict[str, Any]) -> None:
    """Whether the tensors belong together; the vectors themselves are not read."""
    for name, dtype in _DTYPES.items():
        value = tensors[name]
        shape = (count, header["dim"]) if name == "vectors" else (count,)
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(f"{name}: {value.dtype} of {tuple(value.shape)}, not {dtype} of {shape}")
    for name, smallest, end in (("part", 0, len(header["parts"])), ("labels", -1, len(header["class_names"]))):
        value = tensors[name]
        if len(value) and not smallest <= int(value.min()) <= int(value.max()) < end:
            raise ValueError(f"{name} lie outside [{smallest}, {end})")
    if not bool((tensors["ids"].diff() > 0).all()):
        raise ValueError("ids are not ascending")


def _checksum(tensor: Tensor) -> int:
    content: Any = tensor.contiguous().numpy()  # a buffer, which its type says from Python 3.12 on only
    return zlib.crc32(content) if tensor.numel() else 0


def read_strings(content: Tensor) -> tuple[str, ...]:
    """The texts that became a tensor."""
    return tuple(json.loads(content.numpy().tobytes().decode("utf-8", "surrogateescape")))


def strings_as_tensor(strings: tuple[str, ...]) -> Tensor:
    """Texts as a JSON list in UTF-8, uint8."""
    content = json.dumps(strings, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
