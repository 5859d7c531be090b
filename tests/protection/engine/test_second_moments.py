"""The inputs of calls, in parts: all places, and some that stand for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.rules import Convolution, Linear
from tripletmas.protection.engine.second_moments import Draw, input_parts


def draw_every_other(columns: int, rows: int) -> Tensor:
    return torch.arange(0, rows, 2)


def moment(rule: Linear | Convolution, draw: Draw) -> Tensor:
    return torch.stack([weight * inputs @ inputs.mT for inputs, weight in input_parts(rule, draw)]).sum(0)


def test_drawn_rows_of_a_linear_map_stand_for_all():
    """Rows come in equal pairs, so that every other one says the same as all."""
    inputs = torch.randn(6, 3).double().repeat_interleave(2, dim=0)
    found = moment(Linear(inputs, torch.randn(2, 3).double()), draw_every_other)
    assert torch.allclose(found[0], inputs.T @ inputs)


def test_drawn_places_of_a_convolution_stand_for_all():
    """Of images that are the same everywhere, a patch is like any other."""
    images = torch.randn(3, 2, 1, 1).double().expand(3, 2, 6, 5)
    rule = Convolution(images, torch.randn(4, 2, 3, 2).double())
    some, whole = moment(rule, draw_every_other), moment(rule, lambda columns, rows: None)
    patches = F.unfold(images, (3, 2)).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(whole[0], patches.T @ patches)
    assert torch.allclose(some, whole)
