"""How far the weights of linear maps are from where they are held, and bringing back those that went too far.

Of weights that are spread over processes each sees to its own; sums over processes are asked for by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tripletmas.protection.penalty import Instead, give_back, gradient_to_add_to
from tripletmas.protection.structured.held import Held
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.local_map import LocalMap, local_map, totals
from tripletmas.protection.structured.quadratic import Edge, Quadratic, to_edge

TOLERANCE = 0.001  # of a share

Maps = Mapping[LinearMap, Held]


class Limit(NamedTuple):
    """How far maps may be from where they are held.

    Attributes:
        most: the share of a response that may have changed.
        moved: the names of the weights that bringing back may move; others are frozen, or another optimizer's.
        beside: what is kept beside a weight, and is moved with it.
    """

    most: float
    moved: Collection[str]
    beside: Callable[[nn.Parameter], list[Tensor]]


def values_of(maps: Maps, current: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> list[Tensor]:
    """The form of each map, a scalar, at the model's parameters as they are."""
    here = [local_map(each, current) for each in maps]
    moved = [
        held.form.moved(of.change(current, reference), of)[0] for of, held in zip(here, maps.values(), strict=True)
    ]
    return [total + held.form.value for total, held in zip(totals(here, moved), maps.values(), strict=True)]


def anchored(
    maps: Maps, current: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, own: bool, exact: bool
) -> dict[LinearMap, Quadratic]:
    """The forms around the weights as they are now, as `Quadratic.anchored`."""
    here = {each: local_map(each, current) for each in maps}
    return {
        each: held.form.anchored(here[each].change(current, reference), here[each], own=own, exact=exact)
        for each, held in maps.items()
    }


def pull(
    maps: Maps,
    current: Mapping[str, nn.Parameter],
    reference: Mapping[str, Tensor],
    weights: Mapping[LinearMap, Tensor | float],
    signs: Mapping[str, float],
    limit: Limit | None = None,
) -> None:
    """Add the gradient of every form, times its weight, to those of the parameters that have a sign; and keep the share
    of each map's response that was found changed.

    Maps that were found beyond the limit when they were last pulled are brought back to it first. Of two that share a
    weight the first is pulled before the second is brought back.
    """
    limits = {} if limit is None else dict.fromkeys(_found_beyond(limit.most, maps), limit)
    looked_at, moved, instead = [], [], Instead()
    for each, held in maps.items():
        here = local_map(each, current)
        half = _half_at_edge(here, held, current, reference, limits[each]) if each in limits else None
        if half is None:
            value, half = held.form.moved(here.change(current, reference), here)
            looked_at.append((here, held))
            moved.append(value)
        for name, part in here.spread(half.mul_(2 * weights[each]), current):
            if name in signs:
                here.rows(gradient_to_add_to(current[name], instead)).add_(part, alpha=signs[name])
    give_back(instead)
    for (_, held), total in zip(looked_at, totals([here for here, _ in looked_at], moved), strict=True):
        held.found = (total + held.form.value) / held.form.tasks


def bring_back(maps: Maps, current: Mapping[str, nn.Parameter], reference: Mapping[str, Tensor], limit: Limit) -> bool:
    """Bring every map that is beyond the limit to the nearest weights within; whether there were any."""
    found = [_to_edge(local_map(each, current), held, current, reference, limit) for each, held in maps.items()]
    return any(edge is not None for edge in found)


def _found_beyond(most: float, maps: Maps) -> set[LinearMap]:
    """Those of which a larger share had changed when they were last pulled: what that says is known without waiting for
    this step. One that was brought back then is found at the edge, on a side that is rounding's: it is among them."""
    if not maps:
        return set()
    found = torch.stack([held.found for held in maps.values()]).tolist()
    return {each for each, share in zip(maps, found, strict=True) if share > most * (1 - TOLERANCE)}


def _half_at_edge(
    here: LocalMap,
    held: Held,
    current: Mapping[str, nn.Parameter],
    reference: Mapping[str, Tensor],
    limit: Limit,
) -> Tensor | None:
    """Bring a map back to the limit; half its gradient there, None if it did not need to or did not get there."""
    edge = _to_edge(here, held, current, reference, limit)
    if edge is None or not all(name in limit.moved for name in here.map.parameters):
        return None
    held.found = held.form.value.new_tensor(edge.value / held.form.tasks)
    return edge.half


def _to_edge(
    here: LocalMap,
    held: Held,
    current: Mapping[str, nn.Parameter],
    reference: Mapping[str, Tensor],
    limit: Limit,
) -> Edge | None:
    """Bring a map to the nearest weights at which it is within the limit; None if it was within."""
    total, half = held.form.of(here.change(current, reference), here)
    value, most = float(total), limit.most * held.form.tasks
    if value <= most * (1 + TOLERANCE):
        return None
    edge = to_edge(value, half, most, held.spectrum, here)
    for name, part in here.spread(edge.half, current):
        for weights in [current[name].detach(), *limit.beside(current[name])] if name in limit.moved else []:
            here.rows(weights).sub_(part, alpha=edge.multiplier)
    return edge
