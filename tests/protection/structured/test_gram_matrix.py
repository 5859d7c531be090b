"""Grams of low rank: how near they are to the square ones, and sums of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracles import low_rank
from torch import Tensor, nn

from tripletmas.protection.structured import sums
from tripletmas.protection.structured.gram import Gram
from tripletmas.protection.structured.gram_matrix import (
    KEPT,
    MOST,
    LowRank,
    added,
    diagonal,
    energy,
    largest_curvature,
    most_directions,
    narrowed,
    scaled,
    spectrum,
    square,
    times,
)

COLUMNS, RANK = 400, 12


def moment(seed: int) -> Tensor:
    """Of inputs in a few directions, and a little of everything."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(2000, RANK, generator=generator) @ torch.randn(RANK, COLUMNS, generator=generator)
    inputs = (few + 0.2 * torch.randn(2000, COLUMNS, generator=generator)).double()
    return (inputs.T @ inputs / len(inputs)).unsqueeze(0)


def low(whole: Tensor) -> LowRank:
    return LowRank(*low_rank(whole, KEPT, MOST))


def test_little_directions_do_not_pile_up_where_the_rest_is_large():
    """The rest has half of the trace: what the factors have cannot be 99 % of it, and 99.5 % of theirs is kept."""
    basis = torch.linalg.qr(torch.randn(COLUMNS, 10, generator=torch.Generator().manual_seed(0)).double())[0]
    one, other = (
        LowRank(basis[None, :, :5], torch.full((1, COLUMNS), 5 / COLUMNS)),
        LowRank(basis[None, :, 5:] * 1e-3, torch.zeros(1, COLUMNS)),
    )
    assert added(one, other).factor.shape[2] == 5


@pytest.mark.parametrize("make", [moment, lambda seed: low(moment(seed)), lambda seed: torch.ones(3, 1, 1)])
def test_the_spectrum(make):
    gram = make(0)
    vectors, large, little = spectrum(gram)
    inside = vectors * large.unsqueeze(1) @ vectors.mT
    outside = torch.eye(vectors.shape[1]) - vectors @ vectors.mT
    assert torch.allclose(inside + outside * little.view(-1, 1, 1), square(gram), atol=1e-9)


@pytest.mark.parametrize("make", [moment, lambda seed: low(moment(seed))])
def test_what_is_computed_of_it_is_what_the_square_says(make):
    gram, matrices = make(0), torch.randn(1, 3, COLUMNS).double()
    whole = square(gram)
    assert torch.allclose(times(matrices, gram), matrices @ whole)
    assert energy(matrices, gram).item() == pytest.approx(
        (matrices @ whole @ matrices.transpose(1, 2))[0].trace().item()
    )
    assert torch.allclose(square(scaled(gram, 3.0)), 3 * whole)
    assert largest_curvature(gram).item() == pytest.approx(torch.linalg.eigvalsh(whole).max().item(), rel=0.05)


@pytest.mark.parametrize("one", [moment, lambda seed: low(moment(seed))])
@pytest.mark.parametrize("other", [moment, lambda seed: low(moment(seed))])
def test_sums(one, other):
    first, second = one(0), other(1)
    total = added(first, second)
    expected = square(first) + square(second)
    assert isinstance(total, LowRank) == (isinstance(first, LowRank) and isinstance(second, LowRank))
    assert diagonal(total).sum().item() == pytest.approx(diagonal(expected).sum().item())
    assert (square(total) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_of_the_same_many_times(dtype: torch.dtype):
    """Directions of the one lie in those of the other: nothing is divided by what is nearly 0, and no rank grows, also
    where the rest has more than its hundredth."""
    factor, rest = (each.to(dtype) for each in low(moment(0)))
    one = LowRank(factor, 4 * rest)
    total = one
    for times_as_much in range(2, 12):
        total = added(total, one)
        assert isinstance(total, LowRank)
        assert total.factor.shape[2] <= one.factor.shape[2]
        assert (square(total) - times_as_much * square(one)).norm() < 0.02 * times_as_much * square(one).norm()
        vectors, large, _ = spectrum(total)
        assert large.max() < 1.01 * times_as_much * spectrum(one).large.max()
        assert torch.allclose(vectors.mT @ vectors, torch.eye(large.shape[1], dtype=dtype), atol=1e-3)


def test_columns_that_no_input_has_have_no_direction():
    """Of 400 columns ten are seen by one group or the other; LAPACK failed on 4,096 of 4,608, of images so small that a
    kernel has them at its centre alone."""
    gram = torch.zeros(2, COLUMNS, COLUMNS).double()
    for group, at in enumerate((slice(0, 7), slice(20, 23))):
        rows = torch.randn(50, at.stop - at.start, generator=torch.Generator().manual_seed(group)).double()
        gram[group, at, at] = rows.mT @ rows
    vectors, large, little = spectrum(gram)
    assert vectors.shape == (2, COLUMNS, 10)
    assert torch.allclose(vectors * large.unsqueeze(1) @ vectors.mT, gram)
    assert not little.any()


def test_where_float32_does_not_converge_float64_does(monkeypatch: pytest.MonkeyPatch):
    """Which matrices these are depends on the build of LAPACK."""
    found = torch.linalg.eigh

    def fails_in_float32(matrix: Tensor):
        if matrix.dtype == torch.float32:
            raise RuntimeError("linalg.eigh: the algorithm failed to converge")
        return found(matrix)

    gram = moment(0).float()
    expected = spectrum(gram)
    monkeypatch.setattr(torch.linalg, "eigh", fails_in_float32)
    vectors, large, _ = spectrum(gram)
    assert vectors.dtype == large.dtype == torch.float32
    assert torch.allclose(large[:, -RANK:], expected.large[:, -RANK:], rtol=1e-4)
    assert torch.allclose(vectors * large.unsqueeze(1) @ vectors.mT, gram, atol=1e-4 * float(large.max()))


def test_the_share_that_is_kept():
    """Eigenvalues 5, 2 and 1, 1: the directions have 7 of 9; of a second group 3, 1 and 1, 1, of which 4 of 6; and of a
    column that no input has none."""
    factor = torch.zeros(2, 4, 2)
    factor[0, 0, 0], factor[0, 1, 1], factor[1, 0, 0] = 2.0, 1.0, 2.0**0.5
    assert LowRank(factor[:1], torch.ones(1, 4)).kept_share() == pytest.approx(7 / 9)
    assert LowRank(factor, torch.ones(2, 4)).kept_share() == pytest.approx((7 + 4) / (9 + 6))
    assert LowRank(factor[:1], torch.tensor([[1.0, 1, 1, 0]])).kept_share() == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("groups", "columns", "directions"), [(1, 400, 25), (1, 1000, 62), (6, 25, 3), (6, 9, 3), (2, 64, 4)]
)
def test_of_a_large_square_one_the_large_directions_are_kept(groups: int, columns: int, directions: int):
    """As the eigenvectors are; in all other directions that inputs have the rest is spread, so that the trace stays."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.arange(1, columns + 1).double() ** -0.5  # so slowly that no few have 99 %
    inputs = torch.randn(groups, 2000, columns, generator=generator).double() * decay
    inputs[..., -2:] = 0
    moment = inputs.mT @ inputs / 2000
    found = narrowed(moment)
    assert isinstance(found, LowRank)
    factor, rest = low_rank(moment, KEPT, directions)
    assert found.factor.shape == factor.shape == (groups, columns, directions)
    assert torch.allclose(square(found), square(LowRank(factor, rest)))
    assert not found.rest[:, -2:].any()
    assert torch.allclose(diagonal(found).sum(1), diagonal(moment).sum(1))
    again = added(found, found)
    assert isinstance(again, LowRank)
    assert again.factor.shape[2] <= directions
    assert torch.allclose(square(again), 2 * square(found), atol=0.02 * float(diagonal(found).max()))
    assert torch.allclose(diagonal(again).sum(1), 2 * diagonal(found).sum(1))


@pytest.mark.parametrize(("groups", "columns"), [(1, 256), (6, 8), (6, 1)])
def test_a_small_one_stays_square(groups: int, columns: int):
    moment = torch.eye(columns).repeat(groups, 1, 1)
    assert narrowed(moment) is moment


def test_a_group_that_has_no_input_keeps_nothing():
    moment = torch.randn(2, 100, 25, generator=torch.Generator().manual_seed(0))
    moment = moment.mT @ moment
    moment[1] = 0
    found = narrowed(moment)
    assert isinstance(found, LowRank)
    for gram, times_over in ((found, 1), (added(found, found), 2)):
        assert not square(gram)[1].any()
        assert torch.allclose(diagonal(gram)[0].sum(), times_over * diagonal(moment)[0].sum())
        assert all(each.isfinite().all() for each in spectrum(gram))


def test_a_sum_has_so_many_directions_at_most():
    """Of white noise, whose directions are all alike."""
    rows = torch.randn(2, 1, COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(0)).double()
    one, other = (LowRank(*low_rank(each.mT @ each / COLUMNS, KEPT, MOST)) for each in rows)
    total = added(one, other)
    assert isinstance(total, LowRank)
    assert total.factor.shape[2] == most_directions(COLUMNS)
    assert diagonal(total).sum().item() == pytest.approx((diagonal(one) + diagonal(other)).sum().item())


def test_a_wide_layer_is_held_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sums, "WIDE", 100)
    torch.manual_seed(0)
    model = nn.Linear(COLUMNS, 3).double()
    x = (torch.randn(500, RANK) @ torch.randn(RANK, COLUMNS)).double()
    exact, gram = Gram(model, strength=1.0, exact=True), Gram(model, strength=1.0)
    for each in (exact, gram):
        each.consolidate([x])
        each.consolidate([x[:100]])
    with torch.no_grad():
        model.weight.add_(0.05 * torch.randn(3, COLUMNS))
    assert gram.value().item() == pytest.approx(exact.value().item(), rel=0.03)
    assert exact.kept_shares() == {}
    assert gram.kept_shares() == {"weight": pytest.approx(1.0, abs=0.01)}
    gram.save(tmp_path / "wide")
    assert torch.equal(Gram.load(tmp_path / "wide", model).value(), gram.value())
    assert (tmp_path / "wide").stat().st_size < 1.2 * 8 * (2 * 3 * COLUMNS + (2 * RANK + 2) * (COLUMNS + 1))
