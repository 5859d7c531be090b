"""Which samples of a class are learned from, and which are asked for.

All draws are seeded by the name of the class: classes that are added later, or left out, do not change what is drawn
of the others, so nothing that was a query becomes training data when a stream grows. Where a class lies in several
groups (a product in the folders of two months), it is drawn from in each of them by itself, by the same seed: a month
that is added changes nothing of those before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.source import Source


def split_samples(
    source: Source,
    *,
    test_share: float = 0.3,
    split_seed: int = 0,
    per_class: int | None = None,
    validation: bool = False,
) -> Source:
    """The same data set with queries, `test`, for all of its classes, and with no more samples than asked for.

    In this order: queries are held out of `train` where the set has no test part; both parts are cut to `per_class`;
    for `validation` that test part and the gallery are put away, and queries are held out of what is left of `train`.
    So the training samples of a validation split are among those of the same split without `validation`, and its
    queries never are test samples, those that `per_class` leaves out included.

    Raises:
        ValueError: if a class has too few samples, or queries but nothing to learn it from; where it lies in several
            groups, in one of them.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    if per_class is not None and per_class < 2:
        raise ValueError(f"per_class must be >= 2 to form a positive pair, got {per_class}")
    if source.pairs:
        if per_class is not None:
            raise ValueError("per_class is for classes of many samples, and these are pairs: leave it out")
        return _split_pairs(source, test_share=test_share, split_seed=split_seed, validation=validation)
    train, test = _with_queries(source, test_share, f"{split_seed}")
    if per_class is not None:
        train = _at_most(train, per_class, f"per class {split_seed}")
        test = _at_most(test, per_class, f"per class {split_seed}")
    if not validation:
        return Source(train, test, source.gallery)
    cut = "" if per_class is None else f" (per_class={per_class})"
    why = f"4 besides its test samples{cut}, of which 2 are learned and 2 held out for validation"
    _require(train, set(train.classes), 4, why)
    return Source(*_hold_out(train, set(train.classes), test_share, f"validation {split_seed}"))


def _with_queries(source: Source, share: float, seed: str) -> tuple[LabelledDataset, LabelledDataset]:
    """(what is learned, the queries): those that there are, and a share of each class that has none."""
    train, test, untested = source.train, source.test, _untested(source)
    _require(train, set(train.classes) - untested, 2, "2 to form a positive pair")
    if untested:
        _require(train, untested, 4, "4, of which 2 are learned and 2 held out as queries")
        train, queries = _hold_out(train, untested, share, seed)
        test = queries if test is None else concatenate([test, queries])
    assert test is not None
    return train, test


def _untested(source: Source) -> set[int]:
    """The classes of which queries are to be held out: all, or those that the test part leaves out."""
    train, test = source.train, source.test
    for name, part in (("test", test), ("gallery", source.gallery)):
        if part is not None and part.class_names != train.class_names:
            raise ValueError(f"train and {name} must have the same class names")
    if test is None:
        return set(train.classes)
    _check_learned(train, test)
    groups = train.groups
    return set() if groups is None else {label for label in train.classes if groups[label] in source.hold_out}


def _check_learned(train: LabelledDataset, test: LabelledDataset) -> None:
    learned = {cell[:2] for cell in train.cells()}
    unlearned = [_named(test, label, group) for label, group, _ in test.cells() if (label, group) not in learned]
    if unlearned:
        raise ValueError(f"there are queries, but nothing to learn from, for class {listed(unlearned, 5)}")


def _hold_out(
    train: LabelledDataset, classes: set[int], share: float, seed: str
) -> tuple[LabelledDataset, LabelledDataset]:
    """(what is left, what is held out): a share of each of these classes, at least 2 and at most all but 2."""
    drawn = drawn_of_class(train, classes, seed, lambda count: min(max(round(share * count), 2), count - 2))
    return train.subset((~drawn).nonzero().flatten()), train.subset(drawn.nonzero().flatten())


def _at_most(part: LabelledDataset, count: int, seed: str) -> LabelledDataset:
    """`count` samples of each class, all where there are fewer; a larger count has those of a smaller one, and more."""
    return part.subset(drawn_of_class(part, set(part.classes), seed, lambda size: min(count, size)).nonzero().flatten())


def drawn_of_class(part: LabelledDataset, classes: set[int], seed: str, count: Callable[[int], int]) -> Tensor:
    """(n,) whether a sample is among those drawn of its class, `count` of them given its size; in each group of it."""
    drawn = torch.zeros(len(part), dtype=torch.bool)
    for label, _, positions in part.cells():
        if label in classes:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {part.class_names[label]}".encode()))
            order = torch.randperm(len(positions), generator=generator)
            drawn[positions[order[: count(len(positions))]]] = True
    return drawn


def _require(train: LabelledDataset, classes: set[int], least: int, why: str) -> None:
    """Raises ValueError that names those of the classes with fewer than `least` samples in a group of theirs."""
    cells = [(label, group, len(positions)) for label, group, positions in train.cells() if label in classes]
    short = [f"{_named(train, label, group)} ({size})" for label, group, size in cells if size < least]
    if short:
        raise ValueError(f"too few training samples in class {listed(short, 5)}: a class needs {why}")


def _named(part: LabelledDataset, label: int, group: str) -> str:
    """A class, and its group where it may lie in several."""
    return repr(part.class_names[label]) + (f" of {group!r}" if group else "")


def _split_pairs(source: Source, *, test_share: float, split_seed: int, validation: bool) -> Source:
    """The same with queries: pairs held out of those to learn from, where there are none, and for validation.

    A pair is drawn by its answer alone, so that others, and their order, do not matter: about a share of them.
    """
    train, test = source.train, source.test
    if test is None:
        train, test = _hold_out_pairs(source, train, test_share, f"{split_seed}")
    if validation:
        train, test = _hold_out_pairs(source, train, test_share, f"validation {split_seed}")
    return Source(train, test, source.gallery, pairs=True)


def _hold_out_pairs(
    source: Source, train: LabelledDataset, share: float, seed: str
) -> tuple[LabelledDataset, LabelledDataset]:
    """(what is left, the texts that are asked)."""
    answers = source.gallery
    assert answers is not None
    texts = dict(zip(answers.labels.tolist(), answers.texts or (), strict=True))
    drawn = [label for label in train.classes if zlib.crc32(f"{seed} {texts[label]}".encode()) < share * 2**32]
    if not drawn or len(drawn) == len(train.classes):
        kept = "none" if drawn else "all"
        raise ValueError(f"of {len(train.classes)} pairs {kept} would be left to learn from: give more")
    asked = train.of_classes(drawn)
    is_answer = torch.isin(asked.indices, answers.indices)
    left = train.of_classes(sorted({*train.classes} - {*drawn}))
    return left, asked.subset((~is_answer).nonzero().flatten())
