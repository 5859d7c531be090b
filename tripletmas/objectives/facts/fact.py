"""A fact <subject, predicate, object>: what is said of an image, and what a query asks for.

Of first order is <S>, "circle"; of second order <S, P>, "circle, yellow" (an attribute) or "person, running" (an
action); of third order <S, P, O>, "circle, left of, square". "Triplet" means this here, not anchor, positive, negative.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = ("subject", "predicate", "object")
ANY = "*"  # in a query: this part may be anything


@dataclass(frozen=True, order=True)
class Fact:
    """A subject, and what is said of it; "" for a part that the fact does not have.

    Parts are lower case, with single spaces, and without commas: see `fact`, which makes them so.

    >>> str(fact("Circle", "left  of", "square")), fact("circle").order
    ('circle, left of, square', 1)
    """

    subject: str
    predicate: str = ""
    object: str = ""

    @property
    def parts(self) -> tuple[str, str, str]:
        return self.subject, self.predicate, self.object

    @property
    def words(self) -> tuple[tuple[int, str], ...]:
        """The parts that it has, each with its place: 0, 1, 2."""
        return tuple((place, part) for place, part in enumerate(self.parts) if part)

    @property
    def order(self) -> int:
        """1, 2 or 3: how many parts it has."""
        return len(self.words)

    def __str__(self) -> str:
        return ", ".join(part for part in self.parts if part)


def fact(subject: str, predicate: str = "", object: str = "") -> Fact:
    """The fact of these parts, whatever their case and spaces.

    Raises:
        ValueError: without a subject; for an object without a predicate; for a comma or a wildcard in a part.
    """
    made = Fact(*(plain(part) for part in (subject, predicate, object)))
    shown = f"<{', '.join(made.parts)}>"
    if not made.subject:
        raise ValueError(f"a fact needs a subject, got {shown}")
    if made.object and not made.predicate:
        raise ValueError(f"a fact with an object needs a predicate, got {shown}")
    for part in made.parts:
        if "," in part or ANY in part:
            raise ValueError(f"a part of a fact can hold neither a comma nor {ANY!r}, got {part!r}")
    return made


def parse_fact(text: str) -> Fact:
    """The fact that is written as its parts with commas between them, as `str` writes it.

    Raises:
        ValueError: as `fact`, and for more than three parts.
    """
    return fact(*_split(text))


def parse_query(text: str) -> tuple[str, str, str]:
    """The parts that a query asks for, "" for those that may be anything or be absent.

    A query is written as a fact is; `*` in place of a part, or a part left out at the end, asks for nothing there.

    >>> parse_query("circle, *, square")
    ('circle', '', 'square')

    Raises:
        ValueError: for more than three parts, and for a query that asks for nothing.
    """
    given = ["" if part.strip() == ANY else plain(part) for part in _split(text)]
    if not any(given):
        raise ValueError(f"a query must name a subject, a predicate or an object, got {text!r}")
    for part in given:
        if ANY in part:
            raise ValueError(f"{ANY!r} stands for a whole part, got {part!r}")
    subject, predicate, object = [*given, "", ""][:3]
    return subject, predicate, object


def by_order(facts: Iterable[Fact]) -> list[Fact]:
    """The facts as the columns of a data set: those of first order first, then by their parts."""
    return sorted(facts, key=lambda each: (each.order, each.parts))


def truth_of(known: Collection[Iterable[Fact]], columns: Sequence[Fact]) -> Tensor:
    """(n, f) bool: which of the facts `columns` are among those known of each image."""
    column = {each: number for number, each in enumerate(columns)}
    truth = torch.zeros(len(known), len(columns), dtype=torch.bool)
    for row, of_image in enumerate(known):
        truth[row, [column[each] for each in of_image if each in column]] = True
    return truth


def plain(part: str) -> str:
    """Lower case, with single spaces and none at the ends."""
    return " ".join(part.casefold().split())


def _split(text: str) -> list[str]:
    parts = text.split(",")
    if len(parts) > len(PARTS):
        raise ValueError(f"a fact has at most a subject, a predicate and an object, got {len(parts)} parts: {text!r}")
    return parts
