"""The importance engine: equal to a loop over single samples for every kind of model, whatever the batches."""

from __future__ import annotations

import gc
import logging

import oracles
import pytest
import torch
from architectures import ARCHITECTURES, made
from torch import Tensor

from tripletmas.protection.engine import by_rules, rule
from tripletmas.protection.engine.by_rules import Backward
from tripletmas.protection.engine.per_sample import PerSampleGradients
from tripletmas.protection.engine.rules import Convolution, Linear
from tripletmas.protection.engine.trace import Trace
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance

SLOW = "the slow path"
ONE_BY_ONE = "one sample at a time"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-10 * float(value.abs().max()) + 1e-14)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_a_loop_over_single_samples(name: str, batch_size: int, caplog: pytest.LogCaptureFixture):
    model, x = made(name, count=16)
    expected = oracles.mas_importance(model, x.split(1))
    with caplog.at_level(logging.INFO, "tripletmas"):
        found = mas_importance(model, x.split(batch_size))
    assert_same(found, expected)
    assert all((value >= 0).all() for value in found.values())
    if batch_size == 1:
        return
    architecture = ARCHITECTURES[name]
    assert (SLOW in caplog.text) == (architecture.slow is not None), caplog.text
    assert (ONE_BY_ONE in caplog.text) == architecture.one_by_one, caplog.text
    assert architecture.slow is None or f"importance of {architecture.slow}" in caplog.text


def squared_length(outputs: Tensor) -> Tensor:
    return outputs.square().flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_squares_for_fisher(name: str):
    model, x = made(name, count=9)
    engine = PerSampleGradients(model, squared_length, power=2)
    engine.update(x.split(5))
    found = engine.finished()
    assert_same(found, oracles.per_sample_sums(model, x.split(1), lambda f: f.square().sum(), power=2))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_gradient_of_each_output(name: str):
    model, x = made(name, count=5)
    found = mas_importance(model, [x], output="vector")
    columns = model.eval()(x[:1]).numel()
    total: dict[str, Tensor] = {}
    for column in range(columns):
        sums = oracles.per_sample_sums(model, x.split(1), lambda f, column=column: f.flatten()[column])
        total = {key: total.get(key, 0) + value / len(x) for key, value in sums.items()}
    assert_same(found, total)


@pytest.mark.parametrize("name", ["mlp", "conv", "attention", "layer called twice", "lstm", "swin", "weight norm"])
def test_large_batches_are_parted(name: str, monkeypatch: pytest.MonkeyPatch):
    model, x = made(name, count=11)
    expected = mas_importance(model, [x])
    monkeypatch.setitem(by_rules._ACTIVATIONS, "cpu", 200)
    assert_same(mas_importance(model, [x]), expected)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "conv" in name] + ["mlp", "vit", "group norm"])
def test_small_buffers_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch):
    """What does not fit into the buffer at once is done in strips of rows, and in chunks of samples."""
    model, x = made(name, count=11)
    expected = oracles.mas_importance(model, x.split(1))
    monkeypatch.setitem(rule._BUFFER, "cpu", 30)
    assert_same(mas_importance(model, [x]), expected)


def test_batches_of_other_shapes_than_the_first():
    model, x = made("attention", count=6)
    other = torch.randn(8, 5, 4, dtype=x.dtype)  # longer sequences, more samples
    third = torch.randn(2, 2, 4, dtype=x.dtype)
    expected = oracles.mas_importance(model, [*x.split(1), *other.split(1), *third.split(1)])
    assert_same(mas_importance(model, [x, other, third]), expected)
    # as many samples as positions, and a first batch of one
    model, _ = made("attention, positions first")
    batches = [torch.randn(n, p, 4, dtype=torch.float64) for n, p in ((1, 3), (4, 4), (3, 3), (2, 5), (1, 1), (2, 1))]
    expected = oracles.mas_importance(model, [sample for batch in batches for sample in batch.split(1)])
    assert_same(mas_importance(model, batches), expected)


class OtherCallsLater(torch.nn.Module):
    """Long sequences go through one more layer."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.always(x)
        return (self.sometimes(x) if x.shape[1] > 2 else x).mean(1)


def test_a_batch_that_is_processed_in_another_way(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model = OtherCallsLater().double()
    batches = [torch.randn(4, length, 3, dtype=torch.float64) for length in (2, 5, 2, 3)]
    with caplog.at_level(logging.INFO, "tripletmas"):
        found = mas_importance(model, batches)
    assert_same(found, oracles.mas_importance(model, [sample for batch in batches for sample in batch.split(1)]))
    assert SLOW not in caplog.text


class ShrinksBatches(torch.nn.Module):
    """Leaves the path on which it was probed: with one sample another layer is used than with several."""

    def __init__(self):
        super().__init__()
        self.one, self.several = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if len(x) == 1 else self.several(x)


def test_a_sample_alone_is_what_counts(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model, x = ShrinksBatches().double(), torch.randn(6, 3, dtype=torch.float64)
    with caplog.at_level(logging.INFO, "tripletmas"):
        found = mas_importance(model, [x])
    assert_same(found, oracles.mas_importance(model, x.split(1)))
    assert not found["several.weight"].any()
    assert "by other calls than a sample alone" in caplog.text


class ConstantInputs(torch.nn.Module):
    """Windows whose values say nothing about their order."""

    def __init__(self):
        super().__init__()
        self.layer, self.mix = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:  # (n, 3, 2)
        windows = self.layer(torch.zeros_like(x).transpose(0, 1).reshape(-1, 2)).view(3, len(x), 2).transpose(0, 1)
        return self.mix(windows * x).flatten(1)


def test_an_order_that_cannot_be_told_is_not_guessed(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model, x = ConstantInputs().double(), torch.randn(6, 3, 2, dtype=torch.float64)
    with caplog.at_level(logging.INFO, "tripletmas"):
        found = mas_importance(model, [x])
    assert_same(found, oracles.mas_importance(model, x.split(1)))
    assert "importance of layer (2 of 4 parameters): the slow path" in caplog.text


def test_the_gradient_of_a_batch_for_comparison():
    model, x = made("mlp", count=8)
    # by the definition of the approximation: |gradient of the sum over a batch|, summed over batches, per sample
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for batch in x.split(4):
        model.zero_grad()
        model(batch).square().sum().backward()
        for name, value in model.named_parameters():
            assert value.grad is not None
            total[name] += value.grad.abs() / len(x)
    model.zero_grad()
    assert_same(mas_importance(model, x.split(4), approximate="batch"), total)
    assert_same(mas_importance(model, x.split(1), approximate="batch"), mas_importance(model, [x]))
    smaller = mas_importance(model, [x], approximate="batch")
    assert sum(float(v.sum()) for v in smaller.values()) < sum(float(v.sum()) for v in total.values())
    with pytest.raises(ValueError, match="approximate must be None"):
        mas_importance(model, [x], approximate="layer")  # pyright: ignore[reportArgumentType]


def test_what_was_measured_before_a_weight_became_slow_stays():
    """The second batch goes through a function without a rule; only it is measured in the slow way."""

    class Later(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(3))
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return x * self.weight if x.shape[1] == 2 else x @ torch.diag(self.weight.cumsum(0))

    torch.manual_seed(0)
    model = Later().double()
    batches = [torch.randn(4, length, 3, dtype=torch.float64) for length in (2, 3, 2)]
    expected = oracles.mas_importance(model, [sample for batch in batches for sample in batch.split(1)])
    assert_same(mas_importance(model, batches), expected)


@pytest.mark.parametrize("name", ["mlp", "conv", "vit", "weight norm", "lstm", "samples influence each other"])
def test_nothing_is_kept_alive(name: str):
    """The graph's hooks know the trace, which knows the graph: a circle that would keep every batch in memory."""
    model, x = made(name)
    gc.collect()
    gc.disable()
    try:
        mas_importance(model, x.split(5))
        mas_importance(model, [x], output="vector")
        if name == "mlp":
            local_mas_importance(model, [x])
        assert not [each for each in gc.get_objects() if type(each) in (Trace, Backward, Linear, Convolution)]
    finally:
        gc.enable()
