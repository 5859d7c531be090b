"""Searches of many small galleries at once: to the bit what one search after the other finds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tripletmas.index.base import unit
from tripletmas.index.ordering import block_scores
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.retrieval import own
from tripletmas.objectives.retrieval.evaluate import RetrievalScores, evaluate
from tripletmas.objectives.retrieval.own import evaluate_each

Lot = tuple[Embeddings, Embeddings, Tensor]


def lot(draw: torch.Generator, size: int, asked: int, *, dim: int, classes: int, rounded: bool) -> Lot:
    """A gallery and its queries: itself, some of it among others, or others alone; of a class that is not there, too.

    Rounded vectors have few values, so that many scores are equal, and many vectors are.
    """

    def some(count: int) -> Embeddings:
        vectors = torch.randn(count, dim, generator=draw)
        labels = torch.randint(classes, (count,), generator=draw)
        return Embeddings(vectors.round() if rounded else vectors, 2**53 + labels)

    gallery = some(size)
    if asked == size:
        return gallery, gallery, torch.arange(size)
    if asked > size:  # other ones, one of which is of no class that is searched
        queries = some(asked)
        queries.labels[0] = 7
        return queries, gallery, torch.full((asked,), -1)
    inside = torch.randperm(size, generator=draw)[:asked]
    return Embeddings(gallery.vectors[inside], gallery.labels[inside]), gallery, inside


def assert_same(found: Sequence[RetrievalScores], expected: Sequence[RetrievalScores]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert list(one.values) == list(other.values)
        # bit by bit: nan equals nan, and nothing is near
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(one.per_query, other.per_query, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(one.nearest, other.nearest)
        assert one.num_queries == other.num_queries
        assert one.num_without_relevant == other.num_without_relevant


def one_by_one(lots: Sequence[Lot]) -> list[RetrievalScores]:
    return [evaluate(query, gallery, self_positions=positions) for query, gallery, positions in lots]


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 70)), min_size=1, max_size=6),
    dim=st.integers(1, 9),
    classes=st.integers(1, 4),
    rounded=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_all_at_once_is_one_by_one(seed: int, sizes: list[tuple[int, int]], dim: int, classes: int, rounded: bool):
    draw = torch.Generator().manual_seed(seed)
    lots = [lot(draw, *each, dim=dim, classes=classes, rounded=rounded) for each in sizes]
    assert_same(evaluate_each(*zip(*lots, strict=True)), one_by_one(lots))


def test_as_deep_as_each_task_needs_and_in_blocks(monkeypatch: pytest.MonkeyPatch):
    """R is 4, 19 and 59: sums over so many ranks, of lists as long as the longest; blocks may end within a task."""
    draw = torch.Generator().manual_seed(0)
    lots = [lot(draw, size, size, dim=5, classes=1, rounded=False) for size in (5, 20, 60)]
    expected = one_by_one(lots)
    assert_same(evaluate_each(*zip(*lots, strict=True)), expected)
    monkeypatch.setattr(own, "_CELLS", 7 * 60)
    assert_same(evaluate_each(*zip(*lots, strict=True)), expected)


@pytest.mark.parametrize("vectors", [torch.ones(12, 3), torch.zeros(12, 3), torch.eye(12)], ids=str)
def test_collapsed_embeddings_are_ordered_by_position(vectors: Tensor):
    found = Embeddings(vectors, torch.arange(12) % 3)
    lots = [(found, found, torch.arange(12))] * 3
    (first, *others) = evaluate_each(*zip(*lots, strict=True))
    # all is equal: the first is item 0, of class 0; for item 0 itself it is item 1
    assert first.nearest.tolist() == [1, *[0] * 11]
    # of the 12, items 3, 6, 9 find one of theirs there
    assert first["recall@1"] == 3 / 12
    assert_same([first, *others], one_by_one(lots))


def test_what_float64_cannot_tell_apart_is_ordered_by_position():
    """Sums of the same numbers in another order are equal, and float64 rounds some of them otherwise."""
    draw = torch.Generator().manual_seed(0)
    numbers = torch.tensor([*range(1, 63), 64.0])  # the largest a power of two: all have one length, to the bit
    gallery = torch.stack([numbers[torch.randperm(63, generator=draw)] for _ in range(40)])
    asked, nowhere = torch.ones(2, 63), torch.tensor([-1, -1])
    pairs = [gallery[[0, other]] for other in range(1, 40)]
    pairs += [pair.flip(0) for pair in pairs]
    rounded = [block_scores(unit(asked).double(), unit(pair).double(), "inner_product")[0] for pair in pairs]
    assert any(second > first for first, second in rounded)
    lots = [(Embeddings(asked, torch.arange(2)), Embeddings(pair, torch.arange(2)), nowhere) for pair in pairs]
    found = evaluate_each(*zip(*lots, strict=True))
    assert all(each.nearest.tolist() == [0, 0] and each["mrr"] == (1 + 1 / 2) / 2 for each in found)
    assert_same(found, one_by_one(lots))


def test_small_ones_are_not_searched_one_by_one(monkeypatch: pytest.MonkeyPatch):
    draw = torch.Generator().manual_seed(0)
    lots = [lot(draw, size, size, dim=4, classes=2, rounded=False) for size in (10, 100, 20, 0, 12)]
    expected, asked = one_by_one(lots), []

    def noted(query: Embeddings, gallery: Embeddings, *, self_positions: Tensor) -> RetrievalScores:
        asked.append(len(gallery))
        return evaluate(query, gallery, self_positions=self_positions)

    monkeypatch.setattr(own, "evaluate", noted)
    assert_same(evaluate_each(*zip(*lots, strict=True)), expected)
    assert asked == [100, 0]
