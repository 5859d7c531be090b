"""Pairs: a text and what answers it, from the same row. A class is an answer with all that it answers.

Queries are held out by class: what answers a query was never learned. They search the answers of their task, those that
were learned included, as an index of answers has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tripletmas.data.dataset import LabelledDataset, Source
from tripletmas.data.parts import groups_of
from tripletmas.data.tokens import Texts


@dataclass(frozen=True)
class Pair:
    """A text, what answers it, where both are from, their group, and the part of the set that they belong to."""

    text: str
    answer: str
    place: str
    group: str | None = None
    split: str = "train"


def source_of_pairs(pairs: Sequence[Pair], about: str) -> Source:
    """Pairs as a data set: a class for each answer of a group, called by its number.

    Args:
        about: where they are from, for errors.

    Raises:
        ValueError: if a text is its own answer, or an answer is learned and asked for.
    """
    rows = [row for label, members in enumerate(_by_answer(pairs)) for row in _rows(label, members)]
    labels, groups, splits = ([getattr(row, name) for row in rows] for name in ("label", "group", "split"))
    names = [str(number) for number in range(1, max(labels, default=-1) + 2)]
    of_classes, own = groups_of([names[label] for label in labels], groups)
    samples = Texts([row.text for row in rows])
    whole = LabelledDataset(
        samples,
        torch.tensor(labels),
        names,
        groups=of_classes,
        sample_groups=own,
        paths=[row.place for row in rows],
        texts=samples.strings,
    )
    asked = {row.label for row in rows if row.split == "test"}
    train = [position for position, label in enumerate(labels) if label not in asked]
    if not train:
        raise ValueError(f"{about} has no pair to learn from")
    gallery, test = (
        whole.subset([position for position, split in enumerate(splits) if split == part])
        for part in ("gallery", "test")
    )
    return Source(whole.subset(train), test if asked else None, gallery, pairs=True)


@dataclass(frozen=True)
class _Row:
    """A text or an answer, as a sample."""

    text: str
    label: int
    place: str
    group: str | None
    split: str


def _by_answer(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs of each answer of a group, in the order in which they come; checked."""
    of_class: dict[tuple[str | None, str], list[Pair]] = {}
    for pair in pairs:
        if pair.text == pair.answer:
            raise ValueError(f"{pair.place}: a text is its own answer, {pair.text!r:.60}")
        of_class.setdefault((pair.group, pair.answer), []).append(pair)
    for members in of_class.values():
        found = sorted({pair.split for pair in members})
        if found not in (["train"], ["test"]):
            raise ValueError(
                f"{members[0].place}: its answer comes again, and is for {' and '.join(found)}: an answer is learned "
                "(train) or asked for (test)"
            )
    return list(of_class.values())


def _rows(label: int, members: Sequence[Pair]) -> list[_Row]:
    """An answer, and what it answers, each once."""
    first = members[0]
    once: dict[str, Pair] = {}
    for pair in members:
        once.setdefault(pair.text, pair)
    asked = [_Row(pair.text, label, pair.place, pair.group, pair.split) for pair in once.values()]
    return [_Row(first.answer, label, first.place, first.group, "gallery"), *asked]
