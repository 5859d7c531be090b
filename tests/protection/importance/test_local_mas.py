"""Local importance: each layer by itself, Hebb's rule on ReLU layers, and layers it does not know named."""

from __future__ import annotations

from collections.abc import Callable

import oracles
import pytest
import torch
import torch.nn.functional as F
from architectures import ResidualInPlace, Twice, settled
from importance_cases import assert_same
from torch import Tensor, nn

from tripletmas import LocalMAS, make_model
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance


def mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(True), nn.Linear(5, 3))
    return model.double(), torch.randn(9, 6, dtype=torch.float64)


def test_hebb_by_loops():
    """Omega_ij = (2/n) sum_k y_i y_j for what goes in and what comes out of a ReLU layer, as numbers."""
    model, x = mlp()
    x = x.abs()  # not signed, so that no absolute value is needed
    with torch.no_grad():
        first = torch.relu(model[0](x))
        second = torch.relu(model[2](first))
    found = local_mas_importance(model, [x])
    for name, before, after in (("0.weight", x, first), ("2.weight", first, second)):
        weight = found[name]
        for i in range(weight.shape[0]):
            for j in range(weight.shape[1]):
                hebb = 2 / len(x) * sum(float(after[k, i] * before[k, j]) for k in range(len(x)))
                assert float(weight[i, j]) == pytest.approx(hebb, rel=1e-10)


# name -> model, shape of a sample, and its layers: (names of parameters, layer by itself)
def chain() -> tuple[nn.Module, tuple[int, ...], list[tuple[str, slice]]]:
    model, _ = mlp()
    return model, (6,), [("0", slice(0, 2)), ("2", slice(2, 4)), ("4", slice(4, 5))]


def convolutional() -> tuple[nn.Module, tuple[int, ...], list[tuple[str, slice]]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 4, 2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4)),
    )
    model = settled(model, 2, 6, 6).double()
    return model, (2, 6, 6), [("0", slice(0, 3)), ("4", slice(4, 6)), ("7", slice(7, 9))]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("make", [chain, convolutional])
def test_equals_each_layer_measured_alone(make: Callable, batch_size: int):
    """A layer's input, then the oracle of the whole-model importance on that layer as a model of its own."""
    model, shape, layers = make()
    x = torch.randn(9, *shape, dtype=torch.float64)
    found = local_mas_importance(model, x.split(batch_size))
    assert list(found) == [name for name, _ in model.named_parameters()]
    model.eval()
    expected = {}
    for _, part in layers:
        inputs = model[: part.start](x).detach().clone()
        alone = oracles.mas_importance(model[part].eval(), inputs.split(1))
        expected |= alone
        model.zero_grad()
    assert_same(found, {name: expected[name] for name in found})
    relative = local_mas_importance(model, x.split(batch_size), relative=True)
    for name, part in layers:
        length = model[: part.stop](x).detach().square().flatten(1).sum(1).mean()
        own = {key: value / length for key, value in found.items() if part.start <= int(key[0]) < part.stop}
        assert_same({key: relative[key] for key in own}, own)
        assert any(key.startswith(name) for key in own)


def test_a_later_layer_has_no_influence_on_an_earlier_one():
    model, x = mlp()
    before = local_mas_importance(model, [x])
    whole = mas_importance(model, [x])
    with torch.no_grad():
        model[4].weight.normal_()
        model[2].weight.normal_()
    after, whole_after = local_mas_importance(model, [x]), mas_importance(model, [x])
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.allclose(before["2.weight"], after["2.weight"])
    assert not torch.allclose(whole["0.weight"], whole_after["0.weight"])


def test_signed_inputs_do_not_cancel():
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 3.0)
    # 2 (3 x) x = 6 x^2 without an activation; of inputs 1 and -1 the mean is 6. Behind a ReLU the second has none: 3.
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert local_mas_importance(layer, [x])["weight"].item() == pytest.approx(6.0)
    assert local_mas_importance(nn.Sequential(layer, nn.ReLU()), [x])["0.weight"].item() == pytest.approx(3.0)
    # two samples whose products of input and output have opposite signs in a weight: y = x1 + x2, gradients 2 y x1
    wide = nn.Linear(2, 1, bias=False).double()
    nn.init.ones_(wide.weight)
    x = torch.tensor([[2.0, 1.0], [-3.0, 5.0]], dtype=torch.float64)  # y = 3 and 2: 2*3*2 = 12 and 2*2*(-3) = -12
    assert local_mas_importance(wide, [x])["weight"][0, 0].item() == pytest.approx(12.0)


def test_a_residual_connection_is_not_part_of_a_layer():
    torch.manual_seed(0)
    model, x = settled(ResidualInPlace(), 2, 6, 6).double(), torch.randn(5, 2, 6, 6, dtype=torch.float64)
    found = local_mas_importance(model, [x])
    model.eval()
    inner = nn.Sequential(model.one, model.norm1, nn.ReLU())
    outer = nn.Sequential(model.two, model.norm2)  # its output is signed: the ReLU comes after the sum
    middle = inner(x).detach()
    expected = {
        **oracles.mas_importance(inner, x.split(1)),
        **{f"2.{k}": v for k, v in oracles.mas_importance(outer, middle.split(1)).items()},
    }
    assert_same(found, dict(zip(found, expected.values(), strict=True)))


def test_a_layer_called_twice_counts_once_a_sample():
    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(9, 6, dtype=torch.float64)
    total = torch.zeros(6, 6, dtype=torch.float64)
    for sample in x:
        weight = model.layer.weight.detach().clone().requires_grad_()
        first = F.linear(sample, weight, model.layer.bias.detach()).tanh()
        second = F.linear(first.detach(), weight, model.layer.bias.detach()).relu()
        (first.square().sum() + second.square().sum()).backward()
        total += weight.grad.abs()  # pyright: ignore[reportOptionalMemberAccess]
    torch.testing.assert_close(local_mas_importance(model, [x])["layer.weight"], total / len(x))


class TwoActivations(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.head(x.tanh() * x.sigmoid())


def various() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 2))


def test_layers_it_does_not_know_can_be_left_out():
    x = torch.randn(4, 3)
    found = local_mas_importance(various(), [x], left_out=["1", "2.weight"])
    assert list(found) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert list(local_mas_importance(TwoActivations(), [x], left_out=["layer"])) == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("model", "left_out", "message"),
    [
        (various, [], r"not for 1, 2 \(.*Name them in left_out="),
        (various, ["head"], "left_out: no trainable parameter is, or is in, 'head'; there are 0, 1, 2, 3"),
        (various, "1", "left_out must be a list of names, got the text '1'"),
        (various, ["0", "1", "2", "3"], "no trainable parameter"),
        (TwoActivations, [], "not for layer "),
        (lambda: nn.LSTM(3, 3), [], "not for weight_ih_l0"),
    ],
)
def test_layers_that_cannot_be_measured_are_named(model: Callable, left_out: list[str], message: str):
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        output = model(x)
        return output[0] if isinstance(model, nn.LSTM) else output

    with pytest.raises(ValueError, match=message):
        local_mas_importance(model(), [torch.randn(4, 3)], left_out=left_out, forward=forward)


def test_outputs_of_zero_are_an_error():
    with pytest.raises(ValueError, match="zero everywhere"):
        local_mas_importance(nn.Sequential(nn.Linear(2, 2, bias=False)), [torch.zeros(3, 2)])


@pytest.mark.parametrize("name", ["mlp", "conv4", "resnet18"])
def test_the_projects_models_can_be_measured(name: str):
    torch.manual_seed(0)
    shape = (1, 32, 32) if name != "mlp" else (6,)
    model = make_model(name, shape)
    found = local_mas_importance(model, [torch.randn(3, *shape), torch.randn(2, *shape)])
    assert list(found) == [key for key, _ in model.named_parameters()]
    assert all(bool(value.any()) for value in found.values())


def test_in_a_protection(tmp_path):
    model, x = mlp()
    local = LocalMAS(model, 2.0, left_out=["4"])
    importance = local.consolidate([x])
    assert_same(importance, local_mas_importance(model, [x], relative=True, left_out=["4"]))
    assert local.coverage().new == ("4.bias", "4.weight")
    local.save(tmp_path / "local.safetensors")
    loaded = type(local).load(tmp_path / "local.safetensors", model)
    assert_same(loaded.importance, local.importance)
    assert_same(loaded.estimate(model, [x]), importance)
