"""Change the gradients just before an optimizer uses them, in any training loop.

An optimizer that is given a closure (LBFGS; every optimizer under some trainers) computes its gradients inside its
step, after the hook: the change must then follow the closure, or it is lost without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, SparseAdam

StepHook = Callable[[Optimizer, tuple, dict], tuple[tuple, dict] | None]


def make_step_hook(change_gradients: Callable[[Optimizer], None], added_value: Callable[[], Tensor]) -> StepHook:
    """A pre-step hook, for one optimizer or for all, that calls `change_gradients(optimizer)` at the right moment.

    Args:
        change_gradients: adds to `parameter.grad`, where there may be none.
        added_value: the loss whose gradient is added; asked for only by LBFGS, whose line search compares values.
    """

    def before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            change_gradients(optimizer)
            return None

        def changed() -> Any:
            with torch.enable_grad():
                loss = closure()
            change_gradients(optimizer)
            return loss + added_value().detach() if isinstance(optimizer, LBFGS) else loss

        if len(args) > 1:
            return (args[0], changed, *args[2:]), kwargs
        return args, {**kwargs, "closure": changed}

    return before_step


def check_steps(optimizer: Optimizer) -> None:
    """Raise a ValueError for an optimizer that cannot be given a penalty before its steps.

    At its own step hooks may never run: it leaves its steps to another one (a wrapper, or one of two steps as SAM), or
    was not set up as torch's are; or it takes no dense gradient.
    """
    inner = [name for name, value in vars(optimizer).items() if _has_optimizer(value)]
    if inner:
        raise ValueError(
            f"a {type(optimizer).__name__} leaves its steps to another optimizer: attach that one, its {inner[0]!r}"
        )
    if isinstance(optimizer, SparseAdam):
        raise ValueError("SparseAdam takes sparse gradients only, and a penalty's is dense: use Adam")
    if "_optimizer_step_pre_hooks" not in vars(optimizer):
        raise ValueError(
            f"a {type(optimizer).__name__} has not called torch.optim.Optimizer.__init__, so that no hook runs when it "
            "steps: add the protection's value() to the loss"
        )


def _has_optimizer(value: Any) -> bool:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(each, Optimizer) for each in members)


def is_registered(handle: Any, optimizer: Optimizer) -> bool:
    """Whether a hook that was registered with this handle still runs before the optimizer's steps."""
    return handle is not None and handle.id in optimizer._optimizer_step_pre_hooks


def gradient_scale(optimizer: Optimizer) -> Tensor | float:
    """What the gradients are multiplied with: a GradScaler says so where the (fused) optimizer unscales them itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale
