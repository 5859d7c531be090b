"""Changes of low rank: as peft trains them, with penalties on the weights that they make."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from tripletmas.basics.weights import named_parameters, snapshot, state_of, trainable
from tripletmas.models.lora import Factors, adapt, factors_of
from tripletmas.models.making import make_model
from tripletmas.models.parts import freeze, still_norms
from tripletmas.protection.guard import Guard
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.importance.uniform import uniform_importance
from tripletmas.protection.protection import Protection
from tripletmas.protection.structured.gram import Gram
from tripletmas.runs.options import TrainConfig, make_optimizer

RANK = 2


def network() -> nn.Module:
    """A convolution, a strided one in groups, two linear layers, normalisations, and a last layer."""
    torch.manual_seed(0)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(3, 8, 3, padding=1),
        norm=nn.BatchNorm2d(8),
        relu=nn.ReLU(),
        pooled=nn.AdaptiveAvgPool2d(2),
        flat=nn.Flatten(),
        one=nn.Linear(32, 12),
        tanh=nn.Tanh(),
        two=nn.Linear(12, 9, bias=False),
        last=nn.Linear(9, 4),
    )
    return nn.Sequential(layers).double()


ADAPTED = ("conv.weight", "one.weight", "two.weight")


def images(n: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def optimizer_of(model: nn.Module, factors: Factors, **options: Any) -> torch.optim.Optimizer:
    return make_optimizer(model, nn.TripletMarginLoss(), TrainConfig(**options), factors=factors.parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    model.eval()
    for number in range(steps):
        optimizer.zero_grad()
        model(images(seed=number)).square().sum().backward()
        optimizer.step()


def test_what_is_trained():
    model = adapt(network(), RANK)
    assert set(trainable(model)) == {*ADAPTED, "last.weight", "last.bias"}
    assert still_norms(model) == [model.get_submodule("norm")]
    factors = factors_of(model)
    assert factors
    shapes = {key: tuple(value.shape) for key, value in factors.state_dict().items()}
    assert shapes == {
        "conv.weight/A": (2, 27),
        "conv.weight/B": (8, 2),
        "one.weight/A": (2, 32),
        "one.weight/B": (12, 2),
        "two.weight/A": (2, 12),
        "two.weight/B": (9, 2),
    }
    freeze(model, "one")
    assert "one.weight/A" not in (factors_of(model) or factors).state_dict()
    assert factors_of(network()) is None


def test_a_matrix_that_factors_would_not_make_smaller_is_trained_itself():
    model = adapt(network(), 6)  # of two: 6 * (12 + 9) > 12 * 9
    factors = factors_of(model)
    assert factors
    assert "two.weight/A" not in factors.state_dict()
    assert "two.weight" in trainable(model)
    before = snapshot(state_of(model))
    optimizer = optimizer_of(model, factors)
    factors.attach(optimizer)
    train(model, optimizer, 1)
    assert not torch.equal(named_parameters(model)["two.weight"], before["two.weight"])


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_that_cannot_be(rank: int):
    with pytest.raises(ValueError, match=f"lora must be a rank >= 1, or null for none, got {rank}"):
        adapt(network(), rank)


def test_nothing_to_adapt():
    with pytest.raises(ValueError, match="lora 20: no linear or convolution layer before the last is so large"):
        adapt(network(), 20)
    with pytest.raises(ValueError, match="lora 2: no linear or convolution layer before the last"):
        make_model("mlp", (4,), options={"hidden": (), "dim": 3, "lora": 2})


def in_peft(model: nn.Module) -> Any:
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=["conv", "one", "two"], modules_to_save=["last"], lora_dropout=0.0
    )
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("options", [{"optimizer": "sgd", "lr": 0.01}, {"lr": 0.01, "weight_decay": 0.1}])
def test_trains_as_peft_does(options: dict[str, Any]):
    """The twin keeps the factors beside the weights, as the paper does; outputs and merged weights are the same."""
    twin = in_peft(network()).double()
    model = adapt(network(), RANK)
    factors = factors_of(model)
    assert factors
    theirs = {name: value for name, value in twin.named_parameters() if ".lora_" in name}
    start = {
        f"{name}.weight/{x}": theirs[f"base_model.model.{name}.lora_{x}.default.weight"]
        for name in ("conv", "one", "two")
        for x in "AB"
    }
    factors.load_state_dict({key: value.detach().flatten(1) for key, value in start.items()})
    optimizer = optimizer_of(model, factors, **options)
    factors.attach(optimizer)
    config = TrainConfig(**options)
    other = make_optimizer(twin, nn.TripletMarginLoss(), config)
    assert sum(p.numel() for p in twin.parameters() if p.requires_grad) == sum(
        p.numel() for p in (*factors.parameters(), *model.get_submodule("last").parameters())
    )
    for _ in range(3):
        train(model, optimizer)
        train(twin, other)
        torch.testing.assert_close(model(images(seed=9)), twin(images(seed=9)), rtol=1e-9, atol=1e-12)
    merged = twin.merge_and_unload()
    for name, value in named_parameters(model).items():
        torch.testing.assert_close(value, named_parameters(merged)[name], rtol=1e-9, atol=1e-12)
    change = (named_parameters(model)["one.weight"] - named_parameters(network())["one.weight"]).detach()
    assert int((torch.linalg.svdvals(change) > 1e-10).sum()) == RANK


def protections(model: nn.Module) -> dict[str, Guard]:
    return {
        "mas": Protection(model, strength=0.7, estimate=mas_importance),
        "l2": Protection(model, strength=0.7, estimate=uniform_importance),
        "gram": Gram(model, strength=0.7),
        "gram with a budget": Gram(model, 0.9),
    }


@pytest.mark.parametrize("kind", ["mas", "l2", "gram", "gram with a budget"])
def test_the_penalty_on_the_weights_flows_to_the_factors(kind: str):
    """Its gradient is that of the penalty written on W_0 + B A, by autograd."""
    model = adapt(network(), RANK)
    guard = protections(model)[kind]
    model.eval()
    guard.consolidate([images()])
    factors = factors_of(model)
    assert factors
    for factor in factors.parameters():  # in the middle of a task
        nn.init.normal_(factor, std=0.05)
    start = snapshot(named_parameters(model))
    leaves = {key: value.clone().requires_grad_() for key, value in factors.state_dict().items()}
    for name in ADAPTED:
        merged = start[name] + (leaves[f"{name}/B"] @ leaves[f"{name}/A"]).detach().view(start[name].shape)
        named_parameters(model)[name].data.copy_(merged)
    optimizer = optimizer_of(model, factors, optimizer="sgd", lr=1e-3, momentum=0.0)
    guard.attach(optimizer)
    factors.attach(optimizer)
    written = value_at(guard, leaves)
    expected = dict(zip(leaves, torch.autograd.grad(written, list(leaves.values())), strict=True))
    optimizer.step()
    for key, factor in zip(factors.state_dict(), factors.parameters(), strict=True):
        assert factor.grad is not None
        torch.testing.assert_close(factor.grad, expected[key], rtol=1e-9, atol=1e-12)
        assert expected[key].any()


def value_at(guard: Guard, leaves: dict[str, Tensor]) -> Tensor:
    """The penalty where W is W_0 + B A, by its gradient with respect to W, which is checked elsewhere."""
    weights = {name: each for name, each in named_parameters(guard.model).items() if name in ADAPTED}
    pulls = torch.autograd.grad(guard.value(), list(weights.values()))
    terms = [
        (pull * (leaves[f"{name}/B"] @ leaves[f"{name}/A"]).view(pull.shape)).sum()
        for name, pull in zip(weights, pulls, strict=True)
    ]
    return torch.stack(terms).sum()


def test_what_a_guard_brings_back_stays():
    """Gram moves weights themselves to within its budget; the steps of the factors go on from there."""
    model = adapt(network(), RANK)
    model.eval()
    gram = Gram(model, 0.01)
    gram.consolidate([images()])
    factors = factors_of(model)
    assert factors
    optimizer = optimizer_of(model, factors, lr=0.05)
    gram.attach(optimizer)
    factors.attach(optimizer)
    train(model, optimizer, 10)
    gram.settle()
    assert max(gram.shares().values()) <= 0.01**2 * 1.0011  # although biases are frozen, and cannot help
    settled = snapshot(named_parameters(model))
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    torch.testing.assert_close(snapshot(named_parameters(model)), settled, rtol=0.05, atol=1e-3)


def test_attention_whose_weights_are_packed():
    """Queries, keys and values are one matrix, and change by one product."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = adapt(nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3)), 1)
    factors = factors_of(model)
    assert factors
    assert tuple(factors.state_dict()["0.self_attn.in_proj_weight/B"].shape) == (24, 1)
    optimizer = optimizer_of(model, factors)
    factors.attach(optimizer)
    before = snapshot(state_of(model))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(4, 3, 8)).square().sum().backward()
        optimizer.step()
    moved = {name for name, value in state_of(model).items() if not torch.equal(value, before[name])}
    assert moved == set(trainable(model)) >= {"0.self_attn.in_proj_weight", "0.linear1.weight", "2.bias"}


def test_factors_of_another_rank_are_refused():
    one, other = (factors_of(adapt(network(), rank)) for rank in (2, 3))
    assert one
    assert other
    with pytest.raises(ValueError, match=r"factors \(lora\) of other weights or another rank"):
        one.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("timm:test_vit", (3, 32, 32), {"dim": 4}),
        ("timm:test_efficientnet", (3, 32, 32), {"dim": 4}),
        ("conv4", (1, 16, 16), {"width": 16, "dim": 4}),  # channels last
        ("mlp", (16,), {"dim": 4}),
    ],
)
def test_models_by_name(name: str, shape: tuple[int, ...], options: dict[str, Any]):
    model = make_model(name, shape, options=options | {"lora": 4})
    factors = factors_of(model)
    assert factors
    plain = make_model(name, shape, options=options)
    assert state_of(model).keys() == state_of(plain).keys()
    optimizer = optimizer_of(model, factors)
    factors.attach(optimizer)
    before = snapshot(named_parameters(model))
    model.train()
    model(torch.rand(2, *shape)).square().sum().backward()
    optimizer.step()
    optimizer.step()  # B is no longer 0
    moved = {key for key, value in named_parameters(model).items() if not torch.equal(value, before[key])}
    assert {key.removesuffix("/A") for key in factors.state_dict() if key.endswith("/A")} <= moved
    assert moved <= set(trainable(model))
