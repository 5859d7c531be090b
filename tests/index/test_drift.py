"""Drift maps: against a literal twin, in cases known in closed form, and what they do with odd pairs."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from torch.nn.functional import normalize

from tripletmas.index import drift
from tripletmas.index.drift import DRIFT_MAPS, compensate_drift, fit_drift


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_sdc_equals_its_twin(sigma: float):
    vectors, before, after = (normalize(random(n, 4, seed=n), dim=1) for n in (7, 20, 21))
    after = after[:20]
    found = compensate_drift(vectors, before, after, sigma=sigma)
    for row, vector in zip(found.tolist(), vectors.tolist(), strict=True):
        assert row == pytest.approx(oracles.compensated(vector, before.tolist(), after.tolist(), sigma), abs=1e-5)


def test_sdc_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch):
    vectors, before = random(50, 3), random(10, 3, seed=1)
    whole = compensate_drift(vectors, before, before + 1)
    monkeypatch.setattr(drift, "_BLOCK_CELLS", 30)  # three vectors at once
    torch.testing.assert_close(compensate_drift(vectors, before, before + 1), whole)


def test_far_from_every_sample_the_nearest_drift_counts():
    """exp(-(1000 / 0.2)^2 / 2) is 0 in every floating type; the nearer sample moved by (1, 0)."""
    before = torch.tensor([[0.0, 0.0], [-5.0, 0.0]])
    after = torch.tensor([[1.0, 0.0], [-5.0, 7.0]])
    moved = compensate_drift(torch.tensor([[1000.0, 0.0]]), before, after)
    assert moved.tolist() == [[1001.0, 0.0]]


@pytest.mark.parametrize("kind", DRIFT_MAPS)
def test_without_drift_nothing_moves(kind: str):
    before, vectors = random(40, 5), random(10, 5, seed=1)
    shorter = 2e-3 if kind == "shrunk" else 0  # its ridge, of a thousandth, pulls to 0
    torch.testing.assert_close(fit_drift(kind, before, before)(vectors), vectors, atol=1e-5, rtol=5 * shorter)


@pytest.mark.parametrize("kind", sorted({*DRIFT_MAPS} - {"shrunk"}))  # which has no constant
def test_a_common_shift_moves_what_lies_among_the_samples(kind: str):
    before = random(300, 3)
    shift = torch.tensor([0.5, -0.25, 1.0])
    vectors = 0.5 * random(10, 3, seed=1)
    moved = fit_drift(kind, before, before + shift)(vectors)
    torch.testing.assert_close(moved, vectors + shift, atol=0.12, rtol=0)


@pytest.mark.parametrize("kind", ["linear", "procrustes", "shrunk"])
def test_a_rotation_is_found(kind: str):
    angle = math.pi / 3
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    before, vectors = random(200, 2), random(10, 2, seed=1)
    torch.testing.assert_close(fit_drift(kind, before, before @ turn)(vectors), vectors @ turn, atol=5e-3, rtol=0)


def test_linear_equals_the_ridge_by_its_normal_equations():
    """The twin solves for the weights of the augmented system, row by row, with the same ridge."""
    before, after, vectors = random(60, 3), random(60, 3, seed=1), random(5, 3, seed=2)
    x, y = before.double(), (after - before).double()
    ridge = drift._best_ridge(x, y)
    expected = oracles.ridge_drift(x, y, vectors.double(), ridge)
    torch.testing.assert_close(fit_drift("linear", before, after)(vectors).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [4, 60])
@pytest.mark.parametrize("shift", [False, True])
def test_procrustes_equals_newtons_iteration(size: int, shift: bool):
    """Also with fewer pairs than dimensions."""
    before, after, vectors = (random(n, 6, seed=n).double() for n in (size, size + 1, 5))
    after = after[:size]
    rotation, start = drift._rotation(before, after, shift=shift)
    expected = oracles.rotated(before, after, vectors, drift._HELD, shift=shift)
    torch.testing.assert_close(vectors @ rotation + start, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("size", [9, 10])
def test_procrustes_shifts_the_means_where_that_pays(size: int):
    """Pairs that only move by (5, 5): with ten of them that can be seen on held-out ones, with nine it is not tried."""
    before = random(size, 2)
    moved = fit_drift("procrustes", before, before + 5)(before)
    if size == 10:
        torch.testing.assert_close(moved, before + 5)
    else:
        torch.testing.assert_close(moved.norm(dim=1), before.norm(dim=1))
    mirrored = torch.cat([before, -before])  # around 0, and held-out fifths of them are not: a shift only does harm
    turned = mirrored @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 0.1 * random(2 * size, 2, seed=1)
    assert not drift.shift_pays(mirrored.double(), turned.double())


def test_procrustes_keeps_lengths_and_angles_and_may_reflect():
    """The only way to swap the sign of one axis is a reflection, of determinant -1; it keeps the inner products."""
    before, vectors = random(50, 3), random(6, 3, seed=1)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    moved = fit_drift("procrustes", before, before @ mirror + 0.3 * random(50, 3, seed=2))(vectors)
    torch.testing.assert_close(moved @ moved.T, vectors @ vectors.T, atol=1e-5, rtol=1e-5)
    assert torch.det(torch.linalg.lstsq(vectors, moved).solution) < 0


@pytest.mark.parametrize("size", [4, 60])
def test_shrunk_equals_its_twin(size: int):
    before, after, vectors = (random(n, 6, seed=n).double() for n in (size, size + 1, 5))
    found = fit_drift("shrunk", before, after[:size])(vectors)
    expected = oracles.shrunk_drift(before, after[:size], vectors, drift._SHRUNK_RIDGE, drift._SHRUNK_PAIRS)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_a_ridge_with_fewer_pairs_than_dimensions_is_that_of_the_normal_equations():
    """X^T (X X^T + held I)^-1 Y and (X^T X + held I)^-1 X^T Y are the same matrix."""
    x, y = random(3, 5).double(), random(3, 5, seed=1).double()
    held = 0.1 * float(x.square().sum()) / 5
    expected = torch.linalg.inv(x.T @ x + held * torch.eye(5).double()) @ x.T @ y
    torch.testing.assert_close(drift._ridge_solution(x, y, 0.1), expected)


@pytest.mark.parametrize("kind", ["linear", "procrustes"])
def test_what_is_orthogonal_to_all_pairs_stays(kind: str):
    """Pairs in the first two of six dimensions; a vector on the sixth is orthogonal to them."""
    before, after = torch.zeros(2, 20, 6)
    before[:, :2], after[:, :2] = random(20, 2), random(20, 2, seed=1)
    vector = torch.eye(6)[5:]
    moved = fit_drift(kind, before - before.mean(dim=0), after - after.mean(dim=0))(vector)
    torch.testing.assert_close(moved, vector, atol=1e-5, rtol=0)


def test_linear_leaves_directions_alone_that_the_pairs_do_not_show():
    """All pairs lie on the first axis and stretch; a vector on the second axis has nothing to learn from."""
    before = torch.zeros(50, 2)
    before[:, 0] = random(50)
    after = before.clone()
    after[:, 0] *= 1.5
    moved = fit_drift("linear", before, after)(torch.tensor([[0.0, 3.0], [2.0, 0.0]]))
    torch.testing.assert_close(moved, torch.tensor([[0.0, 3.0], [3.0, 0.0]]), atol=1e-2, rtol=0)


@pytest.mark.slow
def test_mlp_learns_what_no_linear_map_can():
    """Samples right of 0 move up, those left of 0 move down by as much as they are away: |x|, which is not linear."""
    before = 2 * random(2000, 2)
    after = before.clone()
    after[:, 1] += before[:, 0].abs()
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    wanted = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    errors = {kind: float((fit_drift(kind, before, after)(vectors) - wanted).norm()) for kind in ("linear", "mlp")}
    assert errors["mlp"] < 0.2 < errors["linear"]


def test_a_map_is_a_function_of_pairs_and_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drift, "_STEPS", 50)
    before, after, vectors = random(40, 4), random(40, 4, seed=1), random(5, 4, seed=2)
    state = torch.random.get_rng_state()
    one, other = (fit_drift("mlp", before, after, seed=3)(vectors) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(one, fit_drift("mlp", before, after, seed=4)(vectors))


@pytest.mark.parametrize("kind", DRIFT_MAPS)
@pytest.mark.parametrize("pairs", [1, 3])
def test_a_few_pairs_give_finite_vectors(kind: str, pairs: int):
    before = random(pairs, 4)
    assert fit_drift(kind, before, before + 1)(random(6, 4, seed=1)).isfinite().all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="unknown drift map 'cubic': there are sdc, linear, mlp"):
        fit_drift("cubic", random(3, 2), random(3, 2))
    with pytest.raises(ValueError, match="the same n >= 1 samples"):
        fit_drift("linear", random(3, 2), random(4, 2))
    with pytest.raises(ValueError, match="the same n >= 1 samples"):
        fit_drift("linear", random(0, 2), random(0, 2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_drift("linear", random(3, 2), random(3, 2) * torch.nan)
