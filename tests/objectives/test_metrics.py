"""Metrics of ranked lists: values by hand, the literal twins, and lists that are too short."""

from __future__ import annotations

import doctest

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tripletmas.objectives import metrics


def lists(*rows: str) -> torch.Tensor:
    """'.x.' is one list of three ranks with a relevant item at rank 2."""
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def test_values_by_hand():
    # Gallery of 6 besides the query; relevant at ranks 2, 3, 6: R = 3.
    relevant, count = lists(".xx..x"), torch.tensor([3])
    assert metrics.recall_at_k(relevant, count, 1).tolist() == [0]
    assert metrics.recall_at_k(relevant, count, 2).tolist() == [1]
    assert metrics.r_precision(relevant, count).tolist() == pytest.approx([2 / 3])
    assert metrics.map_at_r(relevant, count).tolist() == pytest.approx([(1 / 2 + 2 / 3) / 3])
    assert metrics.reciprocal_rank(relevant, count).tolist() == [1 / 2]


def test_recall_is_not_the_share_of_relevant_items_found():
    # One of four relevant items in the first two ranks: metric learning says 1, information retrieval 1/4.
    assert metrics.recall_at_k(lists("x.......xxx"), torch.tensor([4]), 2).tolist() == [1]


def test_map_at_r_divides_by_r_and_not_by_the_hits():
    assert metrics.map_at_r(lists("x...x"), torch.tensor([2])).tolist() == [1 / 2]


def test_query_without_relevant_items_is_nan():
    relevant, count = lists("...", "x.."), torch.tensor([0, 1])
    for value in (
        metrics.recall_at_k(relevant, count, 2),
        metrics.r_precision(relevant, count),
        metrics.map_at_r(relevant, count),
        metrics.reciprocal_rank(relevant, count),
    ):
        assert value.isnan().tolist() == [True, False]
        assert value[1] == 1
        assert value.dtype == torch.float64


def test_a_list_that_is_too_short_is_refused():
    relevant, count = lists("x.", ".."), torch.tensor([3, 1])
    with pytest.raises(ValueError, match="recall@3 needs 3 ranks"):
        metrics.recall_at_k(relevant, count, 3)
    with pytest.raises(ValueError, match="R is up to 3"):
        metrics.r_precision(relevant, count)
    with pytest.raises(ValueError, match="R is up to 3"):
        metrics.map_at_r(relevant, count)
    with pytest.raises(ValueError, match="query 1 ends at rank 2"):
        metrics.reciprocal_rank(relevant, count)


def test_the_query_left_in_its_own_list_is_refused():
    with pytest.raises(ValueError, match="query 0 has 2 relevant items"):
        metrics.map_at_r(lists("xx."), torch.tensor([1]))


def test_inputs_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="must be bool"):
        metrics.r_precision(torch.ones(2, 3), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"num_relevant must be int64 of shape \(2,\)"):
        metrics.r_precision(lists("x.", "x."), torch.tensor([1]))
    with pytest.raises(ValueError, match="k must be >= 1"):
        metrics.recall_at_k(lists("x."), torch.tensor([1]), 0)


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any), st.integers(0, 5))
def test_equal_to_the_literal_twins(ranking: list[bool], padding: int):
    relevant = torch.tensor([ranking + [False] * padding])
    count = torch.tensor([sum(ranking)])
    for k in range(1, len(ranking) + 1):
        assert float(metrics.recall_at_k(relevant, count, k)) == oracles.recall_at_k(ranking, k)
    assert float(metrics.r_precision(relevant, count)) == pytest.approx(oracles.r_precision(ranking))
    assert float(metrics.map_at_r(relevant, count)) == pytest.approx(oracles.map_at_r(ranking))
    assert float(metrics.reciprocal_rank(relevant, count)) == pytest.approx(oracles.reciprocal_rank(ranking))


def test_no_queries_give_no_values():
    relevant, count = torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    assert metrics.map_at_r(relevant, count).shape == (0,)
    assert metrics.reciprocal_rank(relevant, count).shape == (0,)


def test_docstring_examples():
    result = doctest.testmod(metrics, extraglobs={"torch": torch})
    assert result.attempted >= 4
    assert result.failed == 0
