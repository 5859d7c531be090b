"""A budget in place of a strength: multipliers that follow how far each layer's response has moved."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

START = 30.0  # of every multiplier
FURTHEST = 3.0  # times the budget: a layer that is found further away is brought back at once
_RATE, _DOWN, _UP = 0.2, -0.5, 2.0  # of the logarithm, a step; how far from the budget counts, as a logarithm
_LEAST, _MOST = 1e-3, 1e6


def check_budget(budget: float | None, strength: float | None) -> None:
    """Raise a ValueError for both or for a budget outside (0, 1]."""
    if budget is not None and strength is not None:
        raise ValueError("give a budget or a strength, not both: a budget finds the strength of each layer itself")
    if budget is not None and not 0 < budget <= 1:
        raise ValueError(
            f"budget must lie in (0, 1], the part of its length by which each layer's answer may move, got {budget}"
        )


def default_budget(num_maps: int) -> float:
    """0.025 over the root of the number of linear maps, so that the shares of all sum to 0.025^2: changes add up on the
    way through a network.

    Found on validation data of digits (3 maps), Fashion-MNIST and photographs of clothes (9) and birds (99), where the
    best budgets were about 0.013, 0.01, 0.01 and 0.003: docs/gram.md.
    """
    return 0.025 / max(1, num_maps) ** 0.5


def next_multipliers(multipliers: Tensor, shares: Tensor, budget: float, most: Tensor | None = None) -> Tensor:
    """The multipliers (maps,) after a step on which these shares (maps,) of the squared responses were found changed.

    Dual ascent on logarithms: log multiplier += rate * (log root of the share - log budget), within bounds. A step of
    the optimizer is the only clock, so that it works with any, and in the same way on all processes.

    Args:
        most: (maps,) that they may become; None for no limit of the optimizer's.
    """
    excess = (shares.clamp_min(1e-30).log() / 2 - math.log(budget)).clamp(_DOWN, _UP)
    after = (multipliers * (_RATE * excess).exp()).clamp(_LEAST, _MOST)
    return after if most is None else torch.minimum(after, most)


def most_for_sgd(curvatures: Tensor, rate: float) -> Tensor:
    """The multipliers (maps,) up to which plain gradient steps of this rate converge, with a tenth to spare.

    Args:
        curvatures: largest eigenvalues (maps,) of the forms that are multiplied, whose gradients are twice as steep.
    """
    return 0.9 / (rate * curvatures).clamp_min(1e-30)


def warn_if_unstable(strength: float, most: float) -> None:
    """Warn of a strength above the most with which plain gradient steps converge."""
    if strength > most:
        warnings.warn(
            f"strength {strength:g} is above {most:.3g}, where plain gradient steps on this penalty may diverge: lower "
            "the strength or the learning rate, or give a budget",
            stacklevel=2,
        )
