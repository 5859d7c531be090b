"""Losses between images and facts: values by hand, and what each must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tripletmas.objectives.facts.fact import parse_fact
from tripletmas.objectives.facts.language import LanguageView, language_view
from tripletmas.objectives.facts.losses import FactContrastive, FactDistance
from tripletmas.objectives.facts.scoring import fact_vectors, image_vectors
from tripletmas.objectives.facts.words import hashed_words

# Two facts in parts of length 2: <a> and <b, p>.
VIEW = LanguageView(
    (parse_fact("a"), parse_fact("b, p")),
    torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]),
    torch.tensor([[True, False, False], [True, True, False]]),
    "by hand",
)
IMAGES = torch.tensor([[3.0, 4.0, 0.0, 2.0, 9.0, 9.0], [0.0, 5.0, 0.0, 0.0, 7.0, 7.0]])
BOTH_AND_SECOND = torch.tensor([[True, True], [False, True]])


def test_the_distance_by_hand():
    """Pairs: (0, a): (3-1)^2 + 4^2 = 20; (0, b p): 3^2 + (4-1)^2 + 1 + 2^2 = 23; (1, b p): (5-1)^2 + 1 = 17."""
    assert FactDistance(VIEW)(IMAGES, BOTH_AND_SECOND).item() == pytest.approx(0.5 * (20 + 23 + 17) / 3)
    parts = math.sqrt(20) + (math.sqrt(18) + math.sqrt(5)) + (4 + 1)
    assert FactDistance(VIEW, squared=False)(IMAGES, BOTH_AND_SECOND).item() == pytest.approx(parts / 3)


def test_parts_that_a_fact_does_not_have_cost_nothing():
    images = IMAGES.clone().requires_grad_()
    for loss in (FactDistance(VIEW), FactDistance(VIEW, squared=False), FactContrastive(VIEW)):
        (gradient,) = torch.autograd.grad(loss(images, BOTH_AND_SECOND), images)
        assert (gradient[:, 4:] == 0).all()  # no fact has an object
        assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(FactDistance(VIEW)(images, torch.tensor([[True, False]] * 2)), images)
    assert (gradient[:, 2:] == 0).all()


def test_a_distance_of_exactly_zero_has_a_gradient():
    images = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).requires_grad_()
    (gradient,) = torch.autograd.grad(FactDistance(VIEW, squared=False)(images, torch.tensor([[True, False]])), images)
    assert gradient.isfinite().all()


def test_the_contrast_by_hand():
    """Scores: image 0 with a 3/5, with b p (4/5 + 0) / 2; image 1 with a 0, with b p (1 + 0) / 2; temperature 1/2.

    SupCon: for each query the mean over its true candidates of -log(exp(s) / sum over all of exp(s)).
    """
    scores = torch.tensor([[0.6, 0.4], [0.0, 0.5]], dtype=torch.float64) / 0.5
    assert torch.allclose(image_vectors(IMAGES) @ fact_vectors(VIEW.vectors, VIEW.mask).T, scores.float() * 0.5)

    def one_way(scores: Tensor, holds: Tensor) -> float:
        log = scores - scores.exp().sum(dim=1, keepdim=True).log()
        return float(-torch.stack([log[i][holds[i]].mean() for i in range(len(scores))]).mean())

    expected = 0.5 * (one_way(scores, BOTH_AND_SECOND) + one_way(scores.T, BOTH_AND_SECOND.T))
    assert FactContrastive(VIEW, temperature=0.5)(IMAGES, BOTH_AND_SECOND).item() == pytest.approx(expected, rel=1e-5)


def test_the_contrast_sees_no_length_and_no_fact_outside_the_batch():
    names = ["circle", "square", "circle, red", "circle, above, square"]
    view = language_view([parse_fact(name) for name in names], hashed_words(16))
    images = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]]).bool()
    value = FactContrastive(view)(images, labels)
    assert torch.allclose(FactContrastive(view)(images * 7, labels), value, rtol=1e-5)
    fewer = language_view([parse_fact(name) for name in names[:3]], hashed_words(16))
    assert torch.allclose(FactContrastive(fewer)(images, labels[:, :3]), value, rtol=1e-5)


def test_a_step_brings_images_to_their_facts():
    names = ["circle", "square, red", "square, blue", "moon, above, square", "moon, above, ring"]
    view = language_view([parse_fact(name) for name in names], hashed_words(16))
    labels = torch.eye(5, dtype=torch.bool)
    for loss in (FactDistance(view), FactContrastive(view)):
        images = torch.randn(5, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        optimizer = torch.optim.Adam([images], lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            loss(images, labels).backward()
            optimizer.step()
        scores = image_vectors(images.detach()) @ fact_vectors(view.vectors, view.mask).T
        assert (scores.argmax(dim=0) == torch.arange(5)).all()


@pytest.mark.parametrize("make", [FactDistance, FactContrastive])
def test_what_does_not_fit(make):
    loss = make(VIEW)
    with pytest.raises(
        ValueError, match=r"facts need labels of shape \(2, 2\), true where a fact holds, got torch.int64"
    ):
        loss(IMAGES, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="embeddings must have length 6, got 4"):
        loss(IMAGES[:, :4], BOTH_AND_SECOND)
    with pytest.raises(ValueError, match="no fact holds of any image of the batch"):
        loss(IMAGES, torch.zeros(2, 2, dtype=torch.bool))


def test_of_one_fact_there_is_nothing_to_learn_by_contrast():
    images = IMAGES.clone().requires_grad_()
    value = FactContrastive(VIEW)(images, torch.tensor([[True, False]] * 2))
    (gradient,) = torch.autograd.grad(value, images)
    assert value == 0
    assert (gradient == 0).all()


def test_a_temperature_of_zero():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        FactContrastive(VIEW, temperature=0)


def test_the_language_view_is_no_part_of_the_state():
    assert FactDistance(VIEW).state_dict() == {}
    assert FactContrastive(VIEW).state_dict() == {}


def test_parts_of_labels():
    assert FactDistance(VIEW).parts_of(BOTH_AND_SECOND).tolist() == [[True, True, False], [True, True, False]]
    assert FactDistance(VIEW).parts_of(torch.tensor([[True, False]])).tolist() == [[True, False, False]]
