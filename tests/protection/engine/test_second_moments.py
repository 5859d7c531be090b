"""The inputs of calls, in parts: all places, and some that stand for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.rules import RULES, Convolution, Linear
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


@pytest.mark.parametrize(
    ("function", "images", "weight", "options"),
    [
        (F.conv1d, (3, 4, 9), (6, 4, 3), {"stride": 2, "padding": 1}),
        (F.conv2d, (3, 4, 7, 6), (6, 2, 3, 2), {"groups": 2, "dilation": (2, 1), "padding": "same"}),
        (F.conv2d, (3, 4, 7, 6), (8, 1, 3, 3), {"groups": 4, "stride": (2, 1), "padding": (0, 1)}),
        (F.conv2d, (4, 7, 6), (2, 4, 1, 1), {}),
        (F.conv3d, (2, 2, 4, 5, 3), (3, 2, 2, 3, 1), {"padding": 1}),
        (F.conv_transpose2d, (3, 4, 4, 5), (4, 3, 3, 2), {"groups": 2, "stride": 2, "padding": 1, "output_padding": 1}),
    ],
)
def test_places_that_are_drawn_one_by_one_are_those_of_all(function: Any, images: Any, weight: Any, options: Any):
    """Every place, once, in another order: the same moment."""
    torch.manual_seed(0)
    rule = RULES[function](torch.randn(images).double(), torch.randn(weight).double(), None, **options)
    assert isinstance(rule, Convolution)
    whole = moment(rule, lambda columns, rows: None)
    assert torch.allclose(moment(rule, lambda columns, rows: torch.randperm(rows)), whole)
    assert whole.shape[0] == options.get("groups", 1)
