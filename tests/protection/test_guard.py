"""Every guard: its copies act, and where it can no longer act it says so; what it does not hold, it does not move."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, SparseAdam

from tripletmas.basics.weights import state_of
from tripletmas.protection.file import read_protection, write_protection
from tripletmas.protection.guard import Guard
from tripletmas.protection.protection import MAS, LocalMAS, Protection
from tripletmas.protection.structured.gram import Gram

GUARDS: dict[str, Callable[..., Guard]] = {
    "mas": lambda model: MAS(model, 3.0),
    "local_mas": lambda model: LocalMAS(model, 3.0),
    "gram": Gram,
    "gram, strength": lambda model: Gram(model, strength=3.0),
}
every_guard = pytest.mark.parametrize("make", GUARDS.values(), ids=GUARDS)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).relu())


def samples(seed: int = 0) -> Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))


def guarded(make: Callable[..., Guard]) -> tuple[Net, Guard]:
    """A model that has learned a task, and has moved a little since."""
    model = Net()
    guard = make(model)
    guard.consolidate([samples()])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model, guard


def pulls(model: nn.Module, guard: Guard) -> dict[str, float]:
    """The length of the gradient that a step adds to each parameter; the weights stay as they are."""
    optimizer = Adam(model.parameters(), lr=0.0)
    guard.attach(optimizer)
    optimizer.zero_grad()
    optimizer.step()
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}


def learn(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(samples(10 + step)).square().mean().backward()
        optimizer.step()


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for (name, value), other in zip(state_of(found).items(), state_of(expected).values(), strict=True):
        assert torch.equal(value, other), name


# --- copies


@every_guard
def test_a_copy_pulls_as_the_original_and_goes_on_by_itself(make: Callable[..., Guard]):
    model, guard = guarded(make)
    copied = copy.deepcopy(guard)
    assert copied.model is not model
    assert pulls(copied.model, copied) == pulls(model, guard)
    assert min(pulls(copied.model, copied).values()) > 0
    assert copied.coverage() == guard.coverage()
    before = {name: value.clone() for name, value in guard.state_dict().items()}
    copied.consolidate([samples(1)])
    assert all(torch.equal(value, before[name]) for name, value in guard.state_dict().items())
    with torch.no_grad():
        next(copied.model.parameters()).add_(1)
    assert max(pulls(copied.model, copied).values()) > 0  # after a consolidate of its own, too


@every_guard
def test_a_copy_with_its_model_is_attached_to_nothing(make: Callable[..., Guard]):
    """Whatever the original was in the middle of."""
    model, guard = guarded(make)
    optimizer = AdamW(model.parameters(), lr=0.01)
    guard.attach(optimizer)
    with guard.protect():
        learn(model, SGD(model.parameters(), lr=1e-4))
        (other, copied), stepped = copy.deepcopy((model, guard)), copy.deepcopy(optimizer)
    assert copied.model is other
    with pytest.raises(ValueError, match="the optimizer holds no parameter of the protected model"):
        copied.attach(stepped)  # a copy of its own steps a third model
    with copied.protect():  # and this is not within another one's
        learn(other, SGD(other.parameters(), lr=0.01))
    with guard.protect():
        learn(model, SGD(model.parameters(), lr=0.01))
    assert_same(other, model)
    with pytest.warns(UserWarning, match="no optimizer stepped on the protected model"), copied.protect():
        learn(model, SGD(model.parameters(), lr=0.01))


@every_guard
def test_nothing_is_pickled(make: Callable[..., Guard]):
    _, guard = guarded(make)
    for act in (pickle.dumps, copy.copy):
        with pytest.raises(ValueError, match=r"is not pickled: save\(path\) writes it, load\(path, model\) reads it"):
            act(guard)


# --- optimizers at whose step no hook runs


class SharpnessAware(Optimizer):
    """Two steps a batch; the second is another optimizer's, as in the usual code of SAM."""

    def __init__(self, parameters: Any, rate: float = 0.01, *, inner: bool = True):
        super().__init__(parameters, {"lr": rate})
        if inner:
            self.base_optimizer = SGD(self.param_groups, lr=rate)
            self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["moved"] = 0.05 * parameter.grad
            parameter.add_(self.state[parameter]["moved"])

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(self.state[parameter]["moved"])
            if "base_optimizer" not in vars(self):
                parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)
        if "base_optimizer" in vars(self):
            self.base_optimizer.step()

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError


def learn_in_two_steps(model: nn.Module, optimizer: Any, penalty: Callable[[], Tensor] | None = None) -> None:
    for step in range(3):
        for number, act in enumerate((optimizer.first_step, optimizer.second_step)):
            model.zero_grad()
            model(samples(10 + step)).square().mean().backward()
            if number and penalty:
                # the penalty acts where the weights are when the inner optimizer steps: before the first step's move
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.sub_(optimizer.state[parameter]["moved"])
                penalty().backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(optimizer.state[parameter]["moved"])
            act()


@every_guard
def test_an_optimizer_that_leaves_its_steps_to_another_is_refused(make: Callable[..., Guard]):
    model, guard = guarded(make)
    optimizer = SharpnessAware(model.parameters())
    with pytest.raises(ValueError, match=r"SharpnessAware leaves its steps to another.* its 'base_optimizer'"):
        guard.attach(optimizer)
    expected = copy.deepcopy((model, guard))
    guard.attach(optimizer.base_optimizer)
    learn_in_two_steps(model, optimizer)
    free = copy.deepcopy(expected[0])
    learn_in_two_steps(free, SharpnessAware(free.parameters()))
    assert any(float((value - state_of(free)[name]).abs().max()) > 1e-6 for name, value in state_of(model).items())
    if not isinstance(guard, Gram):  # whose multipliers move at each step
        learn_in_two_steps(expected[0], SharpnessAware(expected[0].parameters()), expected[1].value)
        for name, value in state_of(model).items():
            torch.testing.assert_close(value, state_of(expected[0])[name], rtol=1e-4, atol=1e-6)


class Several(Optimizer):
    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__(parameters, {})
        self.parts = {"all": SGD(parameters, lr=0.01)}


class Unfinished(Optimizer):
    def __init__(self, parameters: list[nn.Parameter]):
        self.param_groups = [{"params": parameters}]


@every_guard
def test_other_optimizers_without_hooks_are_refused(make: Callable[..., Guard]):
    model, guard = guarded(make)
    with pytest.raises(ValueError, match="leaves its steps to another optimizer: attach that one, its 'parts'"):
        guard.attach(Several(list(model.parameters())))
    with pytest.raises(ValueError, match=r"Unfinished has not called torch.optim.Optimizer.__init__.*value\(\)"):
        guard.attach(Unfinished(list(model.parameters())))
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients only"):
        guard.attach(SparseAdam(list(model.parameters())))


@every_guard
def test_an_attached_optimizer_that_steps_in_its_own_way_is_told_at_the_tasks_end(make: Callable[..., Guard]):
    model = Net()
    guard = make(model)
    optimizer = SharpnessAware(model.parameters(), inner=False)
    guard.attach(optimizer)
    guard.consolidate([samples()])  # nothing was learned: nothing to tell
    guard.attach(other := SGD(model.parameters(), lr=0.01)).remove()
    learn_in_two_steps(model, optimizer)
    with pytest.warns(UserWarning, match=r"since SharpnessAware was attached, but not by its step\(\)") as told:
        guard.consolidate([samples()])
    assert len(told) == 1  # not of the one that was detached
    del other


# --- parameters that were replaced


@every_guard
def test_weights_that_were_assigned_are_told(make: Callable[..., Guard], tmp_path: Path):
    model, guard = guarded(make)
    before, expected = guard.state_dict(), pulls(model, guard)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    optimizer = SGD(model.parameters(), lr=0.01)

    def protect() -> None:
        with guard.protect():
            pass

    acts: list[Callable[[], Any]] = [
        lambda: guard.attach(optimizer),
        protect,
        lambda: guard.consolidate([samples()]),
        guard.value,
        guard.coverage,
        lambda: guard.save(tmp_path / "guard.safetensors"),
    ]
    for act in acts:
        with pytest.raises(ValueError, match=r"trunk.weight is another parameter .*load without assign, or take"):
            act()
    guard.load_state_dict(before)  # as it says
    assert pulls(model, guard) == expected


@every_guard
def test_a_part_that_was_assigned_is_told(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.head.load_state_dict({name: value.clone() for name, value in model.head.state_dict().items()}, assign=True)
    with pytest.raises(ValueError, match=r"head.weight is another parameter"):
        guard.attach(SGD(model.parameters(), lr=0.01))


@every_guard
def test_a_weight_that_has_another_name_is_told(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.head = nn.Sequential(model.head)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"head.weight has become head.0.weight since it was measured"):
        guard.attach(SGD(model.parameters(), lr=0.01))
    model.head.requires_grad_(False)  # as the base of an adapter
    guard.attach(SGD(model.parameters(), lr=0.01))


@every_guard
def test_a_head_that_grew_in_place_is_told(make: Callable[..., Guard], tmp_path: Path):
    model, guard = guarded(make)
    optimizer = SGD(model.parameters(), lr=0.01)
    guard.attach(optimizer)
    for name in ("weight", "bias"):
        parameter = getattr(model.head, name)
        parameter.data = torch.cat([parameter.data, parameter.data[:2]])
    message = r"head.weight has the shape \(6, 6\), and had \(4, 6\) when it was measured: .*a new nn.Parameter"
    acts: list[Callable[[], Any]] = [
        lambda: learn(model, optimizer),
        lambda: guard.attach(SGD(model.parameters(), lr=0.01)),
        guard.value,
        guard.coverage,
        lambda: guard.consolidate([samples()]),
        lambda: guard.save(tmp_path / "guard.safetensors"),
    ]
    for act in acts:
        with pytest.raises(ValueError, match=message):
            act()
    for name in ("weight", "bias"):  # as it says
        setattr(model.head, name, nn.Parameter(getattr(model.head, name).data))
    found = pulls(model, guard)
    assert found["head.weight"] == found["head.bias"] == 0 < found["trunk.weight"]
    assert guard.coverage().new == ("head.bias", "head.weight")
    guard.consolidate([samples()])
    assert guard.coverage().new == ()


@every_guard
def test_weights_in_half_precision_are_told_when_it_is_attached(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.half()
    with pytest.raises(ValueError, match=r"half precision cannot be protected \(trunk.weight\)"):
        guard.attach(SGD(model.parameters(), lr=0.01))


# --- what is not held is not moved

DECAYING: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "adam fused": lambda p: Adam(p, lr=0.01, weight_decay=0.1, fused=True),
}


@every_guard
@pytest.mark.parametrize("optimizer", DECAYING)
@pytest.mark.parametrize("frozen", ["trunk", "trunk.bias", "head"])
def test_a_layer_that_is_frozen_stays_where_it_is(make: Callable[..., Guard], optimizer: str, frozen: str):
    model, guard = guarded(make)
    stepping = DECAYING[optimizer](model.parameters())
    guard.attach(stepping)
    learn(model, stepping)
    parts = [p for name, p in model.named_parameters() if name.startswith(frozen)]
    for part in parts:
        part.requires_grad_(False)
    kept, free = copy.deepcopy(parts), copy.deepcopy(model)
    learn(model, stepping)
    assert all(torch.equal(part, before) for part, before in zip(parts, kept, strict=True))
    learn(free, DECAYING[optimizer](free.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), free.parameters(), strict=True))


@every_guard
def test_a_layer_that_was_frozen_for_a_task_is_held_again(make: Callable[..., Guard]):
    model, guard = guarded(make)
    model.trunk.requires_grad_(False)
    guard.consolidate([samples(1)])
    model.trunk.requires_grad_(True)
    with torch.no_grad():
        model.trunk.weight.add_(0.1)
    assert pulls(model, guard)["trunk.weight"] > 0


@pytest.mark.parametrize("make", [lambda m: MAS(m, 0.0), lambda m: Gram(m, strength=0.0)], ids=["mas", "gram"])
def test_with_a_strength_of_zero_a_layer_without_gradient_stays(make: Callable[..., Guard]):
    """As without a guard: an optimizer does not decay what the loss did not reach."""
    model, guard = guarded(make)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    guard.attach(optimizer)
    before = copy.deepcopy(model.head)
    for _ in range(2):
        optimizer.zero_grad()
        model.trunk(samples()).square().mean().backward()  # the head has no part in it
        optimizer.step()
    assert_same(model.head, before)
    assert model.head.weight.grad is None
    with guard.protect():  # and nobody is warned that nothing was protected
        learn(model, optimizer)


# --- files of another shape


def loaded(path: Path, model: nn.Module) -> Guard:
    """By the one of the two that reads such files."""
    try:
        return Gram.load(path, model)
    except ValueError as error:
        if "Protection.load reads it" not in str(error):
            raise
        return Protection.load(path, model)


@every_guard
def test_a_saved_protection_of_another_shape_is_told_by_its_file(make: Callable[..., Guard], tmp_path: Path):
    model, guard = guarded(make)
    path = tmp_path / "held.safetensors"
    guard.save(path)
    assert loaded(path, model).value() == guard.value()
    with read_protection(path) as (state, settings):
        pass
    others: list[Any] = [None, 1, "x", [], {}, {"function": 1}, {"function": "mas_importance", "options": []}]
    wrong = [(state, {name: each for name, each in settings.items() if name != key}) for key in settings]
    for key, value in settings.items():
        # what may be so: no budget or strength, numbers, and for `exact` all that is true or false
        fits = {"budget": others[:2], "strength": others[:2], "decay": [1], "exact": others}.get(key, [])
        wrong += [(state, settings | {key: other}) for other in others if other != value and other not in fits]
    wrong += [(state | {name: torch.zeros(3, 1, 2)}, settings) for name in state]
    wrong += [({key: state[key] for key in state if key != name}, settings) for name in state]
    for tensors, about in wrong:
        write_protection(path, tensors, about)
        with pytest.raises(ValueError, match=r"held.safetensors"):
            loaded(path, model)
