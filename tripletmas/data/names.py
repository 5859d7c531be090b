"""The names of classes and of tasks: which label a name has, and in which order they come."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def encode_labels(names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """The label of each sample, given the name of its class, and the class names in the order of the labels.

    Names that are all integers are ordered as numbers, of any size; others as text.

    >>> encode_labels(["10", "9", "10"])
    (tensor([1, 0, 1]), ('9', '10'))
    """
    class_names = in_order(set(names))
    foreign = [name for name in class_names if re.search("[\ud800-\udfff]", name)]  # bytes that Python kept so
    if foreign:
        raise ValueError(f"the name of the class {foreign[0]!r} is not UTF-8: rename it")
    label_of = {name: label for label, name in enumerate(class_names)}
    return torch.tensor([label_of[name] for name in names], dtype=torch.int64), tuple(class_names)


def in_order(names: Iterable[str]) -> list[str]:
    """Names that are all integers as numbers, of any size; others as text."""
    names = list(names)
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def in_task_order(names: Iterable[str]) -> list[str]:
    """Names of tasks as `in_order`, but numbers within text count as numbers, too.

    >>> in_task_order(["week10", "week9"])
    ['week9', 'week10']
    """
    names = in_order(names)
    if all(re.fullmatch(r"[-+]?[0-9]+", name) for name in names):
        return names

    def parts(name: str) -> list[tuple[int, str]]:  # text and numbers by turns, text first
        return [(int(part) if place % 2 else 0, part) for place, part in enumerate(re.split(r"([0-9]+)", name))]

    return sorted(names, key=parts)
