"""What an index file says of itself, without its vectors, and without torch, which takes longer to import than this.

Its checksums and its tensors are checked as `ImageIndex.open` does; what takes a closer look is left to that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tripletmas.basics.arrays import Array, Unclear, read_sealed
from tripletmas.index.settings import Part, Reading, Settings, Transform

HEADER = "tripletmas index"
FORMAT = 1
TYPES = {"vectors": "torch.float32", "ids": "torch.int64", "part": "torch.int32", "labels": "torch.int64"}


@dataclass(frozen=True)
class Glance:
    """What `index info` tells of an index.

    Attributes:
        count: of its vectors; `of_parts`: of those of each part.
        num_classes, num_unlabelled: how many labels there are, and how many vectors without one.
    """

    settings: Settings
    count: int
    parts: tuple[Part, ...]
    of_parts: tuple[int, ...]
    num_classes: int
    num_unlabelled: int
    roots: tuple[str, ...]
    run: str

    @property
    def holds_texts(self) -> bool:
        return isinstance(self.settings.transform, Reading) and self.count > 0

    def num_stale(self, model: str) -> int:
        """How many vectors do not lie in the space of the model with this hash."""
        stale = (part.moved_to != model for part in self.parts)
        return sum(count for count, is_stale in zip(self.of_parts, stale, strict=True) if is_stale)


def read_glance(path: str | Path) -> Glance:
    """What is in an index file.

    Raises:
        Unclear: for any file that this version would not write so, and for one with lists on the disk.
    """
    arrays, header = read_sealed(path, header=HEADER, skip=("vectors", "index"))
    try:
        if header["format"] != FORMAT or "checksums" in header:
            raise Unclear("of another version, or with lists on the disk")
        return _glance(arrays, header)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Unclear(str(error)) from error


def _glance(arrays: Mapping[str, Array], header: Mapping[str, Any]) -> Glance:
    count, settings = len(_strings(arrays["paths"])), dict(header["settings"])
    shown = settings.pop("transform")
    transform = Reading(**shown) if "tokenizer" in shown else Transform(**shown)
    num_texts = len(_strings(arrays["texts"])) if "texts" in arrays else 0
    if num_texts != (count if isinstance(transform, Reading) else 0):
        raise Unclear(f"{num_texts} texts of {count} vectors")
    part, labels = _checked(arrays, header, count)
    int(header["next_id"])
    parts = tuple(Part(**{**each, "maps": tuple(each["maps"])}) for each in header["parts"])
    return Glance(
        Settings(**settings, transform=transform),
        count,
        parts,
        tuple(np.bincount(part, minlength=len(parts)).tolist()),
        len(np.unique(labels[labels >= 0])),
        int((labels < 0).sum()),
        tuple(header["roots"]),
        str(header["run"]),
    )


def _checked(arrays: Mapping[str, Array], header: Mapping[str, Any], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The parts and the labels of so many vectors, whose tensors belong together; see `file._check`."""
    for name, dtype in TYPES.items():
        shape = (count, header["dim"]) if name == "vectors" else (count,)
        if arrays[name][:2] != (dtype, shape):
            raise Unclear(f"{name} is {arrays[name][:2]}")
    part, labels, ids = (_numbers(arrays[name]) for name in ("part", "labels", "ids"))
    for values, smallest, end in ((part, 0, len(header["parts"])), (labels, -1, len(header["class_names"]))):
        if len(values) and not smallest <= values.min() <= values.max() < end:
            raise Unclear(f"numbers lie outside [{smallest}, {end})")
    if not (np.diff(ids) > 0).all():
        raise Unclear("ids are not ascending")
    return part, labels


def _numbers(array: Array) -> np.ndarray:
    return np.frombuffer(array.content or b"", dtype=array.dtype.removeprefix("torch."))


def _strings(array: Array) -> list[str]:
    return json.loads((array.content or b"").decode("utf-8", "surrogateescape"))
