"""Whether what is held is still where it was: a parameter is known by its identity, in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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
            ".data alone, and to make it grow give the model a new nn.Parameter, free until the next consolidate"
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
