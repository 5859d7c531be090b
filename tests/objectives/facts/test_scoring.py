"""Scores between images and facts: small cases by hand, the literal twin with ties, and what is refused."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tripletmas.index.exact import ExactIndex
from tripletmas.objectives.facts import scoring
from tripletmas.objectives.facts.scoring import fact_vectors, image_vectors, score_facts
from tripletmas.objectives.metrics import chance_map

# Four facts of first order in two dimensions: east, north, west, south. An image at an angle ranks them by how near.
COMPASS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def subjects(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (f, 3, dim) and mask (f, 3) of facts that are subjects only, or an image's raw parts, flattened."""
    parts = torch.zeros(len(vectors), 3, vectors.shape[1])
    parts[:, 0] = vectors
    return parts, torch.tensor([[True, False, False]]).repeat(len(vectors), 1)


def images_at(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return subjects(torch.stack([angles.cos(), angles.sin()], dim=1))[0].flatten(1)


def bools(*rows: str) -> Tensor:
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


# --- the score -------------------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_of_the_cosines_of_the_parts_that_a_fact_has():
    # Cosines of the image's parts (3, 4), (0, 2), (5, 0) with the first axis: 3/5, 0, 1; with the second: 4/5, 1, 0.
    image = torch.tensor([[3.0, 4.0, 0.0, 2.0, 5.0, 0.0]])
    axis = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).expand(4, 3, 2)
    mask = bools("x..", "xx.", "xxx", ".xx")  # the last is a wildcard query: <*, P, O>
    scores = image_vectors(image) @ fact_vectors(axis, mask).T
    assert scores[0].tolist() == pytest.approx([3 / 5, (3 / 5 + 1) / 2, (3 / 5 + 1 + 1) / 3, (1 + 1) / 2])


def test_the_length_of_a_part_does_not_matter_and_zeros_stay():
    raw = torch.tensor([[3.0, 4.0, 0.0, 0.0, 1e-30, 0.0]])
    expected = [0.6, 0.8, 0.0, 0.0, 1.0, 0.0]
    assert image_vectors(raw)[0].tolist() == pytest.approx(expected)
    assert image_vectors(7 * raw)[0].tolist() == pytest.approx(expected)


def test_the_mask_decides_what_a_fact_has():
    vectors = torch.full((1, 3, 2), math.nan)
    vectors[:, 1] = torch.tensor([0.0, 1.0])
    assert fact_vectors(vectors, bools(".x.")).tolist() == [[0, 0, 0, 1, 0, 0]]


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_scores_as_the_literal_twin(seed, dim):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(-2, 3, (3, 3 * dim), generator=generator).float()
    vectors = functional.normalize(torch.randn(4, 3, dim, generator=generator), dim=2)
    mask = torch.rand(4, 3, generator=generator) < 0.6
    mask[~mask.any(dim=1), 0] = True
    scores = image_vectors(raw) @ fact_vectors(vectors, mask).T
    for image in range(3):
        for fact in range(4):
            expected = oracles.fact_score(raw[image].tolist(), vectors[fact].tolist(), mask[fact].tolist())
            assert float(scores[image, fact]) == pytest.approx(expected, abs=1e-6)


def test_gradients_pass_through_images():
    raw = torch.randn(2, 6, requires_grad=True)
    image_vectors(raw).sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_values_by_hand():
    # Images at 10, 20, 80 degrees. East ranks them 0, 1, 2; north 2, 1, 0; west 2, 1, 0; south 0, 1, 2.
    # East is true of 0 and 2 (ranks 1, 3), north of 0 (rank 3), west of 1 (rank 2), south of none.
    images = images_at(10, 20, 80)
    truth = bools("xx..", "..x.", "x...")
    scores = score_facts(images, truth, *subjects(COMPASS))
    east, north, west = (1 + 2 / 3) / 2, 1 / 3, 1 / 2
    assert scores.per_fact["map"].tolist() == pytest.approx([east, north, west, math.nan], nan_ok=True)
    assert scores.values["map"] == pytest.approx((east + north + west) / 3)
    assert scores.values["map@10"] == scores.values["map"]  # the gallery ends before rank 10
    assert scores.values["map_1"] == scores.values["map"]
    assert math.isnan(scores.values["map_2"])
    assert math.isnan(scores.values["top@5_3"])
    # Image 0 ranks east, north, south, west: true at 1 and 2. Image 1 too: west at 4. Image 2: north, east, ..: 2.
    assert scores.per_image["top@1"].tolist() == [1, 0, 0]
    assert scores.per_image["top@5"].tolist() == [1, 1, 1]
    assert scores.per_image["hit@1"].tolist() == [1, 0, 0]
    assert scores.per_image["mrr"].tolist() == [1, 1 / 4, 1 / 2]
    assert scores.values["mrr"] == pytest.approx((1 + 1 / 4 + 1 / 2) / 3)
    assert (scores.num_facts, scores.num_facts_without_image) == (4, 1)
    assert (scores.num_images, scores.num_images_without_fact) == (3, 0)


def test_first_ranks_of_a_larger_gallery_by_hand():
    # 120 images turn away from east; it is true of ranks 2, 11 and 101: R = 3.
    images = images_at(*(0.5 * rank for rank in range(1, 121)))
    truth = torch.zeros(120, 1, dtype=torch.bool)
    truth[[1, 10, 100]] = True
    values = score_facts(images, truth, *subjects(COMPASS[:1])).values
    assert values["map"] == pytest.approx((1 / 2 + 2 / 11 + 3 / 101) / 3)
    assert values["map@10"] == pytest.approx((1 / 2) / 3)
    assert values["map@100"] == pytest.approx((1 / 2 + 2 / 11) / 3)
    assert values["sherlock_map@10"] == pytest.approx(1 / 2)
    assert values["sherlock_map@100"] == pytest.approx((1 / 2 + 2 / 11) / 2)


@pytest.mark.parametrize(
    ("degrees", "truth", "options", "expected"),
    [
        # The image at 10 degrees ranks east, north, south, west. True at ranks 2, 3, 4: top@1 allows 3.
        ([10], ".xxx", {}, {"top@1": 2 / 3, "hit@1": 0, "mrr": 1 / 2}),
        # East, true but not asked, such as one of another task, is taken out: true at 1 and 3, top@1 allows 2.
        ([10], "xxx.", {"asked": ".xxx"}, {"top@1": 1 / 2, "hit@1": 1, "mrr": 1}),
        # Were east false, it would stand in the way, unless it is no candidate.
        ([10], ".xx.", {"asked": ".xxx"}, {"hit@1": 0, "mrr": 1 / 2}),
        ([10], ".xx.", {"asked": ".xxx", "candidates": ".xxx"}, {"hit@1": 1}),
        # A single image and a single fact.
        ([170], "x...", {"asked": "x...", "candidates": "x..."}, dict.fromkeys(["map", "map@10", "hit@1", "top@1"], 1)),
        ([170], "x...", {"asked": "x...", "candidates": "x..."}, dict.fromkeys(["sherlock_map@100", "mrr"], 1)),
    ],
)
def test_one_image_by_hand(degrees: list[float], truth: str, options: dict[str, str], expected: dict[str, float]):
    masks = {name: bools(row)[0] for name, row in options.items()}
    values = score_facts(images_at(*degrees), bools(truth), *subjects(COMPASS), **masks).values
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_what_asks_and_what_is_searched():
    images, truth = images_at(10, 20, 80), bools("xx..", "..x.", "x...")
    everything = score_facts(images, truth, *subjects(COMPASS))
    scores = score_facts(images, truth, *subjects(COMPASS), asked=bools(".x.x")[0])
    assert scores.per_fact["map"].tolist() == pytest.approx([math.nan, 1 / 3, math.nan, math.nan], nan_ok=True)
    assert (scores.num_facts, scores.num_facts_without_image) == (2, 1)
    assert (scores.num_images, scores.num_images_without_fact) == (3, 2)
    assert scores.per_image["hit@1"].isnan().tolist() == [False, True, True]
    scores = score_facts(images, truth, *subjects(COMPASS), of_images=torch.tensor([False, True, False]))
    assert scores.values["map"] == everything.values["map"]  # the gallery holds all images, whichever ask
    assert scores.per_image["mrr"].tolist() == pytest.approx([math.nan, 1 / 4, math.nan], nan_ok=True)
    assert (scores.num_images, scores.num_images_without_fact) == (1, 0)


def test_values_by_order():
    # Parts along one axis. The image's parts are 1, -1, 1: <S> scores 1, <S, P> 0, <S, P, O> 1/3; <-S> -1.
    vectors = torch.tensor(
        [[[1.0], [0.0], [0.0]], [[1.0], [1.0], [0.0]], [[1.0], [1.0], [1.0]], [[-1.0], [0.0], [0.0]]]
    )
    mask = bools("x..", "xx.", "xxx", "x..")
    # Ranking: 0, 2, 1, 3. True are 1 (second order, rank 3) and 3 (first, rank 4): top@1 allows rank 2, top@5 rank 6.
    scores = score_facts(torch.tensor([[1.0, -1.0, 1.0]]), bools(".x.x"), vectors, mask)
    assert [scores.values[f"top@1{order}"] for order in ("", "_1", "_2")] == [0, 0, 0]
    assert math.isnan(scores.values["top@1_3"])
    # True are 0 (rank 1), 1 (rank 3) and 2 (rank 2): all within 3.
    scores = score_facts(torch.tensor([[1.0, -1.0, 1.0]]), bools("xxx."), vectors, mask)
    assert [scores.values[f"top@1_{order}"] for order in (1, 2, 3)] == [1, 1, 1]
    # True are 1 (rank 3) and 2 (rank 2): the tolerance of two facts reaches rank 2, so that only 2 is found.
    scores = score_facts(torch.tensor([[1.0, -1.0, 1.0]]), bools(".xx."), vectors, mask)
    assert [scores.values[f"top@1{order}"] for order in ("", "_2", "_3")] == [1 / 2, 0, 1]


def test_ties_are_ordered_by_position():
    # All embeddings are the same: the ranking is 0, 1, 2, 3, of images and (all facts equal) of facts.
    truth = bools("....", "..x.", "....", "..x.")
    scores = score_facts(images_at(30, 30, 30, 30), truth, *subjects(COMPASS[:1].expand(4, 2)))
    assert scores.per_fact["map"][2] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert scores.per_image["mrr"][1] == 1 / 3
    # and in an embedding that collapsed to zeros
    scores = score_facts(torch.zeros(3, 6), bools(".x..", "....", "...."), *subjects(COMPASS))
    assert (scores.values["map"], scores.values["mrr"]) == (1, 1 / 2)


@pytest.mark.parametrize("num_images", [0, 2])
def test_nothing_to_ask_is_nan(num_images):
    truth = torch.zeros(num_images, 4, dtype=torch.bool)
    scores = score_facts(torch.ones(num_images, 6), truth, *subjects(COMPASS))
    assert all(math.isnan(value) for value in scores.values.values())
    assert (scores.num_facts_without_image, scores.num_images_without_fact) == (4, num_images)


def test_a_wildcard_query_finds_images_in_the_same_gallery():
    # <*, P, *> compares predicates only; the subjects and objects of these images would say the opposite.
    images = torch.tensor([[1.0, 0, 0, 1, 1, 0], [-1.0, 0, 1, 0, -1, 0]])
    vectors = torch.tensor([[[1.0, 0], [1, 0], [1, 0]]])
    values = score_facts(images, bools(".", "x"), vectors, bools(".x.")).values
    assert values["map"] == 1
    assert score_facts(images, bools(".", "x"), vectors, bools("xxx")).values["map"] == 1 / 2
    _, found = ExactIndex.over(image_vectors(images), normalize=False).search(fact_vectors(vectors, bools(".x.")), 2)
    assert found.tolist() == [[1, 0]]


# --- the literal twin ------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 15), st.integers(1, 14), st.integers(1, 2))
def test_as_the_literal_twin(seed, n, f, dim):
    """Small integers as embeddings: many ties, parts of zeros."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-1, 2, (n, 3 * dim), generator=generator).float()
    vectors = functional.normalize(torch.randint(-1, 2, (f, 3, dim), generator=generator).float(), dim=2)
    mask = torch.rand(f, 3, generator=generator) < 0.5
    mask[~mask.any(dim=1), 0] = True
    truth = torch.rand(n, f, generator=generator) < 0.4
    asked = torch.rand(f, generator=generator) < 0.7
    candidates = asked | (torch.rand(f, generator=generator) < 0.5)
    of_images = torch.rand(n, generator=generator) < 0.7
    found = score_facts(images, truth, vectors, mask, asked=asked, candidates=candidates, of_images=of_images)
    x, y = image_vectors(images).tolist(), fact_vectors(vectors, mask).tolist()
    scores = [[math.fsum(a * b for a, b in zip(image, fact, strict=True)) for fact in y] for image in x]
    expected = oracles.score_facts(
        scores,
        truth.tolist(),
        mask.sum(dim=1).tolist(),
        asked.tolist(),
        candidates.tolist(),
        of_images.tolist(),
    )
    assert expected == pytest.approx({name: value for name, value in found.values.items() if not math.isnan(value)})


def test_blocks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 6, generator=generator)
    truth = torch.rand(50, 4, generator=generator) < 0.3
    whole = score_facts(images, truth, *subjects(COMPASS))
    monkeypatch.setattr(scoring, "queries_per_block", lambda depth: 3)
    blocks = score_facts(images, truth, *subjects(COMPASS))
    assert blocks.values == pytest.approx(whole.values, nan_ok=True)
    for name, value in whole.per_image.items():
        assert torch.equal(blocks.per_image[name].nan_to_num(-1), value.nan_to_num(-1))


def test_chance_is_what_random_embeddings_reach():
    # 40 facts of 12 of 60 images each: the mean average precision of random rankings lies within a few hundredths.
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(60, 40, dtype=torch.bool)
    for fact in range(40):
        truth[torch.randperm(60, generator=generator)[:12], fact] = True
    vectors = subjects(functional.normalize(torch.randn(40, 32, generator=generator), dim=1))
    found = score_facts(torch.randn(60, 96, generator=generator), truth, *vectors).values["map"]
    assert found == pytest.approx(float(chance_map(truth).mean()), abs=0.03)


# --- what is refused -------------------------------------------------------------------------------------------------

IMAGES, TRUTH, (VECTORS, MASK) = images_at(10, 20), bools("x...", ".x.."), subjects(COMPASS)


def with_bad(values: Tensor, row: int, bad: float) -> Tensor:
    """A last value of the row that is not finite."""
    values = values.clone()
    values[row].view(-1)[-1 if values.ndim == 2 else 0] = bad
    return values


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": IMAGES[:, :5]}, r"images must have shape \(n, 6\)"),
        ({"images": IMAGES[0]}, r"images must have shape \(n, 6\)"),
        ({"images": with_bad(IMAGES, 1, math.nan)}, "images must be finite in float32; row 1"),
        ({"images": with_bad(IMAGES, 1, math.inf)}, "images must be finite in float32; row 1"),
        ({"vectors": with_bad(VECTORS, 3, math.nan)}, "facts must be finite in float32; row 3"),
        ({"truth": TRUTH[:1]}, r"truth must be bool of shape \(2, 4\), got torch.bool of \(1, 4\)"),
        ({"truth": TRUTH.long()}, "truth must be bool"),
        ({"vectors": VECTORS[:, :2]}, r"vectors must have shape \(f, 3, dim\)"),
        ({"mask": MASK[:3]}, r"mask must be bool of shape \(4, 3\)"),
        ({"mask": MASK & False}, "fact 0 has none"),
        ({"asked": bools("xxx")[0]}, r"asked must be bool of shape \(4,\)"),
        ({"candidates": bools("xxx")[0]}, r"candidates must be bool of shape \(4,\)"),
        ({"candidates": bools("xx.x")[0]}, "every fact that is asked for must be a candidate, fact 2 is not"),
        ({"of_images": bools("xxx")[0]}, r"of_images must be bool of shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        score_facts(**{"images": IMAGES, "truth": TRUTH, "vectors": VECTORS, "mask": MASK, **given})


def test_images_that_have_no_three_parts():
    with pytest.raises(ValueError, match=r"images must have shape \(n, 3 dim\), got \(2, 4\)"):
        image_vectors(torch.zeros(2, 4))
