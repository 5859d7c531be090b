"""Frozen: learn the first task only, forget nothing: the baseline that is easily overlooked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import device_of
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import embed
from tripletmas.objectives.recognition.heads import Recognition
from tripletmas.objectives.retrieval.losses import MetricLoss
from tripletmas.strategies.base import Strategy

_DECAY = 1e-4  # without it, heads of classes that can be told apart grow without end


class Frozen(Strategy):
    """Train on the first task; every later task is embedded by the model of the first.

    In recognition the head of a later task is fitted to these embeddings, by L-BFGS. Stores nothing.

    Args:
        head_iterations: recognition only: of the fit, at most.

    Source: E-Fix in Yu et al., Semantic Drift Compensation, CVPR 2020, where it beats several continual methods.
    """

    def __init__(self, *, head_iterations: int = 200):
        if head_iterations < 1:
            raise ValueError(f"head_iterations must be >= 1, got {head_iterations}")
        self.head_iterations = head_iterations
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
            train_head(self._recognition, found.vectors.to(device), found.labels.to(device), self.head_iterations)


def train_head(recognition: Recognition, embeddings: Tensor, labels: Tensor, iterations: int) -> None:
    """Fit the heads of these classes to embeddings (n, dim) that stay: cross-entropy plus a little decay."""
    heads = [recognition.heads[number] for number in recognition.head_of[labels].unique().tolist()]
    weights = [parameter for head in heads for parameter in head.parameters()]
    optimizer = torch.optim.LBFGS(weights, max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        decay = sum((weight.square().sum() for weight in weights), start=torch.zeros((), device=labels.device))
        loss = recognition(embeddings, labels) + _DECAY * decay
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()
