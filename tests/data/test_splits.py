"""Which samples of a class are learned from and asked for: shares, caps, validation."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tripletmas.data.dataset import LabelledDataset, Source
from tripletmas.data.splits import split_samples


def make(counts: list[int], *, groups: list[str] | None = None) -> LabelledDataset:
    """Class i has counts[i] samples; a sample is its own position."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return LabelledDataset(
        torch.arange(float(len(labels))).unsqueeze(1), labels, [f"c{i}" for i in range(len(counts))], groups=groups
    )


def parts_of(source: Source, **options) -> tuple[set[int], set[int]]:
    """The positions that are learned from, and those that are asked for."""
    split = split_samples(source, **options)
    assert split.test is not None
    return set(split.train.indices.tolist()), set(split.test.indices.tolist())


def literal_hold_out(counts: list[int], share: float, seed: int) -> set[int]:
    """Twin: of each class, the first of a permutation that the name of the class seeds."""
    held_out, start = set(), 0
    for label, count in enumerate(counts):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} c{label}".encode()))
        order = torch.randperm(count, generator=generator).tolist()
        held_out |= {start + i for i in order[: min(max(round(share * count), 2), count - 2)]}
        start += count
    return held_out


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(4, 12), min_size=1, max_size=4), share=st.floats(0.1, 0.9), seed=st.integers(0, 3))
def test_what_is_held_out_never_changes(counts, share, seed):
    train, test = parts_of(Source(make(counts)), test_share=share, split_seed=seed)
    assert test == literal_hold_out(counts, share, seed)
    assert train == set(range(sum(counts))) - test


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(6, 20), min_size=1, max_size=4),
    per_class=st.none() | st.integers(4, 12),
    tested=st.booleans(),
    seed=st.integers(0, 3),
)
def test_validation_sees_no_test_sample_and_learns_from_no_other(counts, per_class, tested, seed):
    # test samples are other positions of the same samples, as those of a reader may be
    whole = make([2 * count for count in counts])
    even = torch.arange(0, len(whole), 2)
    source = Source(whole.subset(even), whole.subset(even + 1) if tested else None)
    options = {"split_seed": seed, "per_class": per_class}
    train, test = parts_of(source, **options)
    learned, asked = parts_of(source, validation=True, **options)
    all_test = parts_of(source, split_seed=seed)[1]  # with those that per_class leaves out
    assert test <= all_test
    assert not asked & all_test
    assert not learned & all_test
    assert learned | asked == train
    assert not learned & asked
    labels = whole.labels
    for label, count in enumerate(counts):
        here = {int(i) for i in (labels == label).nonzero()}
        left = count if tested else count - min(max(round(0.3 * count), 2), count - 2)
        left = left if per_class is None else min(left, per_class)
        assert len(learned & here) + len(asked & here) == left
        assert len(asked & here) == min(max(round(0.3 * left), 2), left - 2)


def test_a_cap_counts_for_each_class_and_each_part():
    source = Source(make([20, 3]), make([9, 2]))
    train, test = parts_of(source, per_class=5)
    assert (len(train), len(test)) == (5 + 3, 5 + 2)
    more, _ = parts_of(source, per_class=6)
    assert train < more  # a larger cap adds samples and swaps none
    assert parts_of(source, per_class=5)[0] == train != parts_of(source, per_class=5, split_seed=1)[0]
    # what is held out is drawn before the cap: 6 of 20, of which 5 are kept
    train, test = parts_of(Source(make([20])), per_class=5)
    everything, queries = parts_of(Source(make([20])))
    assert (len(train), len(test), len(queries)) == (5, 5, 6)
    assert train < everything
    assert test < queries


def test_queries_are_held_out_of_the_groups_that_have_none():
    whole = make([10, 10, 10, 10], groups=["x", "x", "y", "y"])
    y_test = whole.subset([20, 21, 30, 31])
    train = whole.subset([i for i in range(40) if i not in (20, 21, 30, 31)])
    learned, asked = parts_of(Source(train, y_test, hold_out=("x",)))
    x_queries = literal_hold_out([10, 10], 0.3, 0)  # the classes of x have the names and sizes of c0 and c1
    assert asked == {20, 21, 30, 31} | x_queries
    assert learned == set(range(40)) - asked


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (Source(make([9])), {"per_class": 1}, "per_class must be >= 2 to form a positive pair, got 1"),
        (
            Source(make([9, 5])),
            {"validation": True},
            r"in class 'c1' \(3\): a class needs 4 besides its test samples, of which 2 are learned and 2 held out for "
            "validation",
        ),
        (
            Source(make([9, 9]), make([2, 2])),
            {"validation": True, "per_class": 3},
            r"'c0' \(3\), 'c1' \(3\): a class needs 4 besides its test samples \(per_class=3\)",
        ),
        (
            Source(make([9, 3], groups=["x", "y"]), make([2, 0]), hold_out=("y",)),
            {},
            r"'c1' \(3\): a class needs 4, of which 2 are learned and 2 held out as queries",
        ),
        (
            Source(make([1, 9], groups=["x", "y"]), make([2, 0]), hold_out=("y",)),
            {},
            r"'c0' \(1\): a class needs 2 to form a positive pair",
        ),
    ],
)
def test_a_class_that_is_too_small_is_named(source, options, message):
    with pytest.raises(ValueError, match=message):
        split_samples(source, **options)
