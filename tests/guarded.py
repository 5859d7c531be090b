"""A small model, every guard of it, and a task that it learned: for tests of what all guards have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tripletmas.basics.weights import state_of
from tripletmas.protection.guard import Guard
from tripletmas.protection.protection import MAS, LocalMAS
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
    guard._note_weights()  # by whom they were moved is not what is tried
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


def learn_elsewhere(pairs: list[tuple[nn.Module, Guard]], results: Any) -> None:
    """In another process: what the models became, and how many of the steps were protected."""
    for model, guard in pairs:
        optimizer = SGD(model.parameters(), lr=0.01)
        guard.attach(optimizer)
        learn(model, optimizer)
        state = {name: value.detach().numpy() for name, value in state_of(model).items()}
        results.put((state, guard.num_protected_steps))


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
