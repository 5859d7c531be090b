"""Second moments of what a call's weights are applied to, of all places and of some that stand for them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.rules import Convolution, Linear
from tripletmas.protection.engine.second_moments import second_moment


def draw_every_other(columns: int, rows: int) -> Tensor:
    return torch.arange(0, rows, 2)


@pytest.mark.parametrize("has_bias", [True, False])
def test_drawn_rows_of_a_linear_map_stand_for_all(has_bias: bool):
    """Rows come in equal pairs, so that every other one says the same as all."""
    inputs = torch.randn(6, 3).double().repeat_interleave(2, dim=0)
    rule = Linear(inputs, torch.randn(2, 3).double())
    drawn, rows = second_moment(rule, has_weight=True, has_bias=has_bias, draw=draw_every_other)
    rowed = torch.cat([inputs, torch.ones(12, 1).double()], dim=1) if has_bias else inputs
    assert rows == 12
    assert torch.allclose(drawn[0], rowed.T @ rowed)


def test_drawn_places_of_a_convolution_stand_for_all():
    """Of images that are the same everywhere, a patch is like any other."""
    images = torch.randn(3, 2, 1, 1).double().expand(3, 2, 6, 5)
    rule = Convolution(images, torch.randn(4, 2, 3, 2).double())
    some, rows = second_moment(rule, has_weight=True, has_bias=True, draw=draw_every_other)
    whole, _ = second_moment(rule, has_weight=True, has_bias=True, draw=lambda columns, rows: None)
    assert rows == 3 * 4 * 4
    patches = F.unfold(images, (3, 2)).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(whole[0, :-1, :-1], patches.T @ patches)
    assert torch.allclose(some, whole)
