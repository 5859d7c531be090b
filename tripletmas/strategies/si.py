"""Synaptic intelligence: weights are held as firmly as their own way through a task has lowered its loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tripletmas.basics.weights import Params, snapshot, trainable
from tripletmas.data.tasks import Task
from tripletmas.objectives.objective import Objective
from tripletmas.protection.guard import check_penalty
from tripletmas.protection.hooks import is_registered
from tripletmas.protection.protection import Protection
from tripletmas.strategies.consolidate import Consolidate


class SI(Consolidate):
    """Synaptic intelligence: importance is what each weight contributed to the fall of the loss, summed while training.

    Penalty: strength * sum_i Omega_i (theta_i - theta*_i)^2. Each task adds max(omega_i, 0) / (change_i^2 + damping) to
    Omega_i, where omega_i = - sum over steps of (gradient of the task's loss, without the penalty) * (change of
    theta_i), and change_i is that over the whole task. The gradient is the one that the optimizer is given: that of the
    batch, clipped where `clip` is set. Needs no pass over the data.
    Stores two copies of the weights, during a task four, in a step six.

    Args:
        strength: weight of the penalty; 0 is finetune.
        damping: bounds the importance of weights that have hardly moved, in squared units of the weights: where
            change_i^2 is far below it, Omega_i is omega_i / damping.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.

    Source: Zenke, Poole and Ganguli, Continual Learning Through Synaptic Intelligence, ICML 2017. The authors' released
    runs have a damping of 0.1 on permuted MNIST and of 0.001 on CIFAR-10 (ganguli-lab/pathint). A negative omega_i
    would push its weight away from the reference, without bound: here it counts as 0; the authors' code adds it, and
    then sets a negative Omega_i to 0.
    """

    def __init__(self, *, strength: float = 10.0, damping: float = 0.1, decay: float = 1.0):
        if not damping > 0:
            raise ValueError(f"damping must be > 0, got {damping}")
        check_penalty(strength, decay)
        self.strength = strength
        self.damping = damping
        self.decay = decay
        self._path: PathIntegral | None = None

    def make_protection(self, model: nn.Module, objective: Objective) -> Protection:
        self._path = PathIntegral(model)
        return Protection(model, strength=self.strength, decay=self.decay, estimate=self._estimate)

    def measured_on(self, task: Task) -> Iterable[Any]:
        return ()

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        self._way().begin(optimizer)
        self.prepared().attach(optimizer)

    def after_step(self, model: nn.Module) -> None:
        self._way().after_step()

    def state_dict(self) -> Params:
        return self._way().state_dict() | self.prepared().state_dict()

    def load_state_dict(self, state: Params) -> None:
        self._way().load_state_dict(state)
        self.prepared().load_state_dict(state)

    def _estimate(self, model: nn.Module, nothing: Iterable[Any]) -> Params:
        return self._way().end(self.damping)  # measured on the way

    def _way(self) -> PathIntegral:
        self.prepared()
        assert self._path is not None
        return self._path


class _Before(NamedTuple):
    parameter: nn.Parameter
    gradient: Tensor
    weights: Tensor


class PathIntegral:
    """omega_i = - sum over steps of g_i * (change of theta_i), g the gradient before any hook of the optimizer.

    To first order, the sum over all weights is the fall of the loss. Stores two copies of the trainable parameters
    during a task, and two more during a step.

    Attributes:
        omega: so far, by canonical name; empty between tasks.
        start: the weights at the task's start, by canonical name.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.omega: Params = {}
        self.start: Params = {}
        self._step: dict[str, _Before] = {}
        self._handles: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()

    def begin(self, optimizer: Optimizer) -> None:
        """Begin a task, in which this optimizer steps; what its other hooks add to gradients does not count."""
        self.start = snapshot(trainable(self.model))
        self.omega = {name: torch.zeros_like(value) for name, value in self.start.items()}
        if not is_registered(self._handles.get(optimizer), optimizer):
            handle = self._handles[optimizer] = optimizer.register_step_pre_hook(self._before_step)
            hooks = optimizer._optimizer_step_pre_hooks  # they run in this order: ours before all penalties
            hooks.update({number: hooks.pop(number) for number in list(hooks) if number != handle.id})

    def after_step(self) -> None:
        """Add the step that was just made; nothing if the optimizer left it out, as a GradScaler may make it do."""
        for name, (parameter, gradient, weights) in self._step.items():
            self.omega[name].addcmul_(gradient, torch.sub(parameter.detach(), weights, out=weights), value=-1)
        self._step = {}

    def end(self, damping: float) -> Params:
        """End the task: max(omega, 0) / ((change since its start)^2 + damping), by canonical name.

        Raises:
            ValueError: if it is zero everywhere.
        """
        importance = {
            name: self.omega[name].clamp(min=0) / ((parameter.detach() - self.start[name]).square() + damping)
            for name, parameter in trainable(self.model).items()
            if name in self.omega  # not one that was frozen when the task began
        }
        if not any(bool(value.any()) for value in importance.values()):
            raise ValueError(
                "the importance is zero everywhere: no step of this task lowered its loss. A metric loss with a "
                "margin: all triplets or pairs satisfied it from the start; take a larger margin, a loss without a "
                "hinge, or mas, which measures the embedding, not the loss. Else the loss only rose: lower lr"
            )
        self.omega, self.start = {}, {}
        return importance

    def state_dict(self) -> Params:
        """`path/NAME` and `start/NAME`; empty between tasks."""
        return {f"path/{name}": value for name, value in self.omega.items()} | {
            f"start/{name}": value for name, value in self.start.items()
        }

    def load_state_dict(self, state: Params) -> None:
        """Take over a state that `state_dict` gave; other names are left alone."""
        current = trainable(self.model)
        self.omega, self.start = (
            {
                name: torch.empty_like(parameter).copy_(state[f"{part}/{name}"]).detach()
                for name, parameter in current.items()
                if f"{part}/{name}" in state
            }
            for part in ("path", "start")
        )

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self._step = {
            name: _Before(parameter, parameter.grad.to_dense().clone(), parameter.detach().clone())
            for name, parameter in trainable(self.model).items()
            if parameter.grad is not None and name in self.omega
        }
