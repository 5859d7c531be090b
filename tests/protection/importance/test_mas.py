"""Importance of MAS: by its definition, in every way in which a model is called, and loud where there is none."""

from __future__ import annotations

import logging
from collections import UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from architectures import made
from importance_cases import SLOW, assert_same
from torch import Tensor, nn

from tripletmas.protection.engine import single
from tripletmas.protection.engine.by_rules import ByRules
from tripletmas.protection.importance.mas import mas_importance


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(6, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.image(image) * self.text(text)


PATHS = {"by rules": None, "by torch.func": 64, "in chunks": 4, "one by one": 1}


def take(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path != "by rules":
        monkeypatch.setattr(ByRules, "is_no_use", lambda _: True)
        monkeypatch.setattr(single, "_LARGEST_CHUNK", PATHS[path])


# --- the definition


@pytest.mark.parametrize("by", PATHS)
@pytest.mark.parametrize("name", ["mlp", "conv", "attention", "layer called twice"])
def test_all_paths_give_the_same(name: str, by: str, monkeypatch: pytest.MonkeyPatch):
    model, x = made(name)
    take(by, monkeypatch)
    assert_same(mas_importance(model, [x]), oracles.mas_importance(model, x.split(1)))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        # F = w x: d F^2 / d w_i = 2 F x_i. Samples (1, 2): F = 3, 6 and 12; (-3, 0): F = -3, 18 and 0
        ([[1.0, 2.0], [-3.0, 0.0]], [[12.0, 6.0]]),
        # (2, 1): F = 3, gradient (12, 6); (2, -5): F = -3, gradient (-12, 30), which must not cancel the other's
        ([[2.0, 1.0], [2.0, -5.0]], [[12.0, 18.0]]),
    ],
)
def test_values_by_hand(x: list, expected: list):
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    assert mas_importance(layer, [torch.tensor(x)])["weight"].tolist() == expected
    # relative: divided by the mean squared length, (9 + 9) / 2 = 9
    relative = mas_importance(layer, [torch.tensor(x)], relative=True)
    torch.testing.assert_close(relative["weight"], torch.tensor(expected) / 9)


@pytest.mark.parametrize("c", [0.1, 7.0])
@pytest.mark.parametrize(("output", "power"), [("squared_length", 2), ("vector", 1)])
def test_the_scale_of_the_output(output: Any, power: int, c: float):
    model, x = made("mlp")
    absolute, relative = (mas_importance(model, [x], output=output, relative=relative) for relative in (False, True))
    mean = model(x).detach().square().sum(1).mean()  # the vector form's is relative to its root
    assert_same(relative, {name: value / mean ** (power / 2) for name, value in absolute.items()})

    def scaled(model: nn.Module, x: Tensor) -> Tensor:
        return c * model(x)

    found = mas_importance(model, [x], output=output, forward=scaled)
    assert_same(found, {name: c**power * value for name, value in absolute.items()})
    assert_same(mas_importance(model, [x], output=output, forward=scaled, relative=True), relative)


def test_idle_parameters_are_zero_and_tied_ones_counted_once():
    model, x = made("partly used")
    found = mas_importance(model, [x])
    assert found["used.weight"].all()
    assert not found["idle.weight"].any()
    model, x = made("tied weights")
    assert list(mas_importance(model, [x])) == ["down.weight", "down.bias"]


# --- ways to call a model

Pair = namedtuple("Pair", ["a", "b"])


def as_dict(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"a": a, "b": b}


def as_user_dict(a: Tensor, b: Tensor) -> UserDict:
    return UserDict(as_dict(a, b))  # as tokenizers return


def test_labels_play_no_part():
    model, x = made("mlp")
    expected = mas_importance(model, [x])
    labels = torch.arange(9)
    for batch in [(x, labels), [x, labels.flip(0)], (x, labels, labels), Pair(x, labels)]:
        assert_same(mas_importance(model, [batch]), expected)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_dict_batches_are_keyword_arguments(kind: type):
    torch.manual_seed(0)
    model, image, text = TwoInputs().double(), torch.randn(5, 6).double(), torch.randn(5, 2).double()
    expected = oracles.mas_importance(
        model, zip(image.split(1), text.split(1), strict=True), lambda model, pair: model(*pair)
    )
    for labels in ({}, {"labels": torch.arange(5)}, {"label": torch.arange(5)}):
        assert_same(mas_importance(model, [kind({"image": image, "text": text, **labels})]), expected)


@pytest.mark.parametrize("batch_of", [lambda a, b: (a, b), lambda a, b: [a, b], Pair, as_dict, as_user_dict])
def test_forward_gets_the_whole_batch_and_the_model_itself(batch_of: Callable, caplog: pytest.LogCaptureFixture):
    model, x = made("mlp")
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


def test_what_is_no_tensor_reaches_forward_and_lists_with_an_item_for_each_sample_are_split_with_them():
    model, x = made("mlp", count=6)
    factors = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    def forward(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        assert batch["source"] == "camera 1"
        return model(batch["x"] * torch.tensor(batch["factor"], dtype=torch.float64)[:, None]) * batch["all"]

    one = torch.tensor(2.0, dtype=torch.float64)
    batch = {"x": x, "factor": factors, "all": one, "source": "camera 1"}
    scaled = x * torch.tensor(factors, dtype=torch.float64)[:, None]
    expected = {name: 4 * value for name, value in oracles.mas_importance(model, scaled.split(1)).items()}
    assert_same(mas_importance(model, [batch], forward=forward), expected)


def test_layer_and_forward_see_the_bare_model():
    model, x = made("mlp")
    expected = mas_importance(model, [x], layer="0")
    wrapped = nn.DataParallel(model)
    assert_same(mas_importance(wrapped, [x], layer="0"), expected)
    assert_same(mas_importance(wrapped, [x], forward=lambda model, x: model.get_submodule("0")(x)), expected)
    inner = nn.Sequential(nn.DataParallel(model[0]), *model[1:])  # a wrapper deep inside
    assert_same(mas_importance(inner, [x]), mas_importance(model, [x]))


# --- a layer in place of the output


def test_layer_is_measured_in_place_of_the_output():
    model, x = made("mlp")
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
    expected = {f"model.{name}": value for name, value in mas_importance(model, [x]).items()}
    assert_same(mas_importance(normalized, [x], layer="model"), expected, rtol=1e-6)
    # compiled, and with a dict for output and input
    compiled: Any = torch.compile(normalized, backend="eager")
    found = mas_importance(
        compiled,
        [{"x": x, "labels": torch.arange(count)}],
        layer="model",
        forward=lambda model, batch: {"embedding": model(batch["x"])}["embedding"],
    )
    assert_same(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_a_single_sample_is_no_normalised_output_however_large_the_weights_are(size: float):
    """Its length equals itself. F = w x with x = 1: d F^2 / d w = 2 w."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, size)
    assert mas_importance(layer, [torch.ones(1, 1)])["weight"].item() == pytest.approx(2 * size, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_normalised_model_in_float32_is_refused(seed: int):
    torch.manual_seed(seed)
    wide = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64))
    with pytest.raises(ValueError, match="layer='NAME'"):
        mas_importance(Normalized(wide), [torch.randn(8, 64)])


def test_equal_lengths_alone_are_no_reason_to_refuse():
    model, x = made("mlp")
    same = x[:1].expand(4, -1)
    assert_same(mas_importance(model, [same]), oracles.mas_importance(model, x[:1].split(1)))
    # an adapter that has learned nothing, and one sample
    adapted, x = made("low rank", count=1)
    nn.init.zeros_(adapted.get_submodule("up").weight)  # pyright: ignore[reportArgumentType]
    assert_same(mas_importance(adapted, [x]), oracles.mas_importance(adapted, [x]))


# --- errors


class Constant(nn.Module):
    def __init__(self, output: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.weight * x)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: torch.where(x[:, :1] == 5, torch.nan, x), "not finite for sample 5 of the importance data"),
        # the slope of a root at 0 is infinite, and 0 * inf is nan; x is 0 in the first sample
        (lambda x: x.square().sum(1, keepdim=True).sqrt(), "the gradient of parameter 'weight' is not finite"),
        (lambda x: (x, x), r"returns a tuple with 0 \(\d, 3\), 1 \(\d, 3\), any of which may be meant: give forward="),
        (lambda x: "nothing", r"the model returns a str, not a tensor: give forward="),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "head"}, "has no layer 'head'; its layers are: layer, other"),
        ({"layer": ""}, "no layer ''"),
        ({"layer": "layer"}, r"layer 'layer' ran 2 times in one forward pass"),
        ({"output": "length"}, "output must be 'squared_length' or 'vector', got 'length'"),
        ({"approximate": "layer"}, "approximate must be None"),
        ({"forward": lambda model, x: model(x) * 0}, "zero everywhere"),
        ({"forward": lambda model, x: model(x).detach(), "output": "vector"}, "zero everywhere"),
    ],
)
def test_what_a_caller_can_get_wrong(options: dict, message: str):
    model, x = made("layer called twice")
    with pytest.raises(ValueError, match=message):
        mas_importance(model, [x], **options)


def test_batches_that_do_not_fit():
    model, x = made("mlp")
    with pytest.raises(ValueError, match=r"one row a sample, got lengths \[9, 8\]"):
        mas_importance(model, [{"x": x, "y": x[:8]}], forward=lambda model, batch: model(batch))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # a mistake of the caller's comes through as it is
        mas_importance(model, [x[:, :5]])
