"""Change the gradients just before an optimizer uses them, in any training loop.

An optimizer that is given a closure (LBFGS; every optimizer under some trainers) computes its gradients inside its
step, after the hook: the change must then follow the closure, or it is lost without a word.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

StepHook = Callable[[Optimizer, tuple, dict], tuple[tuple, dict] | None]


@dataclass
class _Step:
    """A step of an optimizer, which may leave its work to the step of its base class, before which hooks run again.

    Attributes:
        has_closure: it was given one; what it hands on is that one, or gradients that it has made.
        changed: a parameter whose gradient was changed in it last, and that gradient's identity.
    """

    has_closure: bool
    changed: tuple[nn.Parameter, int] | None = None

    def note(self, changed: Iterable[nn.Parameter]) -> None:
        self.changed = next(((each, id(each.grad)) for each in changed if each.grad is not None), None)

    def is_changed(self) -> bool:
        """Whether the gradients are still those that were changed."""
        return self.changed is not None and id(self.changed[0].grad) == self.changed[1]


def make_step_hook(
    change_gradients: Callable[[Optimizer, bool], Iterable[nn.Parameter]], added_value: Callable[[], Tensor]
) -> StepHook:
    """A pre-step hook, for one optimizer or for all: it calls `change_gradients(optimizer, first)` at the right moment.

    Args:
        change_gradients: adds to `parameter.grad`, where there may be none, and gives the parameters that it added to;
            `first` says whether it is called for the first time in this step: a closure may be called several times.
        added_value: the loss whose gradient is added; asked for only by LBFGS, whose line search compares values.
    """
    steps: WeakKeyDictionary[Optimizer, _Step] = WeakKeyDictionary()

    def before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        step = steps.get(optimizer)
        if step is None or not _is_within_a_step(optimizer):
            step = steps[optimizer] = _Step(closure is not None)
        elif step.has_closure if closure is not None else step.is_changed():
            return None
        if closure is None:
            step.note(change_gradients(optimizer, True))
            return None
        evaluations = itertools.count()

        def changed() -> Any:
            with torch.enable_grad():
                loss = closure()
            step.note(change_gradients(optimizer, next(evaluations) == 0))
            if isinstance(optimizer, LBFGS):
                with torch.no_grad():
                    return loss + added_value()
            return loss

        if len(args) > 1:
            return (args[0], changed, *args[2:]), kwargs
        return args, {**kwargs, "closure": changed}

    return before_step


def _is_within_a_step(optimizer: Optimizer) -> bool:
    """Whether the step before which a hook runs was called by a step of the same optimizer: `super().step()`.

    Torch says nothing of it, and a mark would stay where a step fails; the functions that are running tell it.
    """
    count, frame = 0, sys._getframe(1)
    while frame is not None:
        if frame.f_code is _STEP and frame.f_locals["args"][0] is optimizer:
            count += 1
        frame = frame.f_back
    return count > 1


_STEP = Optimizer.profile_hook_step(lambda: None).__code__  # of what torch puts around every step, to run hooks


def is_registered(handle: Any, optimizer: Optimizer) -> bool:
    """Whether a hook that was registered with this handle still runs before the optimizer's steps."""
    return handle is not None and handle.id in optimizer._optimizer_step_pre_hooks


def gradient_scale(optimizer: Optimizer) -> Tensor | float:
    """What the gradients are multiplied with: a GradScaler says so where the (fused) optimizer unscales them itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale
