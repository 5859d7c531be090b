"""Large layers take turns: each is pulled at every second step, twice as strongly, which costs half as much."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from tripletmas.protection.structured.held import Held
from tripletmas.protection.structured.linear_map import LinearMap

LARGE = 2**17  # weights of a layer, from which on its pull costs more than small layers' do together


def take_turns(held: Iterable[Held]) -> None:
    """From now on one half of these is pulled at a step, the other half at the next one, and so on."""
    for number, each in enumerate(held):
        each.rests = number % 2 == 0


def turns(here: Mapping[LinearMap, Held], stepped: Collection[str], *, begins: bool) -> dict[LinearMap, Held]:
    """Those that are pulled at this step.

    One of whose parameters an optimizer steps only some takes no turns from then on: another one's steps would use
    them up.

    Args:
        begins: whether the step begins with this; else they are those that they were.
    """
    for each, held in here.items():
        if held.rests is not None and not all(name in stepped for name in each.parameters):
            held.rests = None
        elif held.rests is not None and begins:
            held.rests = not held.rests
    return {each: held for each, held in here.items() if not held.rests}
