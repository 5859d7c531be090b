"""What callbacks have in common: each sample once, and one sentence where a package is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_in_processes
from pytorch_metric_learning.samplers import MPerClassSampler
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import tripletmas.integrations
from tripletmas.integrations.guest import once_each

NUMBERS = TensorDataset(torch.arange(10))


def numbers(loader: Any) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def test_shuffled_samples_come_in_the_order_of_the_data_set():
    state = torch.random.get_rng_state()
    found = once_each(DataLoader(NUMBERS, batch_size=4, shuffle=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert numbers(found) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_only_samples_that_are_drawn():
    subset = torch.utils.data.SubsetRandomSampler([7, 3, 5])
    assert numbers(once_each(DataLoader(NUMBERS, batch_size=2, sampler=subset))) == [[3, 5], [7]]
    assert numbers(once_each(DataLoader(NUMBERS, batch_size=4), 2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_samples_that_are_drawn_again_and_again_come_once():
    sampler = MPerClassSampler([0, 1] * 5, m=4, batch_size=8, length_before_new_iter=80)
    found = numbers(once_each(DataLoader(NUMBERS, batch_size=8, sampler=sampler)))
    assert [number for batch in found for number in batch] == list(range(10))


def test_batches_of_a_batch_sampler_of_ones_own_stay_together():
    class Grouped(BatchSampler):
        def __init__(self) -> None:
            pass

        def __iter__(self) -> Any:
            yield from ([5, 1], [0, 5, 3], [1, 5], [9])

    assert numbers(once_each(DataLoader(NUMBERS, batch_sampler=Grouped()))) == [[5, 1], [0, 3], [9]]


def test_a_data_set_that_gives_batches():
    pairs = TensorDataset(torch.arange(10).view(5, 2))
    assert numbers(once_each(DataLoader(pairs, batch_size=None))) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_a_stream_as_far_as_is_said():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            yield from (torch.tensor([number]) for number in range(1000))

    found = list(once_each(DataLoader(Stream(), batch_size=2), num_batches_of_stream=2))
    assert [batch.tolist() for batch in found] == [[[0], [1]], [[2], [3]]]


def shares(kind: str) -> list[list[int]]:
    """Of this process, for each of three loaders: torch's sampler, accelerate's, a batch sampler of one's own."""
    if kind == "torch":
        loader = DataLoader(NUMBERS, batch_size=2, sampler=DistributedSampler(NUMBERS, shuffle=True))
    else:
        from accelerate.data_loader import BatchSamplerShard

        class Own(BatchSampler):
            pass

        own = (Own if kind == "own" else BatchSampler)(range(10), 3, False)
        rank = torch.distributed.get_rank()
        loader = DataLoader(NUMBERS, batch_sampler=BatchSamplerShard(own, 3, rank))
    return numbers(once_each(loader))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "accelerate", "own"])
def test_three_processes_have_each_sample_once(kind):
    """Ten samples for three: two are repeated, by accelerate a whole batch."""
    found = run_in_processes(shares, 3, kind)
    assert sorted(number for share in found for batch in share for number in batch) == list(range(10))


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_package_is_one_sentence(name, monkeypatch):
    for package in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    path = Path(tripletmas.integrations.__path__[0], f"{name}.py")
    specification = importlib.util.spec_from_file_location("without", path)
    assert specification
    assert specification.loader
    with pytest.raises(ImportError, match=rf'pip install "tripletmas\[{name}\]"'):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
