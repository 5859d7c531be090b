"""Frozen: learn the first task only, or none, and forget nothing: the baselines that are easily overlooked."""

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
        tasks: how many are learned before the model stands still; 0 for none, as `pretrained`.
        head_iterations: recognition only: of the fit, at most.

    Source: E-Fix in Yu et al., Semantic Drift Compensation, CVPR 2020, where it beats several continual methods.
    """

    def __init__(self, *, tasks: int = 1, head_iterations: int = 200):
        for name, value, least in (("tasks", tasks, 0), ("head_iterations", head_iterations, 1)):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        self.tasks, self.head_iterations = tasks, head_iterations
        self.trains = tasks > 0
        self._objective: Objective | None = None
        self._learned: Stream = ()

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        self._objective = objective
        self._learned = stream[: self.tasks]

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset | None:
        return task.train if len(earlier) < self.tasks else None

    def after_task(self, model: nn.Module, task: Task) -> None:
        if self._objective and len(self._objective.heads) and task not in self._learned:
            self._objective.fit_heads(self._objective.embed(model, task.train.plain()), self.head_iterations)


def pretrained(*, head_iterations: int = 200) -> Frozen:
    """Never train: every task is embedded by the model as it came. The row that a pretrained model has to beat.

    In recognition the head of each task is fitted to these embeddings, by L-BFGS. Stores nothing.

    Args:
        head_iterations: recognition only: of the fit, at most.
    """
    return Frozen(tasks=0, head_iterations=head_iterations)
