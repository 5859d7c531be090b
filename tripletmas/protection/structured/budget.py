"""A budget in place of a strength: multipliers that follow how much of each layer's response has changed."""

from __future__ import annotations

from torch import Tensor

START = 1.0  # of every multiplier
_RATE_UP, _RATE_DOWN = 0.1, 0.02
_LEAST, _MOST = 1e-4, 1e6


def next_multipliers(multipliers: Tensor, shares: Tensor, budget: float) -> Tensor:
    """The multipliers (maps,) after a step on which these shares (maps,) of the responses were found changed.

    Dual ascent on the logarithm: each rises by up to a tenth a step where its share is over the budget.
    """
    excess = (shares / budget - 1).clamp(-1, 1)
    rate = (excess > 0).to(excess.dtype) * (_RATE_UP - _RATE_DOWN) + _RATE_DOWN
    return (multipliers * (rate * excess).exp()).clamp(_LEAST, _MOST)
