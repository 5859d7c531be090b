"""Importance that is measured online, and means of several estimates."""

from __future__ import annotations

import pytest
import torch
from architectures import made
from torch import Tensor, nn

from tripletmas import ImportanceAccumulator, mas_importance, merge_importance


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-12) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("options", [{}, {"relative": True}, {"output": "vector"}])
@pytest.mark.parametrize("name", ["mlp", "conv", "lstm", "tokens, positions, scales"])
def test_batch_by_batch_equals_all_at_once(name: str, options: dict):
    model, x = made(name, count=9)
    running = ImportanceAccumulator(model, **options)
    so_far = 0
    for batch in (x[:1], x[1:6], x[6:6], x[6:]):
        running.update(batch)
        so_far += len(batch)
        assert running.num_samples == so_far
        assert_same(running.importance(), mas_importance(model, [x[:so_far]], **options))  # a mean at any time
    assert not any(module._forward_hooks for module in model.modules())


def test_between_updates_the_model_is_as_it_was():
    model, x = made("conv")
    model.train()
    running = ImportanceAccumulator(model)
    running.update(x)
    assert all(module.training for module in model.modules())
    first = running.importance()
    running.update((x, torch.arange(9)))  # labels play no part
    assert_same(running.importance(), first)


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
    with pytest.raises(ValueError, match="output must be 'squared_length' or 'vector', got 'length'"):
        ImportanceAccumulator(model, output="length")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no layer 'head'"):
        ImportanceAccumulator(model, layer="head")


def test_the_vector_form_and_the_scale_of_the_output():
    model, x = made("mlp")

    def scaled(model: nn.Module, x: Tensor) -> Tensor:
        return 3 * model(x)

    found = mas_importance(model, [x], output="vector")
    assert_same(mas_importance(model, [x], output="vector", forward=scaled), {k: 3 * v for k, v in found.items()})
    relative = mas_importance(model, [x], output="vector", relative=True)
    assert_same(mas_importance(model, [x], output="vector", relative=True, forward=scaled), relative)
    with pytest.raises(ValueError, match="zero everywhere"):
        mas_importance(model, [x], output="vector", forward=lambda model, x: model(x).detach())


def test_merging_by_numbers_of_samples_is_measuring_them_together():
    model, x = made("mlp", count=9)
    parts = [mas_importance(model, [part]) for part in (x[:2], x[2:])]
    assert_same(merge_importance(parts, weights=[2, 7]), mas_importance(model, [x]))
    assert_same(merge_importance(parts, weights=[1, 0]), parts[0])
    by_hand = merge_importance([{"w": torch.tensor([1.0, 5.0])}, {"w": torch.tensor([4.0, 5.0])}], weights=[1, 2])
    assert by_hand["w"].tolist() == [3.0, 5.0]
    assert parts[0]["0.weight"] is not merge_importance(parts[:1], weights=[1])["0.weight"]


def test_what_cannot_be_merged():
    model, x = made("mlp")
    one, other = mas_importance(model, [x]), mas_importance(made("conv")[0], [made("conv")[1]])
    for estimates, weights, message in (
        ([], [], "at least one: got 0 and 0"),
        ([one], [1, 2], "one weight for each estimate, and at least one: got 1 and 2"),
        ([one, one], [1, -1], r"weights must be >= 0 and not all 0, got \[1, -1\]"),
        ([one, one], [0, 0], "not all 0"),
        ([one, other], [1, 1], "estimate 1 is of another model than the first: missing: "),
    ):
        with pytest.raises(ValueError, match=message):
            merge_importance(estimates, weights)
