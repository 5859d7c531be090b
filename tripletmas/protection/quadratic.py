"""The penalty itself, as a pure function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, differing_names, named_parameters


def quadratic_penalty(model: nn.Module, reference: Params, importance: Params) -> Tensor:
    """Sum importance * (theta - reference)^2 over all weights that have importance: a differentiable scalar, no 1/2.

    Raises:
        ValueError: if the model lacks a parameter that has importance, or has it in another shape.
    """
    current = named_parameters(model)
    wrong = differing_names({name: current[name] for name in importance if name in current}, importance)
    if wrong:
        raise ValueError(f"importance and model do not match: {wrong}")
    if not importance:
        return torch.zeros(())
    # contiguous: the order of a sum, and so its last bit, must not depend on the layout in which weights were loaded
    return torch.stack(
        [(value * (current[name] - reference[name]).square()).contiguous().sum() for name, value in importance.items()]
    ).sum()
