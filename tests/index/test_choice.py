"""Which map is for which pairs: cases in which it is known, the scores by a literal twin, and what is odd."""

from __future__ import annotations

import math

import oracles
import pytest
import torch

from tripletmas.index import drift
from tripletmas.index.base import unit
from tripletmas.index.choice import CANDIDATES, Limit, choose_drift
from tripletmas.index.drift import DRIFT_MAPS, fit_drift, neighbouring_folds


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_STEPS", 20)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(dim: int) -> torch.Tensor:
    return torch.linalg.qr(random(dim, dim, seed=7))[0]


def noisy(vectors: torch.Tensor) -> torch.Tensor:
    return unit(vectors + 0.02 * random(*vectors.shape, seed=3))


def test_every_map_is_a_candidate_and_none_is():
    assert sorted(CANDIDATES) == sorted((*DRIFT_MAPS, "none"))


def test_without_drift_nothing_is_moved():
    before = unit(random(40, 5))
    assert choose_drift(before, before).name == "none"
    raw = random(40, 5)
    assert choose_drift(raw, raw, normalize=False).name == "none"


def test_noise_that_no_map_can_know_is_no_reason_to_move():
    """Every pair moves by itself: a map can only learn what the others did, which says nothing."""
    before = unit(random(30, 20))
    assert choose_drift(before, noisy(before)).name == "none"


def test_a_rotation_is_for_procrustes():
    before = unit(random(30, 8))  # too few pairs for the 64 numbers of a linear map, noise as it is
    assert choose_drift(before, noisy(before @ rotation(8))).name == "procrustes"


def test_a_stretch_along_oblique_axes_is_for_a_linear_map():
    before = random(60, 4)
    stretch = rotation(4) @ torch.diag(torch.tensor([1.0, 0.2, 3.0, 1.0])) @ rotation(4).T
    assert choose_drift(before, before @ stretch, normalize=False).name == "linear"


def test_what_moves_by_neighbourhood_is_for_sdc():
    """Eight groups, interleaved as pairs: no linear map of the plane turns each by an angle of its own."""
    angles = 0.785 * torch.arange(8).repeat(10) + 0.02 * random(80)
    turned = angles + torch.tensor([2.0, -1.0, 3.0, 0.5, -2.0, 1.0, -3.0, 1.5]).repeat(10)
    before, after = (torch.stack([each.cos(), each.sin()], dim=1) for each in (angles, turned))
    assert choose_drift(before, after).name == "sdc"


@pytest.mark.parametrize("size", [5, 23])
def test_scores_equal_their_twin(size: int):
    before, after = unit(random(size, 4)), unit(random(size, 4, seed=1))
    choice = choose_drift(before, after)
    for name in CANDIDATES:
        expected = oracles.held_out_cosine(before, after, lambda x, y, name=name: fit_drift(name, x, y))
        assert choice.scores[name] == pytest.approx(expected, abs=1e-5)
    assert choice.name == max(CANDIDATES, key=lambda name: choice.scores[name])
    assert choice.num_pairs == size


def test_raw_vectors_are_judged_by_their_squared_distance_and_without_sdc():
    """Each pair moves by (3, 4): left where it is, it is 25 away."""
    before = random(50, 2)
    choice = choose_drift(before, before + torch.tensor([3.0, 4.0]), normalize=False)
    assert list(choice.scores) == [name for name in CANDIDATES if name != "sdc"]
    assert choice.scores["none"] == pytest.approx(-25)
    assert choice.name == "procrustes"
    assert choice.scores["procrustes"] == pytest.approx(0, abs=1e-3)


def test_folds_are_pieces_of_neighbours():
    """Of seven in five pieces: position 5 i / 7 rounded down is 0, 0, 1, 2, 2, 3, 4."""
    held_out = [outside.nonzero().flatten().tolist() for _, outside in neighbouring_folds(7)]
    assert held_out == [[0, 1], [2], [3, 4], [5], [6]]
    assert all(torch.equal(inside, ~outside) for inside, outside in neighbouring_folds(7))
    assert [outside.tolist() for _, outside in neighbouring_folds(2)] == [[True, False], [False, True]]


def test_the_choice_is_the_same_again_and_says_why():
    before, after = unit(random(20, 4)), unit(random(20, 4, seed=1))
    choice = choose_drift(before, after)
    assert choice == choose_drift(before, after)
    assert f"{choice.name}, which was best on held-out pairs of 20: none {choice.scores['none']:.5f}, " in (
        choice.sentence()
    )


def test_one_pair_is_too_few_to_hold_any_out():
    choice = choose_drift(torch.eye(3)[:1], torch.eye(3)[1:2])
    assert choice.name == "none"
    assert all(map(math.isnan, choice.scores.values()))


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the same n >= 1 samples"):
        choose_drift(random(3, 2), random(4, 2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        choose_drift(random(1, 2), random(1, 2) * torch.nan)


def test_a_map_that_moves_stored_vectors_further_than_they_can_have_moved_is_refused():
    """The pairs turn by a right angle, and maps with them (mlp, cut short here, a part of the way): 1 - cosine is 1."""
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    before, stored = unit(random(60, 2)), unit(random(20, 2, seed=1))
    free, wide = choose_drift(before, before @ turn), choose_drift(before, before @ turn, limit=Limit(stored, 1.01))
    assert free.name == wide.name == "procrustes"
    assert not wide.refused
    held = choose_drift(before, before @ turn, limit=Limit(stored, 0.01))
    assert held.name == "none"
    assert set(held.refused) == set(CANDIDATES) - {"none"}
    assert list(held.scores) == list(free.scores)  # in the same order, for tables
    assert held.scores["none"] == pytest.approx(0.0, abs=1e-6)
    assert all(math.isnan(held.scores[name]) for name in held.refused)
    assert "would move vectors further than the layers moved" in held.sentence()


def test_a_limit_is_of_the_mean():
    """By hand: half of the vectors turn by 60 degrees, 1 - cosine 0.5, and half stay."""
    stored = unit(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    sixty = torch.tensor([[0.5, 0.75**0.5]])

    def move(vectors: torch.Tensor) -> torch.Tensor:
        return torch.where(vectors[:, :1] == 1, sixty, vectors)

    assert Limit(stored, 0.2501).allows(move)
    assert not Limit(stored, 0.2499).allows(move)
