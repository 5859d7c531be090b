"""Frozen: learn the first task only, forget nothing: the baseline that is easily overlooked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tripletmas.data import LabelledDataset
from tripletmas.losses import MetricLoss
from tripletmas.params import device_of
from tripletmas.recognition import Recognition
from tripletmas.retrieval import embed
from tripletmas.sampling import shuffled_batches
from tripletmas.strategies.base import Strategy
from tripletmas.tasks import Stream, Task

_RATE, _BATCH_SIZE = 0.01, 64


class Frozen(Strategy):
    """Train on the first task; every later task is embedded by the model of the first.

    In recognition the head of a later task is trained on these embeddings, by AdamW. Stores nothing.

    Args:
        head_epochs: recognition only: passes over the embeddings of a later task.

    Source: E-Fix in Yu et al., Semantic Drift Compensation, CVPR 2020, where it beats several continual methods.
    """

    def __init__(self, *, head_epochs: int = 50):
        if head_epochs < 1:
            raise ValueError(f"head_epochs must be >= 1, got {head_epochs}")
        self.head_epochs = head_epochs
        self._recognition: Recognition | None = None
        self._first: Stream = ()

    def prepare(self, model: nn.Module, loss: MetricLoss, stream: Stream) -> None:
        self._recognition = loss if isinstance(loss, Recognition) else None
        self._first = stream[:1]

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset | None:
        return None if earlier else task.train

    def after_task(self, model: nn.Module, task: Task) -> None:
        if self._recognition and task not in self._first:
            found = embed(model, task.train.plain())
            device = device_of(self._recognition)
            train_head(self._recognition, found.vectors.to(device), found.labels.to(device), self.head_epochs)


def train_head(recognition: Recognition, embeddings: Tensor, labels: Tensor, epochs: int) -> None:
    """Train the heads of these classes on embeddings (n, dim) that stay; batches are drawn by torch's seed."""
    optimizer = torch.optim.AdamW(recognition.parameters(), lr=_RATE, weight_decay=0.0)  # leaves other heads alone
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for _ in range(epochs):
        for batch in shuffled_batches(len(labels), batch_size=_BATCH_SIZE, generator=generator):
            optimizer.zero_grad()
            recognition(embeddings[batch], labels[batch]).backward()
            optimizer.step()
