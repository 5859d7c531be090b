"""What an update is expected to have done: each number against loops over its definition, or counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import oracles
import pytest
import torch
from torch import Tensor, nn

from tripletmas.index.base import unit
from tripletmas.runs import forecast
from tripletmas.runs.forecast import (
    Part,
    again_recall,
    allowed_scale,
    forecast_of,
    imagine,
    mean_cosine,
    mean_recall,
    moved_like,
    on_the_way,
    simulated,
)

RAW = {"stale": (0.0, 0.0), "compensated": (0.0, 0.0), "fresh": (0.0, 0.0)}


def angles(*degrees: float) -> Tensor:
    """Unit vectors of the plane."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def drawn_parts(seed: int = 0, count: int = 3) -> list[Part]:
    """Parts of 12 vectors of three classes, half of which have an image; the last is current."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for number in range(count):
        vectors = unit(torch.randn(12, 4, generator=random))
        rows = torch.tensor([0, 3, 4, 7, 9, 11])
        moved, before = (unit(vectors[rows] + 0.3 * torch.randn(6, 4, generator=random)) for _ in range(2))
        compensated = unit(vectors + 0.1 * torch.randn(12, 4, generator=random))
        labels = torch.arange(12) % 3 + (number if number < 2 else 0)
        parts.append(Part(vectors, labels, compensated, rows, moved, before))
    last = parts[-1]
    parts[-1] = replace(last, compensated=last.vectors, now=last.vectors[last.rows], is_current=True)
    return parts


def literal(parts: list[Part], queries: list[Tensor], galleries: list[Tensor]) -> float:
    found = [
        (gallery.tolist(), part.labels.tolist(), part.rows.tolist())
        for part, gallery in zip(parts, galleries, strict=True)
    ]
    return oracles.left_out_recall(found, [query.tolist() for query in queries])


# --- imagined images


class Squared(nn.Module):
    """An embedding that is not linear, with a layer that behaves otherwise in training mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(9, 16), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(images.flatten(1))))


def test_images_are_imagined_where_vectors_lie():
    """Images of a model are targets that it can reach; what is made of other images lies there, within their range."""
    model = Squared()
    random = torch.Generator().manual_seed(1)
    hidden, images = torch.rand(70, 1, 3, 3, generator=random), torch.rand(20, 1, 3, 3, generator=random)
    targets = unit(model(hidden)).detach()
    found = imagine(model, targets, images, steps=200)
    with torch.no_grad():
        reached = (unit(model(found)) * targets).sum(dim=1)
        nearest = (targets @ unit(model(images)).T).max(dim=1).values
    assert found.shape == hidden.shape
    assert float(found.min()) >= float(images.min())
    assert float(found.max()) <= float(images.max())
    assert float(reached.mean()) > 0.99
    assert bool((reached >= nearest - 1e-3).all())
    assert not found.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


class Standardising(Squared):
    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5).mul_(2) if self.in_place else images.sub(0.5).mul(2))


def test_a_model_may_change_images_in_place():
    random = torch.Generator().manual_seed(1)
    images = torch.rand(20, 1, 3, 3, generator=random)
    targets, kept = unit(torch.randn(7, 4, generator=random)), images.clone()
    found = imagine(Standardising(in_place=True), targets, images, steps=5)
    assert torch.equal(images, kept)
    assert torch.equal(found, imagine(Standardising(in_place=False), targets, images, steps=5))


def test_an_image_starts_as_the_nearest():
    """No step is made: of three images, each target gets the one that lies nearest."""
    model = nn.Flatten()
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]])
    found = imagine(model, angles(10.0, 50.0, 80.0), images, steps=0)
    assert torch.equal(found, images[[0, 2, 1]])


# --- how far vectors move


def test_the_way_of_a_vector():
    """From 0 to 90 degrees: nothing, half of the chord, all of it, and the chord again as far."""
    start, end = angles(0.0), angles(90.0)
    for scale, degrees in ((0.0, 0.0), (0.5, 45.0), (1.0, 90.0), (2.0, math.degrees(math.atan2(2.0, -1.0)))):
        torch.testing.assert_close(on_the_way(start, end, scale), angles(degrees), atol=1e-6, rtol=0)


def test_what_layers_say_bounds_how_far_vectors_move():
    """Both vectors moved by 60 degrees, 1 - cos = 0.5; shares of 0.0125 in all allow 10 times that, a quarter of 0.5:
    half as far. What allows more changes nothing."""
    part = Part(angles(0.0, 90.0), torch.tensor([0, 1]), None, torch.arange(2), angles(60.0, 150.0), angles(0.0, 90.0))
    assert allowed_scale([part], {"a": 0.0100, "b": 0.0025}) == pytest.approx(0.5, rel=1e-5)
    assert allowed_scale([part], {"a": 0.051}) == 1
    assert allowed_scale([part], {}) == 1


def test_mean_cosine_of_two():
    """Of 0, 60 and 90 degrees: cos 60, cos 90, cos 30."""
    expected = (0.5 + 0 + math.sqrt(0.75)) / 3
    assert mean_cosine(angles(0.0, 60.0, 90.0)) == pytest.approx(expected, rel=1e-6)
    assert math.isnan(mean_cosine(angles(0.0)))


def test_the_rest_moves_as_what_is_known():
    """A rotation by 30 degrees, known of four vectors, is that of all; what one did besides goes to its neighbours."""
    vectors = angles(0.0, 80.0, 160.0, 240.0, 300.0, 1.0, 81.0)
    rows = torch.arange(5)
    rotated = angles(30.0, 110.0, 190.0, 270.0, 330.0, 31.0, 111.0)
    torch.testing.assert_close(moved_like(vectors, rows, rotated[:5]), rotated, atol=1e-2, rtol=0)
    ends = angles(30.0, 110.0, 190.0, 270.0, 350.0)  # the fifth went 20 degrees further
    found = moved_like(vectors, rows, ends)
    assert torch.equal(found[:5], ends)
    near = moved_like(torch.cat([vectors, angles(299.0)]), rows, ends)[-1]
    assert float(near @ ends[4]) > math.cos(math.radians(2.0))


# --- what is found


@pytest.mark.parametrize("seed", range(5))
def test_recall_against_loops(seed):
    parts = drawn_parts(seed)
    queries, galleries = [part.now for part in parts], [part.vectors for part in parts]
    assert mean_recall(parts, queries, galleries) == pytest.approx(literal(parts, queries, galleries))


def test_what_has_nothing_to_find_does_not_count():
    """Of label 7 there is one vector; the other two find each other, and the second part has no other query."""
    one = Part(angles(0.0, 5.0, 90.0), torch.tensor([1, 1, 7]), None, torch.arange(3), angles(0.0, 5.0, 90.0), angles())
    other = Part(angles(200.0), torch.tensor([8]), None, torch.arange(1), angles(200.0), angles())
    assert mean_recall([one, other], [one.now, other.now], [one.vectors, other.vectors]) == 1
    assert math.isnan(mean_recall([other], [other.now], [other.vectors]))


def test_parts_count_by_their_weight():
    """Two vectors that find each other, weight 3; two that find each other and are of two classes, weight 1."""
    right = Part(angles(0.0, 1.0), torch.tensor([0, 0]), None, torch.arange(2), angles(0.0, 1.0), angles(), weight=3.0)
    wrong = Part(angles(90.0, 91.0), torch.tensor([1, 2]), None, torch.arange(2), angles(90.0, 91.0), angles())
    more = Part(angles(200.0, 270.0), torch.tensor([1, 2]), None, torch.arange(0), angles(), angles())
    parts = [right, wrong, more]
    found = mean_recall(parts, [part.vectors[part.rows] for part in parts], [part.vectors for part in parts])
    assert found == pytest.approx((3 * 1 + 1 * 0) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_what_galleries_are_searched(seed):
    """Each by loops: queries where images are, in what is stored, in what was moved, in what is embedded again."""
    parts = drawn_parts(seed)
    found = simulated(parts)
    now, before = [part.now for part in parts], [part.before for part in parts]
    stored = [part.vectors for part in parts]
    assert found["stale"].middle == pytest.approx(literal(parts, now, stored))
    ends = [
        literal(parts, [on_the_way(p.vectors[p.rows], p.now, scale) for p in parts], stored)
        for scale in (0.8, 1.0, 1.25)
    ]
    assert (found["stale"].low, found["stale"].high) == pytest.approx((min(ends), max(ends)))
    compensated = [part.compensated for part in parts if part.compensated is not None]
    assert found["compensated"] == pytest.approx((literal(parts, now, compensated),) * 3)
    again = [
        literal(parts, asked, [moved_like(p.vectors, p.rows, e) for p, e in zip(parts, asked, strict=True)])
        for asked in (now, before)
    ]
    assert found["fresh"].middle == pytest.approx(sum(again) / 2)
    without = simulated([replace(part, compensated=None) for part in parts])
    assert set(without) == {"stale", "fresh"}


def test_of_large_classes_only_what_is_known_is_searched(monkeypatch):
    """With two queries a class enough: of the parts' six rows and four, four evenly spaced of each are all there is."""
    monkeypatch.setattr(forecast, "_ENOUGH", 1)
    parts = drawn_parts()
    parts[1] = replace(parts[1], rows=parts[1].rows[:4], now=parts[1].now[:4])
    ends = [part.now for part in parts]
    kept = [torch.tensor([0, 2, 3, 5]), torch.arange(4), torch.tensor([0, 2, 3, 5])]
    found = [
        (vectors[rows].tolist(), part.labels[part.rows[rows]].tolist(), [0, 1, 2, 3])
        for vectors, rows, part in zip(ends, kept, parts, strict=True)
    ]
    expected = oracles.left_out_recall(found, [vectors for vectors, _, _ in found])
    assert again_recall(parts, ends) == pytest.approx(expected)


def test_an_update_that_changed_nothing():
    """Every interval holds what a search finds now, and all cosines are 1."""
    parts = [replace(part, now=part.vectors[part.rows], compensated=part.vectors) for part in drawn_parts()]
    parts = [replace(part, before=part.now) for part in parts]
    found = forecast_of(parts, calibration=RAW)
    expected = literal(parts, [part.now for part in parts], [part.vectors for part in parts])
    assert (found.cosine, found.nine_in_ten) == pytest.approx((1, 1))
    for name in ("stale", "compensated", "fresh"):
        assert found.recall[name] == pytest.approx((expected,) * 3)
    assert (found.num_vectors, found.num_imagined) == (24, 12)


def test_intervals_are_calibrated_and_end_at_0_and_1():
    parts = drawn_parts()
    raw = forecast_of(parts, calibration=RAW).recall["stale"]
    found = forecast_of(parts, calibration={**RAW, "stale": (0.05, 0.02), "fresh": (0.0, 2.0)}).recall
    assert found["stale"] == pytest.approx((raw.low + 0.03, raw.middle + 0.05, raw.high + 0.07))
    assert (found["fresh"].low, found["fresh"].high) == (0, 1)


def test_cosines_are_those_of_what_is_not_current():
    """By hand over the rows of two parts of three; a tenth of all twelve lies below, interpolated as torch does."""
    parts = drawn_parts()
    cosines = [
        [oracles.cosine(v, n) for v, n in zip(part.vectors[part.rows].tolist(), part.now.tolist(), strict=True)]
        for part in parts[:2]
    ]
    found = forecast_of(parts)
    assert found.cosine == pytest.approx((sum(cosines[0]) / 6 + sum(cosines[1]) / 6) / 2, rel=1e-5)
    ordered = sorted(cosines[0] + cosines[1])  # 12 values: the tenth at 1.1
    assert found.nine_in_ten == pytest.approx(ordered[1] + 0.1 * (ordered[2] - ordered[1]), rel=1e-4)
    told = found.sentences()[0]
    assert f"re-embedding: {found.cosine:.2f}, 90 % of them above {found.nine_in_ten:.2f}" in told
    assert found.to_json()["recall"]["stale"] == list(found.recall["stale"])
