"""The importance engine: equal to a loop over single samples for every kind of model, whatever the batches."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, Literal

import oracles
import pytest
import torch
from architectures import ARCHITECTURES, made
from importance_cases import SLOW, assert_same
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tripletmas.protection.engine import by_rules, convolution, rule
from tripletmas.protection.engine.by_rules import Backward
from tripletmas.protection.engine.per_sample import PerSampleGradients
from tripletmas.protection.engine.rules import Convolution, Linear
from tripletmas.protection.engine.trace import Trace
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's
ONE_BY_ONE = "one sample at a time"


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


class Shapes(TorchDispatchMode):
    """Notes the shapes of the first factor of every batched product."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.overloadpacket is torch.ops.aten.bmm:
            self.seen.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_linear_map_of_positions_and_samples_is_one_product(transposed: bool):
    """As attention has them; torch parts it by positions where they lie apart and its weight has no graph."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1).sin()  # (11 positions, n, 4)
            return (x @ self.weight if transposed else functional.linear(x, self.weight)).mean(0)

    model, x = Positions().double(), torch.randn(3, 11, 4, dtype=torch.float64)
    with Shapes() as shapes:
        found = mas_importance(model, [x])
    assert_same(found, oracles.mas_importance(model, x.split(1)))
    assert shapes.seen
    assert all(shape[0] != 11 for shape in shapes.seen), shapes.seen


def squared_length(outputs: Tensor) -> Tensor:
    return outputs.square().flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("scalar", "power"), [(lambda outputs: outputs.flatten(1), 1), (squared_length, 2)])
def test_several_scalars_and_squares(name: str, scalar: Callable[[Tensor], Tensor], power: Literal[1, 2]):
    model, x = made(name, count=4)
    engine = PerSampleGradients(model, scalar, power=power)
    engine.update(x.split(3))
    total: dict[str, Tensor] = {}
    for column in range(scalar(model.eval()(x[:1])).shape[1]):
        sums = oracles.per_sample_sums(model, x.split(1), lambda f, i=column: scalar(f)[0, i], power=power)
        total = {key: total.get(key, 0) + value for key, value in sums.items()}
    assert_same(engine.finished().sums, total)


@pytest.mark.parametrize(
    "name", ["mlp", "conv", "attention", "layer called twice", "lstm", "swin", "vit", "weight norm"]
)
def test_large_batches_are_parted(name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    model, x = made(name, count=20)
    expected = oracles.mas_importance(model, x.split(1))
    monkeypatch.setitem(by_rules._ACTIVATIONS, "cpu", 60)
    caplog.set_level("INFO", "tripletmas")
    assert_same(mas_importance(model, [x]), expected)
    assert (SLOW in caplog.text) == (ARCHITECTURES[name].slow is not None)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "conv" in name] + ["mlp", "vit", "group norm"])
def test_small_buffers_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch):
    """What does not fit into the buffer at once is done in strips of rows, and in chunks of samples."""
    model, x = made(name, count=11)
    expected = oracles.mas_importance(model, x.split(1))
    monkeypatch.setitem(rule._BUFFER, "cpu", 30)
    assert_same(mas_importance(model, [x]), expected)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "bias": False}, {"dilation": 2, "padding": 2}])
@pytest.mark.parametrize("channels", [1, 16])
def test_samples_as_groups_of_one_convolution(channels: int, options: dict, monkeypatch: pytest.MonkeyPatch):
    """In float32, with few weights; the twin is a call for each sample, and the truth the loop in float64."""
    torch.manual_seed(0)
    model, x = nn.Conv2d(channels, 6, 3, **options), torch.randn(35, channels, 11, 10)
    calls: list[int] = []
    as_groups = Convolution._add_as_groups
    monkeypatch.setattr(
        Convolution, "_add_as_groups", lambda *args, **kwargs: calls.append(1) or as_groups(*args, **kwargs)
    )
    found = [mas_importance(model, [x]), mas_importance(model, [x.to(memory_format=torch.channels_last)])]
    assert len(calls) == 2
    monkeypatch.setattr(convolution, "_FEW_WEIGHTS", 0)
    found.append(mas_importance(model, [x]))
    assert len(calls) == 2
    expected = oracles.mas_importance(model.double(), x.double().split(1))
    for each in found:
        assert_same({name: value.double() for name, value in each.items()}, expected, rtol=1e-5)


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


def test_adapters_of_peft():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    found = mas_importance(model, [x])
    assert list(found) == [name for name, p in model.named_parameters() if p.requires_grad]
    assert_same(found, oracles.mas_importance(model, x.split(1)))


@pytest.mark.slow
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
        kept = (Trace, Backward, Linear, Convolution, PerSampleGradients)
        assert not [each for each in gc.get_objects() if type(each) in kept]
    finally:
        gc.enable()


class HiddenInfluence(nn.Module):
    """Samples influence each other in what one layer returns, and by nothing in the output: only gradients show it."""

    def __init__(self):
        super().__init__()
        self.centred, self.own = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.centred(x - x.mean(0))
        return self.own(x) + hidden - hidden.detach()


def test_a_layer_in_which_samples_influence_each_other_is_measured_alone_and_it_only(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model, x = HiddenInfluence().double(), torch.randn(6, 5, dtype=torch.float64)
    expected = oracles.mas_importance(model, x.split(1))
    with caplog.at_level(logging.INFO, "tripletmas"):
        assert_same(mas_importance(model, [x]), expected)
    assert f"importance of centred (2 of 4 parameters): {SLOW}" in caplog.text
