"""Sums of second moments against the products of all inputs, and what is kept of wide ones against eigenvectors."""

from __future__ import annotations

import pytest
import torch
from oracles import low_rank
from torch import Tensor

from tripletmas.protection.structured import sums
from tripletmas.protection.structured.gram_matrix import KEPT, MOST, LowRank, most_directions, square, times
from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.sums import MomentSums, gram_of

COLUMNS = 400


def inputs(few: float, seed: int = 0, groups: int = 1) -> Tensor:
    """(groups, columns, rows) in twelve directions, so large, and white noise."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(groups, 2000, 12, generator=generator) @ torch.randn(12, COLUMNS, generator=generator)
    return (few * rows + 0.2 * torch.randn(groups, 2000, COLUMNS, generator=generator)).double().mT


def linear(bias: str | None = None) -> LinearMap:
    return LinearMap("weight", bias, "linear")


def summed(parts: list[tuple[Tensor, float]], each: LinearMap, *, exact: bool = False) -> Tensor:
    total = MomentSums(exact=exact)
    for part, weight in parts:
        total.add_inputs(each, part, weight)
    return total.sums[each]


def whole(parts: list[tuple[Tensor, float]], each: LinearMap) -> Tensor:
    """The literal twin: a 1 after every input, and the product of all."""
    total = torch.zeros(())
    for part, weight in parts:
        rows = torch.cat([part, torch.ones_like(part[:, :1])], dim=1) if each.bias else part
        total = total + weight * rows @ rows.mT
    return total


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [None, "bias"])
def test_the_moment_is_the_product_of_all_inputs(bias: str | None, groups: int):
    """Of more than 256 columns only half is computed."""
    parts = [(inputs(1.0, 0, groups), 1.0), (inputs(1.0, 1, groups)[..., :100], 7.5)]
    found = gram_of(summed(parts, linear(bias)))
    assert torch.allclose(square(found), whole(parts, linear(bias)))


def test_half_a_type_is_summed_in_whole_ones():
    part = torch.ones(1, 2, 3000, dtype=torch.bfloat16)
    assert torch.equal(gram_of(summed([(part, 1.0)], linear())), torch.full((1, 2, 2), 3000.0))


@pytest.mark.parametrize("bias", [None, "bias"])
@pytest.mark.parametrize("few", [1.0, 0.03])
def test_what_is_kept_of_a_wide_one(monkeypatch: pytest.MonkeyPatch, bias: str | None, few: float):
    """Where few directions have 99 % of the trace they are kept, nearly as the eigenvectors are; where they do not,
    what a change in the large directions answers is within a tenth, and of a random one within a hundredth."""
    monkeypatch.setattr(sums, "WIDE", 100)
    parts = [(inputs(few, 0), 1.0), (inputs(few, 1), 0.5)]
    exact, found = whole(parts, linear(bias)), gram_of(summed(parts, linear(bias)))
    assert isinstance(found, LowRank)
    factor, _ = low_rank(exact, KEPT, MOST)
    assert found.factor.shape[2] == pytest.approx(min(factor.shape[2], most_directions(len(exact[0]))), abs=1)
    assert torch.trace(square(found)[0]).item() == pytest.approx(torch.trace(exact[0]).item())
    largest = torch.linalg.eigh(exact)[1][:, :, -5:].mT
    anything = torch.randn(1, 200, len(exact[0]), generator=torch.Generator().manual_seed(2)).double()
    for change, within in ((largest, 0.1), (anything, 0.01)):
        answer, expected = ((change * product).sum().item() for product in (times(change, found), change @ exact))
        assert answer == pytest.approx(expected, rel=within)


def test_a_wide_one_is_kept_by_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sums, "WIDE", 100)
    state = torch.random.get_rng_state()
    one, other = (summed([(inputs(1.0), 1.0)], linear()) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_of_fewer_inputs_than_vectors_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch):
    """Three inputs have three directions, all of the trace, and no rest."""
    monkeypatch.setattr(sums, "WIDE", 100)
    three = torch.randn(1, COLUMNS, 3, generator=torch.Generator().manual_seed(0))
    found = gram_of(summed([(three, 1.0)], linear()))
    assert isinstance(found, LowRank)
    assert found.factor.shape[2] <= 3
    assert torch.allclose(square(found), three @ three.mT, atol=1e-3)


def test_what_is_left_lies_in_the_columns_that_inputs_have(monkeypatch: pytest.MonkeyPatch):
    """Of a kernel that lies over the border of small images most columns are never anything: what little there is
    otherwise is not spread over them, and a change there is free."""
    monkeypatch.setattr(sums, "WIDE", 100)
    part = inputs(0.03)
    part[:, 50:] = 0
    found = gram_of(summed([(part, 1.0)], linear()))
    assert isinstance(found, LowRank)
    assert not found.rest[:, 50:].any()
    change = torch.randn(1, 200, COLUMNS, generator=torch.Generator().manual_seed(2)).double()
    answer, expected = ((change * product).sum().item() for product in (times(change, found), change @ part @ part.mT))
    assert answer == pytest.approx(expected, rel=0.02)
    change[:, :, :50] = 0
    assert not times(change, found).any()


def test_exact_makes_all_of_a_wide_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sums, "WIDE", 100)
    parts = [(inputs(1.0), 1.0)]
    assert torch.allclose(square(gram_of(summed(parts, linear(), exact=True))), whole(parts, linear()))


@pytest.mark.parametrize(
    ("columns", "groups", "most"), [(1024, 1, 16384), (1025, 1, 4096), (9, 100, 16384), (9, 114, 1024)]
)
def test_of_later_inputs_fewer_and_fewer_are_drawn(columns: int, groups: int, most: int):
    """`most` in a first batch, a half of that in a second one of the same size; all of small batches at first."""
    each = LinearMap("weight", None, "convolution", groups)
    drawn = MomentSums(exact=False)
    numbers = [drawn.draw(each, columns, 10 * most) for _ in range(3)]
    assert [len(found) for found in numbers if found is not None] == [most, most // 2, most // 3]
    assert all(found is not None and 0 <= int(found.min()) <= int(found.max()) < 10 * most for found in numbers)
    small = MomentSums(exact=False)
    assert [small.draw(each, columns, most // 2) is None for _ in range(4)] == [True, True, False, False]
    assert MomentSums(exact=True).draw(each, columns, 10 * most) is None
