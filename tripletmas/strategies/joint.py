"""Joint: train on the data of all tasks so far. The upper bound, which needs all old data."""

from __future__ import annotations

from collections.abc import Sequence

from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.tasks import Task
from tripletmas.strategies.base import Strategy


class Joint(Strategy):
    """At each task, go on training with the data of this and of all earlier tasks.

    An epoch is a pass over all of them, so later tasks take more steps than they do under other strategies.
    """

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset:
        return concatenate([*(other.train for other in earlier), task.train])
