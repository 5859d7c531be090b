"""Signs of a collapse: spread, effective rank, a loss at its margin, a score at chance."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import cast

import pytest
import torch
from torch.nn import functional

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Task
from tripletmas.objectives import collapse
from tripletmas.objectives.collapse import Guess
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.facts.objective import Facts
from tripletmas.objectives.facts.scoring import image_vectors
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval, guess_of_search


def draw(size: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_the_spread_is_one_minus_the_mean_cosine_of_all_pairs(offset: float):
    vectors = (draw(7, 5) + offset).double()
    pairs = [functional.cosine_similarity(a, b, dim=0) for a, b in combinations(vectors, 2)]
    expected = sum((1 - float(each)) for each in pairs) / len(pairs)
    assert collapse.spread(vectors) == pytest.approx(expected, rel=1e-5, abs=1e-13)


def test_the_spread_of_few_of_none_and_of_zeros():
    assert math.isnan(collapse.spread(torch.ones(1, 3)))
    assert math.isnan(collapse.spread(torch.ones(0, 3)))
    assert collapse.spread(torch.zeros(4, 3)) == 0
    assert collapse.spread(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(2)  # opposite


def test_the_effective_rank_counts_directions_by_their_size():
    """Of singular values in the proportion 3 : 1 the entropy is -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.5623, of which the
    exponential is 1.7548."""
    assert collapse.effective_rank(torch.eye(5)) == pytest.approx(5)
    assert collapse.effective_rank(torch.tensor([[2.0, 0.0], [-3.0, 0.0], [1.0, 0.0]])) == pytest.approx(1)
    assert collapse.effective_rank(torch.zeros(4, 3)) == pytest.approx(1)
    # nine on one axis, one on the other: singular values 3 and 1
    assert collapse.effective_rank(torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])) == pytest.approx(1.7548, abs=1e-4)
    assert math.isnan(collapse.effective_rank(torch.full((3, 2), torch.inf)))
    assert math.isnan(collapse.effective_rank(torch.ones(0, 2)))


def test_vectors_that_are_nearly_equal_show_it():
    """Half the mean squared distance of unit vectors that differ by d is about d^2 / 2."""
    labels = torch.arange(40) % 4
    base = torch.ones(40, 8) / 8**0.5
    for size, signs in ((1e-3, {"equal"}), (0.0, {"equal"}), (1.0, set())):
        assert collapse.signs_of(base + size * draw(40, 8), labels).keys() == signs
    assert not collapse.signs_of(base, torch.zeros(40)), "a class may lie on one point"


def test_one_direction_is_a_sign_for_three_classes_and_more():
    """Two may lie opposite each other: told apart as well as can be, with one direction."""
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(20, 1) + 0.01 * draw(40, 2)
    assert not collapse.signs_of(line, torch.arange(40) % 2)
    assert collapse.signs_of(line, torch.arange(40) % 3).keys() == {"rank"}
    several = torch.nn.functional.one_hot(torch.arange(40) % 3).bool()
    assert collapse.signs_of(line, several).keys() == {"rank"}, "rows of facts are labels, too"


def test_classes_are_told_apart_where_the_nearest_is_mostly_of_the_same():
    """Three classes of four: chance is 3 / 11, halfway 7 / 11, of twelve samples 7.6."""
    labels, points = torch.arange(12) % 3, torch.eye(8)[torch.arange(12) % 3] + 1e-3 * draw(12, 8)
    assert collapse.are_told_apart(points, labels)
    assert collapse.are_told_apart(1 + 1e-9 * points.double(), labels), "also where all are nearly equal"
    assert not collapse.are_told_apart(draw(12, 8), labels)
    assert not collapse.are_told_apart(points, torch.arange(12)), "classes of one sample each"
    assert not collapse.are_told_apart(points, functional.one_hot(labels).bool()), "labels of several classes"
    for wrong, apart in ((4, True), (5, False)):  # 8 and 7 of 12 right: each of these is alone in its class's place
        mixed = points.clone()
        mixed[:wrong] = torch.eye(8)[torch.arange(wrong) + 3] * 5
        mixed[:wrong] += points[(torch.arange(wrong) + 1)]
        assert collapse.are_told_apart(mixed, labels) == apart


@pytest.mark.parametrize(
    ("loss", "between", "stuck"),
    [
        (0.21, (0.001, 0.002), True),  # distances of 0.063 at most
        (0.2, (0.0199, 0.005), True),  # sqrt(2 * 0.02) = 0.2, the margin
        (0.2, (0.0201, 0.001), False),
        (0.197, (0.001, 0.001), False),  # the hardest are in order on average
    ],
)
def test_a_loss_sits_at_its_margin_where_distances_are_small_beside_it(loss: float, between, stuck: bool):
    assert bool(collapse.margin_sign(loss, 0.2, between)) == stuck


def test_the_tails_of_the_binomial():
    """Against sums of fractions."""

    def twin(least: int, num: int, p: Fraction) -> float:
        return float(sum(math.comb(num, k) * p**k * (1 - p) ** (num - k) for k in range(least, num + 1)))

    for num, p in ((1, Fraction(1, 2)), (20, Fraction(1, 3)), (70, Fraction(1, 50))):
        found = collapse.tails(num, float(p))
        assert found.tolist() == pytest.approx([twin(k, num, p) for k in range(num + 1)], rel=1e-9)
    assert float(collapse.tails(100_000, 0.25)[25_000]) == pytest.approx(0.5, abs=0.002)


def test_few_answers_say_nothing_and_many_are_told_from_guessing():
    """Of 70 queries and a chance of 1/4: P(X >= 24) = 0.054, P(X >= 25) = 0.028."""
    assert collapse.at_chance(24, 70, 0.25)
    assert not collapse.at_chance(25, 70, 0.25)
    assert collapse.at_chance(0, 70, 0.25)
    for num in range(8):
        assert not collapse.at_chance(num // 4, num, 0.25)
    assert not collapse.at_chance(0, 10**4, 0.0)
    assert not collapse.at_chance(10, 10, 1.0)
    assert collapse.at_chance(20, 1000, 0.02)
    assert not collapse.at_chance(45, 1000, 0.02)


def data(*labels: int) -> LabelledDataset:
    return LabelledDataset(torch.zeros(len(labels), 1, 4, 4), torch.tensor(labels), ("a", "b"))


def test_what_guessing_finds_in_a_search():
    """Of 3 and 2 queries, each without itself: 3 have 2 of 4 others right, 2 have 1 of 4: (6 + 2) / 20 = 0.4."""
    task = Task("one", (0, 1), train=data(0, 0, 1, 1), query=data(0, 0, 0, 1, 1))
    assert guess_of_search(task) == Guess("recall@1", pytest.approx(0.4), 5)
    # in a gallery of its own a query is none of the items: 3 have 1 of 4 right, 2 have 3 of 4: 9 / 20
    assert guess_of_search(replace(task, gallery=data(0, 1, 1, 1))) == Guess("recall@1", pytest.approx(9 / 20), 5)
    # the query of the second class has nothing to find, and no score: 1 of 2 others for each of the first
    assert guess_of_search(replace(task, query=data(0, 0, 1))) == Guess("recall@1", pytest.approx(0.5), 2)
    assert guess_of_search(replace(task, query=data(0, 1))) is None


def test_guessing_of_a_head_is_its_most_frequent_class():
    task = Task("one", (0, 1), train=data(0, 0, 1, 1), query=data(0, 0, 0, 1, 1))
    assert Recognition(4, [(0, 1)], ["a", "b"]).guess(task) == Guess("accuracy", 0.6, 5)


def test_the_margin_is_known_of_triplets_of_unit_vectors():
    def margin(loss) -> float | None:
        return Retrieval(loss).margin

    assert margin(make_loss("triplet", dim=4, num_classes=2)) == 0.2
    assert margin(make_loss("triplet", dim=4, num_classes=2, options={"margin": 0.5})) == 0.5
    assert margin(make_loss("triplet", dim=4, num_classes=2, options={"smooth_loss": True})) is None
    assert margin(make_loss("contrastive", dim=4, num_classes=2)) is None
    assert margin(lambda embeddings, labels: embeddings.sum()) is None


def test_parts_of_facts_are_compared_each_by_itself():
    raw = draw(4, 6)
    assert torch.equal(Facts(cast(FactLoss, torch.nn.Identity())).compared(raw), image_vectors(raw))
