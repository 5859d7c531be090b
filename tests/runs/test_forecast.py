"""What an update is expected to have done: each number against loops over its definition, or counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import oracles
import pytest
import torch
from drawn_parts import angles, drawn_parts, literal

from tripletmas.runs.forecast import Measured, allowed_scale, by_itself, changed, forecast_of, measured_of
from tripletmas.runs.simulated import Part, moved_like, on_the_way, simulated

RAW = {"stale": (0.0, 0.0), "compensated": (0.0, 0.0), "fresh": (0.0, 0.0)}
SHARES = {"a": 1.0}  # which allow vectors to go as far as they went


# --- how far vectors move


def test_what_layers_say_bounds_how_far_vectors_move():
    """Both vectors moved by 60 degrees, 1 - cos = 0.5; shares of 0.0125 in all allow 10 times that, a quarter of 0.5:
    half as far. What allows more changes nothing."""
    part = Part(angles(0.0, 90.0), torch.tensor([0, 1]), None, torch.arange(2), angles(60.0, 150.0), angles(0.0, 90.0))
    assert allowed_scale([part], {"a": 0.0100, "b": 0.0025}) == pytest.approx(0.5, rel=1e-5)
    assert allowed_scale([part], {"a": 0.051}) == 1
    assert allowed_scale([part], {}) == 1


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


# --- what is expected by itself


@pytest.mark.parametrize("seed", range(3))
def test_what_is_expected_by_itself(seed):
    """By loops: where queries moved by 0.8 to 1.25 of their way; embedded again by the new model and the one before."""
    parts = drawn_parts(seed)
    found = by_itself(parts, calibration=RAW)
    stored = [part.vectors for part in parts]
    ends = [
        fmean(literal(parts, [on_the_way(p.vectors[p.rows], p.now, scale) for p in parts], stored))
        for scale in (0.8, 1.0, 1.25)
    ]
    assert found["stale"] == pytest.approx((min(ends), ends[1], max(ends)))
    now, before = [part.now for part in parts], [part.before for part in parts]
    compensated = [part.compensated for part in parts if part.compensated is not None]
    assert found["compensated"] == pytest.approx((fmean(literal(parts, now, compensated)),) * 3)
    again = [
        fmean(literal(parts, asked, [moved_like(p.vectors, p.rows, e) for p, e in zip(parts, asked, strict=True)]))
        for asked in (now, before)
    ]
    assert found["fresh"].middle == pytest.approx(fmean(again))
    assert list(by_itself([replace(part, compensated=None) for part in parts])) == ["stale", "fresh"]


def test_an_update_that_changed_nothing():
    """Every interval holds what a search finds now, and all cosines are 1."""
    parts = [replace(part, now=part.vectors[part.rows], compensated=part.vectors) for part in drawn_parts()]
    parts = [replace(part, before=part.now) for part in parts]
    expected = fmean(literal(parts, [part.now for part in parts], [part.vectors for part in parts]))
    told = by_itself(parts, calibration=RAW)
    assert all(told[name] == pytest.approx((expected,) * 3) for name in ("stale", "compensated", "fresh"))
    found = forecast_of(parts)
    assert (found.cosine, found.nine_in_ten) == pytest.approx((1, 1))
    assert (found.num_vectors, found.num_imagined) == (24, 12)


def test_intervals_are_calibrated_and_end_at_0_and_1():
    parts = drawn_parts()
    raw = by_itself(parts, calibration=RAW)["stale"]
    found = by_itself(parts, calibration={**RAW, "stale": (0.05, 0.02), "fresh": (0.0, 2.0)})
    assert found["stale"] == pytest.approx((raw.low + 0.03, raw.middle + 0.05, raw.high + 0.07))
    assert (found["fresh"].low, found["fresh"].high) == (0, 1)


# --- what is expected where something was measured before

NOW = {"stale": [0.5, 0.6, 0.9], "compensated": [0.6, 0.7, 0.9], "fresh": [0.8, 0.9, 0.95]}
WAS = [0.7, 0.9]
MEASURED = Measured({"stale": [0.6, 0.8], "fresh": [0.65, 0.8]}, {"stale": 0.7, "compensated": 0.72})


def test_the_change_is_added_to_what_was_measured():
    """0.6 - 0.2 = 0.4, 0.8 - 0.3 = 0.5, and 0.7 of the new task as it was measured; 0.1 to each side."""
    middle = fmean([0.4, 0.5, 0.7])
    assert changed("stale", NOW, WAS, MEASURED, margin=0.1) == pytest.approx((middle - 0.1, middle, middle + 0.1))


def test_embedded_again_the_new_task_finds_more_as_imagined_images_do():
    """0.65 + 0.1, 0.8 + 0.0, and 0.7 with what is stored and 0.05 more: imagined images 0.95 in place of 0.9."""
    found = changed("fresh", NOW, WAS, MEASURED, margin=0.0)
    assert found == pytest.approx((fmean([0.75, 0.8, 0.75]),) * 3)


@pytest.mark.parametrize(
    "measured",
    [
        Measured({}, {"stale": 0.7}),
        Measured({"stale": [0.6]}, {"stale": 0.7}),
        Measured({"stale": [0.6, 0.8]}, {}),
        Measured({"stale": [0.6, math.nan]}, {"stale": 0.7}),
    ],
)
def test_without_a_measurement_nothing_is_added(measured):
    assert changed("stale", NOW, WAS, measured) is None
    parts = drawn_parts()
    assert forecast_of(parts, shares=SHARES, measured=measured).recall == by_itself(parts)


def test_a_forecast_with_measurements():
    """Of what can be told by change it is, where layers are held; the rest by itself. The newest part was current."""
    parts = drawn_parts()
    before = [replace(part, now=part.before, compensated=part.compensated_before) for part in parts[:2]]
    now, was = simulated(parts), simulated(before)
    assert forecast_of(parts, measured=MEASURED).recall == by_itself(parts)
    found = forecast_of(parts, shares=SHARES, measured=MEASURED).recall
    for name in ("stale", "fresh"):
        assert found[name] == changed(name, now, was[name], MEASURED)
    assert found["compensated"] == by_itself(parts)["compensated"]


class Records:
    """Of two tasks; of the first nothing was compensated."""

    def __init__(self):
        self.second = {"seen": [0.8, 0.7], "seen_stale": [0.6, 0.5], "seen_compensated": [0.7, 0.55]}

    def records(self, kind: str) -> list[dict]:
        assert kind == "task"
        first = {"seen": {"recall@1": [0.9]}, "seen_stale": {"recall@1": [None]}}
        second = {name: {"recall@1": values} for name, values in self.second.items()}
        return [
            {"task": 0, "scores": first, "changed_responses": {"a": 0.1}},
            {"task": 1, "scores": second, "changed_responses": {"a": 0.2}},
        ]


def test_what_was_measured_is_read_from_the_records():
    """The re-embedding of the new task's update takes old images: it is not read."""
    found = measured_of(Records(), 1)
    assert found.before["fresh"] == [0.9]
    assert math.isnan(found.before["stale"][0])
    assert "compensated" not in found.before
    assert found.new == {"stale": 0.5, "compensated": 0.55}
    assert found.shares == {"a": 0.1}
    last = measured_of(Records(), 2)  # of which there is no record
    assert last.before == {"fresh": [0.8, 0.7], "stale": [0.6, 0.5], "compensated": [0.7, 0.55]}
    assert last.new == {}
