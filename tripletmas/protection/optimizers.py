"""Which optimizer steps: inside wrappers of frameworks, of Lookahead, of sharpness-aware ones, another one does."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from tripletmas.basics.distributed import own_part
from tripletmas.basics.rows import is_uneven
from tripletmas.basics.sentences import with_article

_OWN = frozenset({"state", "param_groups", "defaults"})  # of every optimizer: no other one is kept there


def chain_of(optimizer: Any, own: set[int]) -> list[Any]:
    """The optimizer, what it wraps, and so on: the last one changes the weights when the first one steps.

    Args:
        own: ids of the parameters that count.

    Raises:
        ValueError: for what is no optimizer or has none of these parameters; where it cannot be known which one steps.
    """
    chain = [optimizer]
    while (inner := _wrapped(chain[-1], own)) is not None and not any(each is inner for each in chain):
        chain.append(inner)
    if not isinstance(chain[-1], Optimizer):
        raise ValueError(f"attach takes an optimizer of torch, or what wraps one, got {type(chain[-1]).__name__}")
    if not parameters_of(chain[-1], own):
        raise ValueError(
            "the optimizer holds no parameter of the protected model: was the model rebuilt since, or is nothing of it "
            "trained (requires_grad; an adapter that peft reads is frozen without is_trainable=True)?"
        )
    return chain


def _wrapped(optimizer: Any, own: set[int]) -> Any:
    """The one optimizer to which another one leaves all steps of these parameters; None if it steps itself."""
    inner = [(name, each) for name, each in _inside(optimizer) if parameters_of(each, own)]
    if not inner:
        return None
    kind, (name, one) = type(optimizer).__name__, inner[0]
    if any(each is not one for _, each in inner):
        names = ", ".join(f"its {name!r}" for name, _ in inner)
        raise ValueError(f"{with_article(kind)} leaves its steps to several optimizers: attach each of them, {names}")
    theirs = {id(parameter) for parameter in parameters_of(one, own)}
    if any(id(parameter) not in theirs for parameter in parameters_of(optimizer, own)):
        raise ValueError(
            f"{with_article(kind)} leaves the steps of some weights to its {name!r}, and of others not: add the "
            "protection's value() to the loss in place of attaching it"
        )
    return one


def all_inside(optimizer: Any, seen: tuple[Any, ...] = ()) -> list[Any]:
    """The optimizer, and all that it has inside."""
    found = [optimizer]
    for _, each in _inside(optimizer):
        if not any(each is one for one in (*seen, *found)):
            found += all_inside(each, (*seen, *found))
    return found


def contents(optimizer: Optimizer) -> int:
    """Another number where an optimizer has other parameters, or where some were frozen, or are of another type."""
    return hash(tuple((id(p), p.requires_grad, p.dtype) for group in optimizer.param_groups for p in group["params"]))


def parameters_of(optimizer: Any, own: set[int]) -> list[nn.Parameter]:
    """Those of an optimizer's parameters whose ids are among these."""
    groups = getattr(optimizer, "param_groups", ())
    return [each for group in groups for each in group["params"] if id(each) in own]


def is_schedule_free(optimizer: Any) -> bool:
    """Whether it is one of the package schedulefree, by which the weights that learn are not those that answer.

    In its train mode a parameter is where gradients are taken (y), in its eval mode the average of what was learned
    (x), with which the model answers. (Defazio et al., The Road Less Scheduled, NeurIPS 2024.)
    """
    return any(kind.__module__.partition(".")[0] == "schedulefree" for kind in type(optimizer).__mro__)


def check_weights(chain: list[Any], clip: str) -> None:
    """Raise a ValueError where the last of these optimizers steps on other weights than the gradients are of."""
    for wrapper in chain[:-1]:
        if is_schedule_free(wrapper) and not isinstance(wrapper, Optimizer) and clip == "after":
            kind, inner = type(wrapper).__name__, type(chain[-1]).__name__
            raise ValueError(
                f"{with_article(kind)} lets its {inner} step on other weights than the gradients are of: attach it "
                "with clip='before' and call add_gradients(optimizer) before each step, or take AdamWScheduleFree"
            )


def in_train_mode(optimizer: Any) -> bool:
    """Whether it is a schedule-free one whose parameters are, now, not the weights with which the model answers."""
    if not is_schedule_free(optimizer):
        return False
    groups = getattr(optimizer, "param_groups", ())
    return getattr(optimizer, "train_mode", False) or any(group.get("train_mode", False) for group in groups)


def weights_beside(optimizer: Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """What a schedule-free optimizer keeps of a parameter, and has to move along where the parameter is moved."""
    state = optimizer.state.get(parameter, {})
    return [state[name] for name in ("x", "y", "z") if name in state]


def signs(optimizer: Optimizer) -> dict[int, float]:
    """1 for each parameter that goes down its gradient, by id, and -1 for one that goes up (`maximize`)."""
    return {
        id(parameter): -1.0 if group.get("maximize") else 1.0
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def plain_rate(optimizer: Optimizer, own: Collection[int]) -> float | None:
    """The largest rate of plain gradient steps on any of these parameters; None for an optimizer of other steps.

    Args:
        own: ids of the parameters that count: a group of others may have any rate.
    """
    if not any("SGD" in kind.__name__ for kind in type(optimizer).__mro__):  # also schedule-free, of timm
        return None
    groups = (group for group in optimizer.param_groups if any(id(each) in own for each in group["params"]))
    return max((float(group["lr"]) for group in groups), default=None)


def warn_if_oscillating(factor: float, importances: Iterable[Tensor]) -> None:
    """Warn of plain gradient steps that go too far on a penalty: of this rate times strength, on these importances."""
    parts = (own_part(each) for each in importances)
    reached = factor * max((float(each.max()) for each in parts if each.numel()), default=0.0)
    if reached > 0.5:
        warnings.warn(
            f"rate * strength * importance reaches {reached:.3g} > 0.5: plain gradient steps on this penalty oscillate "
            "(above 1 they diverge); lower the strength or the learning rate",
            stacklevel=3,
        )


def check_steps(optimizer: Optimizer) -> None:
    """Raise a ValueError for an optimizer that cannot be given a penalty before its steps.

    It was not set up as torch's are, so that hooks never run; or it takes no dense gradient, or no weights that are
    spread over processes as these are.
    """
    if isinstance(optimizer, SparseAdam):
        raise ValueError("SparseAdam takes sparse gradients only, and a penalty's is dense: use Adam")
    if isinstance(optimizer, LBFGS) and any(
        is_uneven(each) for group in optimizer.param_groups for each in group["params"]
    ):
        raise ValueError(
            "LBFGS makes one vector of all weights, and torch makes none of those that are spread over processes in "
            "parts of different sizes: give matrices a multiple of that many rows, or take another optimizer"
        )
    if "_optimizer_step_pre_hooks" not in vars(optimizer):
        raise ValueError(
            f"{with_article(type(optimizer).__name__)} has not called torch.optim.Optimizer.__init__, so that no hook "
            "runs when it steps: add the protection's value() to the loss"
        )


def _inside(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """The optimizers that another one has, with the name of the attribute that has them."""
    for name, value in getattr(optimizer, "__dict__", {}).items():
        if name not in _OWN:
            for each in _members(value):
                if _is_optimizer(each) and each is not optimizer:
                    yield name, each


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)


def _is_optimizer(value: Any) -> bool:
    """Also what only wraps one, and says so by its class: asking an object for attributes may do anything."""
    kind = type(value)
    return isinstance(value, Optimizer) or (hasattr(kind, "param_groups") and hasattr(kind, "step"))


def warn_of_two_steps(optimizer: Optimizer) -> None:
    """Warn of an optimizer that offers two steps in place of one, and has no other one that takes them."""
    kind = type(optimizer)
    if callable(getattr(kind, "first_step", None)) and callable(getattr(kind, "second_step", None)):
        warnings.warn(
            f"no hook runs at first_step() and second_step() of {with_article(kind.__name__)}, so that nothing is held "
            "there: call its step(closure), attach with clip='before' and call add_gradients(optimizer) before the "
            "second step, or add value() to the loss",
            stacklevel=4,
        )
