"""Whether what is held is still where it was: a parameter is known by its identity, in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tripletmas.basics.distributed import is_spread
from tripletmas.basics.weights import Place, placed_parameters


def is_in_place(model: nn.Module, name: str, held: Place, shape: torch.Size, current: Mapping[str, Tensor]) -> bool:
    """Whether the model still has a parameter that is held; False if a module was replaced by another (a new head).

    Args:
        shape: in which it is held.
        current: the model's parameters by canonical name.

    Raises:
        ValueError: for one that has another shape, is there under another name, or was replaced in its own module by
            one of the same shape: its protection would end without a word.
    """
    now = current.get(name)
    if now is held.parameter:
        if held.parameter.shape == shape:
            return True
        raise ValueError(
            f"{name} has the shape {tuple(held.parameter.shape)}, and had {tuple(shape)} when it was measured: leave "
            ".data alone, and to make it grow give the model a new nn.Parameter whose first rows are the old ones"
        )
    if now is None:
        renamed = next((other for other, value in current.items() if value is held.parameter), None)
        if renamed and held.parameter.requires_grad:
            raise ValueError(f"{name} has become {renamed} since it was measured: wrap a model before it is measured")
    elif now.shape == shape and placed_parameters(model)[name].module is held.module:
        raise ValueError(
            f"{name} is another parameter than the one that was measured (load_state_dict with assign=True?): load "
            "without assign, or take the protection's state_dict() before, and give it to its load_state_dict() after"
        )
    return False


def first(shape: torch.Size) -> tuple[slice, ...]:
    """What a tensor that has grown has of the one of this shape."""
    return tuple(slice(length) for length in shape)


def grown_from(name: str, held: Place, shape: torch.Size, places: Mapping[str, Place]) -> Place | None:
    """Where the model has a larger parameter in place of one that is held, whose first entries in every dimension are
    those of the one that is held: a head that grew. None if it has another one, or none.

    To be asked before the new one is trained.

    Args:
        shape: in which it is held.
    """
    new = places.get(name)
    if new is None or new.parameter is held.parameter or is_spread(new.parameter):
        return None
    if not _has(new.parameter.shape, shape) or not _has(held.parameter.shape, shape):
        return None
    now, before = (parameter.detach()[first(shape)] for parameter in (new.parameter, held.parameter))
    return new if torch.equal(now.to(before), before) else None


def _has(larger: torch.Size, shape: torch.Size) -> bool:
    return len(larger) == len(shape) and all(now >= before for now, before in zip(larger, shape, strict=True))


def grown_tensor(value: Tensor, around: Tensor) -> Tensor:
    """The value in the place of the first entries of the larger one around it."""
    grown = around.clone().to(value)
    grown[first(value.shape)] = value
    return grown
