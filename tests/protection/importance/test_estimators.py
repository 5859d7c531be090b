"""Every estimator: samples count alike however they come, no trace is left, names are those of the bare model."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from architectures import made
from importance_cases import ESTIMATORS, Estimator, assert_equal_state, assert_same, state, used_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from tripletmas.basics.weights import named_parameters

ON_BATCHES = ("mas, batch", "squared gradients")  # the sum over a batch comes before the magnitude
LOCAL = ("mlp", "conv", "frozen trunk")  # the models that have nothing but linear and convolution layers


def every_estimator(*but: str) -> pytest.MarkDecorator:
    names = [name for name in ESTIMATORS if name not in but]
    return pytest.mark.parametrize("estimate", [ESTIMATORS[name] for name in names], ids=names)


def every_estimator_on(*models: str, mas_on: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """All estimators on models that they know, that of MAS on further ones."""
    pairs = {
        f"{name}, {model}": (estimate, model)
        for name, estimate in ESTIMATORS.items()
        for model in (*models, *(mas_on if name == "mas" else ()))
        if (name != "local" or model in LOCAL) and (name != "mas, last layer" or model != "data dependent")
    }
    return pytest.mark.parametrize(("estimate", "name"), pairs.values(), ids=pairs)


# --- samples


@every_estimator(*ON_BATCHES)
def test_a_mean_over_samples_however_they_come(estimate: Estimator):
    model, x = made("conv")
    expected = estimate(model, [x])
    assert_same(estimate(model, [x[:8], x[8:]]), expected)  # a short last batch
    assert_same(estimate(model, [x[:4], x[:0], x[4:]]), expected)  # an empty one in between
    assert_same(estimate(model, iter(x.split(2))), expected)
    if estimate is not ESTIMATORS["fisher, sampled"]:  # each sample, in order, has its own draw
        assert_same(estimate(model, [x, x]), expected)  # twice the data
        assert_same(estimate(model, [x.flip(0)]), expected)


@every_estimator()
def test_without_samples_or_weights_there_is_nothing_to_measure(estimate: Estimator):
    model, x = made("mlp")
    for nothing in ([], [x[:0]], iter(())):
        with pytest.raises(ValueError, match=r"at least one (sample, and the batches were empty|batch, and there was)"):
            estimate(model, nothing)
        if estimate is ESTIMATORS["squared gradients"]:
            break  # what a batch without samples is, the loss decides
    with pytest.raises(ValueError, match="no trainable parameter"):
        estimate(model.requires_grad_(False), [x])


@every_estimator()
def test_what_is_not_finite_is_an_error(estimate: Estimator):
    model, x = made("mlp")
    x = torch.where(torch.arange(9)[:, None] == 5, torch.nan, x)
    with pytest.raises(ValueError, match=r"not finite( for sample 5 of the importance data)?$"):
        estimate(model, x.split(4))


# --- no trace


@every_estimator_on("conv", "data dependent", "lstm", "frozen trunk", mas_on=("attention", "weight norm", "swin"))
def test_measuring_leaves_everything_as_it_was(estimate: Estimator, name: str):
    model, x = used_model(name)
    before, others = state(model), (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    with torch.no_grad():
        estimate(model, x.split(4))
    estimate(model, x.split(4))
    assert_equal_state(state(model), before)
    assert (random.getstate(), str(np.random.get_state())) == others  # noqa: NPY002
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).sum().backward()  # and it can be trained
    optimizer.step()


@every_estimator("accumulator")  # which reads no batches itself
def test_an_exception_in_the_middle_leaves_everything_as_it_was(estimate: Estimator):
    model, x = used_model("conv")
    before = state(model)

    def interrupted() -> Iterator[Tensor]:
        yield x
        torch.rand(1)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        estimate(model, interrupted())
    for broken in (torch.full_like(x, torch.nan), x[:, :1]):
        with pytest.raises((ValueError, RuntimeError)):
            estimate(model, [x, broken])
    assert_equal_state(state(model), before)


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


@every_estimator("local")  # which never gets there
def test_an_exception_in_the_backward_pass_leaves_everything_as_it_was(estimate: Estimator):
    torch.manual_seed(0)
    model, x = Explodes().train(), torch.randn(5, 6)
    before = state(model)
    with pytest.raises(ArithmeticError, match="in the middle"):
        estimate(model, [x])
    assert_equal_state(state(model), before)


@every_estimator("accumulator")
def test_batches_may_draw_random_numbers(estimate: Estimator):
    model, x = made("mlp")
    torch.manual_seed(3)
    loader = torch.utils.data.DataLoader(x, batch_size=3, shuffle=True)  # pyright: ignore[reportArgumentType]
    before = torch.get_rng_state()
    estimate(model, loader)
    assert torch.equal(torch.get_rng_state(), before)


# --- how the model is measured


@every_estimator_on("conv")
def test_measured_in_eval_mode_outside_autocast_with_gradients(estimate: Estimator, name: str):
    model, x = made(name, dtype=torch.float32)
    expected = estimate(copy.deepcopy(model).eval(), x.split(4))
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert_same(estimate(model.train(), x.split(4)), expected)
    assert x.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_estimator_on("conv", "lstm", mas_on=("mlp", "attention"))
def test_half_precision_is_measured_in_float32(estimate: Estimator, name: str, dtype: torch.dtype):
    model, x = made(name)
    model, x = model.to(dtype), x.to(dtype)
    model.float()(x.float()).sum().backward()
    model.to(dtype)
    before = state(model)
    expected = estimate(copy.deepcopy(model).float(), [x.float()])
    found = estimate(model, [x])
    assert all(value.dtype == torch.float32 for value in found.values())
    assert_same(found, expected, rtol=1e-6)
    assert_equal_state(state(model), before)
    x[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        estimate(model, [x])
    assert_equal_state(state(model), before)


# --- names


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.fixture
def process_group():
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "data parallel": nn.DataParallel,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "averaged": AveragedModel,
    "compiled, data parallel": lambda model: nn.DataParallel(compiled(model)),
    "distributed": DistributedDataParallel,
    "distributed, compiled": lambda model: compiled(DistributedDataParallel(model)),
    "compiled, distributed": lambda model: DistributedDataParallel(compiled(model)),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_models_have_the_names_of_the_bare_one(wrap: Callable, process_group: None):
    model, x = made("mlp")
    expected = {name: estimate(model, [x]) for name, estimate in ESTIMATORS.items() if name != "mas, last layer"}
    wrapped = wrap(model)
    for name, value in expected.items():
        assert_same(ESTIMATORS[name](wrapped, [x]), value)


@every_estimator("local", "mas, last layer")
def test_parametrisations_have_their_own_names(estimate: Estimator):
    model, x = made("weight norm")
    found = estimate(model, [x])
    assert list(found) == list(named_parameters(model))
    assert "parametrizations.weight.original0" in found


@every_estimator()
def test_frozen_parameters_are_left_out(estimate: Estimator):
    model, x = made("frozen trunk")
    assert list(estimate(model, [x])) == ["2.weight", "2.bias"]
