"""The nearest change within a bound, against what makes it the nearest: Kuhn and Tucker's conditions."""

from __future__ import annotations

import pytest
import torch
from oracles import low_rank
from torch import Tensor

from tripletmas.protection.structured.gram_matrix import KEPT, MOST, LowRank, spectrum
from tripletmas.protection.structured.quadratic import Quadratic, first_task

GROUPS, ROWS, COLUMNS = 2, 3, 300


def moment(seed: int) -> Tensor:
    """Of inputs in six directions of three hundred, and a little of everything."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(GROUPS, 500, 6, generator=generator) @ torch.randn(GROUPS, 6, COLUMNS, generator=generator)
    inputs = (few + 0.1 * torch.randn(GROUPS, 500, COLUMNS, generator=generator)).double()
    return inputs.mT @ inputs / 500


def change(seed: int) -> Tensor:
    return torch.randn(GROUPS, ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)).double()


def form(kind: str) -> Quadratic:
    """Of two tasks that were learned with different weights, or of one."""
    moments = [moment(seed) for seed in (0, 1)]
    grams = [LowRank(*low_rank(each, KEPT, MOST)) if kind == "low rank" else each for each in moments]
    one = first_task(grams[0])
    return one if kind == "one task" else one.anchored(0.1 * change(2), own=True).with_task(grams[1], 1.0, 1.0)


@pytest.mark.parametrize("part", [0.9, 0.1, 1e-4])
@pytest.mark.parametrize("kind", ["one task", "two tasks", "low rank"])
def test_it_is_the_nearest(kind: str, part: float):
    """At the nearest point of a convex set the way back is at right angles to its edge: D - D' = m H(D'), m >= 0."""
    held, far = form(kind), change(3)
    value, least = float(held.of(far)[0]), float(held.of(held.nearest(far, -1.0, spectrum(held.gram)))[0])
    most = least + part * (value - least)
    found = held.nearest(far, most, spectrum(held.gram))
    reached, half = held.of(found)
    assert float(reached) == pytest.approx(most, rel=1e-6)
    way = far - found
    assert torch.nn.functional.cosine_similarity(way.flatten(), half.flatten(), dim=0).item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["one task", "two tasks", "low rank"])
def test_the_least_where_nothing_is_within(kind: str):
    """Where no change is within the bound: the gradient is gone, and the form of one task is 0."""
    held = form(kind)
    value, half = held.of(held.nearest(change(3), -1.0, spectrum(held.gram)))
    assert half.norm() < 1e-4 * held.of(change(3))[1].norm()
    if kind == "one task":
        assert float(value) == pytest.approx(0.0, abs=1e-6)


def test_what_no_input_sees_is_left_alone():
    """Inputs in the first ten columns only: what a change does in the others stays."""
    gram = torch.zeros(GROUPS, COLUMNS, COLUMNS).double()
    gram[:, :10, :10] = moment(0)[:, :10, :10]
    far = change(3)
    found = first_task(gram).nearest(far, 1e-3, spectrum(gram))
    assert torch.allclose(found[..., 10:], far[..., 10:])
    assert found[..., :10].norm() < 0.2 * far[..., :10].norm()
