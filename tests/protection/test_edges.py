"""What is at an edge: a default, the limit itself, what is passed on, what a few words say."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from guarded import GUARDS, Net, guarded, learn, samples
from schedulefree import ScheduleFreeWrapper
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tripletmas.protection.coverage import Coverage, LayerWeights
from tripletmas.protection.importance.fisher import squared_gradient_importance
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.names import named_as_in
from tripletmas.protection.penalty import laid_out_as
from tripletmas.protection.place import placed_parameters
from tripletmas.protection.pretrained import warn_of_unlike
from tripletmas.protection.protection import MAS, Protection
from tripletmas.protection.shards import places_of
from tripletmas.protection.structured import sums
from tripletmas.protection.structured.budget import warn_if_unstable
from tripletmas.protection.structured.gram import Gram
from tripletmas.protection.structured.gram_matrix import LowRank, added, spectrum, square
from tripletmas.protection.structured.moments import input_importance

# --- defaults


def test_importance_is_relative_unless_that_was_declined():
    for make, relative in ((MAS, True), (lambda model: MAS(model, relative=False), False)):
        model = Net()
        found = make(model).consolidate([samples()])
        expected = mas_importance(model, [samples()], relative=relative)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_unlabelled_data_are_added_by_their_weight_and_move_no_reference():
    model, guard = guarded(lambda model: MAS(model, 3.0))
    assert isinstance(guard, MAS)
    before, reference = dict(guard.importance), dict(guard.reference)
    found = guard.add_unlabelled([samples(4)], weight=0.5)
    expected = mas_importance(model, [samples(4)], relative=True)
    for name, value in guard.importance.items():
        torch.testing.assert_close(found[name], expected[name])
        torch.testing.assert_close(value, before[name] + 0.5 * expected[name])
        assert torch.equal(guard.reference[name], reference[name])


def test_a_wide_gram_is_compressed_unless_that_was_declined(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sums, "WIDE", 100)
    torch.manual_seed(0)
    model, x = nn.Linear(400, 3), torch.randn(50, 4) @ torch.randn(4, 400) + 0.2 * torch.randn(50, 400)
    default, low, exact = (
        input_importance(model, [x], **options) for options in ({}, {"exact": False}, {"exact": True})
    )
    assert torch.equal(default["weight"], low["weight"])
    assert not torch.equal(default["weight"], exact["weight"])


# --- limits


def test_a_step_that_is_just_small_enough_is_not_warned_of():
    """rate * strength * importance is 0.5 * 1 * 1, and that is not above 0.5. Warnings are errors here."""
    model = nn.Linear(2, 2)
    mas = MAS(model, strength=1.0)
    mas.add({name: torch.ones_like(value) for name, value in model.named_parameters()})
    mas.anchor()
    for rate, warned in ((0.5, False), (0.51, True)):
        optimizer = SGD(model.parameters(), lr=rate)
        mas.attach(optimizer)
        if warned:
            with pytest.warns(UserWarning, match=r"reaches 0\.51 > 0\.5"):
                optimizer.step()
        else:
            optimizer.step()
    warn_if_unstable(0.5, 0.5)
    with pytest.warns(UserWarning, match=r"strength 0\.51 is above 0\.5"):
        warn_if_unstable(0.51, 0.5)


@pytest.mark.parametrize(("zero", "share"), [(1, "0.1 %"), (5, "0.5 %"), (999, "99.9 %"), (1000, "100 %")])
def test_shares_of_a_layer_are_told_to_a_tenth_of_a_per_cent(zero: int, share: str):
    lines = Coverage(layers={"a": LayerWeights(zero, 1000)}).lines()
    assert f"as a share of their layer: a {share}." in lines[1]


def test_layers_come_by_the_share_that_is_free_not_by_how_many_weights_are():
    layers = {"large": LayerWeights(100, 1000), "small": LayerWeights(1, 2)}
    assert Coverage(layers=layers).lines()[1].endswith(": small 50 %, large 10 %.")


def test_what_is_held_alone_is_told():
    assert Coverage(alone=("scale", "table")).lines() == [
        "Held by their own length, since no layer explains them: scale, table."
    ]


# --- what a step gives back, and what it counts


@pytest.mark.parametrize("kind", [SGD, LBFGS])
def test_a_step_gives_the_loss_of_its_closure(kind: type[Optimizer]):
    model, guard = guarded(lambda model: MAS(model, 0.01))
    optimizer = kind(model.parameters(), lr=0.01)  # pyright: ignore[reportCallIssue]
    guard.attach(optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(samples()).square().mean()
        loss.backward()
        return loss

    expected, added_value = float(model(samples()).square().mean().detach()), float(guard.value().detach())
    found = float(optimizer.step(closure).detach())  # pyright: ignore
    # of LBFGS, whose line search compares values, the penalty is a part of them
    assert found == pytest.approx(expected + (added_value if kind is LBFGS else 0.0), rel=1e-5)


@pytest.mark.parametrize("make", [lambda m: MAS(m, 0.0), lambda m: Gram(m, strength=0.0)], ids=["mas", "gram"])
def test_with_a_strength_of_zero_no_step_is_a_protected_one(make: Any):
    model, guard = guarded(make)
    optimizer = Adam(model.parameters(), lr=0.01)
    guard.attach(optimizer)
    learn(model, optimizer)
    assert guard.num_protected_steps == 0


def test_a_wrapper_of_a_wrapper_is_refused_for_what_is_inside():
    model = Net()
    guard = MAS(model)
    guard.consolidate([samples()])
    inside = ScheduleFreeWrapper(SGD(model.parameters(), lr=0.1), momentum=0.9)
    with pytest.raises(ValueError, match="a ScheduleFreeWrapper lets its SGD step on other weights"):
        guard.attach(Outer(inside), clip="after")


class Outer:
    """Steps with what is inside."""

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


# --- what has grown, and what is something else


def test_a_value_has_the_layout_of_a_weight_of_its_shape_and_stays_as_it_is_of_another():
    weight = torch.zeros(4, 6).t()
    value = torch.arange(24.0).view(6, 4)
    found = laid_out_as(weight, value)
    assert found.stride() == weight.stride()
    assert torch.equal(found, value)
    assert laid_out_as(torch.zeros(4, 6), torch.ones(4, 4)).shape == (4, 4)
    assert laid_out_as(torch.zeros(4, 6), value) is value


@pytest.mark.parametrize("make", [GUARDS["mas"], GUARDS["gram"]], ids=["mas", "gram"])
def test_a_weight_of_fewer_dimensions_is_a_new_one(make: Any):
    model, guard = guarded(make)
    model.head.weight = nn.Parameter(torch.zeros(4))
    assert guard.value().item() > 0  # of the trunk
    assert "head.weight" in guard.coverage().new


def test_a_layer_that_has_grown_is_held_while_another_is_gone():
    """Asked once: the value is that of what has grown alone."""
    model, guard = guarded(GUARDS["gram"])
    twin, its = copy.deepcopy((model, guard))
    head = nn.Linear(6, 6)
    with torch.no_grad():
        head.weight[:4], head.bias[:4] = model.head.weight, model.head.bias
    model.head = head
    assert guard.value().item() == pytest.approx(its.value().item(), rel=1e-5)
    torch.manual_seed(1)
    model.trunk = nn.Linear(8, 6)
    twin.trunk = nn.Linear(8, 6)
    assert 0 < guard.value().item() == pytest.approx(its.value().item(), rel=1e-5)


def test_prefixes_of_several_parts_are_exchanged():
    """As where an encoder that was saved inside of a wrapper is a part of a part of another model."""
    inner = nn.ModuleDict({"encoder": nn.ModuleDict({"block": Net()})})
    model = nn.ModuleDict({"wrapped": nn.ModuleDict({"model": nn.ModuleDict({"of": Net()})})})
    state = {f"reference/{name}": value.detach() for name, value in placed_values(inner).items()}
    found = named_as_in(model, state)
    assert {name.removeprefix("reference/") for name in found} == set(placed_values(model))


def placed_values(model: nn.Module) -> dict[str, Tensor]:
    return {name: place.parameter for name, place in placed_parameters(model).items()}


def test_a_weight_of_another_shape_is_not_the_one_of_its_name():
    """What was called one is called two now; one is a new layer, of another shape."""
    model = nn.ModuleDict({"one": nn.Linear(4, 5), "two": nn.Linear(4, 3)})
    state = {f"reference/one.{name}": value.detach() for name, value in model["two"].named_parameters()}
    assert set(named_as_in(model, state)) == {"reference/two.weight", "reference/two.bias"}


@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_weights_that_grew_or_shrank_are_those_of_the_model(factor: float):
    layer = nn.Linear(40, 30, bias=False)
    state = {"reference/weight": layer.weight.detach() * factor}
    warn_of_unlike("Gram", state, dict(layer.named_parameters()))  # a warning is an error here


def test_a_thousand_weights_tell_another_model():
    for inputs, warned in ((50, True), (49, False)):
        layer, other = nn.Linear(inputs, 20, bias=False), nn.Linear(inputs, 20, bias=False)
        told = pytest.warns(UserWarning, match="unlike those of the model") if warned else nullcontext()
        with told:
            warn_of_unlike("Gram", {"reference/weight": other.weight.detach()}, dict(layer.named_parameters()))


def test_a_batch_is_given_by_the_names_of_the_model_itself():
    """Not by those of the one module inside it, which asks for `input`."""

    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(4, 2)

        def forward(self, pictures: Tensor) -> Tensor:
            return self.inside(pictures)

    model, pictures = Outside(), torch.randn(6, 4)
    found = MAS(model).consolidate([{"pictures": pictures, "labels": torch.zeros(6)}])
    assert torch.equal(found["inside.weight"], MAS(model).consolidate([pictures])["inside.weight"])


# --- errors of others, and words


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError])
def test_an_error_of_the_model_stays_what_it_is(kind: type[Exception]):
    class Failing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise kind("the model's own words")

    with pytest.raises(kind, match=r"^the model's own words$"):
        mas_importance(Failing(8, 4), [samples()])


def test_a_forward_that_takes_nothing_is_told():
    class Nothing(nn.Linear):
        def forward(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.weight

    with pytest.raises(ValueError, match="forward takes nothing, and a batch is a dict with one, two"):
        mas_importance(Nothing(8, 4), [{"one": samples(), "two": samples()}])


def test_what_a_damaged_protection_wants_is_said(tmp_path: Path):
    _, guard = guarded(GUARDS["mas"])
    guard.save(tmp_path / "held")
    content = bytearray((tmp_path / "held").read_bytes())
    content[-1] ^= 1
    (tmp_path / "held").write_bytes(content)
    with pytest.raises(ValueError, match="restore it from a copy, or save the protection again"):
        Protection.load(tmp_path / "held", Net())


def test_how_far_other_weights_are_is_told(tmp_path: Path):
    """They are twice those that were saved: as far from these as they are long."""
    model, guard = guarded(GUARDS["mas"])
    guard.consolidate([samples()])
    guard.save_pretrained(tmp_path)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(2)
    with pytest.warns(UserWarning, match=r"100\.00% of the weights .* by 1 of their length"):
        Protection.from_pretrained(tmp_path, model)


def test_a_weight_without_a_part_in_the_loss_has_no_importance():
    model = nn.ModuleDict({"used": nn.Linear(8, 4), "idle": nn.Linear(2, 2)})
    model.forward = lambda x: model["used"](x)  # pyright: ignore
    batch = (samples(), torch.arange(16) % 4)
    found = squared_gradient_importance(model, [batch], nn.CrossEntropyLoss())
    assert found["used.weight"].any()
    assert not found["idle.weight"].any()


def test_of_a_loader_that_gives_batches_as_they_are_ready_no_place_is_known():
    data = TensorDataset(torch.arange(8))
    for in_order in (True, False):
        loader = DataLoader(data, 2, sampler=DistributedSampler(data, 2, 0), in_order=in_order)
        assert (places_of(loader) is not None) == in_order


# --- Grams of low rank


def test_a_sum_of_low_ranks_is_exact_where_they_share_directions():
    """9 and 4, 16 and nothing, and 1 everywhere: twice that is 20, 10, 2, 2 and 34, 2, 2, 2."""
    factor = torch.zeros(2, 4, 2).double()
    factor[0, 0, 0], factor[0, 1, 1], factor[1, 0, 0] = 3, 2, 4
    one = LowRank(factor, torch.ones(2, 4).double())
    found = square(added(one, one))
    torch.testing.assert_close(found, torch.diag_embed(torch.tensor([[20.0, 10, 2, 2], [34, 2, 2, 2]]).double()))


def test_directions_that_are_nothing_but_rounding_are_not_known():
    rows = torch.randn(1, 2, 300, generator=torch.Generator().manual_seed(0))
    found = spectrum(rows.mT @ rows)
    assert int((found.large > 0).sum()) == 2
    assert int(found.vectors.any(dim=1).sum()) == 2


def test_a_state_of_an_earlier_version_has_one_rest_for_all_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sums, "WIDE", 100)
    torch.manual_seed(0)
    model = nn.Linear(400, 3, bias=False)
    guard, other = Gram(model, strength=1.0), Gram(model, strength=1.0)
    guard.consolidate([torch.randn(50, 4) @ torch.randn(4, 400) + 0.2 * torch.randn(50, 400)])
    state = guard.state_dict()
    (rest,) = (name for name in state if name.startswith("rest/"))
    other.load_state_dict({**state, rest: state[rest][:, 0]})
    with torch.no_grad():
        model.weight.add_(0.1)
    assert other.value() == guard.value() > 0


def test_a_state_of_other_columns_or_of_other_groups_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sums, "WIDE", 100)
    torch.manual_seed(0)
    model = nn.Linear(400, 3, bias=False)
    guard = Gram(model, strength=1.0)
    guard.consolidate([torch.randn(50, 4) @ torch.randn(4, 400)])
    state = guard.state_dict()
    (key,) = (name for name in state if name.startswith("factor/"))
    (rest,) = (name for name in state if name.startswith("rest/"))
    guard.load_state_dict(state)
    for wrong in ({key: state[key][:, 1:]}, {rest: state[rest].repeat(2, 1)}):
        with pytest.raises(ValueError, match=r"what is held of .* has another shape"):
            guard.load_state_dict({**state, **wrong})
