"""Pairs: a text and what answers it, from the same row. A class is an answer with all that it answers.

Queries are held out by class: what answers a query was never learned. They search the answers of their task, those that
were learned included, as an index of answers has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.parts import groups_of
from tripletmas.data.source import Source
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
    whole = _dataset(rows)
    asked = {row.label for row in rows if row.split == "test"}
    if all(row.label in asked for row in rows):
        raise ValueError(f"{about} has no pair to learn from")
    train = whole.subset([position for position, row in enumerate(rows) if row.label not in asked])
    test = _part(whole, rows, "test") if asked else None
    return Source(train, test, _part(whole, rows, "gallery"), pairs=True)


def _dataset(rows: Sequence[_Row]) -> LabelledDataset:
    labels = [row.label for row in rows]
    names = [str(number) for number in range(1, max(labels, default=-1) + 2)]
    of_classes, own = groups_of([names[label] for label in labels], [row.group for row in rows])
    samples = Texts([row.text for row in rows])
    return LabelledDataset(
        samples,
        torch.tensor(labels),
        names,
        groups=of_classes,
        sample_groups=own,
        paths=[row.place for row in rows],
        texts=samples.strings,
    )


def _part(whole: LabelledDataset, rows: Sequence[_Row], split: str) -> LabelledDataset:
    return whole.subset([position for position, row in enumerate(rows) if row.split == split])


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
