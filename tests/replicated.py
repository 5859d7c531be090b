"""A small model, and data of which each of several processes has its share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tripletmas.basics import distributed


class Net(nn.Module):
    """Convolution, batch norm, embedding of a constant, and a free parameter."""

    def __init__(self):
        super().__init__()
        self.convolve, self.norm = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.head, self.scale = nn.Linear(3 * 4, 4), nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.convolve(x)).relu().flatten(1)) * self.scale


def make_net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    net = Net()
    net.norm.running_mean.uniform_()
    return net.to(dtype)


def make_data(count: int, dtype: torch.dtype = torch.float64) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, 4, 4, generator=generator).to(dtype)
    return TensorDataset(images, torch.randint(4, (count,), generator=generator))


def shared(data: TensorDataset, batch_size: int = 3) -> DataLoader:
    """Of this process: `DistributedSampler` repeats samples so that all have equally many."""
    n = distributed.world_size()
    sampler = DistributedSampler(data, n, distributed.rank(), shuffle=False)
    return DataLoader(data, batch_size, sampler=sampler)


def identical(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[key], other[key]) for key in one)
    return torch.equal(one, other)
