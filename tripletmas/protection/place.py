"""Whether what is held is still where it was: a parameter is known by its identity, in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tripletmas.basics.distributed import is_spread
from tripletmas.basics.weights import Place, placed_parameters


def is_in_place(model: nn.Module, name: str, held: Place, reference: Tensor, current: Mapping[str, Tensor]) -> bool:
    """Whether the model still has a parameter that is held; False if a module was replaced by another (a new head), and
    for one that has grown.

    Args:
        reference: what it is held at.
        current: the model's parameters by canonical name.

    Raises:
        ValueError: for one that has another shape, is there under another name, or was replaced in its own module by
            one of the same shape: its protection would end without a word.
    """
    now = current.get(name)
    if now is held.parameter:
        return _has_kept_its_shape(name, held.parameter, reference)
    if now is None:
        renamed = next((other for other, value in current.items() if value is held.parameter), None)
        if renamed and held.parameter.requires_grad:
            raise ValueError(f"{name} has become {renamed} since it was measured: wrap a model before it is measured")
    elif now.shape == reference.shape and placed_parameters(model)[name].module is held.module:
        raise ValueError(
            f"{name} is another parameter than the one that was measured (load_state_dict with assign=True?): load "
            "without assign, or take the protection's state_dict() before, and give it to its load_state_dict() after"
        )
    return False


def _has_kept_its_shape(name: str, parameter: nn.Parameter, reference: Tensor) -> bool:
    """Of one that is where it was; False if it has only grown, as resize_token_embeddings of transformers does it."""
    if parameter.shape == reference.shape:
        return True
    if _begins_with(parameter, reference, reference.shape):
        return False
    raise ValueError(
        f"{name} has the shape {tuple(parameter.shape)}, and had {tuple(reference.shape)} when it was measured: its "
        ".data may grow while its first rows are those that were measured; else give the model a new nn.Parameter "
        "whose first rows are the old ones"
    )


def first(shape: torch.Size) -> tuple[slice, ...]:
    """What a tensor that has grown has of the one of this shape."""
    return tuple(slice(length) for length in shape)


def grown_from(name: str, held: Place, reference: Tensor, places: Mapping[str, Place]) -> Place | None:
    """Where the model has a larger parameter in place of one that is held, whose first entries in every dimension are
    those of the one that is held: a head that grew. None if it has another one, or none.

    To be asked before the new one is trained.

    Args:
        reference: what it is held at.
    """
    new = places.get(name)
    if new is None:
        return None
    before = reference if new.parameter is held.parameter else held.parameter.detach()
    return new if _begins_with(new.parameter, before, reference.shape) else None


def _begins_with(parameter: nn.Parameter, before: Tensor, shape: torch.Size) -> bool:
    """Whether the first entries of a parameter, of this shape, are those of another tensor."""
    if is_spread(parameter) or not _has(parameter.shape, shape) or not _has(before.shape, shape):
        return False
    now, before = parameter.detach()[first(shape)], before[first(shape)]
    return torch.equal(now.to(before), before)


def _has(larger: torch.Size, shape: torch.Size) -> bool:
    return len(larger) == len(shape) and all(now >= before for now, before in zip(larger, shape, strict=True))


def grown_tensor(value: Tensor, around: Tensor) -> Tensor:
    """The value in the place of the first entries of the larger one around it."""
    grown = around.clone().to(value)
    grown[first(value.shape)] = value
    return grown
