"""Whether a difference between two methods is more than the noise between seeds.

A paired t-test over the seeds that both have: it takes the differences, seed by seed, to be independent draws of a
normal distribution, whose spread they themselves tell. Seeds move weights and batches; the data and their split stay,
so nothing is said of other data. With the three to five seeds that runs have, a bootstrap is no way out: of three
differences it draws ten samples, and its intervals are far too narrow. Where several methods are compared with one, the
p-values are Holm's, for all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit

LEVEL = 0.05  # a difference whose p lies below it is more than noise
_ROUNDING = 1e-9  # differences that differ by no more are equal


@dataclass(frozen=True)
class PairedTest:
    """What the seeds say of a mean difference; nan where fewer than two seeds are common.

    Attributes:
        low, high: the interval that covers the mean difference in 95 of 100 such comparisons.
        effect: the mean difference in standard deviations of the differences (Cohen's d_z), without a correction for
            few seeds, of which it is too large; infinite where all differences are one number.
        p: two-sided; 0 where all differences are one number other than 0, 1 where all are 0.
        seeds: how many are common.
    """

    low: float
    high: float
    effect: float
    p: float
    seeds: int


def paired_test(ours: Mapping[int, float], theirs: Mapping[int, float]) -> PairedTest:
    """Student's paired t-test of ours minus theirs, over the seeds that both have and neither as nan.

    Args:
        ours, theirs: seed -> number.

    Source: Student, The probable error of a mean, Biometrika 1908; d_z: Cohen, Statistical Power Analysis, 1988, 2.3.5.

    >>> round(paired_test({0: 0.75, 1: 0.5, 2: 0.5}, {0: 0.25, 1: 0.25, 2: 0.25}).p, 3)  # t = 4 of 2 degrees
    0.057
    """
    common = [seed for seed in ours if seed in theirs and not math.isnan(ours[seed] - theirs[seed])]
    differences = [ours[seed] - theirs[seed] for seed in common]
    size = len(differences)
    if size < 2:
        return PairedTest(math.nan, math.nan, math.nan, math.nan, size)
    mean, deviation = fmean(differences), stdev(differences)
    if deviation < _ROUNDING:
        equal = abs(mean) < _ROUNDING
        return PairedTest(mean, mean, 0.0 if equal else math.copysign(math.inf, mean), 1.0 if equal else 0.0, size)
    error = deviation / math.sqrt(size)
    reach = error * float(stdtrit(size - 1, 0.975))
    p = 2 * float(stdtr(size - 1, -abs(mean) / error))
    return PairedTest(mean - reach, mean + reach, mean / deviation, p, size)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, made such that all of them together err in no more than 5 of 100 cases; nan stays.

    The smallest is taken times their number, the next times one less, and so on; none is below one before it.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, p in enumerate(values) if not math.isnan(p)), key=lambda i: values[i])
    adjusted, least = list(values), 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, values[i] * (len(order) - place)))
        adjusted[i] = least
    return adjusted


def is_noise(p: float) -> bool:
    """Whether a difference is not told apart from none, by a test that there was."""
    return not math.isnan(p) and p >= LEVEL


def error_of_share(shares: Sequence[float], counts: Sequence[int]) -> float:
    """The standard error of a mean of shares, each of so many queries, if these are a random sample of such queries.

    sqrt(sum_i s_i (1 - s_i) / n_i) / T; nan where a share is nan or has no queries. What another seed would change is
    no part of it.

    >>> error_of_share([0.5, 0.5], [100, 100])
    0.035355339059327376
    """
    if (
        not shares
        or len(shares) != len(counts)
        or any(not n or math.isnan(s) for s, n in zip(shares, counts, strict=True))
    ):
        return math.nan
    return math.sqrt(sum(s * (1 - s) / n for s, n in zip(shares, counts, strict=True))) / len(shares)
