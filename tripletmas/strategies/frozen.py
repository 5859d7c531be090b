"""Frozen: learn the first task only, forget nothing: the baseline that is easily overlooked."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.base import Strategy


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
        self._objective: Objective | None = None
        self._first: Stream = ()

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        self._objective = objective
        self._first = stream[:1]

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset | None:
        return None if earlier else task.train

    def after_task(self, model: nn.Module, task: Task) -> None:
        if self._objective and len(self._objective.heads) and task not in self._first:
            self._objective.fit_heads(self._objective.embed(model, task.train.plain()), self.head_iterations)
