"""Attaching a guard to an optimizer: to what steps inside its wrappers, before or after a clipping of gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from guarded import GUARDS, Net, SharpnessAware, assert_same, every_guard, guarded, learn, samples
from lightning.pytorch.core.optimizer import LightningOptimizer
from timm.optim.lookahead import Lookahead
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer, SparseAdam

from tripletmas.basics.weights import state_of
from tripletmas.protection.guard import Guard
from tripletmas.protection.structured.gram import Gram


def differ(found: nn.Module, other: nn.Module) -> bool:
    other_state = state_of(other)
    return any(float((value - other_state[name]).abs().max()) > 1e-6 for name, value in state_of(found).items())


# --- wrappers


def accelerated(optimizer: Optimizer) -> Any:
    return Accelerator(cpu=True).prepare(optimizer)


WRAPPERS: dict[str, Callable[[Optimizer], Any]] = {
    "accelerate": accelerated,
    "lightning": LightningOptimizer,
    "lookahead": lambda optimizer: Lookahead(optimizer, k=2),
    "accelerate of lookahead": lambda optimizer: accelerated(Lookahead(optimizer, k=2)),
    "lightning of accelerate": lambda optimizer: LightningOptimizer(accelerated(optimizer)),
}


@every_guard
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("clip", ["before", "after"])
def test_the_optimizer_in_a_wrapper_is_attached(make: Callable[..., Guard], wrap: Callable[..., Any], clip: Any):
    def trained(attach: bool) -> tuple[nn.Module, int]:
        model, guard = guarded(make)
        model = model if attach else copy.deepcopy(model)
        inner = SGD(model.parameters(), lr=0.05, momentum=0.9)
        wrapper = wrap(inner)
        if attach:
            handle = guard.attach(wrapper, clip=clip)
            assert handle is guard.attach(inner, clip=clip)  # it is the same one
        stepping = wrapper._optimizer if isinstance(wrapper, LightningOptimizer) else wrapper  # steps with a trainer
        for step in range(4):
            wrapper.zero_grad()
            model(samples(10 + step)).square().mean().backward()
            if attach and clip == "before":
                guard.add_gradients(wrapper)
            stepping.step()
        return model, guard.num_protected_steps

    (found, steps), (free, no_steps) = trained(True), trained(False)
    assert differ(found, free)
    assert (steps, no_steps) == (4, 0)


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
def test_the_inner_one_of_an_optimizer_of_two_steps_is_attached(make: Callable[..., Guard]):
    model, guard = guarded(make)
    optimizer = SharpnessAware(model.parameters())
    expected = copy.deepcopy((model, guard))
    guard.attach(optimizer)
    learn_in_two_steps(model, optimizer)
    free = copy.deepcopy(expected[0])
    learn_in_two_steps(free, SharpnessAware(free.parameters()))
    assert any(float((value - state_of(free)[name]).abs().max()) > 1e-6 for name, value in state_of(model).items())
    if not isinstance(guard, Gram):  # whose multipliers move at each step
        learn_in_two_steps(expected[0], SharpnessAware(expected[0].parameters()), expected[1].value)
        for name, value in state_of(model).items():
            torch.testing.assert_close(value, state_of(expected[0])[name], rtol=1e-4, atol=1e-6)


class Momentous(SGD):
    """Does something of its own, and leaves the rest to its base class: torch runs hooks at both steps."""

    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = closure() if closure is not None and self.defaults["calls"] else None
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(1.0)  # in place, as clipping does
        return super().step(None if self.defaults["calls"] else closure) or loss


def momentous(model: nn.Module, *, calls: bool) -> Momentous:
    """Args:
    calls: a closure is called here, else by the base class.
    """
    SGD(model.parameters(), lr=0.01)  # of which one was made before: only then are there hooks at the base class
    optimizer = Momentous(model.parameters(), lr=0.05)
    optimizer.defaults["calls"] = calls
    return optimizer


WAYS = ("plain", "before", "protect", "closure", "closure of the base class", "after a failure")


@every_guard
@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_leaves_the_rest_to_its_base_class_is_one_step(make: Callable[..., Guard], way: str):
    model, guard = guarded(make)
    expected, its = copy.deepcopy((model, guard))
    its.attach(simple := SGD(expected.parameters(), lr=0.05))
    learn(expected, simple)
    optimizer = momentous(model, calls=way == "closure")
    if way != "protect":
        guard.attach(optimizer, clip="before" if way == "before" else "after")
    if way == "after a failure":
        with pytest.raises(TypeError):
            optimizer.step(lambda: 1 + "1")  # type: ignore[operator]
    with guard.protect() if way == "protect" else nullcontext():
        for step in range(3):

            def closure(step: int = step) -> Tensor:
                optimizer.zero_grad(set_to_none=False)
                loss = model(samples(10 + step)).square().mean()
                loss.backward()
                return loss

            if way.startswith("closure"):
                optimizer.step(closure)
                continue
            closure()
            if way == "before":
                guard.add_gradients(optimizer)
            optimizer.step()
    assert_same(model, expected)
    assert guard.num_protected_steps == 3


class Several(Optimizer):
    """Leaves weights to other optimizers, each of which has some of them; what is in none of them it steps itself."""

    def __init__(self, parameters: list[nn.Parameter], *parts: Any):
        super().__init__(parameters, {})
        self.parts = {str(number): SGD(part, lr=0.01) for number, part in enumerate(parts)}
        self.other = [SGD([nn.Parameter(torch.zeros(1))], lr=0.01)]  # of another model

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


class Unfinished(Optimizer):
    def __init__(self, parameters: list[nn.Parameter]):
        self.param_groups = [{"params": parameters}]


@every_guard
def test_where_it_cannot_be_known_which_optimizer_steps(make: Callable[..., Guard]):
    model, guard = guarded(make)
    everything, (trunk, head) = list(model.parameters()), (list(part.parameters()) for part in model.children())
    with pytest.raises(ValueError, match=r"leaves its steps to several optimizers: attach each.*, its 'parts', its"):
        guard.attach(Several(everything, trunk, head))
    with pytest.raises(ValueError, match=r"Several leaves the steps of some weights to its 'parts', .*value\(\)"):
        guard.attach(Several(everything, trunk))
    with pytest.raises(ValueError, match=r"Unfinished has not called torch.optim.Optimizer.__init__.*value\(\)"):
        guard.attach(Unfinished(everything))
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients only"):
        guard.attach(SparseAdam(everything))
    with pytest.raises(ValueError, match="attach takes an optimizer of torch, or what wraps one, got Net"):
        guard.attach(model)
    with pytest.raises(ValueError, match="the optimizer holds no parameter of the protected model"):
        guard.attach(SharpnessAware(Net().parameters()))
    with pytest.raises(ValueError, match=r"is nothing of it trained \(requires_grad; .*is_trainable=True"):
        guard.attach(SGD([{"params": []}], lr=0.1))  # what a Trainer makes for a model that is frozen
    itself = Several(everything)
    guard.attach(itself)
    learn(model, itself)
    assert guard.num_protected_steps == 3
    one = Several(everything, everything)
    guard.attach(one)
    learn(model, one.parts["0"])
    assert guard.num_protected_steps == 6


@every_guard
def test_an_attached_optimizer_that_steps_in_its_own_way_is_told_at_the_tasks_end(make: Callable[..., Guard]):
    model = Net()
    guard = make(model)
    optimizer = SharpnessAware(model.parameters(), inner=False)
    with pytest.warns(UserWarning, match=r"no hook runs at first_step\(\) and second_step\(\) of a SharpnessAware"):
        guard.attach(optimizer)
    guard.consolidate([samples()])  # nothing was learned: nothing to tell
    guard.attach(other := SGD(model.parameters(), lr=0.01)).remove()
    learn_in_two_steps(model, optimizer)
    with pytest.warns(UserWarning, match=r"since SharpnessAware was attached, but not by its step\(\)") as told:
        guard.consolidate([samples()])
    assert len(told) == 1  # not of the one that was detached
    del other


# --- clip


Penalty = Callable[[], Tensor]
Add = Callable[[], None]


def clipped(model: nn.Module, optimizer: Optimizer, penalty: Penalty, add: Add) -> None:
    for step in range(4):
        optimizer.zero_grad()
        (model(samples(10 + step)).square().mean() + penalty()).backward()
        add()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def accumulated(model: nn.Module, optimizer: Optimizer, penalty: Penalty, add: Add) -> None:
    for step in range(4):
        for part in samples(10 + step).split(8):
            ((model(part).square().mean() + penalty()) / 2).backward()
        add()
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()


def scaled(model: nn.Module, optimizer: Optimizer, penalty: Penalty, add: Add) -> None:
    """The first step is left out: its gradients are not finite."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    for step in range(5):
        optimizer.zero_grad()
        loss = model(samples(10 + step)).square().mean() + penalty()
        scaler.scale(loss * float("inf") if step == 0 else loss).backward()
        scaler.unscale_(optimizer)
        add()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()


def in_a_closure(model: nn.Module, optimizer: Optimizer, penalty: Penalty, add: Add) -> None:
    for step in range(4):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = model(samples(10 + step)).square().mean() + penalty()
            loss.backward()
            add()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType, reportCallIssue]


CLIPPING = {each.__name__: each for each in (clipped, accumulated, scaled, in_a_closure)}


@pytest.mark.parametrize("make", [GUARDS["mas"], GUARDS["gram, strength"]], ids=["mas", "gram"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("loop", CLIPPING.values(), ids=CLIPPING)
def test_before_clipping_it_equals_the_penalty_in_the_loss(make: Callable[..., Guard], loop: Any, fused: bool):
    model, guard = guarded(make)
    (expected, its), free = copy.deepcopy((model, guard)), copy.deepcopy(model)
    optimizer = AdamW(model.parameters(), lr=0.01, fused=fused)
    guard.attach(optimizer, clip="before")
    loop(model, optimizer, lambda: torch.zeros(()), lambda: guard.add_gradients(optimizer))
    loop(expected, AdamW(expected.parameters(), lr=0.01, fused=fused), its.value, lambda: None)
    loop(free, AdamW(free.parameters(), lr=0.01, fused=fused), lambda: torch.zeros(()), lambda: None)
    for (name, value), other in zip(state_of(model).items(), state_of(expected).values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert differ(model, free)
    assert guard.num_protected_steps == 4 + (loop is scaled)  # the one that is left out, too


def test_a_budget_is_adapted_once_a_step_before_clipping_as_after():
    """Without a clipping both are the same."""

    def trained(clip: Any) -> tuple[nn.Module, Gram]:
        model, guard = guarded(Gram)
        optimizer = SGD(model.parameters(), lr=0.05)
        guard.attach(optimizer, clip=clip)
        for step in range(5):
            optimizer.zero_grad()
            model(samples(10 + step)).square().mean().backward()
            if clip == "before":
                guard.add_gradients(optimizer)
            optimizer.step()
        assert isinstance(guard, Gram)
        return model, guard

    (model, gram), (other, its) = trained("before"), trained("after")
    assert_same(model, other)
    assert all(torch.equal(value, its.state_dict()[name]) for name, value in gram.state_dict().items())


@every_guard
def test_a_step_before_which_nobody_added_the_penalty_is_told(make: Callable[..., Guard]):
    model = Net()
    guard = make(model)
    optimizer = SGD(model.parameters(), lr=0.01)
    guard.attach(optimizer, clip="before")

    def steps() -> None:
        with pytest.raises(ValueError, match="SGD that was attached with clip='before' stepped without add_gradients"):
            learn(model, optimizer, steps=1)

    before = copy.deepcopy(model)
    steps()  # while it learns the first task: not only when there is something to hold
    guard.consolidate([samples()])
    steps()
    assert_same(model, before)
    for _ in range(2):
        guard.add_gradients(optimizer)
        optimizer.step()
    optimizer.zero_grad()
    steps()
    guard.attach(optimizer)  # as it says
    learn(model, optimizer)


@every_guard
def test_a_penalty_that_is_added_twice_or_lost_is_told(make: Callable[..., Guard]):
    model, guard = guarded(make)
    optimizer = SGD(model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match="add_gradients is for an optimizer that was attached with clip='before'"):
        guard.add_gradients(optimizer)
    guard.attach(optimizer)
    with pytest.raises(ValueError, match="add_gradients is for an optimizer that was attached with clip='before'"):
        guard.add_gradients(optimizer)
    handle = guard.attach(optimizer, clip="before")
    model(samples()).sum().backward()
    guard.add_gradients(optimizer)
    with pytest.raises(ValueError, match="the penalty is in these gradients already: call add_gradients once a step"):
        guard.add_gradients(optimizer)
    optimizer.zero_grad()
    model(samples()).sum().backward()
    with pytest.raises(ValueError, match=r"others than add_gradients.* was called for, so that the penalty is lost"):
        optimizer.step()
    guard.add_gradients(optimizer)
    with pytest.raises(ValueError, match=r"others than add_gradients.*in the closure, if there is one"):
        optimizer.step(lambda: [optimizer.zero_grad(), model(samples()).sum().backward()])  # type: ignore
    handle.remove()
    with pytest.raises(ValueError, match="add_gradients is for an optimizer that was attached with clip='before'"):
        guard.add_gradients(optimizer)
    optimizer.step()


def test_gradients_that_are_still_scaled_are_told():
    model, guard = guarded(GUARDS["mas"])
    optimizer = AdamW(model.parameters(), fused=True)
    guard.attach(optimizer, clip="before")
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(samples()).sum()).backward()
    guard.add_gradients(optimizer)
    with pytest.raises(ValueError, match=r"call scaler.unscale_\(optimizer\) before add_gradients"):
        scaler.step(optimizer)


def test_what_clip_may_be():
    model, guard = guarded(GUARDS["mas"])
    with pytest.raises(ValueError, match="clip must be 'before' or 'after', got 'never'"):
        guard.attach(SGD(model.parameters(), lr=0.01), clip="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="LBFGS compares values of the loss"):
        guard.attach(LBFGS(model.parameters()), clip="before")


# --- several gradients a step


def test_a_line_search_finds_one_and_the_same_penalty():
    """The multipliers of a budget move once a step, and not within one: else values and gradients of it do not belong
    together, and the number of evaluations would set how fast they move."""
    model, gram = guarded(Gram)
    assert isinstance(gram, Gram)
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=6, line_search_fn="strong_wolfe")
    gram.attach(optimizer)
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(samples(10)).square().mean()
        loss.backward()
        seen[-1].append(multipliers(gram))
        return loss

    def multipliers(gram: Gram) -> Tensor:
        return torch.stack([gram.state_dict()[name][2] for name in gram.state_dict() if name.startswith("scalars/")])

    for _ in range(3):
        seen.append([])
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    assert gram.num_protected_steps == 3
    assert all(len(values) > 2 for values in seen)
    for values in seen:  # the first evaluation of a step sees what the step before left, and then sets them
        assert all(torch.equal(each, values[1]) for each in values[2:])
    first, second, third = (values[1] for values in seen)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.equal(first, torch.full_like(first, 30.0))  # as they start: no step has been taken
