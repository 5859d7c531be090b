"""Metrics of ranked lists: values by hand, the literal twins, and lists that are too short."""

from __future__ import annotations

from functools import partial

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tripletmas.objectives import metrics
from tripletmas.objectives.metrics import (
    average_precision,
    average_precision_at_k,
    map_at_r,
    ndcg_at_k,
    r_precision,
    recall_at_k,
    reciprocal_rank,
    reciprocal_rank_at_k,
    sherlock_average_precision_at_k,
    top_k_detection,
)

# each takes lists and the number of relevant items; k where it has one
ALL = [r_precision, map_at_r, reciprocal_rank, average_precision]
ALL_AT_K = [
    *(recall_at_k, average_precision_at_k, sherlock_average_precision_at_k, top_k_detection),
    *(reciprocal_rank_at_k, ndcg_at_k),
]


def lists(*rows: str) -> torch.Tensor:
    """'.x.' is one list of three ranks with a relevant item at rank 2."""
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


@pytest.mark.parametrize(
    ("metric", "arguments", "ranking", "num_relevant", "expected"),
    [
        # relevant at ranks 2, 3, 6, all that there are: precision 1/2, 2/3, 3/6 there
        (recall_at_k, (1,), ".xx..x", 3, 0),
        (recall_at_k, (2,), ".xx..x", 3, 1),
        (r_precision, (), ".xx..x", 3, 2 / 3),
        (map_at_r, (), ".xx..x", 3, (1 / 2 + 2 / 3) / 3),
        (reciprocal_rank, (), ".xx..x", 3, 1 / 2),
        (reciprocal_rank_at_k, (2,), ".xx..x", 3, 1 / 2),
        (reciprocal_rank_at_k, (1,), ".xx..x", 3, 0),
        # gains of ranks 2 and 3 are 1 / log2(3) and 1 / 2; at best ranks 1, 2, 3 with 1, 1 / log2(3), 1 / 2
        (ndcg_at_k, (4,), ".xx..x", 3, (0.6309297536 + 0.5) / (1 + 0.6309297536 + 0.5)),
        (ndcg_at_k, (1,), "x.....", 9, 1),
        (ndcg_at_k, (2,), ".x....", 9, 0.6309297536 / (1 + 0.6309297536)),
        (ndcg_at_k, (3,), "...xxx", 3, 0),
        (average_precision, (), ".xx..x", 3, (1 / 2 + 2 / 3 + 3 / 6) / 3),
        # one of four in the first two ranks: metric learning says 1, information retrieval 1/4
        (recall_at_k, (2,), "x.......xxx", 4, 1),
        # divided by R, not by the hits
        (map_at_r, (), "x...x", 2, 1 / 2),
        # a list may end after the last relevant item
        (average_precision, (), "x.x", 2, (1 + 2 / 3) / 2),
        # divided by the most that can be found within rank 4: by R = 3, or by 4 of R = 9
        (average_precision_at_k, (4,), ".xx..x", 3, (1 / 2 + 2 / 3) / 3),
        (average_precision_at_k, (4,), ".xx..x", 9, (1 / 2 + 2 / 3) / 4),
        (average_precision_at_k, (3,), "xxx", 50, 1),
        (average_precision_at_k, (3,), "x..", 1, 1),
        # one hit at rank 1 of R = 9: Sherlock's code divides by the hits
        (average_precision_at_k, (4,), "x....", 9, 1 / 4),
        (sherlock_average_precision_at_k, (4,), "x....", 9, 1),
        (sherlock_average_precision_at_k, (4,), "....x", 9, 0),
        # three true facts at ranks 1, 4, 6: top@1 allows rank 1 + 2 = 3, top@2 rank 4, top@4 rank 6
        (top_k_detection, (1,), "x..x.x", 3, 1 / 3),
        (top_k_detection, (2,), "x..x.x", 3, 2 / 3),
        (top_k_detection, (3,), "x..x.x", 3, 2 / 3),
        (top_k_detection, (4,), "x..x.x", 3, 1),
        # true facts are not counted against each other
        (top_k_detection, (1,), "xxx..", 3, 1),
        # top@1 of two allows rank 2, which is the deepest that is asked for
        (top_k_detection, (1,), "x.", 2, 1 / 2),
    ],
)
def test_values_by_hand(metric, arguments, ranking: str, num_relevant: int, expected: float):
    assert metric(lists(ranking), torch.tensor([num_relevant]), *arguments).tolist() == pytest.approx([expected])


def test_some_of_the_true_facts_keep_the_tolerance_of_all():
    # The fact of interest is at rank 3; three are true, so that top@1 allows rank 3; alone it would be missed.
    relevant, count = lists("..x."), torch.tensor([1])
    assert top_k_detection(relevant, count, 1, num_true=torch.tensor([3])).tolist() == [1]
    assert top_k_detection(relevant, count, 1).tolist() == [0]


@pytest.mark.parametrize("metric", [*ALL, *(partial(metric, k=2) for metric in ALL_AT_K)])
def test_a_query_without_relevant_items_is_nan_and_no_queries_have_no_values(metric):
    value = metric(lists("...", "x.."), torch.tensor([0, 1]))
    assert value.isnan().tolist() == [True, False]
    assert value[1] == 1
    assert value.dtype == torch.float64
    assert metric(torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)).shape == (0,)


ONE, TWO = lists("xx"), torch.tensor([2])


@pytest.mark.parametrize(
    ("metric", "relevant", "count", "message"),
    [
        (partial(recall_at_k, k=3), lists("x.", ".."), [3, 1], "recall@3 needs 3 ranks, got lists of 2; search deeper"),
        (r_precision, lists("x.", ".."), [3, 1], "r_precision needs 3 ranks, got lists of 2"),
        (map_at_r, lists("x.", ".."), [3, 1], "map@r needs 3 ranks, got lists of 2"),
        (reciprocal_rank, lists("x.", ".."), [3, 1], "query 1 ends at rank 2, before the first of its 1 relevant"),
        (average_precision, lists("x.x", "x.."), [2, 2], "list of query 1 holds 1 of its 2 relevant items in 3 ranks;"),
        (partial(average_precision_at_k, k=3), ONE, TWO, "at 3 needs 3 ranks, got lists of 2"),
        (partial(sherlock_average_precision_at_k, k=3), ONE, TWO, "at 3 needs 3 ranks, got lists of 2"),
        (partial(top_k_detection, k=2), ONE, TWO, "top@2 needs 3 ranks, got lists of 2"),
        (map_at_r, lists("xx."), [1], "query 0 has 2 relevant items in its list, but num_relevant says 1; was the"),
        (average_precision, ONE.long(), TWO, "relevant must be bool"),
        (r_precision, torch.ones(2), TWO, "relevant must be bool"),
        (average_precision, ONE, TWO.float(), "num_relevant must be int64"),
        (r_precision, lists("x.", "x."), [1], r"num_relevant must be int64 of shape \(2,\)"),
        *((partial(metric, k=0), ONE, TWO, "k must be >= 1, got 0") for metric in ALL_AT_K),
        (partial(top_k_detection, k=1, num_true=torch.tensor([2, 2])), ONE, TWO, "num_true must be int64 of shape"),
        (partial(top_k_detection, k=1, num_true=torch.tensor([1])), ONE, TWO, "2 relevant facts, but num_true says 1"),
    ],
)
def test_what_does_not_fit_is_refused(metric, relevant, count, message: str):
    with pytest.raises(ValueError, match=message):
        metric(relevant, torch.as_tensor(count))


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any), st.integers(1, 12), st.integers(0, 5))
def test_equal_to_the_literal_twins(ranking: list[bool], k: int, missing: int):
    """The ranking holds all that is relevant; for the metrics that may end before, a few more are missing."""
    found = sum(ranking)
    padded = ranking + [False] * (k + found)
    for metric in (r_precision, map_at_r, reciprocal_rank, average_precision):
        value = float(metric(torch.tensor([padded]), torch.tensor([found])))
        assert value == pytest.approx(getattr(oracles, metric.__name__)(ranking))
    assert float(recall_at_k(torch.tensor([padded]), torch.tensor([found]), k)) == oracles.recall_at_k(ranking, k)
    for metric, twin in ((ndcg_at_k, oracles.ndcg_at_k), (reciprocal_rank_at_k, oracles.reciprocal_rank_at_k)):
        value = float(metric(torch.tensor([padded]), torch.tensor([found]), k))
        assert value == pytest.approx(twin(padded, k))
    ranks = [rank for rank, hit in enumerate(ranking, start=1) if hit]
    value = float(top_k_detection(torch.tensor([padded]), torch.tensor([found]), k))
    assert value == pytest.approx(oracles.top_k_detection(ranks, found, k))
    count = torch.tensor([found + missing])
    value = float(average_precision_at_k(torch.tensor([padded]), count, k))
    assert value == pytest.approx(oracles.average_precision_at_k(padded, found + missing, k))
    value = float(sherlock_average_precision_at_k(torch.tensor([padded]), count, k))
    assert value == pytest.approx(oracles.sherlock_average_precision_at_k(padded, k))


@pytest.mark.parametrize("size", range(1, 8))
def test_chance_is_the_mean_over_all_permutations(size):
    # Column R of truth has R relevant images; the last all.
    chance = metrics.chance_map(torch.arange(size)[:, None] < torch.arange(size + 1))
    assert chance[0].isnan()
    assert chance[-1] == pytest.approx(1)
    expected = [oracles.mean_average_precision_of_all_orders(size, count) for count in range(1, size + 1)]
    assert chance[1:].tolist() == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 12))
def test_what_is_taken_out_of_a_list_is_in_no_ones_way(removed: list[bool], depth: int):
    ranked = list(range(1, len(removed) + 1))
    kept = [item for item, gone in zip(ranked, removed, strict=True) if not gone]
    expected = (kept + [0] * depth)[:depth]
    assert metrics.without(torch.tensor([ranked]), torch.tensor([removed]), depth).tolist() == [expected]
