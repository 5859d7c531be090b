"""How far the weights of linear maps are from where they are held, and bringing back those that went too far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from tripletmas.protection.structured.held import Held
from tripletmas.protection.structured.linear_map import LinearMap

_TOLERANCE = 0.001  # of a share


def change_of(each: LinearMap, current: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
    """Of a map's weights since the reference, as matrices, given the model's parameters as they are."""
    held = {name: current[name].detach() for name in each.parameters}
    change: Mapping[str, Tensor] = {
        name: value - reference[name] if name in reference else torch.zeros_like(value) for name, value in held.items()
    }
    return each.matrices(change)


def bring_back(
    maps: Mapping[LinearMap, Held],
    most: float,
    current: Mapping[str, nn.Parameter],
    reference: Mapping[str, Tensor],
    moved: Collection[str],
    beside: Callable[[nn.Parameter], list[Tensor]],
) -> bool:
    """Of these maps, those of which a larger share has changed, and whether there were any.

    To the nearest weights at which it is so large; only weights with these names are moved, and with each of them what
    is kept `beside` it.
    """
    found = False
    for each, held in maps.items():
        change = change_of(each, current, reference)
        if float(held.form.share(change)) <= most * (1 + _TOLERANCE):
            continue
        found = True
        for name, part in each.spread(held.nearest(change, most) - change, current):
            for weights in [current[name].detach(), *beside(current[name])] if name in moved else []:
                each.rows(weights).add_(part)
    return found
