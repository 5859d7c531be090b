"""Importance without an estimate: every weight counts the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tripletmas.basics.weights import Params, trainable


def uniform_importance(model: nn.Module, batches: Iterable[Any]) -> Params:
    """1 for every trainable parameter, by canonical name; the batches are not read."""
    return {name: torch.ones_like(parameter) for name, parameter in trainable(model).items()}
