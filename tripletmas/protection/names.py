"""What saved names are called in the present model, where another version of a library has renamed what is around them.

A saved protection knows parameters by canonical name. Sentence Transformers calls `0.model.` what it called
`0.auto_model.`, a model inside another has a prefix more, and so on; the weights are the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, named_parameters

logger = logging.getLogger(__name__)

_LIKELY = 8  # exchanges of prefixes that are tried
_Rename = tuple[str, str]  # a prefix, and what is in its place now, both without the dot at their end


def named_as_in(model: nn.Module, state: Params) -> Params:
    """A saved state (`reference/NAME` and others) with the names that the model has for its parameters.

    Names that the model has, in these shapes, stay. Of the others a prefix is exchanged for another, where that gives
    names and shapes that the model has: for at least half of all, or where these weights are the saved ones, number by
    number. So a new layer is not taken for an old one of its shape. What fits nothing keeps its name.
    """
    saved = {key.removeprefix("reference/"): value for key, value in state.items() if key.startswith("reference/")}
    current = named_parameters(model)
    same = [name for name, value in saved.items() if name in current and current[name].shape == value.shape]
    names: dict[str, str] = {}
    left, free = _without(saved, same), _without(current, same)
    while left and (rename := _best_rename(left, free, most=len(saved))):
        found = _applied(rename, left, free)
        logger.info("%d weights are called %s. in this model, in place of %s.", len(found), *reversed(rename))
        names |= found
        left, free = _without(left, found), _without(free, found.values())
    return {_renamed(key, names): value for key, value in state.items()}


def _best_rename(saved: Mapping[str, Tensor], free: Mapping[str, Tensor], most: int) -> _Rename | None:
    """The prefixes whose exchange gives most of these names; None where none is sure, or two are as good."""
    found = {rename: _applied(rename, saved, free) for rename in _likely_renames(saved, free)}
    largest = max(map(len, found.values()), default=0)
    best = {rename: names for rename, names in found.items() if len(names) == largest}
    sure = [rename for rename, names in best.items() if _are_equal(names, saved, free)]
    if not sure and 2 * largest >= most:
        sure = list(best)
    return sure[0] if len(sure) == 1 else None


def _likely_renames(saved: Mapping[str, Tensor], free: Mapping[str, Tensor]) -> list[_Rename]:
    """The exchanges of prefixes that most pairs of names, of equal shapes, ask for."""
    by_end: dict[tuple[str, torch.Size], list[str]] = {}
    for name, value in free.items():
        by_end.setdefault(_end(name, value), []).append(name)
    pairs = ((name, other) for name, value in saved.items() for other in by_end.get(_end(name, value), ()))
    return [rename for rename, _ in Counter(_rename(*pair) for pair in pairs).most_common(_LIKELY)]


def _end(name: str, value: Tensor) -> tuple[str, torch.Size]:
    return name.rpartition(".")[2], value.shape


def _without(values: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    left_out = set(names)
    return {name: value for name, value in values.items() if name not in left_out}


def _rename(name: str, other: str) -> _Rename:
    """The prefixes in front of the longest end that two names share."""
    one, two = name.split("."), other.split(".")
    while one and two and one[-1] == two[-1]:
        one.pop()
        two.pop()
    return ".".join(one), ".".join(two)


def _applied(rename: _Rename, saved: Mapping[str, Tensor], free: Mapping[str, Tensor]) -> dict[str, str]:
    """The saved names with the first prefix -> with the other, where there is such a name, of the same shape."""
    before, now = (f"{prefix}." if prefix else "" for prefix in rename)
    found = {name: now + name.removeprefix(before) for name in saved if name.startswith(before)}
    return {name: other for name, other in found.items() if other in free and free[other].shape == saved[name].shape}


def _are_equal(names: Mapping[str, str], saved: Mapping[str, Tensor], free: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(saved[name], free[other].detach().to(saved[name])) for name, other in names.items())


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """`KIND/NAME` with the present name; in the key of a linear map, `KIND/map..WEIGHT..BIAS..`, those of both."""
    kind, _, rest = key.partition("/")
    first, *parts = rest.split("..")
    if not parts:
        return f"{kind}/{names.get(first, first)}"
    return f"{kind}/{'..'.join([first, *(names.get(part, part) for part in parts)])}"
