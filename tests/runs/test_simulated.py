"""What searches find where vectors have moved: each number against loops over its definition, or counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import oracles
import pytest
import torch
from drawn_parts import angles, drawn_parts, literal

from tripletmas.runs.simulated import (
    Part,
    again_recalls,
    before_update,
    mean_cosine,
    mean_of,
    moved_like,
    on_the_way,
    recalls,
    simulated,
)


def test_the_way_of_a_vector():
    """From 0 to 90 degrees: nothing, half of the chord, all of it, and the chord again as far."""
    start, end = angles(0.0), angles(90.0)
    for scale, degrees in ((0.0, 0.0), (0.5, 45.0), (1.0, 90.0), (2.0, math.degrees(math.atan2(2.0, -1.0)))):
        torch.testing.assert_close(on_the_way(start, end, scale), angles(degrees), atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("seed", range(5))
def test_recall_against_loops(seed):
    parts = drawn_parts(seed)
    queries, galleries = [part.now for part in parts], [part.vectors for part in parts]
    assert recalls(parts, queries, galleries) == pytest.approx(literal(parts, queries, galleries))


def test_what_has_nothing_to_find_does_not_count():
    """Of label 7 there is one vector; the other two find each other, and the second part has no other query."""
    one = Part(angles(0.0, 5.0, 90.0), torch.tensor([1, 1, 7]), None, torch.arange(3), angles(0.0, 5.0, 90.0), angles())
    other = Part(angles(200.0), torch.tensor([8]), None, torch.arange(1), angles(200.0), angles())
    found = recalls([one, other], [one.now, other.now], [one.vectors, other.vectors])
    assert found[0] == 1
    assert math.isnan(found[1])
    assert mean_of([one, other], found) == 1
    assert math.isnan(mean_of([other], found[1:]))


def test_parts_count_by_their_weight():
    """0.9 counts three times, 0.1 once; what is nan does not."""
    of = (angles(0.0), torch.tensor([0]), None, torch.arange(1), angles(0.0), angles(0.0))
    parts = [Part(*of, weight=3.0), Part(*of), Part(*of, weight=5.0)]
    assert mean_of(parts, [0.9, 0.1, math.nan]) == pytest.approx((3 * 0.9 + 0.1) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_what_galleries_are_searched(seed):
    """Each by loops: queries where images are, in what is stored, in what was moved, in what is embedded again."""
    parts = drawn_parts(seed)
    for scale in (1.0, 0.5):
        asked = [on_the_way(part.vectors[part.rows], part.now, scale) for part in parts]
        galleries = {
            "stale": [part.vectors for part in parts],
            "compensated": [part.compensated for part in parts if part.compensated is not None],
            "fresh": [moved_like(part.vectors, part.rows, ends) for part, ends in zip(parts, asked, strict=True)],
        }
        found = simulated(parts, scale)
        assert set(found) == set(galleries)
        for name, gallery in galleries.items():
            assert found[name] == pytest.approx(literal(parts, asked, gallery))
    assert set(simulated([replace(part, compensated=None) for part in parts])) == {"stale", "fresh"}


def test_how_parts_were_before_the_update():
    """The part of the new task was not there; that before it was current; queries were where the old model had them."""
    parts = drawn_parts()
    found = before_update(parts)
    assert [part.is_current for part in found] == [False, True]
    for part, now in zip(found, parts, strict=False):
        assert part.now is now.before
        assert part.compensated is now.compensated_before
        assert part.vectors is now.vectors


def test_of_large_classes_only_what_is_known_is_searched(monkeypatch):
    """With two queries a class enough: of the parts' six rows and four, four evenly spaced of each are all there is."""
    monkeypatch.setattr("tripletmas.runs.simulated._ENOUGH", 1)
    parts = drawn_parts()
    parts[1] = replace(parts[1], rows=parts[1].rows[:4], now=parts[1].now[:4])
    ends = [part.now for part in parts]
    kept = [torch.tensor([0, 2, 3, 5]), torch.arange(4), torch.tensor([0, 2, 3, 5])]
    found = [
        (vectors[rows].tolist(), part.labels[part.rows[rows]].tolist(), [0, 1, 2, 3])
        for vectors, rows, part in zip(ends, kept, parts, strict=True)
    ]
    expected = oracles.left_out_recalls(found, [vectors for vectors, _, _ in found])
    assert again_recalls(parts, ends) == pytest.approx(expected)
