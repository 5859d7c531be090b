"""Models that draw random numbers while they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropping(nn.Module):
    """Dropout of numbers, and of whole channels of some samples."""

    def __init__(self, dim: int):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.4), nn.ReLU(), nn.Linear(16, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.network(x)
        return x * torch.empty(len(x), 1).bernoulli_(0.8) if self.training else x


class Noisy(nn.Linear):
    """Draws what nobody expects."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + (0.1 * torch.randn(len(input), 1) if self.training else 0)
