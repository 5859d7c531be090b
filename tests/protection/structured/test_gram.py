"""Gram: what it holds equals what the layers answer, recomputed; its gradient, several tasks, budgets, files."""

from __future__ import annotations

import copy
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from architectures import ARCHITECTURES, made
from oracles import moved_responses
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW

from tripletmas.basics.weights import trainable
from tripletmas.protection.protection import MAS, Protection
from tripletmas.protection.structured.budget import most_for_sgd, next_multipliers
from tripletmas.protection.structured.gram import Gram
from tripletmas.protection.structured.gram_matrix import square
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.moments import diagonals, relative_grams

# Parameters that lie in no layer, or in one whose answer is not linear in them: held by their own length.
ALONE = {
    "tied, transposed": set(),
    "convolution used elsewhere": set(),
    "tokens, positions, scales": {"token", "positions", "scale"},
    "free parameters otherwise": {"mixer", "row"},
    "windows": {"bias"},
    "windows, other order": {"bias"},
    "data written into a constant": {"scale"},
    "weight norm": {"bias", "parametrizations.weight.original0", "parametrizations.weight.original1"},
    "weight norm, convolution": {"0.bias", *(f"0.parametrizations.weight.original{i}" for i in (0, 1))},
    "computed weight in two places": {"layer.parametrizations.weight.original"},
    "own autograd function": {"weight"},
    "partly used": {"idle.weight", "idle.bias"},
    "data dependent": {"positive.weight", "positive.bias"},  # which these samples do not use
}
# Their modules are no layers, or call weights of others: `moved_responses` cannot tell.
NOT_BY_MODULES = (
    *("tied, transposed", "layer called twice", "tied weights", "attention", "attention, positions first"),
    *("transformer layer", "vit", "swin", "cross attention", "spectral norm", "samples influence each other"),
    *(name for name in ARCHITECTURES if re.match("lstm|gru|rnn|cells|packed|one block", name)),
    *("rows of vectors", "words with padding", "prelu", "prelu of channels"),
)
ZEROS = {
    "tokens, positions, scales": "log_gain",
    "vit": "class_token",
    "cross attention": "attend.in_proj_bias",
}  # parameters that are zero at first

# Weights are moved by hand before they are measured again.
pytestmark = pytest.mark.filterwarnings("ignore:weights that this .* holds have changed since:UserWarning")


def move(model: nn.Module, by: float = 0.1, seed: int = 7) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += by * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    return model


def small(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).to(dtype)


def layer(model: nn.Module, number: int) -> nn.Linear:
    found = model.get_submodule(str(number))
    assert isinstance(found, nn.Linear)
    return found


def samples(seed: int = 1, count: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def consolidated(**options: Any) -> tuple[nn.Module, Gram]:
    """A model that has learned one task, and moved since."""
    model = small()
    gram = Gram(model, **(options or {"strength": 1.0}))
    gram.consolidate([samples()])
    return move(model), gram


# --- what it measures


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in NOT_BY_MODULES])
@pytest.mark.parametrize("exact", [False, True])
def test_shares_are_those_of_the_answers_recomputed(name: str, exact: bool):
    """By default but of the layers of whose Grams only the large directions are kept."""
    model, x = made(name)
    before, gram = copy.deepcopy(model), Gram(model, strength=1.0, exact=exact)
    consolidate(gram, name, x)
    found = gram.shares()
    assert all(share == 0 for share in found.values())
    expected = moved_responses(before, x, move(model))
    found, alone = gram.shares(), set(gram.coverage().alone)
    assert alone == ALONE.get(name, set())
    own = {layer: share for layer, share in expected.items() if layer.rpartition(".")[0] != "parametrizations"}
    layers = {layer.removesuffix(".weight"): share for layer, share in found.items() if layer not in alone}
    narrowed = {layer.removesuffix(".weight") for layer in gram.kept_shares()}
    assert not (exact and narrowed)
    for layer in (own.keys() & layers.keys()) - narrowed:
        assert layers[layer] == pytest.approx(own[layer], rel=1e-6), layer
    assert own.keys() & layers.keys() or alone
    for parameter in alone:
        was, now = before.get_parameter(parameter).detach(), model.get_parameter(parameter).detach()
        assert found[parameter] == pytest.approx(float((now - was).square().sum() / was.square().sum()), rel=1e-6)


def consolidate(gram: Gram, name: str, x: Tensor) -> None:
    """Where a parameter is zero, it is told."""
    if name in ZEROS:
        with pytest.warns(UserWarning, match=f"nothing to hold of .*{ZEROS[name]}"):
            gram.consolidate([x])
    else:
        gram.consolidate([x])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_is_held_and_the_model_is_left_as_it_was(name: str):
    model, x = made(name)
    before = copy.deepcopy(model)
    gram = Gram(model, strength=1.0)
    consolidate(gram, name, x)
    coverage = gram.coverage()
    assert set(coverage.new) == {ZEROS[name]} if name in ZEROS else not coverage.new
    # some weights have inputs that are always zero: a dead unit, a border, a word that does not occur
    free = {layer for layer, counts in coverage.layers.items() if counts.zero == counts.weights}
    assert free <= set(ZEROS.values()), coverage.lines()
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_is_three_maps_and_a_fourth():
    """Each by the inputs it has: the packed projection of queries, keys and values, and what follows."""
    torch.manual_seed(0)
    attend = nn.MultiheadAttention(4, 2, kdim=None, batch_first=True).double().eval()
    nn.init.normal_(attend.in_proj_bias)
    x, other = torch.randn(3, 5, 4).double(), torch.randn(3, 6, 4).double()
    before = copy.deepcopy(attend)
    gram = Gram(attend, strength=1.0, forward=lambda model, batch: model(batch[0], batch[1], batch[1])[0])
    gram.consolidate([(x, other)])
    move(attend)
    shares = gram.shares()
    assert set(shares) == {"in_proj_weight[0:4]", "in_proj_weight[4:12]", "out_proj"}
    with torch.no_grad():
        was = x @ before.in_proj_weight[:4].T + before.in_proj_bias[:4]
        now = x @ attend.in_proj_weight[:4].T + attend.in_proj_bias[:4]
    share = (now - was).square().sum() / was.square().sum()
    assert shares["in_proj_weight[0:4]"] == pytest.approx(share.item())


def test_the_fused_path_of_a_transformer_hides_nothing():
    """In eval mode without gradients torch calls one operator for the whole layer."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    gram = Gram(layer, strength=1.0)
    gram.consolidate([torch.randn(5, 7, 8)])
    assert set(gram.shares()) == {"self_attn", "self_attn.out_proj", "linear1", "linear2", "norm1", "norm2"}
    assert not gram.coverage().alone


def test_a_layer_that_is_called_twice_is_one_map():
    """Its Grams add: E||dW a||^2 over both inputs."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3, bias=False).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(6, 3).double()
    inputs = torch.cat([x, (x @ layer.weight.T).tanh()]).detach()
    gram, was = Gram(model, strength=1.0), layer.weight.detach().clone()
    gram.consolidate([x])
    move(model)
    share = (inputs @ (layer.weight - was).T).square().sum() / (inputs @ was.T).square().sum()
    assert gram.value().item() == pytest.approx(share.item())


@pytest.mark.parametrize("size", [1, 5, 12])
def test_batches_do_not_matter(size: int):
    whole = relative_grams(small(), [samples()])
    parted = relative_grams(small(), samples().split(size))
    assert all(torch.allclose(square(whole[each]), square(parted[each]), rtol=1e-12) for each in whole)


@pytest.mark.slow
def test_rows_that_are_drawn_stand_for_all():
    """Of a convolution with 576 columns on 102,400 positions in four batches; `exact` takes all."""
    torch.manual_seed(0)
    model, x = nn.Conv2d(64, 2, 3, padding=1, bias=False), torch.randn(400, 64, 16, 16).split(100)
    exact, drawn = (next(iter(relative_grams(model, x, exact=exact).values())) for exact in (True, False))
    error = ((square(drawn) - square(exact)).norm() / square(exact).norm()).item()
    # of white noise the root of columns / rows: of so many, 1/2, 1/3 and 1/4 of these, which stand for 1, 2, 3 and 4
    rows = 16384 * (1 + 1 + 1 + 1) ** 2 / (1 + 2 + 3 + 4)
    assert 0 < error < (576 / rows) ** 0.5 * 1.1


# --- the penalty


def test_the_doctest_unit():
    """0.5 * W changes a response by half its length: a quarter of its square, and a strength of 3 makes it 0.75."""
    layer = nn.Linear(2, 2).double()
    gram = Gram(layer, strength=3.0)
    gram.consolidate([torch.randn(9, 2).double()])
    with torch.no_grad():
        layer.weight.mul_(1.5)
        layer.bias.mul_(1.5)
    assert gram.value().item() == pytest.approx(0.75)


@pytest.mark.parametrize("options", [{"strength": 2.0}, {"strength": 2.0, "reference": "last"}, {"budget": 0.1}])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lbfgs"])
def test_the_hook_adds_the_gradient_of_the_value(options: dict, optimizer: str):
    made_optimizer = {"sgd": SGD, "adamw": AdamW, "lbfgs": LBFGS}[optimizer]
    if optimizer == "lbfgs" and "budget" in options:
        return  # it asks several times a step, at each of which the multipliers move
    results = []
    for by_hook in (True, False):
        model, gram = consolidated(**options)
        gram.consolidate([samples(2)])  # a second task
        move(model, seed=9)
        steps = made_optimizer(model.parameters(), lr=0.01)
        if by_hook:
            gram.attach(steps)

        def closure(model=model, gram=gram, steps=steps, by_hook=by_hook) -> Tensor:
            steps.zero_grad()
            loss = model(samples(3)).square().sum()
            (loss if by_hook else loss + gram.value()).backward()
            return loss if by_hook else (loss + gram.value()).detach()

        steps.step(closure)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)])
def test_what_earlier_tasks_add_is_kept_in_half_as_many_bits(dtype: torch.dtype, bits: torch.dtype):
    """C of tr(D A D^T) + 2 tr(D C^T) + T; `exact` keeps all of it. What that changes is rounding."""
    model = small(dtype)
    both = [Gram(model, strength=1.0, exact=exact) for exact in (False, True)]
    for task in range(3):
        move(model, seed=task)
        for gram in both:
            gram.consolidate([samples(10 + task, dtype=dtype)])
    offsets = [{k: v for k, v in gram.state_dict().items() if k.startswith("offset/")} for gram in both]
    assert {each.dtype for each in offsets[0].values()} == {bits}
    assert {each.dtype for each in offsets[1].values()} == {dtype}
    values = [gram.value().item() for gram in both]
    assert values[0] == pytest.approx(values[1], rel=torch.finfo(bits).eps)  # T, from a C of two tasks
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = move(model, seed=5).state_dict()
    part = 0.0
    for key, offset in offsets[1].items():
        each = LinearMap.from_key(key.partition("/")[2])
        part += 2 * float(((each.matrices(after) - each.matrices(before)) * offset).abs().sum())
    compact, whole = (gram.value().item() for gram in both)
    moved = abs((compact - values[0]) - (whole - values[1]))
    assert 0 < moved < torch.finfo(bits).eps / 2 * part + torch.finfo(dtype).eps * 10 * whole

    again = Gram(model, strength=1.0)
    again.load_state_dict(both[0].state_dict())
    assert again.value().item() == compact


@pytest.mark.parametrize("reference", ["own", "last"])
@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize(("exact", "within"), [(True, 1e-9), (False, 1e-7)])  # of float64, what is kept in float32
def test_three_tasks_are_the_sum_of_their_own_forms(reference: str, decay: float, exact: bool, within: float):
    """sum_t decay^(T - t) s_t tr((W - W_t) A_t (W - W_t)^T), from the Grams and weights of each task."""
    model = small()
    gram = Gram(model, strength=1.0, reference=reference, decay=decay, exact=exact)  # pyright: ignore[reportArgumentType]
    kept = []
    for task in range(3):
        move(model, seed=task)
        data = samples(10 + task)
        gram.consolidate([data])
        kept.append((copy.deepcopy(model), relative_grams(model, [data])))
    move(model, seed=5)
    total, now = 0.0, dict(model.state_dict())
    for age, (then, grams) in enumerate(reversed(kept)):
        then = then if reference == "own" else kept[-1][0]
        for each, form in grams.items():
            change = each.matrices(now) - each.matrices(dict(then.state_dict()))
            total += decay**age * float((change @ form @ change.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum())
    assert gram.value().item() == pytest.approx(total, rel=within)


def test_a_direction_that_no_input_has_is_free():
    model = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(8, 3).double()
    x[:, 2] = 0
    gram = Gram(model, strength=1.0)
    gram.consolidate([x])
    with torch.no_grad():
        model.weight[:, 2] += 100
    assert gram.value().item() == 0
    assert gram.importance["weight"][:, 2].tolist() == [0, 0]
    assert gram.coverage().num_held == 4


@pytest.mark.parametrize("guard", [Gram, MAS])
@pytest.mark.parametrize("weight", [0, -1.0, 1e300, 10**400, math.nan])
def test_a_weight_with_which_importance_may_overflow_is_refused(guard, weight):
    with pytest.raises(ValueError, match=r"weight must be > 0 and at most 1e\+06, where a task counts 1, got"):
        guard(nn.Linear(2, 2)).add_unlabelled([torch.ones(3, 2)], weight=weight)


def test_an_integer_that_torch_does_not_take_is_a_strength():
    layer = nn.Linear(2, 2)
    mas = MAS(layer, 2**64)
    mas.consolidate([torch.ones(3, 2)])
    assert mas.value().item() == 0


def test_unlabelled_data_count_as_a_part_of_a_task():
    """Between tasks: half a task with the present weights; the first is still held to its own."""
    model, gram = small(), None
    gram = Gram(model, strength=1.0)
    gram.consolidate([samples()])
    first = gram.importance
    found = gram.add_unlabelled([samples(2)], weight=0.5)
    expected = diagonals(relative_grams(model, [samples(2)]), model)
    for name, value in gram.importance.items():
        assert torch.allclose(found[name], expected[name])
        assert torch.allclose(value, first[name] + 0.5 * expected[name])
    move(model)
    shares, value = gram.shares(), gram.value().item()
    assert value == pytest.approx(1.5 * sum(shares.values()))  # the average of one task and a half


def test_importance_is_the_diagonal():
    """The penalty of moving one weight alone by 1."""
    model, gram = small(), None
    gram = Gram(model, strength=1.0)
    gram.consolidate([samples()])
    with torch.no_grad():
        layer(model, 0).weight[2, 3] += 1.0
    assert gram.value().item() == pytest.approx(gram.importance["0.weight"][2, 3].item())


def test_a_word_of_padding_is_not_held():
    model, _ = made("words with padding")
    gram = Gram(model, strength=1.0)
    gram.consolidate([torch.arange(36).view(9, 4) % 9])  # every word, that of padding among them
    assert gram.importance["table.weight"].any(1).tolist() == [word != 7 for word in range(9)]  # padding_idx -2 of 9


def test_the_gradient_is_scaled_where_the_optimizer_unscales_it():
    """As GradScaler says to fused optimizers."""
    plain, scaled = consolidated(), consolidated()
    for (model, gram), scale in ((plain, None), (scaled, torch.tensor(8.0))):
        optimizer = SGD(model.parameters(), lr=0.1)
        gram.attach(optimizer)
        if scale is not None:
            optimizer.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            gram._add_gradients(optimizer)
    for one, other in zip(plain[0].parameters(), scaled[0].parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(8 * one.grad, other.grad)


def test_frozen_weights_are_not_touched_and_count_in_the_response():
    model = small()
    layer(model, 0).weight.requires_grad_(False)
    gram = Gram(model, strength=1.0)
    gram.consolidate([samples()])
    was = layer(model, 0)(samples()).detach()
    with torch.no_grad():
        layer(model, 0).bias.add_(0.5)
    share = (layer(model, 0)(samples()) - was).square().sum() / was.square().sum()
    assert gram.value().item() == pytest.approx(share.item())
    optimizer = SGD(model.parameters(), lr=0.1)
    gram.attach(optimizer)
    optimizer.step()
    assert layer(model, 0).weight.grad is None
    assert layer(model, 0).bias.grad is not None


def test_two_optimizers_pull_each_their_own_once():
    model, gram = consolidated()
    optimizers = [SGD([layer(model, 0).weight], lr=0.1), SGD([layer(model, 0).bias, layer(model, 2).weight], lr=0.1)]
    for each in optimizers:
        gram.attach(each)
        each.step()
    expected = dict(zip(model.state_dict(), torch.autograd.grad(gram.value(), list(model.parameters())), strict=True))
    # the second optimizer stepped after the first had moved its weight, so only the first is compared exactly
    found = layer(model, 0).weight.grad
    assert found is not None
    again, other = consolidated()
    gradient = torch.autograd.grad(other.value(), layer(again, 0).weight)[0]
    assert torch.allclose(found, gradient)
    assert expected.keys() == {"0.weight", "0.bias", "2.weight"}


def test_a_replaced_layer_is_not_held_and_the_others_are():
    model, gram = consolidated()
    model.add_module("2", nn.Linear(5, 7).double())
    assert set(gram.shares()) == {"0"}
    assert gram.coverage().new == ("2.bias", "2.weight")
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"that this Gram does not hold, .*: 2.bias, 2.weight"):
        gram.attach(optimizer)
    optimizer.step()
    assert layer(model, 2).weight.grad is None
    gram.consolidate([samples()])
    assert set(gram.shares()) == {"0", "2"}


# --- the budget


def test_multipliers_rise_over_the_budget_and_fall_under_it():
    before = torch.tensor([1.0, 1.0, 1.0])
    after = next_multipliers(before, torch.tensor([0.04, 0.01, 0.0]), 0.1)  # roots 0.2, 0.1, 0
    # by a fifth of log 2; not; by a fifth of a half, the most that counts downwards
    assert after.tolist() == pytest.approx([2**0.2, 1.0, torch.tensor(-0.1).exp().item()])


def test_plain_gradient_steps_set_a_limit():
    """A step of rate r on m * sum A D^2 multiplies D by 1 - 2 r m A: it converges below m = 1 / (r A)."""
    most = most_for_sgd(torch.tensor([2.0, 0.5]), 0.1)
    assert most.tolist() == pytest.approx([0.9 / 0.2, 0.9 / 0.05])
    after = next_multipliers(torch.tensor([4.4, 4.4]), torch.tensor([1.0, 1.0]), 0.1, most)
    assert after[0].item() == pytest.approx(4.5)
    assert after[1] > 4.5


def test_a_strength_at_which_sgd_diverges_is_told():
    model, gram = consolidated(strength=1e6)
    optimizer = SGD(model.parameters(), lr=0.1)
    gram.attach(optimizer)
    with pytest.warns(UserWarning, match="strength 1e[+]06 is above .*, where plain gradient steps .* may diverge"):
        optimizer.step()
    optimizer.step()  # once is enough


def test_the_default_budget_depends_on_the_depth():
    """The shares of all layers sum to 0.025^2; it is known once there is something to hold."""
    model = small()
    gram = Gram(model)
    gram.consolidate([samples()])
    assert gram.budget == pytest.approx(0.025 / 2**0.5)
    gram.set_strength(2.0)
    assert gram.budget is None
    assert Gram(model, 0.3).budget == 0.3


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.3, 0.03])
@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_no_layer_moves_further_than_the_budget(budget: float, optimizer: type):
    """A loss that calls for answers ten times as long; it would move every layer by far more."""
    model = small()
    gram = Gram(model, budget)
    gram.consolidate([samples()])
    steps = optimizer(model.parameters(), lr=0.003)
    gram.attach(steps)
    for _ in range(1500):
        steps.zero_grad()
        (model(samples()) - 10).square().mean().backward()
        steps.step()
    roots = [share**0.5 for share in gram.shares().values()]
    assert max(roots) < 1.15 * budget
    assert max(roots) > 0.5 * budget  # and uses it


@pytest.mark.parametrize("optimizer", [AdamW, SGD, LBFGS])
def test_a_task_of_a_few_steps_ends_within_the_budget(optimizer: type):
    """Steps so large that no multiplier can follow. Inputs are in a plane, and what is at right angles stays."""
    model, plane = small(), samples() * torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    gram = Gram(model, 0.02)
    gram.consolidate([plane])
    steps = optimizer(model.parameters(), lr=0.05)
    gram.attach(steps)

    def closure() -> Tensor:
        steps.zero_grad()
        loss = (model(samples(2)) - 10).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        steps.step(closure)
    assert max(gram.shares().values()) > 0.04**2
    free = layer(model, 0).weight[:, 2:].clone()
    gram.settle()
    assert max(gram.shares().values()) == pytest.approx(0.02**2, rel=0.002)
    assert torch.allclose(layer(model, 0).weight[:, 2:], free)
    settled = [parameter.clone() for parameter in model.parameters()]
    gram.consolidate([plane])  # settles, and there is nothing to do
    assert all(torch.equal(a, b) for a, b in zip(settled, model.parameters(), strict=True))


def test_what_is_brought_back_is_no_change_without_protection():
    """As where a run goes on after a task's last step: a Gram is loaded beside weights that went too far."""
    model, gram = consolidated(budget=0.001)
    later = Gram(model, 0.001)
    later.load_state_dict(gram.state_dict())
    before = later.shares()
    later.settle()
    assert later.shares() != before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        later.consolidate([samples()])


def test_a_layer_that_has_gone_three_times_too_far_is_brought_back_as_it_learns():
    """A step of rate 0 moves nothing: what is found at the first is brought back at the second; a strength never is."""
    model, gram = consolidated(budget=0.001)
    steps = SGD(model.parameters(), lr=0.0)
    gram.attach(steps)
    far = gram.shares()
    steps.step()
    assert gram.shares() == far
    steps.step()
    assert list(gram.shares().values()) == pytest.approx([0.003**2] * 2, rel=1e-3)
    gram.set_strength(1.0)
    before = gram.shares()
    gram.settle()
    assert gram.shares() == before


def test_a_layer_that_goes_too_far_at_every_step_is_brought_back_at_every_step():
    """Brought back, it is found at the edge, on either side of it: rounding must not say what is done next."""
    model, gram = consolidated(budget=0.001)
    steps, seen = SGD(model.parameters(), lr=0.1), []
    gram.attach(steps)
    steps.register_step_pre_hook(lambda *_: seen.extend(gram.shares().values()))
    for seed in range(8):
        steps.zero_grad()
        (model(samples(seed)) - 10).square().mean().backward()
        steps.step()
    assert max(seen[:2]) > 0.01  # at the first step it is only found
    assert max(seen[2:]) < 0.003**2 * 1.001


def test_what_is_frozen_or_another_optimizers_is_not_brought_back():
    model, gram = consolidated(budget=0.001)
    first, second = layer(model, 0), layer(model, 2)
    first.bias.requires_grad_(False)
    bias, other = first.bias.clone(), second.weight.clone()
    steps = SGD(first.parameters(), lr=0.0)
    gram.attach(steps)
    before = gram.shares()
    steps.step()
    steps.step()
    assert torch.equal(first.bias, bias)
    assert torch.equal(second.weight, other)
    assert gram.shares()["0"] < before["0"]
    gram.settle()
    assert torch.equal(first.bias, bias)
    assert gram.shares()["2.weight"] == pytest.approx(0.001**2, rel=0.002)


def test_moving_statistics_are_told():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).double()
    gram = Gram(model)
    gram.consolidate([samples()])
    steps = SGD(model.parameters(), lr=0.01)
    gram.attach(steps)
    model.train()
    with pytest.warns(UserWarning, match=r"running statistics of batch norm \(1\) follow the new data .* call eval"):
        steps.step()
    steps.step()  # once is enough
    gram.consolidate([samples()])
    model.eval()
    steps.step()


def test_the_multipliers_are_resumed():
    """From a place that is far beyond the budget: also that it will be brought back."""
    model, gram = consolidated(budget=0.005)
    steps = SGD(model.parameters(), lr=0.01)
    gram.attach(steps)
    steps.step()
    other = copy.deepcopy(model)
    taken = Gram(other, 0.005)
    taken.load_state_dict(gram.state_dict())
    again = SGD(other.parameters(), lr=0.01)
    taken.attach(again)
    for optimizer, one in ((steps, model), (again, other)):
        optimizer.zero_grad()
        optimizer.step()
        del one
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, taken.state_dict()[name]) for name, a in gram.state_dict().items())


# --- large layers


def large(seed: int = 0) -> nn.Module:
    """Two layers of 2^17 weights, and a small one."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(128, 1024, bias=False), nn.Tanh(), nn.Linear(1024, 128, bias=False), nn.Linear(128, 3)
    )


def held_large(**options: Any) -> tuple[nn.Module, Gram]:
    model = large()
    gram = Gram(model, strength=1.0, **options)
    gram.consolidate([torch.randn(16, 128, generator=torch.Generator().manual_seed(1))])
    return move(model, by=0.01), gram


def gradients(model: nn.Module, optimizer: SGD) -> list[Tensor]:
    """What a step of rate 0 adds to the gradients; zeros where nothing."""
    optimizer.zero_grad()
    optimizer.step()
    return [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in model.parameters()]


def test_large_layers_take_turns_of_twice_the_pull():
    model, gram = held_large()
    optimizer = SGD(model.parameters(), lr=0.0)
    gram.attach(optimizer)
    expected = torch.autograd.grad(gram.value(), list(model.parameters()))
    steps = [gradients(model, optimizer) for _ in range(4)]
    for step, (first, second, *small_ones) in enumerate(steps):
        pulled, rests = (first, second) if step % 2 == 0 else (second, first)
        assert torch.allclose(pulled, 2 * expected[step % 2], rtol=1e-4, atol=1e-7)
        assert not rests.any()
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(small_ones, expected[2:], strict=True))


def test_exact_pulls_large_layers_at_every_step():
    model, gram = held_large(exact=True)
    optimizer = SGD(model.parameters(), lr=0.0)
    gram.attach(optimizer)
    expected = torch.autograd.grad(gram.value(), list(model.parameters()))
    for _ in range(2):
        found = gradients(model, optimizer)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(found, expected, strict=True))


def test_turns_go_on_where_they_were():
    model, gram = held_large()
    optimizer = SGD(model.parameters(), lr=0.0)
    gram.attach(optimizer)
    gradients(model, optimizer)
    other = copy.deepcopy(model)
    taken = Gram(other, strength=1.0)
    taken.load_state_dict(gram.state_dict())
    again = SGD(other.parameters(), lr=0.0)
    taken.attach(again)
    for _ in range(2):
        expected = gradients(model, optimizer)
        assert all(torch.equal(a, b) for a, b in zip(gradients(other, again), expected, strict=True))


def test_who_steps_a_part_of_a_large_layer_pulls_it_at_every_step():
    """Two optimizers that share a layer's turns would leave the second one's part without any."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 1024))
    gram = Gram(model, strength=1.0)
    gram.consolidate([torch.randn(16, 128, generator=torch.Generator().manual_seed(1))])
    move(model, by=0.01)
    weight, bias = model.parameters()
    optimizers = [SGD([weight], lr=0.0), SGD([bias], lr=0.0)]
    for each in optimizers:
        gram.attach(each)
    expected = torch.autograd.grad(gram.value(), [weight, bias])
    for _ in range(2):
        for each, parameter, wanted in zip(optimizers, (weight, bias), expected, strict=True):
            each.zero_grad()
            each.step()
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


def test_a_closure_that_is_called_twice_in_a_step_is_one_turn():
    model, gram = held_large()
    optimizer = SGD(model.parameters(), lr=0.0)
    gram.attach(optimizer)
    seen = []
    for _ in range(2):
        gram._add_gradients(optimizer, first=True)
        gram._add_gradients(optimizer, first=False)
        seen.append([held.rests for held in gram._held.values()])
    assert seen == [[False, True, None], [True, False, None]]


# --- files


@pytest.mark.parametrize("options", [{"strength": 2.0, "reference": "last"}, {"budget": 0.07, "decay": 0.5}])
def test_saved_and_loaded_it_is_the_same(options: dict, tmp_path: Path):
    model, gram = consolidated(**options)
    gram.consolidate([samples(2)])
    move(model, seed=8)
    gram.save(tmp_path / "gram.safetensors")
    loaded = Gram.load(tmp_path / "gram.safetensors", model)
    assert torch.equal(loaded.value(), gram.value())
    assert loaded.shares() == gram.shares()
    assert (loaded.budget, loaded.strength, loaded.decay) == (gram.budget, gram.strength, gram.decay)


def test_the_key_of_a_map_is_the_map():
    for each in (
        LinearMap("a.weight", "a.bias", "convolution", 3),
        LinearMap("in_proj_weight", None, "linear", 1, 4, 8),
        LinearMap(None, "b", "scale", 5),
    ):
        assert LinearMap.from_key(each.key) == each


def test_a_file_of_another_model_is_refused(tmp_path: Path):
    model, gram = consolidated()
    gram.save(tmp_path / "gram.safetensors")
    other = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with pytest.raises(ValueError, match=r"saved for another model: .*of another shape: 0\.bias"):
        Gram.load(tmp_path / "gram.safetensors", other)
    with pytest.raises(ValueError, match=r"saved for another model: .*unexpected"):
        Gram.load(tmp_path / "gram.safetensors", nn.Linear(4, 5).double())
    with pytest.raises(ValueError, match=r"a Gram, .*tm\.Gram\.load"):
        Protection.load(tmp_path / "gram.safetensors", model)
    mas = MAS(model)
    mas.consolidate([samples()])
    mas.save(tmp_path / "mas.safetensors")
    with pytest.raises(ValueError, match="weights one by one"):
        Gram.load(tmp_path / "mas.safetensors", model)


# --- bad input


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5, float("nan")])
def test_a_budget_is_a_share(budget: float):
    with pytest.raises(ValueError, match=r"budget must lie in \(0, 1\]"):
        Gram(small(), budget)


def test_a_budget_or_a_strength():
    with pytest.raises(ValueError, match="a budget or a strength, not both"):
        Gram(small(), 0.1, strength=1.0)
    with pytest.raises(ValueError, match="strength must be >= 0 and finite, got nan"):
        Gram(small(), strength=float("nan"))
    with pytest.raises(ValueError, match="reference must be 'own' or 'last', got 'first'"):
        Gram(small(), reference="first")  # pyright: ignore[reportArgumentType]


def test_inputs_that_are_not_finite_name_the_layer():
    x = samples()
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="inputs of '0' are not finite"):
        Gram(small()).consolidate([x])


def test_nothing_to_hold():
    model = small()
    with pytest.raises(ValueError, match="at least one sample"):
        Gram(model).consolidate([])
    with pytest.raises(ValueError, match="no trainable parameter"):
        Gram(model.requires_grad_(False)).consolidate([samples()])
    silent = nn.Linear(3, 2, bias=False)
    with pytest.raises(ValueError, match="no layer answers anything"):
        Gram(silent).consolidate([torch.zeros(4, 3)])


def test_a_silent_layer_is_told():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    nn.init.zeros_(layer(model, 1).weight)
    gram = Gram(model)
    with pytest.warns(UserWarning, match=r"nothing to hold of 1\.weight"):
        gram.consolidate([torch.randn(5, 3)])
    assert gram.coverage().new == ("1.weight",)


@pytest.mark.slow
def test_a_network_of_the_field():
    """ResNet-18 without its classifier, two tasks: all weights held, by batch norms' scales, too."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=16)
    gram = Gram(model, 0.05)
    gram.consolidate([torch.randn(8, 3, 64, 64)])
    coverage = gram.coverage()
    assert not coverage.new
    # deep channels of an untrained network are zero at some places of 2 x 2, and are not held there
    assert all(counts.zero < 0.3 * counts.weights for counts in coverage.layers.values())
    assert len(gram.shares()) == 21 + 20


def test_a_layer_beyond_the_budget_is_brought_back_although_those_before_it_are_within():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    gram = Gram(model, 0.05)
    gram.consolidate([torch.randn(20, 3)])
    with torch.no_grad():
        model[2].weight.mul_(1.5)
    gram.settle()
    shares = list(gram.shares().values())
    assert shares[:2] == [0, 0]
    assert shares[2] == pytest.approx(0.05**2, rel=0.01)


def test_what_is_held_follows_the_model_into_another_type():
    model = nn.Linear(3, 2)
    gram = Gram(model, strength=1.0)
    gram.consolidate([torch.randn(20, 3)])
    model.double()
    gram.value()
    assert {value.dtype for name, value in gram.state_dict().items() if name.startswith("reference/")} == {
        torch.float64
    }
