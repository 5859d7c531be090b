"""What is held follows its model: to another device or type, and into layers that have got more rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from tripletmas.basics.weights import Params, Place, placed_parameters
from tripletmas.protection.place import grown_from, grown_tensor, is_in_place
from tripletmas.protection.structured.gram_matrix import LowRank
from tripletmas.protection.structured.held import Held
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.quadratic import Quadratic


class Kept(NamedTuple):
    """Attributes:
    held: of each map.
    reference: the weights that they are held at, by name.
    places: where the model had them.
    """

    held: dict[LinearMap, Held]
    reference: Params
    places: dict[str, Place]


def followed(model: nn.Module, kept: Kept) -> tuple[dict[LinearMap, Held], Kept]:
    """What is held and is still in the model, and what is kept from now on; other places where a layer has grown."""
    places = placed_parameters(model)
    current = {name: place.parameter for name, place in places.items()}
    gone = {
        name: place
        for name, place in kept.places.items()
        if not is_in_place(model, name, place, _then(name, kept), current)
    }
    if grown := _grown_places(gone, kept, places):
        kept, gone = _grown(kept, grown), {name: place for name, place in gone.items() if name not in grown}
    present = {
        each: _moved(held, current[each.parameters[0]])
        for each, held in kept.held.items()
        if gone.keys().isdisjoint(each.parameters)
    }
    if any(held is not kept.held[each] for each, held in present.items()):
        reference = {
            name: value.to(current[name].device, current[name].dtype) if name in current else value
            for name, value in kept.reference.items()
        }
        kept = Kept(kept.held | present, reference, kept.places)
    return present, kept


def _then(name: str, kept: Kept) -> Tensor:
    return kept.reference[name] if name in kept.reference else kept.places[name].parameter.detach()


def _moved(held: Held, parameter: nn.Parameter) -> Held:
    """The same on a parameter's device and in its type."""
    form = held.form
    if form.value.device == parameter.device and form.value.dtype == parameter.dtype:
        return held

    def to(value: Tensor) -> Tensor:
        return value.to(parameter.device, parameter.dtype)

    gram = LowRank(*map(to, form.gram)) if isinstance(form.gram, LowRank) else to(form.gram)
    offset = form.offset
    if offset is not None:  # one of fewer bits keeps these
        offset = to(offset) if offset.dtype == form.value.dtype else offset.to(parameter.device)
    moved = Quadratic(gram, offset, to(form.value), form.tasks)
    return Held(moved, to(held.multiplier), to(held.found), rests=held.rests)


def _grown_places(gone: Mapping[str, Place], kept: Kept, places: Mapping[str, Place]) -> dict[str, Place]:
    """Of parameters that are no more where they were, those in whose place is one that has only got more rows.

    All that a map has must have grown, and its rows must be its outputs: those of a transposed one are inputs.
    """
    larger = {name: grown_from(name, place, _then(name, kept), places) for name, place in gone.items()}
    found = {name: new for name, new in larger.items() if new is not None and _has_more_rows(new, _then(name, kept))}
    names = {name for each in kept.held if _grows_with(each, found) for name in each.parameters}
    return {name: place for name, place in found.items() if name in names}


def _grows_with(each: LinearMap, grown: Mapping[str, Place]) -> bool:
    return grown.keys() >= set(each.parameters) and not each.kind.startswith("transposed")


def _has_more_rows(place: Place, then: Tensor) -> bool:
    return then.ndim > 0 and place.parameter.shape[1:] == then.shape[1:]


def _grown(kept: Kept, grown: Mapping[str, Place]) -> Kept:
    """The first rows of these stay a map by themselves: once the others are trained, nothing else tells them apart."""

    def first_rows(each: LinearMap) -> LinearMap:
        has_grown = each.stop is None and all(name in grown for name in each.parameters)
        return each._replace(stop=len(_then(each.parameters[0], kept))) if has_grown else each

    reference = {
        name: grown_tensor(value, grown[name].parameter.detach()) if name in grown else value
        for name, value in kept.reference.items()
    }
    return Kept({first_rows(each): held for each, held in kept.held.items()}, reference, kept.places | dict(grown))
