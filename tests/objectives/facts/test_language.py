"""The language view of facts: lengths, masks, unknown words, queries."""

from __future__ import annotations

import logging

import pytest
import torch

from tripletmas.objectives.facts.fact import Fact, fact
from tripletmas.objectives.facts.language import LanguageView, language_view
from tripletmas.objectives.facts.words import hashed_words


class Fixed:
    """A few words, of which no vector but one has unit length."""

    name, dim = "fixed", 2
    rows = {"circle": (3.0, 4.0), "square": (0.0, 5.0), "left": (2.0, 0.0), "of": (4.0, 0.0), "up": (0.0, 6.0)}  # noqa: RUF012
    rows |= {"down": (0.0, -6.0)}

    def vector(self, word):
        return torch.tensor(self.rows[word]) if word in self.rows else None


LISTED = ", ".join(f"'x{number}'" for number in range(10))
FACTS = [fact("circle"), fact("square", "up"), fact("circle", "left up", "square")]


def test_each_part_has_unit_length_and_an_absent_one_is_zero():
    view = language_view(FACTS, Fixed())
    # circle (3, 4) has length 5; "left up" is the mean of (2, 0) and (0, 6), (1, 3), of length sqrt 10
    root = 10**0.5
    expected = [
        [[0.6, 0.8], [0, 0], [0, 0]],
        [[0, 1], [0, 1], [0, 0]],
        [[0.6, 0.8], [1 / root, 3 / root], [0, 1]],
    ]
    torch.testing.assert_close(view.vectors, torch.tensor(expected))
    assert view.mask.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert view.mask.dtype == torch.bool
    assert view.facts == tuple(FACTS)
    assert view.words == "fixed"
    assert view.dim == 2


def test_a_facts_vector_depends_on_no_other_fact():
    words = hashed_words(32)
    together = language_view(FACTS, words)
    for row, one in enumerate(FACTS):
        alone = language_view([one], words)
        assert torch.equal(alone.vectors[0], together.vectors[row])
    assert together.dim == 32


def test_no_facts_have_no_vectors():
    view = language_view([], Fixed())
    assert isinstance(view, LanguageView)
    assert view.vectors.shape == (0, 3, 2)
    assert view.mask.shape == (0, 3)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([*FACTS, fact("Square", "up")], "each fact must be given once, got 'square, up' twice"),
        # every phrase without a known word
        (
            [fact("circle", "zig zag", "blob"), fact("blob"), *FACTS],
            "no vector in 'fixed' for any word of 'blob', 'zig zag'",
        ),
        ([fact(f"x{i}") for i in range(10)], f"no vector in 'fixed' for any word of {LISTED}"),
        (
            [fact(f"x{i}") for i in range(10)] + [fact("z"), fact("y")],
            f"no vector in 'fixed' for any word of {LISTED} and 2 more",
        ),
        ([fact("circle", "up down")], "the vectors of the words of 'up down' add up to zero, which has no direction"),
    ],
)
def test_facts_without_a_view(facts: list[Fact], message: str):
    with pytest.raises(ValueError) as raised:
        language_view(facts, Fixed())
    assert str(raised.value) == message


def test_a_word_that_is_skipped_is_in_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        language_view(FACTS, Fixed())  # every word is known
        view = language_view([fact("circle", "far left of", "square")], Fixed())
    assert [record.getMessage() for record in caplog.records] == [
        "words without a vector in 'fixed' are skipped: 'far (in far left of)'"
    ]
    assert view.vectors[0, 1].tolist() == [1, 0]  # left and of both point along the first axis


def test_a_query_is_encoded_as_a_fact_is_and_asks_nothing_where_it_is_empty():
    view = language_view(FACTS, Fixed())
    vectors, mask = view.encode(("circle", "", "square"))
    torch.testing.assert_close(vectors, torch.tensor([[0.6, 0.8], [0, 0], [0, 1]]))
    assert mask.tolist() == [True, False, True]
    vectors, mask = view.encode(FACTS[2].parts)
    assert torch.equal(vectors, view.vectors[2])
    assert torch.equal(mask, view.mask[2])


@pytest.mark.parametrize(
    ("parts", "facts"),
    [
        (("circle", "left up", "square"), [2]),
        (("circle", "", ""), [0, 2]),
        (("", "up", ""), [1]),
        (("circle", "", "square"), [2]),
        (("circle", "up", ""), []),  # both are known, but it is a square that is up
        (("square", "", "square"), []),
    ],
)
def test_known_parts_may_be_combined_as_no_fact_does(parts, facts):
    view = language_view(FACTS, Fixed())
    assert view.matching(parts).nonzero().flatten().tolist() == facts
    vectors, mask = view.encode(parts)
    assert mask.tolist() == [part != "" for part in parts]
    assert vectors.norm(dim=1).tolist() == pytest.approx(mask.float().tolist())


@pytest.mark.parametrize(
    ("facts", "parts", "message"),
    [
        (FACTS, ("", "", ""), "a query must name a subject, a predicate or an object, got none of them"),
        (
            FACTS,
            ("cirle", "left up", "circle"),
            "no fact has the subject 'cirle' (did you mean 'circle'?); no fact has the object 'circle' (known: square)",
        ),
        (FACTS[:1], ("circle", "", "square"), "no fact has the object 'square' (known: none)"),
    ],
)
def test_queries_that_ask_for_nothing_known(facts: list[Fact], parts: tuple[str, str, str], message: str):
    with pytest.raises(ValueError) as raised:
        language_view(facts, Fixed()).encode(parts)
    assert str(raised.value) == message
