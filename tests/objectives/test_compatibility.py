"""Numbers of compatibility, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tripletmas.objectives.compatibility import average_compatibility, backward_compatibility, flips

NAN = math.nan
MATRIX = torch.tensor([[0.5, NAN, NAN], [0.5, 0.7, NAN], [0.4, 0.8, 0.9]], dtype=torch.float64)


def test_average_compatibility():
    """Pairs (1, 0): 0.5 >= 0.5 holds, (2, 0): 0.4 does not, (2, 1): 0.8 >= 0.7 holds."""
    assert average_compatibility(MATRIX) == pytest.approx(2 / 3)


def test_backward_compatibility():
    """((0.4 - 0.5) + (0.8 - 0.7)) / 2, and of the first two tasks 0.5 - 0.5."""
    assert backward_compatibility(MATRIX) == pytest.approx(0.0)
    shifted = MATRIX.clone()
    shifted[2, 0] = 0.1
    assert backward_compatibility(shifted) == pytest.approx((-0.4 + 0.1) / 2)


def test_a_single_task_has_no_pair():
    one = torch.tensor([[0.5]], dtype=torch.float64)
    assert math.isnan(average_compatibility(one))
    assert math.isnan(backward_compatibility(one))


def test_an_unmeasured_matrix_is_refused():
    with pytest.raises(ValueError, match="measured on and below its diagonal"):
        average_compatibility(torch.tensor([[0.5, NAN], [NAN, 0.5]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"shape \(T, T\), got \(2, 3\)"):
        backward_compatibility(torch.zeros(2, 3))


def test_flips():
    """Of four queries that count: one lost, one won, two with the same nearest item; the fifth has nothing to find."""
    before, after = torch.tensor([1.0, 1.0, 0.0, 0.0, NAN]), torch.tensor([1.0, 0.0, 1.0, 0.0, NAN])
    found = flips(before, after, torch.tensor([3, 4, 5, 6, 0]), torch.tensor([3, 9, 8, 6, 0]))
    assert found == (0.25, 0.25, 0.5)
    with pytest.raises(ValueError, match="the same queries"):
        flips(before, after.nan_to_num(), before.long(), before.long())
