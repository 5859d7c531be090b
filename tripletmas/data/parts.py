"""The parts of a user's own data: what is learned from, what is asked, where that is searched, by names of folders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, get_args

from tripletmas.data.names import in_order

logger = logging.getLogger(__name__)

ClassFrom = Literal["path", "leaf"]

SPLITS = {"train": "train", "test": "test", "query": "test", "gallery": "gallery"}  # a query is a test sample
LEFT_OUT = frozenset({"val", "valid", "validation"})  # nothing is selected on them, and test scores stay comparable


def parts_of(root: str, branches: list[list[str]], *, what: str = "images") -> tuple[list[str], list[list[str]]]:
    """The part of the set that each file lies in, and its folders there; "train" where folders are no parts."""
    firsts = ["".join(branch[:1]).lower() for branch in branches]
    tops = {*firsts} - {""}
    known = tops <= SPLITS.keys() | LEFT_OUT
    if not known or "train" not in tops:
        if known and len(tops) > 1:
            logger.warning("%s: no folder train, so %s are read as classes or tasks", root, ", ".join(sorted(tops)))
        return ["train"] * len(branches), branches
    left_out = sum(map(firsts.count, LEFT_OUT))
    if left_out:
        logger.warning("%s: left out %d %s of the validation part", root, left_out, what)
    return [first or "train" for first in firsts], [branch[1:] for branch in branches]


def check_class_from(class_from: str) -> None:
    """Whether it is one of those that there are."""
    if class_from not in get_args(ClassFrom):
        raise ValueError(f"class_from must be {' or '.join(get_args(ClassFrom))}, got {class_from!r}")


def class_of(branch: Sequence[str], class_from: ClassFrom) -> str:
    """The class of what lies in these folders: all of them, or the last alone."""
    return "/".join(branch[-1:] if class_from == "leaf" else branch)


def groups_of(classes: Sequence[str], groups: Sequence[str | None]) -> tuple[list[str] | None, list[str] | None]:
    """(`groups`, `sample_groups`) as a `LabelledDataset` takes them, given the class and the group of each sample.

    The first where each class lies in one group, the second where one lies in several; None for both without groups.
    """
    pairs = {(name, group or "") for name, group in zip(classes, groups, strict=True)}
    if not any(groups):
        return None, None
    group_of = dict(pairs)
    if len(pairs) == len(group_of):
        return [group_of[name] for name in in_order(group_of)], None
    return None, [group or "" for group in groups]
