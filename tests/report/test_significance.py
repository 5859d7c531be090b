"""Tests over seeds, against literal twins."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripletmas.report.significance import error_of_share, holm, is_noise, paired_test

_SHARE = st.integers(0, 64).map(lambda i: i / 64)  # so that no difference is rounding
SCORES = st.lists(st.tuples(_SHARE, _SHARE), min_size=2, max_size=6)


@pytest.mark.parametrize("size", [2, 3, 5, 10])
def test_p_is_the_tail_of_student(size: int):
    draw = random.Random(size)
    pairs = [(draw.random(), draw.random()) for _ in range(size)]
    found = paired_test(dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs)))
    differences = [a - b for a, b in pairs]
    t = fmean(differences) / (stdev(differences) / math.sqrt(size))
    assert found.p == pytest.approx(oracles.student_tail(t, size - 1), abs=1e-6)
    assert found.effect == pytest.approx(t / math.sqrt(size))
    assert found.seeds == size


@given(SCORES)
def test_the_interval_leaves_zero_out_just_where_p_is_below_a_twentieth(pairs):
    """And its middle is the mean difference; the other way round everything is mirrored."""
    ours, theirs = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    found, back = paired_test(ours, theirs), paired_test(theirs, ours)
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05) or abs(found.p - 0.05) < 1e-9
    assert (found.low + found.high) / 2 == pytest.approx(fmean(a - b for a, b in pairs), abs=1e-12)
    assert (back.p, back.effect) == pytest.approx((found.p, -found.effect))
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_an_interval_by_hand():
    """Differences 0.1, 0.2, 0.3: mean 0.2, error 0.1 / sqrt(3); of 2 degrees 95 of 100 lie within 4.302653."""
    found = paired_test({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.5}, {0: 0.0, 1: 0.0, 2: 0.0, 3: math.nan, 4: 0.1})
    reach = 4.302653 * 0.1 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.2 - reach, 0.2 + reach), rel=1e-6)
    assert found.effect == pytest.approx(2.0)


def test_equal_differences_and_too_few():
    same, always = paired_test({0: 0.5, 1: 0.7}, {0: 0.5, 1: 0.7}), paired_test({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})
    assert (same.p, same.effect, always.p, always.effect) == (1.0, 0.0, 0.0, math.inf)
    one = paired_test({0: 0.5, 1: 0.1}, {0: 0.2})
    assert one.seeds == 1
    assert math.isnan(one.p)
    assert not is_noise(one.p)
    assert [is_noise(p) for p in (0.049, 0.05, 1.0)] == [False, True, True]


@given(st.lists(st.sampled_from([i / 64 for i in range(65)]), min_size=1, max_size=6))
def test_holm(values: list[float]):
    assert holm(values) == pytest.approx(oracles.holm(values))
    assert holm([math.nan, *values])[1:] == pytest.approx(holm(values))


def test_the_error_of_a_share_is_the_spread_of_drawn_queries():
    """Shares 0.9 of 50 queries and 0.5 of 200: means of drawn ones spread as told, to 5 of 100."""
    draw = random.Random(0)
    means = [
        fmean(sum(draw.random() < share for _ in range(count)) / count for share, count in ((0.9, 50), (0.5, 200)))
        for _ in range(2000)
    ]
    assert error_of_share([0.9, 0.5], [50, 200]) == pytest.approx(stdev(means), rel=0.05)
    for shares, counts in (([], []), ([math.nan], [5]), ([0.5], [0]), ([0.5], [5, 5])):
        assert math.isnan(error_of_share(shares, counts))
