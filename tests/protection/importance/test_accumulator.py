"""Importance that is measured online, and means of several estimates."""

from __future__ import annotations

import pytest
import torch
from architectures import made
from importance_cases import assert_same

from tripletmas import ImportanceAccumulator, mas_importance, merge_importance


@pytest.mark.parametrize("options", [{}, {"relative": True}, {"output": "vector"}])
@pytest.mark.parametrize("name", ["mlp", "conv", "lstm", "tokens, positions, scales"])
def test_batch_by_batch_equals_all_at_once(name: str, options: dict):
    model, x = made(name, count=9)
    running = ImportanceAccumulator(model.train(), **options)
    so_far = 0
    for batch in (x[:1], x[1:6], x[6:6], x[6:]):
        running.update((batch, torch.arange(len(batch))))  # labels play no part
        so_far += len(batch)
        assert running.num_samples == so_far
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())
        expected = mas_importance(model, [x[:so_far]], **options)
        assert_same(running.importance(), expected, rtol=1e-12)  # a mean at any time


def test_weights_that_have_changed_are_refused():
    model, x = made("mlp")
    running = ImportanceAccumulator(model)
    running.update(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="weights have changed since the first batch"):
        running.update(x)


def test_errors_come_when_the_importance_is_asked_for():
    model, x = made("mlp")
    running = ImportanceAccumulator(model)
    with pytest.raises(ValueError, match="at least one sample"):
        running.importance()
    zero = ImportanceAccumulator(model, forward=lambda model, x: model(x) * 0)
    zero.update(x)
    with pytest.raises(ValueError, match="zero everywhere"):
        zero.importance()


def test_a_batch_that_failed_half_way_is_not_counted_twice():
    model, x = made("mlp", count=6)
    running = ImportanceAccumulator(model)
    running.update(x)
    with pytest.raises(ValueError, match="not finite for sample 8"):
        running.update(torch.where(torch.arange(6)[:, None] == 2, torch.nan, x))
    with pytest.raises(ValueError, match="failed half-way"):
        running.update(x)
    with pytest.raises(ValueError, match="failed half-way"):
        running.importance()


def test_merging_by_numbers_of_samples_is_measuring_them_together():
    model, x = made("mlp", count=9)
    parts = [mas_importance(model, [part]) for part in (x[:2], x[2:])]
    assert_same(merge_importance(parts, weights=[2, 7]), mas_importance(model, [x]), rtol=1e-12)
    assert_same(merge_importance(parts, weights=[1, 0]), parts[0], rtol=1e-12)
    by_hand = merge_importance([{"w": torch.tensor([1.0, 5.0])}, {"w": torch.tensor([4.0, 5.0])}], weights=[1, 2])
    assert by_hand["w"].tolist() == [3.0, 5.0]
    assert parts[0]["0.weight"] is not merge_importance(parts[:1], weights=[1])["0.weight"]


ONE, OTHER = {"w": torch.ones(2)}, {"v": torch.ones(2)}


@pytest.mark.parametrize(
    ("estimates", "weights", "message"),
    [
        ([], [], "at least one: got 0 and 0"),
        ([ONE], [1, 2], "one weight for each estimate, and at least one: got 1 and 2"),
        ([ONE, ONE], [1, -1], r"weights must be >= 0 and not all 0, got \[1, -1\]"),
        ([ONE, ONE], [0, 0], "not all 0"),
        ([ONE, OTHER], [1, 1], "estimate 1 is of another model than the first: missing: w; unexpected: v"),
    ],
)
def test_what_cannot_be_merged(estimates: list, weights: list, message: str):
    with pytest.raises(ValueError, match=message):
        merge_importance(estimates, weights)
