"""Frozen: learn the first task only, forget nothing: the baseline that is easily overlooked."""

from __future__ import annotations

from collections.abc import Sequence

from tripletmas.data import LabelledDataset
from tripletmas.strategies.base import Strategy
from tripletmas.tasks import Task


class Frozen(Strategy):
    """Train on the first task; every later task is embedded by the model of the first.

    Source: E-Fix in Yu et al., Semantic Drift Compensation, CVPR 2020, where it beats several continual methods.
    """

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset | None:
        return None if earlier else task.train
