"""Samples that samplers repeat, to give all processes equally many, count once."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler, _IndexBatchSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from tqdm import tqdm

from tripletmas.protection.batches import each_batch, each_placed_batch
from tripletmas.protection.importance.fisher import _Draws


def make_data(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count), torch.arange(count) * 10)


def dealt_by_torch(data, n, rank, size, **options):
    return DataLoader(data, size, sampler=DistributedSampler(data, n, rank, **options))


def dealt_by_lightning(data, n, rank, size):
    order = RandomSampler(data, generator=torch.Generator().manual_seed(3))
    return DataLoader(data, size, sampler=DistributedSamplerWrapper(order, num_replicas=n, rank=rank, shuffle=False))


def dealt_to_predict(data, n, rank, size):
    sampler = UnrepeatedDistributedSampler(data, n, rank, shuffle=False)
    return DataLoader(data, batch_sampler=_IndexBatchSamplerWrapper(BatchSampler(sampler, size, False)))


class InOrder(BatchSampler):
    """Sentence Transformers' default one."""


def dealt_by_accelerate(data, n, rank, size, split=False, even=True):
    together = size * n if split else size
    loader = DataLoader(data, batch_sampler=InOrder(SequentialSampler(data), together, False))
    return prepare_data_loader(
        loader,
        num_processes=n,
        process_index=rank,
        split_batches=split,
        even_batches=even,
        put_on_device=False,
        use_seedable_sampler=False,
        dispatch_batches=False,
    )


WAYS = {
    "torch": lambda *where: dealt_by_torch(*where, shuffle=False),
    "torch, with a bar": lambda *where: tqdm(dealt_by_torch(*where, shuffle=False), disable=True),
    "shuffled": lambda *where: dealt_by_torch(*where, shuffle=True, seed=5),
    "lightning": dealt_by_lightning,
    "to predict": dealt_to_predict,
    "accelerate": dealt_by_accelerate,
    "accelerate, split": lambda *where: dealt_by_accelerate(*where, split=True),
    "accelerate, uneven": lambda *where: dealt_by_accelerate(*where, even=False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("count", "n", "size"), [(10, 2, 4), (10, 3, 4), (13, 4, 2), (14, 3, 4), (3, 4, 2)])
def test_every_sample_is_there_once(way, count, n, size):
    if way == "to predict" and count < n:
        pytest.skip("that sampler wants a sample for each process")
    data = make_data(count)
    found, at = [], []
    for rank in range(n):
        for (inputs, labels), places in each_placed_batch(WAYS[way](data, n, rank, size)):
            assert torch.equal(labels, inputs * 10)
            assert len(places) == len(inputs)
            found += inputs.tolist()
            at += places
    assert sorted(found) == list(range(count))
    assert sorted(at) == list(range(count))
    if way not in ("shuffled", "lightning"):
        assert found == at


def test_what_is_dropped_at_the_end_is_no_reason_to_drop_more():
    # of 11 samples two ranks have 5 each, and the last batch of two is dropped where a loader drops it
    for drops, expected in ((False, [5, 5]), (True, [4, 4])):
        data = make_data(11)
        loaders = [
            DataLoader(data, 2, sampler=DistributedSampler(data, 2, r, shuffle=False, drop_last=True), drop_last=drops)
            for r in (0, 1)
        ]
        assert [sum(len(inputs) for inputs, _ in each_batch(each)) for each in loaders] == expected


def test_other_data_are_as_they_come():
    data = make_data(5)
    for batches in (DataLoader(data, 2), DataLoader(data, 2, shuffle=True), [data.tensors], DataLoader(data, None)):
        assert all(places is None for _, places in each_placed_batch(batches))
    assert [len(inputs) for inputs, _ in each_batch(DataLoader(data, 2))] == [2, 2, 1]


class InBlocks(DistributedSampler):
    """Rank r has the r-th part, not every n-th."""

    def __iter__(self):
        start = self.rank * self.num_samples
        return iter([each % len(self.dataset) for each in range(start, start + self.num_samples)])


def test_where_repeated_samples_cannot_be_told_apart_it_is_said():
    data = make_data(5)
    with pytest.warns(UserWarning, match="an InBlocks may repeat samples at its end"):
        list(each_batch(DataLoader(data, 2, sampler=InBlocks(data, 2, 1))))
    list(each_batch(DataLoader(make_data(6), 2, sampler=InBlocks(make_data(6), 2, 1))))  # it repeats none


def test_a_sample_has_its_own_draw_whoever_has_it():
    # one process draws one number after the other
    expected = torch.rand(30, generator=torch.Generator().manual_seed(4))
    draws = _Draws(4)
    assert torch.equal(torch.cat([draws.of(7, None), draws.of(23, None)]), expected)
    assert torch.equal(draws.of(5, range(1, 15, 3)), expected[1:15:3])
    assert torch.equal(draws.of(2, range(20, 30, 5)), expected[20:30:5])
