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
    of_class: dict[tuple[str | None, str], list[Pair]] = {}
    for pair in pairs:
        if pair.text == pair.answer:
            raise ValueError(f"{pair.place}: a text is its own answer, {pair.text!r:.60}")
        of_class.setdefault((pair.group, pair.answer), []).append(pair)
    texts, places, labels, splits = [], [], [], []
    groups: list[str | None] = []
    for label, ((group, answer), members) in enumerate(of_class.items()):
        found = sorted({pair.split for pair in members})
        if found not in (["train"], ["test"]):
            raise ValueError(
                f"{members[0].place}: its answer comes again, and is for {' and '.join(found)}: an answer is learned "
                "(train) or asked for (test)"
            )
        questions = dict.fromkeys(pair.text for pair in members)
        texts += [answer, *questions]
        places += [members[0].place] * (1 + len(questions))
        labels += [label] * (1 + len(questions))
        splits += ["gallery", *found * len(questions)]
        groups += [group] * (1 + len(questions))
    names = [str(number) for number in range(1, len(of_class) + 1)]
    of_classes, own = groups_of([names[label] for label in labels], groups)
    samples = Texts(texts)
    whole = LabelledDataset(
        samples,
        torch.tensor(labels),
        names,
        groups=of_classes,
        sample_groups=own,
        paths=places,
        texts=samples.strings,
    )
    asked = {label for label, split in zip(labels, splits, strict=True) if split == "test"}
    rows = range(len(labels))
    train = [row for row in rows if labels[row] not in asked]
    if not train:
        raise ValueError(f"{about} has no pair to learn from")
    gallery = whole.subset([row for row in rows if splits[row] == "gallery"])
    test = whole.subset([row for row in rows if splits[row] == "test"]) if asked else None
    return Source(whole.subset(train), test, gallery, pairs=True)
