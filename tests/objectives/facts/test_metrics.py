"""Metrics of facts in ranked lists: values by hand, the literal twins, and lists that are too short."""

from __future__ import annotations

import doctest

import fact_oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tripletmas.objectives.facts import metrics

RANKED = st.lists(st.booleans(), min_size=1, max_size=30)


def lists(*rows: str) -> torch.Tensor:
    """'.x.' is one list of three ranks with a relevant item at rank 2."""
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def test_average_precision_by_hand():
    # Relevant at ranks 2, 3, 6, all that there are: precision 1/2, 2/3, 3/6 there.
    relevant, count = lists(".xx..x"), torch.tensor([3])
    assert metrics.average_precision(relevant, count).tolist() == pytest.approx([(1 / 2 + 2 / 3 + 3 / 6) / 3])


def test_average_precision_at_k_divides_by_the_most_that_can_be_found():
    # Within rank 4 at 2 and 3. R = 3 < 4 divides by 3; with R = 9 by 4.
    relevant = lists(".xx..x", ".xx..x")
    values = metrics.average_precision_at_k(relevant, torch.tensor([3, 9]), 4)
    assert values.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 3, (1 / 2 + 2 / 3) / 4])


def test_average_precision_at_k_is_1_where_all_that_fits_is_relevant():
    assert metrics.average_precision_at_k(lists("xxx", "x.."), torch.tensor([50, 1]), 3).tolist() == [1, 1]


def test_sherlock_divides_by_the_hits():
    # One hit at rank 1 of R = 9: Sherlock's code says 1, average precision at 4 says 1/4. No hit: 0.
    relevant, count = lists("x....", "....x"), torch.tensor([9, 9])
    assert metrics.sherlock_average_precision_at_k(relevant, count, 4).tolist() == [1, 0]
    assert metrics.average_precision_at_k(relevant, count, 4).tolist() == [1 / 4, 0]


def test_sherlock_tolerance_by_hand():
    # Three true facts at ranks 1, 4, 6. top@1 allows rank 1 + 2 = 3, top@2 rank 4, top@4 rank 6.
    relevant, count = lists("x..x.x"), torch.tensor([3])
    for k, expected in ((1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1)):
        assert metrics.top_k_detection(relevant, count, k).tolist() == pytest.approx([expected])


def test_true_facts_are_not_counted_against_each_other():
    assert metrics.top_k_detection(lists("xxx.."), torch.tensor([3]), 1).tolist() == [1]


def test_some_of_the_true_facts_keep_the_tolerance_of_all():
    # The fact of interest is at rank 3; three are true, so that top@1 allows rank 3; alone it would be missed.
    relevant, count = lists("..x."), torch.tensor([1])
    assert metrics.top_k_detection(relevant, count, 1, num_true=torch.tensor([3])).tolist() == [1]
    assert metrics.top_k_detection(relevant, count, 1).tolist() == [0]


def test_query_without_relevant_items_is_nan():
    relevant, count = lists("...", "x.."), torch.tensor([0, 1])
    for value in (
        metrics.average_precision(relevant, count),
        metrics.average_precision_at_k(relevant, count, 2),
        metrics.sherlock_average_precision_at_k(relevant, count, 2),
        metrics.top_k_detection(relevant, count, 2),
    ):
        assert value.isnan().tolist() == [True, False]
        assert value[1] == 1
        assert value.dtype == torch.float64


def test_no_queries():
    relevant, count = torch.zeros(0, 5, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    assert metrics.average_precision(relevant, count).shape == (0,)
    assert metrics.top_k_detection(relevant, count, 5).shape == (0,)


def test_a_list_may_end_after_the_last_relevant_item_only():
    assert metrics.average_precision(lists("x.x"), torch.tensor([2])).tolist() == pytest.approx([(1 + 2 / 3) / 2])
    with pytest.raises(ValueError, match="list of query 1 holds 1 of its 2 relevant items in 3 ranks; search deeper"):
        metrics.average_precision(lists("x.x", "x.."), torch.tensor([2, 2]))


def test_a_list_that_is_too_short_is_refused():
    relevant, count = lists("x."), torch.tensor([2])
    with pytest.raises(ValueError, match="at 3 needs 3 ranks, got lists of 2"):
        metrics.average_precision_at_k(relevant, count, 3)
    with pytest.raises(ValueError, match="at 3 needs 3 ranks, got lists of 2"):
        metrics.sherlock_average_precision_at_k(relevant, count, 3)
    with pytest.raises(ValueError, match="top@2 needs 3 ranks, got lists of 2"):
        metrics.top_k_detection(relevant, count, 2)
    assert metrics.top_k_detection(relevant, count, 1).tolist() == [1 / 2]  # rank 2 is the deepest that is asked for


def test_what_does_not_fit_is_refused():
    relevant, count = lists("xx"), torch.tensor([2])
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        metrics.average_precision_at_k(relevant, count, 0)
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        metrics.top_k_detection(relevant, count, 0)
    with pytest.raises(ValueError, match="relevant must be bool"):
        metrics.average_precision(relevant.long(), count)
    with pytest.raises(ValueError, match="num_relevant must be int64"):
        metrics.average_precision(relevant, count.float())
    with pytest.raises(ValueError, match="query 0 has 2 relevant items in its list, but num_relevant says 1"):
        metrics.average_precision(relevant, torch.tensor([1]))
    with pytest.raises(ValueError, match="num_true must be int64 of shape"):
        metrics.top_k_detection(relevant, count, 1, num_true=torch.tensor([2, 2]))
    with pytest.raises(ValueError, match="2 relevant facts, but num_true says 1"):
        metrics.top_k_detection(relevant, count, 1, num_true=torch.tensor([1]))
    with pytest.raises(ValueError, match="truth must be bool"):
        metrics.chance_map(torch.ones(2, 2))


@given(RANKED, st.integers(1, 12), st.integers(0, 5))
def test_as_the_literal_twins(ranked, k, missing):
    found = sum(ranked)
    padded = ranked + [False] * (k + found)
    relevant, count = torch.tensor([padded]), torch.tensor([found + missing])
    if found + missing:
        expected = fact_oracles.average_precision_at_k(padded, found + missing, k)
        assert metrics.average_precision_at_k(relevant, count, k).tolist() == pytest.approx([expected])
        expected = fact_oracles.sherlock_average_precision_at_k(padded, k)
        assert metrics.sherlock_average_precision_at_k(relevant, count, k).tolist() == pytest.approx([expected])
    if found:
        count = torch.tensor([found])
        expected = fact_oracles.average_precision(ranked, found)
        assert metrics.average_precision(relevant, count).tolist() == pytest.approx([expected])
        ranks = [rank for rank, hit in enumerate(ranked, start=1) if hit]
        expected = fact_oracles.top_k_detection(ranks, found, k)
        assert metrics.top_k_detection(relevant, count, k).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("size", range(1, 8))
def test_chance_is_the_mean_over_all_permutations(size):
    # Column R of truth has R relevant images.
    truth = torch.arange(size)[:, None] < torch.arange(size + 1)
    chance = metrics.chance_map(truth)
    assert chance[0].isnan()
    expected = [float(fact_oracles.mean_average_precision_of_all_orders(size, count)) for count in range(1, size + 1)]
    assert chance[1:].tolist() == pytest.approx(expected)


def test_chance_where_every_image_is_relevant_is_1():
    assert metrics.chance_map(torch.ones(50, 1, dtype=torch.bool)).tolist() == pytest.approx([1])


def test_docstrings():
    assert doctest.testmod(metrics).failed == 0
