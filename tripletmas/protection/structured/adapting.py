"""The multipliers of a budget, which follow how far each map is from where it is held."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from tripletmas.protection.structured.budget import most_for_sgd, next_multipliers
from tripletmas.protection.structured.held import Held


def adapt(here: Collection[Held], budget: float, most: Tensor | None) -> None:
    """Set the multipliers of these after a step, up to `most` (maps,) of them."""
    before, shares = (torch.stack(each) for each in zip(*((h.multiplier, h.found) for h in here), strict=True))
    after = next_multipliers(before, shares, budget, most)
    for held, multiplier in zip(here, after.unbind(), strict=True):
        held.multiplier = multiplier


def most_stable(rate: float, here: Collection[Held], *, averaged: bool) -> Tensor:
    """The multipliers, or strengths, (maps,) up to which plain gradient steps of this rate converge.

    Args:
        averaged: the form of a map is divided by the number of its tasks.
    """
    curvatures = [held.steps * held.curvature / (held.form.tasks if averaged else 1.0) for held in here]
    return most_for_sgd(torch.stack(curvatures), rate)
