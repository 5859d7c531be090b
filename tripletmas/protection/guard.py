"""Guard: what holds a model's weights while it goes on learning, in any training loop.

Its penalty goes into the gradient, in a hook that runs when an optimizer steps: then it works in any training loop,
fires once a step whatever the gradient accumulation, and needs no second backward pass.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from tripletmas.basics.weights import Params, named_parameters, trainable
from tripletmas.protection.batches import refuse_complex
from tripletmas.protection.coverage import Coverage
from tripletmas.protection.hooks import StepHook, check_steps, is_registered, make_step_hook

Estimator = Callable[[nn.Module, Iterable[Any]], Params]


class Guard:
    """A penalty on a model's weights, felt at every step of an optimizer. Abstract.

    Concrete ones say what is held: each weight by its importance (`Protection`), or what each layer answers (`Gram`).
    `copy.deepcopy((model, guard))` copies both; the copy is attached to no optimizer.

    Args:
        model: the model that is trained; parameters are matched by identity in memory and by canonical name on disk.
        strength: weight of the penalty (lambda).
        decay: what is left of earlier tasks' part when a task is added; 1 sums all tasks.
        estimate: (model, batches) -> importance by canonical name.

    Raises:
        ValueError: for a negative strength, a decay outside [0, 1], complex weights, or half-precision weights, which
            are too coarse to be held in place (keep float32 weights and train under autocast).
    """

    def __init__(self, model: nn.Module, *, strength: float, decay: float, estimate: Estimator):
        check_penalty(strength, decay)
        _check_types(model)
        self.model = model
        self.strength = strength
        self.decay = decay
        self.estimate = estimate
        self._enter_no_loop()

    def _enter_no_loop(self) -> None:
        self._handles: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()
        self._idle: WeakKeyDictionary[Optimizer, list[Tensor]] = WeakKeyDictionary()  # attached, and has not stepped
        self._checked_rates: WeakSet[Optimizer] = WeakSet()
        self._num_protected_steps = 0
        self._protecting = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        copied = memo[id(self)] = object.__new__(type(self))
        copied._enter_no_loop()
        own = {name: value for name, value in vars(self).items() if name not in vars(copied)}
        vars(copied).update(copy.deepcopy(own, memo))
        return copied

    def __getstate__(self) -> NoReturn:
        raise ValueError(
            f"a {type(self).__name__} is not pickled: save(path) writes it, load(path, model) reads it, and "
            "copy.deepcopy((model, it)) copies it with its model"
        )

    @property
    def importance(self) -> Params:
        """Of every weight that is held, by canonical name; empty before the first `consolidate`."""
        raise NotImplementedError

    def shares(self) -> dict[str, float]:
        """The share of each layer's squared response that has changed, a mean over tasks; {} if not known."""
        return {}

    # --- in a training loop

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Add the penalty's gradient whenever this optimizer steps; nothing until the first `consolidate`.

        Attaching an optimizer again changes nothing. The handle's `remove()` detaches it. A copy of an optimizer has no
        hooks: attach it, too.

        Raises:
            ValueError: if the optimizer holds no parameter of the model, or leaves its steps to another; where what is
                held can no longer be: a parameter that was replaced since, or has another shape or type.
        """
        parameters = self._steppable(optimizer)
        if not parameters:
            raise ValueError("the optimizer holds no parameter of the protected model: was the model rebuilt since?")
        check_steps(optimizer)
        _check_types(self.model)
        self._present()
        if not is_registered(self._handles.get(optimizer), optimizer):
            self._handles[optimizer] = optimizer.register_step_pre_hook(self._make_hook())
            self._idle[optimizer] = _sums(parameters)
        return self._handles[optimizer]

    @contextmanager
    def protect(self) -> Iterator[Guard]:
        """Protect in every optimizer that steps inside the `with` block, for frameworks that build their own.

        Warns at the end of the block if there was something to protect but no optimizer stepped on it.
        """
        if self._protecting:  # within another `protect()` of this guard: once is enough
            yield self
            return
        self._present()
        num_steps_before, has_something = self._num_protected_steps, bool(self.strength) and self._holds()
        add_penalty = self._make_hook()

        def before_step(optimizer: Optimizer, args: tuple, kwargs: dict):
            attached = is_registered(self._handles.get(optimizer), optimizer)
            return None if attached else add_penalty(optimizer, args, kwargs)  # its own hook adds the penalty

        handle = register_optimizer_step_pre_hook(before_step)
        self._protecting = True
        try:
            yield self
        finally:
            self._protecting = False
            handle.remove()
        if has_something and self._num_protected_steps == num_steps_before:
            warnings.warn("no optimizer stepped on the protected model inside protect()", stacklevel=3)

    def value(self) -> Tensor:
        """The penalty now: a differentiable scalar."""
        raise NotImplementedError

    # --- after a task

    def settle(self) -> None:
        """At the end of a task's training: bring back weights that went further than they may. Nothing by default."""

    def consolidate(self, batches: Iterable[Any]) -> Params:
        """Measure what was just learned, add it to what is held, and re-anchor.

        Args:
            batches: unlabelled data (labels are ignored): an iterable of tensors, (inputs, ...) tuples or dicts.

        Returns:
            The importance of this task alone, by canonical name.
        """
        raise NotImplementedError

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        """Hold what these data need, too, as the model is now: `weight` of a task, before the next one is learned.

        Returns:
            Their importance, by canonical name.
        """
        raise NotImplementedError

    def coverage(self) -> Coverage:
        """What the penalty holds of the model as it is now, and what it leaves free."""
        raise NotImplementedError

    # --- on disk

    def state_dict(self) -> Params:
        """All that is held, as tensors by name; empty before the first `consolidate`."""
        raise NotImplementedError

    def load_state_dict(self, state: Params) -> None:
        """Take over a state that `state_dict` gave, for the present model.

        Raises:
            ValueError: if the state has parameters that the model lacks, or has in other shapes; all names that do not
                match are listed. Parameters that only the model has are not held, as `coverage` says.
        """
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write state and settings to one safetensors file (settings as JSON in its header)."""
        raise NotImplementedError

    # --- at an optimizer's step

    def _holds(self) -> bool:
        """Whether there is anything to hold yet."""
        raise NotImplementedError

    def _present(self) -> Collection[Any]:
        """What is held and is still in the model, which may have replaced a part by another (a new head).

        Raises:
            ValueError: for a parameter that was replaced in its place, or has another shape.
        """
        raise NotImplementedError

    def _add_gradients(self, optimizer: Optimizer) -> bool:
        """Add the penalty's gradient to those of this optimizer's parameters; whether any of them is held."""
        raise NotImplementedError

    def _make_hook(self) -> StepHook:
        def add(optimizer: Optimizer) -> None:
            self._idle.pop(optimizer, None)
            if self.strength and self._holds():  # zero gradients are not nothing where there is weight decay
                self._num_protected_steps += self._add_gradients(optimizer)

        return make_step_hook(add, self.value)

    def _steppable(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """The parameters of the model that an optimizer holds."""
        own = {id(parameter) for parameter in named_parameters(self.model).values()}
        return [each for group in optimizer.param_groups for each in group["params"] if id(each) in own]

    def _warn_if_idle(self) -> None:
        """Warn of an attached optimizer that changed the weights without a step that hooks could see."""
        for optimizer, before in list(self._idle.items()):
            now = self._idle[optimizer] = _sums(self._steppable(optimizer))
            changed = any(float(one) != float(other) for one, other in zip(before, now, strict=False))
            if changed and is_registered(self._handles.get(optimizer), optimizer):
                warnings.warn(
                    f"the weights have changed since {type(optimizer).__name__} was attached, but not by its step(): "
                    "attach the optimizer that steps, or add value() to the loss",
                    stacklevel=3,
                )


def _sums(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.detach().sum() for parameter in parameters]


def _check_types(model: nn.Module) -> None:
    parameters = trainable(model)
    refuse_complex(parameters)
    half = [name for name, p in parameters.items() if p.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise ValueError(
            f"weights in half precision cannot be protected ({half[0]}): keep them in float32 and "
            "train under torch.autocast"
        )


def check_penalty(strength: float, decay: float) -> None:
    """Raise a ValueError for a negative strength, or a decay outside [0, 1]."""
    if not strength >= 0:
        raise ValueError(f"strength must be >= 0, got {strength}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
