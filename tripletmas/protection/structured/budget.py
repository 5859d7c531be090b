"""A budget in place of a strength: multipliers that follow how far each layer's response has moved."""

from __future__ import annotations

import math

from torch import Tensor

START = 10.0  # of every multiplier
_RATE, _DOWN, _UP = 0.1, -0.5, 1.5  # of the logarithm, a step; how far from the budget counts, as a logarithm
_LEAST, _MOST = 1e-3, 1e6


def next_multipliers(multipliers: Tensor, shares: Tensor, budget: float) -> Tensor:
    """The multipliers (maps,) after a step on which these shares (maps,) of the responses were found changed.

    Dual ascent on logarithms: log multiplier += rate * (log root of the share - log budget), within bounds.
    """
    excess = (shares.clamp_min(1e-30).log() / 2 - math.log(budget)).clamp(_DOWN, _UP)
    return (multipliers * (_RATE * excess).exp()).clamp(_LEAST, _MOST)
