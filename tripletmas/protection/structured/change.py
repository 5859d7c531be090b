"""How far the weights of linear maps are from where they are held, and bringing back those that went too far.

Of weights that are spread over processes each sees to its own; sums over processes are asked for by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from tripletmas.protection.penalty import Instead, give_back, gradient_to_add_to
from tripletmas.protection.structured.held import Held
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.local_map import local_map, totals
from tripletmas.protection.structured.quadratic import Quadratic, way_back

TOLERANCE = 0.001  # of a share

Maps = Mapping[LinearMap, Held]


def values_of(maps: Maps, current: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> list[Tensor]:
    """The form of each map, a scalar, at the model's parameters as they are."""
    here = [local_map(each, current) for each in maps]
    moved = [
        held.form.moved(of.change(current, reference), of)[0] for of, held in zip(here, maps.values(), strict=True)
    ]
    return [total + held.form.value for total, held in zip(totals(here, moved), maps.values(), strict=True)]


def anchored(
    maps: Maps, current: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, own: bool
) -> dict[LinearMap, Quadratic]:
    """The forms around the weights as they are now, as `Quadratic.anchored`."""
    here = {each: local_map(each, current) for each in maps}
    return {
        each: held.form.anchored(here[each].change(current, reference), here[each], own=own)
        for each, held in maps.items()
    }


def pull(
    maps: Maps,
    current: Mapping[str, nn.Parameter],
    reference: Mapping[str, Tensor],
    weights: Mapping[LinearMap, Tensor | float],
    signs: Mapping[str, float],
) -> None:
    """Add the gradient of every form, times its weight, to those of the parameters that have a sign; and keep the share
    of each map's response that was found changed."""
    here, moved, instead = [local_map(each, current) for each in maps], [], Instead()
    for each, held in zip(here, maps.values(), strict=True):
        value, half = held.form.moved(each.change(current, reference), each)
        moved.append(value)
        half.mul_(2 * weights[each.map])
        for name, part in each.spread(half, current):
            if name in signs:
                gradient = gradient_to_add_to(current[name], instead)
                each.rows(gradient).add_(part, alpha=signs[name])
    give_back(instead)
    for held, total in zip(maps.values(), totals(here, moved), strict=True):
        held.found = (total + held.form.value) / held.form.tasks


def found_far(maps: Maps, most: float) -> Maps:
    """Those of which a larger share had changed when they were last pulled: what that says is known without waiting for
    this step. One that was brought back then is found at the edge, on a side that is rounding's: it is among them."""
    if not maps:
        return {}
    found = torch.stack([held.found for held in maps.values()]).tolist()
    return {
        each: held for (each, held), share in zip(maps.items(), found, strict=True) if share > most * (1 - TOLERANCE)
    }


def bring_back(
    maps: Maps,
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
        here = local_map(each, current)
        change = here.change(current, reference)
        total, half = held.form.of(change, here)
        value, tasks = float(total), held.form.tasks
        if value <= most * tasks * (1 + TOLERANCE):
            continue
        found = True
        for name, part in here.spread(way_back(value, half, most * tasks, held.spectrum, here), current):
            for weights in [current[name].detach(), *beside(current[name])] if name in moved else []:
                here.rows(weights).sub_(part)
    return found
