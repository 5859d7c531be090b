"""The language view of facts: a subject's, a predicate's and an object's vector each, from the vectors of their words.

`f` facts, `dim` the length of one part's vector; the parts are in the order of `PARTS`.

Source: Elhoseiny et al., Sherlock, AAAI 2017, which concatenates the three (900 values), zeros for a part that is
absent, subtracts the mean over all facts, and keeps a flag for each part. We subtract nothing, so that a fact's vector
depends on no other fact, and tasks can come one by one; and scale each part to unit length, so that no part outweighs
another. Both are our departures.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.objectives.facts.fact import PARTS, Fact
from tripletmas.objectives.facts.words import WordVectors, phrase_vector

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LanguageView:
    facts: tuple[Fact, ...]
    vectors: Tensor  # (f, 3, dim) float32: each part of unit length, zeros for one that is absent
    mask: Tensor  # (f, 3) bool: which parts a fact has
    words: str  # the name of the word vectors

    @property
    def dim(self) -> int:
        """The length of one part's vector; a fact's is three times as long."""
        return self.vectors.shape[2]

    def checksums(self, columns: Sequence[int]) -> dict[str, float]:
        """Of each of these facts a number that follows from its vectors: with other word vectors it is another."""
        rows = self.vectors[list(columns)].flatten(1).double()
        weights = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64).cos()
        values = (rows @ weights).tolist()
        return {str(self.facts[column]): round(value, 4) for column, value in zip(columns, values, strict=True)}

    def matching(self, parts: tuple[str, str, str]) -> Tensor:
        """(f,) bool: the facts that have all the parts that a query names; "" asks for nothing."""
        asked = set(Fact(*parts).words)
        return torch.tensor([asked.issubset(fact.words) for fact in self.facts], dtype=torch.bool)

    def encode(self, parts: tuple[str, str, str]) -> tuple[Tensor, Tensor]:
        """The vectors (3, dim) of what a query asks for, and which parts it names (3,) bool.

        A part "" asks for nothing: zeros, and False in the mask. Such a query is read by `fact.parse_query`. A query
        may combine known parts as no fact does.

        Raises:
            ValueError: for a query that names no part; for a subject, predicate or object that no fact has as such,
                with the nearest one.
        """
        asked = Fact(*parts).words
        if not asked:
            raise ValueError("a query must name a subject, a predicate or an object, got none of them")
        known = {word: row for row, fact in enumerate(self.facts) for word in fact.words}
        wrong = [_unknown(place, part, known) for place, part in asked if (place, part) not in known]
        if wrong:
            raise ValueError("; ".join(wrong))
        vectors, mask = torch.zeros_like(self.vectors[0]), torch.zeros(len(PARTS), dtype=torch.bool)
        for place, part in asked:
            vectors[place] = self.vectors[known[place, part], place]
            mask[place] = True
        return vectors, mask


def language_view(facts: Sequence[Fact], words: WordVectors) -> LanguageView:
    """The vectors of facts. A part of several words is the mean of its known words' vectors, then of unit length.

    A warning in the log lists the words that are skipped as unknown.

    Raises:
        ValueError: for a fact given twice, and for parts without a known word, all in one error.
    """
    twice = [fact for fact, count in Counter(facts).items() if count > 1]
    if twice:
        raise ValueError(f"each fact must be given once, got {str(twice[0])!r} twice")
    units = _unit_vectors({part for fact in facts for part in fact.parts} - {""}, words)
    vectors = torch.zeros(len(facts), len(PARTS), words.dim)
    mask = torch.zeros(len(facts), len(PARTS), dtype=torch.bool)
    for row, fact in enumerate(facts):
        for place, part in fact.words:
            vectors[row, place] = units[part]
            mask[row, place] = True
    return LanguageView(tuple(facts), vectors, mask, words.name)


def _unknown(place: int, part: str, known: Iterable[tuple[int, str]]) -> str:
    there = sorted(other for at, other in known if at == place)
    return f"no fact has the {PARTS[place]} {part!r}{suggestion(part, there)}"


def _unit_vectors(phrases: set[str], words: WordVectors) -> dict[str, Tensor]:
    """phrase -> (dim,)"""
    found = {phrase: phrase_vector(phrase, words) for phrase in sorted(phrases)}
    lost = [repr(phrase) for phrase, (vector, _) in found.items() if vector is None]
    if lost:
        raise ValueError(f"no vector in {words.name!r} for any word of {listed(lost, 10)}")
    skipped = [repr(f"{word} (in {phrase})") for phrase, (_, unknown) in found.items() for word in unknown]
    if skipped:
        logger.warning("words without a vector in %r are skipped: %s", words.name, listed(skipped, 10))
    return {phrase: _unit(phrase, vector) for phrase, (vector, _) in found.items() if vector is not None}


def _unit(phrase: str, vector: Tensor) -> Tensor:
    length = vector.norm()
    if length == 0:
        raise ValueError(f"the vectors of the words of {phrase!r} add up to zero, which has no direction")
    return vector / length
