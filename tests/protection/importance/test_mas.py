"""Importance: equal to a loop over single samples for many kinds of model, loud errors, and no trace left behind."""

from __future__ import annotations

import logging
import random
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from architectures import made
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tripletmas.protection.engine import single
from tripletmas.protection.engine.by_rules import ByRules
from tripletmas.protection.importance.mas import mas_importance

SLOW = "the slow path"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(6, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.image(image) * self.text(text)


def mlp(seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double(), torch.randn(9, 6).double()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-14)


PATHS = ["by rules", "by torch.func", "one by one"]


def take(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path != "by rules":
        monkeypatch.setattr(ByRules, "is_no_use", lambda _: True)
    if path == "one by one":
        monkeypatch.setattr(single, "_LARGEST_CHUNK", 1)


# --- the definition


@pytest.mark.parametrize("name", ["mlp", "conv", "attention", "layer called twice"])
def test_the_slow_path_equals_the_fast_one(name: str, monkeypatch: pytest.MonkeyPatch):
    model, x = made(name)
    expected = mas_importance(model, [x])
    monkeypatch.setattr(ByRules, "is_no_use", lambda _: True)
    assert_same(mas_importance(model, [x]), expected)
    monkeypatch.setattr(single, "_LARGEST_CHUNK", 4)
    assert_same(mas_importance(model, [x]), expected)
    monkeypatch.setattr(single, "_LARGEST_CHUNK", 1)  # one sample at a time
    assert_same(mas_importance(model, [x]), expected)


def test_a_value_by_hand():
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    # F = w x: d F^2 / d w_i = 2 F x_i. Samples (1, 2): F = 3, 6 and 12; (-3, 0): F = -3, 18 and 0
    found = mas_importance(layer, [torch.tensor([[1.0, 2.0], [-3.0, 0.0]])])
    assert found["weight"].tolist() == [[12.0, 6.0]]
    # relative: divided by the mean squared length, (9 + 9) / 2 = 9
    found = mas_importance(layer, [torch.tensor([[1.0, 2.0], [-3.0, 0.0]])], relative=True)
    torch.testing.assert_close(found["weight"], torch.tensor([[12.0, 6.0]]) / 9)


def test_opposite_gradients_do_not_cancel():
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    # (2, 1): F = 3, gradient (12, 6); (2, -5): F = -3, gradient (-12, 30). The gradient of the sum is 0 for the first.
    x = torch.tensor([[2.0, 1.0], [2.0, -5.0]])
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[0.0, 36.0]]
    assert mas_importance(layer, [x])["weight"].tolist() == [[12.0, 18.0]]


def test_mean_over_samples_however_they_come():
    model, x = mlp()
    expected = mas_importance(model, [x])
    assert_same(mas_importance(model, [x, x]), expected)  # twice the data
    assert_same(mas_importance(model, [x[:8], x[8:]]), expected)  # a short last batch
    assert_same(mas_importance(model, [x[:4], x[:0], x[4:]]), expected)  # an empty one in between
    assert_same(mas_importance(model, [x.flip(0)]), expected)
    assert_same(mas_importance(model, iter(x.split(2))), expected)


def test_labels_play_no_part():
    model, x = mlp()
    expected = mas_importance(model, [x])
    labels = torch.arange(9)
    Batch = namedtuple("Batch", ["inputs", "labels"])
    for batch in [(x, labels), [x, labels.flip(0)], (x, labels, labels), Batch(x, labels)]:
        assert_same(mas_importance(model, [batch]), expected)


@pytest.mark.parametrize("c", [0.1, 7.0])
def test_the_scale_of_the_output(c: float):
    model, x = mlp()
    absolute, relative = mas_importance(model, [x]), mas_importance(model, [x], relative=True)
    mean = model(x).square().sum(1).mean()
    assert_same(relative, {name: value / mean for name, value in absolute.items()})

    def scaled(model: nn.Module, x: Tensor) -> Tensor:
        return c * model(x)

    assert_same(mas_importance(model, [x], forward=scaled), {k: c**2 * v for k, v in absolute.items()})
    assert_same(mas_importance(model, [x], forward=scaled, relative=True), relative)


# --- ways to call a model


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_dict_batches_are_keyword_arguments(kind: type):
    torch.manual_seed(0)
    model, image, text = TwoInputs().double(), torch.randn(5, 6).double(), torch.randn(5, 2).double()
    expected = oracles.mas_importance(
        model, zip(image.split(1), text.split(1), strict=True), lambda model, pair: model(*pair)
    )
    for labels in ({}, {"labels": torch.arange(5)}, {"label": torch.arange(5)}):
        assert_same(mas_importance(model, [kind({"image": image, "text": text, **labels})]), expected)


Pair = namedtuple("Pair", ["a", "b"])


def as_dict(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"a": a, "b": b}


def as_user_dict(a: Tensor, b: Tensor) -> UserDict:
    return UserDict(as_dict(a, b))  # as tokenizers return


@pytest.mark.parametrize("batch_of", [lambda a, b: (a, b), lambda a, b: [a, b], Pair, as_dict, as_user_dict])
def test_forward_gets_the_whole_batch_and_the_model_itself(batch_of: Callable, caplog: pytest.LogCaptureFixture):
    model, x = mlp()
    first_layer, _, last_layer = model.children()
    caplog.set_level(logging.INFO, "tripletmas")

    def forward(callee: nn.Module, batch: Any) -> Tensor:
        first, second = batch.values() if isinstance(batch, dict) else batch
        assert isinstance(batch, dict if batch_of is as_user_dict else type(batch_of(x, x)))
        assert callee is model
        assert next(callee.parameters()).dtype == torch.float64
        return last_layer(first_layer(first - second).relu())  # its parts, as a method of its own calls them

    expected = oracles.mas_importance(model, (-x).split(1))
    assert_same(mas_importance(model, [batch_of(x, 2 * x)], forward=forward), expected)
    assert_same(mas_importance(model, [batch_of(x, 2 * x)], forward=lambda _, batch: forward(model, batch)), expected)
    assert SLOW not in caplog.text


def test_what_is_no_tensor_in_a_batch_reaches_forward(caplog: pytest.LogCaptureFixture):
    model, x = mlp()
    batches = [{"x": x, "source": "camera 1"}]
    found = mas_importance(model, batches, forward=lambda model, batch: model(batch["x"]))
    assert_same(found, oracles.mas_importance(model, x.split(1)))


def test_layer_is_measured_in_place_of_the_output():
    model, x = mlp()
    whole = nn.Sequential(model, nn.Softmax(1), nn.Linear(3, 3)).double()
    found = mas_importance(whole, [x], layer="0")
    assert_same({name: found[f"0.{name}"] for name, _ in model.named_parameters()}, mas_importance(model, [x]))
    assert not found["2.weight"].any()  # it comes later


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("by", PATHS)
def test_layer_is_measured_before_the_next_one_changes_it(inplace: bool, by: str, monkeypatch: pytest.MonkeyPatch):
    take(by, monkeypatch)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace)).double(), torch.randn(9, 6).double()
    expected = oracles.mas_importance(model[0], x.split(1))
    assert_same(mas_importance(model, [x], layer="0"), {f"0.{k}": v for k, v in expected.items()})


class Normalized(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.model(x), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "layer called twice", "attention", "lstm"])
def test_a_normalised_output_is_refused_and_its_layer_is_not(name: str, count: int, dtype: torch.dtype):
    model, x = made(name, count)
    model, x = model.to(dtype), x.to(dtype)
    normalized = Normalized(model)
    with pytest.raises(ValueError, match=r"zero everywhere.*layer='NAME'"):
        mas_importance(normalized, [x])
    before = mas_importance(normalized, [x], layer="model")
    assert_same({k.removeprefix("model."): v for k, v in before.items()}, mas_importance(model, [x]), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_normalised_model_in_float32_is_refused(seed: int):
    torch.manual_seed(seed)
    wide = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64))
    with pytest.raises(ValueError, match="layer='NAME'"):
        mas_importance(Normalized(wide), [torch.randn(8, 64)])


def test_equal_lengths_alone_are_no_reason_to_refuse():
    model, x = mlp()
    same = x[:1].expand(4, -1)
    assert_same(mas_importance(model, [same]), oracles.mas_importance(model, x[:1].split(1)))


# --- errors


class Constant(nn.Module):
    def __init__(self, output: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.weight * x)


def nan_at_sample_five(x: Tensor) -> Tensor:
    return torch.where(x[:, :1] == 5, torch.nan, x)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (nan_at_sample_five, "not finite for sample 5 of the importance data"),
        # the slope of a root at 0 is infinite, and 0 * inf is nan; x is 0 in the first sample
        (lambda x: x.square().sum(1, keepdim=True).sqrt(), "the gradient of parameter 'weight' is not finite"),
        (lambda x: (x, x), r"the model returns a tuple, not a tensor: give forward="),
        (lambda x: {"embedding": x}, r"the model returns a dict, not a tensor: give forward="),
        (lambda x: x.sum(), r"shape \(\), expected one row a sample"),
        (lambda x: x.flatten(), r"shape \(3,\), expected one row a sample"),
        (lambda x: x.detach(), "zero everywhere"),
        (lambda x: x * 0, "zero everywhere.*collapsed"),
    ],
)
@pytest.mark.parametrize("by", PATHS)
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_what_a_model_can_get_wrong(
    output: Callable, message: str, by: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
):
    take(by, monkeypatch)
    x = torch.arange(8.0).unsqueeze(1).expand(-1, 3)
    with pytest.raises(ValueError, match=message):
        mas_importance(Constant(output), x.split(batch_size))


def test_what_a_caller_can_get_wrong():
    model, x = mlp()
    for nothing in ([], [x[:0]], iter(())):
        with pytest.raises(ValueError, match="at least one sample, and the batches were empty"):
            mas_importance(model, nothing)
    with pytest.raises(ValueError, match="has no layer 'head'; its layers are: 0, 1, 2"):
        mas_importance(model, [x], layer="head")
    with pytest.raises(ValueError, match="no layer ''"):
        mas_importance(model, [x], layer="")
    with pytest.raises(ValueError, match=r"layer 'layer' ran 2 times in one forward pass"):
        mas_importance(*_batches("layer called twice"), layer="layer")
    with pytest.raises(ValueError, match="no trainable parameter"):
        mas_importance(model.requires_grad_(False), [x])
    with pytest.raises(ValueError, match=r"one row a sample, got lengths \[9, 8\]"):
        mas_importance(model.requires_grad_(True), [{"x": x, "y": x[:8]}], forward=lambda model, batch: model(batch))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # a mistake of the caller's comes through as it is
        mas_importance(model, [x[:, :5]])


def _batches(name: str) -> tuple[nn.Module, list[Tensor]]:
    model, x = made(name)
    return model, [x]


# --- no trace


def state(model: nn.Module) -> dict[str, Any]:
    def copied(value: Tensor | None) -> Any:
        return None if value is None else value.detach().clone()

    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return {
        "state": {name: copied(value) for name, value in model.state_dict().items()},
        "grad": {name: copied(p.grad) for name, p in model.named_parameters()},
        "identity": {name: (id(p), id(p.grad)) for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "hooks": hooks,
        "modes": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
    }


def assert_equal_state(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal_state(found[key], value)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def used_model(name: str) -> tuple[nn.Module, Tensor]:
    """A model in the middle of training: gradients on some parameters, some submodules in eval mode."""
    model, x = made(name)
    model.train()
    model(x).sum().backward()
    modules = list(model.modules())
    modules[-1].eval()
    first = next(model.parameters())
    first.grad = None
    return model, x


@pytest.mark.parametrize("name", ["conv", "data dependent", "lstm", "frozen trunk"])
@pytest.mark.parametrize("layer", [False, True])
def test_measuring_leaves_everything_as_it_was(name: str, layer: bool):
    model, x = used_model(name)
    before = state(model)
    drawn = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    last = [key for key, _ in model.named_modules()][-1] if layer and name != "data dependent" else None
    with torch.no_grad():
        mas_importance(model, x.split(4), layer=last)
    mas_importance(model, x.split(4), layer=last)
    assert_equal_state(state(model), before)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (random.getstate(), str(np.random.get_state())) == drawn[1:]  # noqa: NPY002


def test_batches_may_draw_random_numbers():
    model, x = mlp()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2, shuffle=True)
    assert_same(mas_importance(model, loader), mas_importance(model, [x]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", [None, "5"])
def test_an_exception_in_the_middle_leaves_everything_as_it_was(layer: str | None):
    model, x = used_model("conv")
    before, drawn = state(model), torch.get_rng_state()

    def interrupted() -> Iterator[Tensor]:
        yield x
        torch.rand(1)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        mas_importance(model, interrupted(), layer=layer)
    for broken in (torch.full_like(x, torch.nan), x[:, :1]):
        with pytest.raises((ValueError, RuntimeError)):
            mas_importance(model, [x, broken], layer=layer)
    assert_equal_state(state(model), before)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_measured_in_eval_mode_outside_autocast():
    model, x = made("conv")
    expected = oracles.mas_importance(model, x.split(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(mas_importance(model.train(), [x]), expected)
    model32 = model.float()
    expected = mas_importance(model32, [x.float()])
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(mas_importance(model32, [x.float()]), expected)


# --- names


def test_wrapped_models_have_the_names_of_the_bare_one():
    model, x = mlp()
    expected = mas_importance(model, [x])
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        nn.DataParallel(torch.compile(model, backend="eager")),  # pyright: ignore[reportArgumentType]
        AveragedModel(model),
    ):
        assert_same(mas_importance(wrapped, [x]), expected)  # pyright: ignore[reportArgumentType]
    model.compile(backend="eager")
    assert_same(mas_importance(model, [x]), expected)


def test_layer_and_forward_see_the_bare_model():
    model, x = mlp()
    expected = mas_importance(model, [x], layer="0")
    wrapped = nn.DataParallel(model)
    assert_same(mas_importance(wrapped, [x], layer="0"), expected)
    assert_same(mas_importance(wrapped, [x], forward=lambda model, x: model.get_submodule("0")(x)), expected)


def test_a_wrapper_deep_inside():
    torch.manual_seed(0)
    inner, x = nn.Linear(6, 4).double(), torch.randn(9, 6).double()
    plain = nn.Sequential(inner, nn.Tanh(), nn.Linear(4, 3).double())
    expected = mas_importance(plain, [x])
    wrapped = nn.Sequential(nn.DataParallel(inner), *plain[1:])
    assert_same(mas_importance(wrapped, [x]), expected)


def test_frozen_parameters_are_left_out_and_idle_ones_are_zero():
    model, x = made("frozen trunk")
    assert list(mas_importance(model, [x])) == ["2.weight", "2.bias"]
    model, x = made("partly used")
    found = mas_importance(model, [x])
    assert found["used.weight"].all()
    assert not found["idle.weight"].any()
    model, x = made("tied weights")
    assert list(mas_importance(model, [x])) == ["down.weight", "down.bias"]  # counted once
