"""Change the gradients just before an optimizer uses them, in any training loop.

An optimizer that is given a closure (LBFGS; every optimizer under some trainers) computes its gradients inside its
step, after the hook: the change must then follow the closure, or it is lost without a word.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

StepHook = Callable[[Optimizer, tuple, dict], tuple[tuple, dict] | None]


def make_step_hook(change_gradients: Callable[[Optimizer, bool], None], added_value: Callable[[], Tensor]) -> StepHook:
    """A pre-step hook, for one optimizer or for all: it calls `change_gradients(optimizer, first)` at the right moment.

    Args:
        change_gradients: adds to `parameter.grad`, where there may be none; `first` says whether it is called for the
            first time in this step: a closure may be called several times.
        added_value: the loss whose gradient is added; asked for only by LBFGS, whose line search compares values.
    """

    def before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            change_gradients(optimizer, True)
            return None
        evaluations = itertools.count()

        def changed() -> Any:
            with torch.enable_grad():
                loss = closure()
            change_gradients(optimizer, next(evaluations) == 0)
            if isinstance(optimizer, LBFGS):
                with torch.no_grad():
                    return loss + added_value()
            return loss

        if len(args) > 1:
            return (args[0], changed, *args[2:]), kwargs
        return args, {**kwargs, "closure": changed}

    return before_step


def is_registered(handle: Any, optimizer: Optimizer) -> bool:
    """Whether a hook that was registered with this handle still runs before the optimizer's steps."""
    return handle is not None and handle.id in optimizer._optimizer_step_pre_hooks


def gradient_scale(optimizer: Optimizer) -> Tensor | float:
    """What the gradients are multiplied with: a GradScaler says so where the (fused) optimizer unscales them itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale
