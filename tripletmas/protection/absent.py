"""Telling where what an optimizer steps is not what is held: an error where nothing is, a warning where a part is not.

A share is one of single weights, not of tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from tripletmas.basics.sentences import listed


class HeldNames(NamedTuple):
    """Attributes:
    kind: what the guard is called.
    held: names of the model's parameters that it holds.
    lost: names of parameters that it held, and that the model has replaced or no longer has.
    free: names of those that were trained when it was last measured, and are not held on purpose.
    """

    kind: str
    held: Collection[str]
    lost: Collection[str]
    free: Collection[str]


def tell_what_is_not_held(
    optimizer: Optimizer, model: Mapping[str, nn.Parameter], of: HeldNames, told: set[str]
) -> None:
    """Tell which parameters of a model (by name) this optimizer steps and nobody holds; but not a second time.

    Args:
        told: names that were told already; those that are told now are added.

    Raises:
        ValueError: if nothing is held in the model any more; if nothing that this optimizer steps is held, and what is
            held is not trained.
    """
    if not of.held:
        raise ValueError(
            f"nothing that this {of.kind} holds is where it was in the model: its layers were replaced, or have other "
            "names; protect the model that was measured, or consolidate a new protection of this one"
        )
    stepped = _stepped(optimizer, model)
    trained = {name: parameter for name, parameter in stepped.items() if parameter.requires_grad}
    unheld = {name: trained[name] for name in sorted(trained.keys() - {*of.held, *of.free})}
    kind, share, names = type(optimizer).__name__, share_of(unheld, trained), listed(unheld)
    none = stepped.keys().isdisjoint(of.held)
    if unheld and none:
        _refuse_if_nothing_held_is_trained(kind, names, model, of)
    if not told.issuperset(unheld):
        warnings.warn(
            f"{kind} steps {share} that this {of.kind} does not hold, since they were added, replaced or unfrozen "
            f"after it was measured: {names}; {'and none that it holds' if none else 'consolidate measures them'}",
            stacklevel=4,
        )
    told.update(unheld)
    if not told.issuperset(of.lost):
        warn_of_lost(of.kind, set(of.lost) - told)
    told.update(of.lost)


def _refuse_if_nothing_held_is_trained(kind: str, names: str, model: Mapping[str, nn.Parameter], of: HeldNames) -> None:
    if not any(model[name].requires_grad for name in of.held):
        raise ValueError(
            f"nothing that {kind} steps is held by this {of.kind}, whose own weights are not trained: {names} were "
            "added, replaced or unfrozen since it was measured; consolidate measures them"
        )


def _stepped(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of these, by name, that the optimizer has."""
    inside = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in inside}


def warn_of_lost(kind: str, lost: Collection[str]) -> None:
    """Warn of parameters that were held and that the model no longer has."""
    warnings.warn(
        f"what this {kind} held of {listed(sorted(lost))} is held no more: the model has replaced or lost it",
        stacklevel=5,
    )


def warn_of_no_hook(
    optimizer: Optimizer, model: Mapping[str, nn.Parameter], kind: str, names: Callable[[], tuple[set[str], set[str]]]
) -> None:
    """Warn of an optimizer that steps weights that are held, and to which the guard is not attached.

    Args:
        names: gives those that are held, and that were and are no more; a ValueError of it is told in a warning, since
            the loop is not the guard's own.
    """
    try:
        held, _ = names()
    except ValueError as error:
        warnings.warn(f"{type(optimizer).__name__} steps without this {kind}: {error}", stacklevel=6)
        return
    known = {name: model[name] for name in held if name in model}
    stepped = {name: each for name, each in _stepped(optimizer, known).items() if each.requires_grad}
    if stepped:
        warnings.warn(
            f"{type(optimizer).__name__} steps {share_of(stepped, known)} that this {kind} holds "
            f"({listed(sorted(stepped))}), and is not attached, so that nothing holds them: attach(optimizer), train "
            "within protect(), or add value() to the loss",
            stacklevel=6,
        )


def share_of(part: Mapping[str, nn.Parameter], whole: Mapping[str, nn.Parameter]) -> str:
    """As in: 12 of 120 weights (10 %)."""
    count, total = (sum(parameter.numel() for parameter in each.values()) for each in (part, whole))
    return f"{count:,} of {total:,} weights ({100 * count / max(1, total):.3g} %)"
