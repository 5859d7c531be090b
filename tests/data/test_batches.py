"""P x K batches: what is in a batch, how often everything comes up, and that the seed decides."""

from __future__ import annotations

import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tripletmas.data.batches import class_balanced_batches, draw_batches, seed_everything, shuffled_batches


def batches_of(labels: Tensor, batch_size: int, samples_per_class: int, *, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return class_balanced_batches(
        labels, batch_size=batch_size, samples_per_class=samples_per_class, generator=generator
    )


def labels_of(sizes: list[int], *, seed: int = 0) -> Tensor:
    """Classes 10, 11, ... of these sizes, in random order."""
    labels = torch.repeat_interleave(torch.arange(10, 10 + len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=7), st.integers(2, 5), st.integers(2, 5), st.integers(0, 3))
def test_what_is_in_a_batch(sizes: list[int], num_classes: int, samples_per_class: int, rest: int):
    labels = labels_of(sizes)
    batch_size = num_classes * samples_per_class + min(rest, samples_per_class - 1)
    batches = batches_of(labels, batch_size, samples_per_class)
    # fewer classes than P: more of each; a class with fewer than K samples gives all it has
    wanted = samples_per_class if len(sizes) > num_classes else max(samples_per_class, batch_size // len(sizes))
    for batch in batches:
        assert len(set(batch)) == len(batch) <= batch_size  # no sample twice
        per_class = Counter(labels[batch].tolist())
        assert len(per_class) == min(num_classes, len(sizes))
        assert all(count == min(wanted, sizes[label - 10]) for label, count in per_class.items())
    size = min(num_classes, len(sizes)) * wanted
    assert len(batches) == -(-len(labels) // size)  # about one pass


def test_classes_come_up_equally_often_whatever_their_sizes():
    sizes = [4, 4, 40, 8, 16, 8]
    labels = labels_of(sizes)
    batches = batches_of(labels, 12, 4)  # 7 batches of 3 of the 6 classes: two batches hold all of them
    for start in (0, 2, 4):
        assert sorted(labels[list(chain(*batches[start : start + 2]))].unique().tolist()) == [*range(10, 16)]
    # the classes of the last batch come up once more
    counts = Counter(label for batch in batches for label in labels[batch].unique().tolist())
    assert len(batches) == 7
    assert sorted(counts.values()) == [3, 3, 3, 4, 4, 4]


def test_every_sample_comes_up_once_in_a_pass():
    labels = labels_of([8, 8, 8, 8])
    batches = batches_of(labels, 8, 4)
    assert sorted(chain(*batches)) == list(range(32))
    # and again in the next: a class of 4 in an epoch that a class of 12 makes long gives each sample equally often
    labels = labels_of([4, 12])
    counts = Counter(chain(*batches_of(labels, 4, 2)))  # 4 batches, each with 2 of both classes
    assert [counts[i] for i in range(16) if labels[i] == 10] == [2, 2, 2, 2]
    assert max(counts[i] for i in range(16) if labels[i] == 11) == 1


def test_fewer_classes_than_fit_give_more_samples_of_each():
    labels = labels_of([30, 30])
    for batch in batches_of(labels, 32, 4):
        assert Counter(labels[batch].tolist()) == {10: 16, 11: 16}
    one = batches_of(labels_of([9]), 8, 4)  # a single class has no triplets, but a task may start with one
    assert [len(batch) for batch in one] == [8, 8]


def test_a_class_with_fewer_than_k_samples_gives_all_it_has():
    labels = labels_of([2, 8, 8])
    for batch in batches_of(labels, 12, 4):
        assert Counter(labels[batch].tolist()) == {10: 2, 11: 4, 12: 4}


def test_the_generator_decides():
    labels = labels_of([7, 8, 9, 10, 11])
    assert batches_of(labels, 8, 2) == batches_of(labels, 8, 2)
    assert batches_of(labels, 8, 2) != batches_of(labels, 8, 2, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches_of(labels, 8, 2)
    assert torch.equal(torch.get_rng_state(), before)  # and nothing else is drawn from


@pytest.mark.parametrize(
    ("sizes", "batch_size", "samples_per_class", "message"),
    [
        ([4, 4], 8, 1, "samples_per_class must be >= 2 to form a positive pair, got 1"),
        ([4, 4], 7, 4, r"batch_size must be >= 2 \* samples_per_class .* got 7 for samples_per_class=4"),
        ([4, 1, 4, 1], 8, 2, "at least two samples to form a triplet; those with one: 11, 13"),
    ],
)
def test_what_a_caller_can_get_wrong(sizes: list[int], batch_size: int, samples_per_class: int, message: str):
    with pytest.raises(ValueError, match=message):
        batches_of(labels_of(sizes), batch_size, samples_per_class)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(2, 9), st.integers(0, 3))
def test_shuffled_batches_hold_every_sample_once(num_samples: int, batch_size: int, seed: int):
    batches = shuffled_batches(num_samples, batch_size=batch_size, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed)).tolist()
    assert list(chain(*batches)) == order
    full, rest = divmod(num_samples, batch_size)
    if rest == 1 and full:  # batch norm cannot take one sample
        assert [len(batch) for batch in batches] == [batch_size] * (full - 1) + [batch_size + 1]
    else:
        assert [len(batch) for batch in batches] == [batch_size] * full + [rest] * bool(rest)


def test_batches_are_drawn_by_the_name_of_the_sampler():
    labels, options = labels_of([7, 8, 9]), {"batch_size": 8, "samples_per_class": 2}

    def generator():
        return torch.Generator().manual_seed(3)

    balanced = draw_batches(labels, sampler="class_balanced", generator=generator(), **options)
    assert balanced == batches_of(labels, 8, 2, seed=3)
    shuffled = draw_batches(labels, sampler="shuffled", generator=generator(), **options)
    assert shuffled == shuffled_batches(24, batch_size=8, generator=generator())
    with pytest.raises(ValueError, match="sampler must be one of class_balanced, shuffled, got 'random'"):
        draw_batches(labels, sampler="random", generator=generator(), **options)
    with pytest.raises(ValueError, match="batch_size must be >= 2, got 1"):
        shuffled_batches(4, batch_size=1, generator=generator())


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_seed_everything_is_a_function_of_the_place_in_the_run():
    def at(*place: int) -> tuple[float, float, float]:
        seed_everything(*place)
        return drawn()

    assert at(0, 1, 2) == at(0, 1, 2)
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2)]
    assert len({at(*place) for place in places}) == len(places)
    draws = [at(3, task, epoch) for task in range(4) for epoch in range(4)]
    for of_one_generator in zip(*draws, strict=True):
        assert len(set(of_one_generator)) == 16
    assert seed_everything(3, 1) == torch.initial_seed()


def test_batches_of_samples_of_several_classes_draw_class_by_class():
    """Each batch draws 2 classes and 3 samples of each; who is drawn for both is there once."""
    truth = torch.zeros(12, 3, dtype=torch.bool)
    truth[:6, 0] = truth[3:9, 1] = truth[9, 2] = True  # class 2 has a single sample, 10 and 11 have no class
    batches = class_balanced_batches(
        truth, batch_size=6, samples_per_class=3, generator=torch.Generator().manual_seed(0)
    )
    assert len(batches) == 2
    for batch in batches:
        assert len(set(batch)) == len(batch)
        assert 3 <= len(batch) <= 6
        assert set(batch) <= set(range(10))
