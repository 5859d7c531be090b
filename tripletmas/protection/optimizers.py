"""Which optimizer steps: inside wrappers of frameworks, of Lookahead, of sharpness-aware ones, another one does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer, SparseAdam

_OWN = frozenset({"state", "param_groups", "defaults"})  # of every optimizer: no other one is kept there


def stepping(optimizer: Any, own: set[int]) -> Optimizer:
    """The optimizer that changes the weights when this one steps: itself, or the one that it wraps.

    Args:
        own: ids of the parameters that count.

    Raises:
        ValueError: for what is no optimizer or has none of these parameters; where it cannot be known which one steps.
    """
    seen = {id(optimizer)}
    while inner := [(name, each) for name, each in _inside(optimizer, seen) if parameters_of(each, own)]:
        kind, (name, one) = type(optimizer).__name__, inner[0]
        if len({id(each) for _, each in inner}) > 1:
            names = ", ".join(f"its {name!r}" for name, _ in inner)
            raise ValueError(f"a {kind} leaves its steps to several optimizers: attach each of them, {names}")
        theirs = {id(parameter) for parameter in parameters_of(one, own)}
        if any(id(parameter) not in theirs for parameter in parameters_of(optimizer, own)):
            raise ValueError(
                f"a {kind} leaves the steps of some weights to its {name!r}, and of others not: add the protection's "
                "value() to the loss in place of attaching it"
            )
        seen.add(id(one))
        optimizer = one
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"attach takes an optimizer of torch, or what wraps one, got {type(optimizer).__name__}")
    if not parameters_of(optimizer, own):
        raise ValueError("the optimizer holds no parameter of the protected model: was the model rebuilt since?")
    return optimizer


def parameters_of(optimizer: Any, own: set[int]) -> list[nn.Parameter]:
    """Those of an optimizer's parameters whose ids are among these."""
    groups = getattr(optimizer, "param_groups", ())
    return [each for group in groups for each in group["params"] if id(each) in own]


def check_steps(optimizer: Optimizer) -> None:
    """Raise a ValueError for an optimizer that cannot be given a penalty before its steps.

    It was not set up as torch's are, so that hooks never run; or it takes no dense gradient.
    """
    if isinstance(optimizer, SparseAdam):
        raise ValueError("SparseAdam takes sparse gradients only, and a penalty's is dense: use Adam")
    if "_optimizer_step_pre_hooks" not in vars(optimizer):
        raise ValueError(
            f"a {type(optimizer).__name__} has not called torch.optim.Optimizer.__init__, so that no hook runs when it "
            "steps: add the protection's value() to the loss"
        )


def _inside(optimizer: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The optimizers that another one has, with the name of the attribute that has them."""
    for name, value in getattr(optimizer, "__dict__", {}).items():
        if name not in _OWN:
            for each in _members(value):
                if _is_optimizer(each) and id(each) not in seen:
                    yield name, each


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)


def _is_optimizer(value: Any) -> bool:
    """Also what only wraps one, and says so by its class: asking an object for attributes may do anything."""
    kind = type(value)
    return isinstance(value, Optimizer) or (hasattr(kind, "param_groups") and hasattr(kind, "step"))
