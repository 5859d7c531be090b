"""Importance of models that come from elsewhere: wrapped, compiled, in half precision, with adapters, in frameworks."""

from __future__ import annotations

import copy
import os

import oracles
import pytest
import torch
from architectures import made
from test_mas import assert_equal_state, state, used_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from tripletmas.basics.weights import named_parameters
from tripletmas.protection.engine.per_sample import PerSampleGradients
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-14)


@pytest.fixture
def process_group():
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_distributed_data_parallel(process_group: None):
    model, x = made("mlp")
    expected = mas_importance(model, [x])
    for wrapped in (
        DistributedDataParallel(model),
        torch.compile(DistributedDataParallel(model), backend="eager"),
        DistributedDataParallel(torch.compile(model, backend="eager")),  # pyright: ignore[reportArgumentType]
    ):
        assert_same(mas_importance(wrapped, [x]), expected)  # pyright: ignore[reportArgumentType]
        assert_same(local_mas_importance(wrapped, [x]), local_mas_importance(model, [x]))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "conv", "attention", "lstm"])
def test_half_precision_is_measured_in_float32(name: str, dtype: torch.dtype):
    model, x = made(name)
    model, x = model.to(dtype), x.to(dtype)
    model.float()(x.float()).sum().backward()
    model.to(dtype)
    before, addresses = state(model), [p.data_ptr() for p in model.parameters()]
    expected = mas_importance(copy.deepcopy(model).float(), [x.float()])
    found = mas_importance(model, [x])
    assert all(value.dtype == torch.float32 for value in found.values())
    assert_same(found, expected, rtol=1e-6)
    assert_equal_state(state(model), before)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    with pytest.raises(ValueError, match="not finite"):
        mas_importance(model, [torch.full_like(x, torch.nan)])
    assert_equal_state(state(model), before)


def test_parametrisations_have_their_own_names():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    found = mas_importance(model, [x])
    assert list(found) == list(named_parameters(model))
    assert "0.parametrizations.weight.original0" in found
    assert_same(found, oracles.mas_importance(model, x.split(1)))


class Cached(nn.Module):
    """The weight is computed once for a forward pass, and used in two places."""

    def __init__(self):
        super().__init__()
        self.layer = parametrizations.orthogonal(nn.Linear(4, 4, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        with nn.utils.parametrize.cached():
            return self.layer(self.layer(x).tanh())


def test_a_computed_weight_in_two_places():
    torch.manual_seed(0)
    model, x = Cached().double(), torch.randn(9, 4, dtype=torch.float64)
    assert_same(mas_importance(model, [x]), oracles.mas_importance(model, x.split(1)))


def test_adapters_of_peft():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    found = mas_importance(model, [x])
    assert list(found) == [name for name, p in model.named_parameters() if p.requires_grad]
    assert_same(found, oracles.mas_importance(model, x.split(1)))


def test_a_layer_of_a_wrapped_normalised_model():
    class Normalized(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"embedding": nn.functional.normalize(self.model(features["x"]), dim=1)}

    model, x = made("mlp")
    normalized = Normalized(model)
    found = mas_importance(
        torch.compile(normalized, backend="eager"),  # pyright: ignore[reportArgumentType]
        [{"x": x, "labels": torch.arange(9)}],
        layer="model",
        forward=lambda model, batch: model(batch)["embedding"],
    )
    assert_same({name.removeprefix("model."): value for name, value in found.items()}, mas_importance(model, [x]))


class Exploding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        raise ArithmeticError("in the middle of the backward pass")


class Explodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(Exploding.apply(self.one(x)))  # pyright: ignore[reportArgumentType]


def test_an_exception_in_the_backward_pass_leaves_everything_as_it_was():
    torch.manual_seed(0)
    model, x = Explodes().train(), torch.randn(5, 6)
    before, drawn = state(model), torch.get_rng_state()
    with pytest.raises(ArithmeticError, match="in the middle"):
        mas_importance(model, [x])
    assert_equal_state(state(model), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("name", ["conv", "attention", "lstm", "weight norm", "swin", "data dependent"])
def test_the_engine_leaves_no_trace(name: str):
    model, x = used_model(name)
    before, drawn = state(model), torch.get_rng_state()
    mas_importance(model, x.split(4))
    mas_importance(model, [x], output="vector")
    mas_importance(model, [x], approximate="batch")
    PerSampleGradients(model, lambda outputs: outputs.flatten(1), power=2).update([x])
    assert_equal_state(state(model), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not torch.overrides._get_current_function_mode_stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).sum().backward()  # and it can be trained
    optimizer.step()


def test_gradients_are_on_inside_no_grad_and_inputs_that_want_gradients_get_none():
    model, x = made("conv")
    expected = mas_importance(model, [x])
    x.requires_grad_()
    with torch.no_grad():
        assert_same(mas_importance(model, [x]), expected)
    assert x.grad is None
