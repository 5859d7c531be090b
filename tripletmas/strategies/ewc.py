"""Elastic weight consolidation: weights are held as firmly as the loss of the tasks so far reacts to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tripletmas.basics.weights import Params
from tripletmas.data.tasks import Task
from tripletmas.objectives.objective import Objective
from tripletmas.protection.guard import check_penalty
from tripletmas.protection.importance.fisher import FisherLabels
from tripletmas.protection.protection import Protection
from tripletmas.strategies.consolidate import Consolidate
from tripletmas.strategies.fisher_of_task import fisher_of_task


class EWC(Consolidate):
    """Elastic weight consolidation: importance is the Fisher information of what was learned; it needs labels.

    Penalty: strength * sum_i F_i (theta_i - theta*_i)^2. In recognition F is the exact diagonal Fisher information of
    the task's head on the embedding. A metric loss is no log-likelihood and has none: there, F is the mean squared
    gradient of the loss of a batch, which depends on the batch size; where a hinge is satisfied on the whole task, F is
    zero, which is an error.
    Stores two copies of the weights; costs a forward and a backward pass over the data after each task.

    Args:
        strength: weight of the penalty, half of the paper's lambda; 0 is finetune. The better a task was learned, the
            smaller F is, down to 0: values from 100 to 1,000,000 are usual.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.
        labels: recognition only: the class whose log-probability is differentiated: "sampled" from the model's own
            probabilities, "true" (the empirical Fisher), or "all", exactly, a backward pass for each class.
        batch_size: recognition only: samples that are read at once; the result does not depend on it.
        loss_batch_size: metric losses only: samples in a batch whose loss is differentiated.
        samples_per_class: metric losses only: of each class in such a batch.

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017, equation 3. They keep
    the importance and the weights of each task; this keeps the sum, around the weights of the last task: one penalty,
    as argued by Huszar, Note on the quadratic penalties in elastic weight consolidation, PNAS 2018, and as in the
    online form of Schwarz et al., Progress & Compress, ICML 2018.
    """

    def __init__(
        self,
        *,
        strength: float = 10_000.0,
        decay: float = 1.0,
        labels: FisherLabels = "sampled",
        batch_size: int = 256,
        loss_batch_size: int = 32,
        samples_per_class: int = 4,
    ):
        if labels not in ("sampled", "true", "all"):
            raise ValueError(f"labels must be 'sampled', 'true' or 'all', got {labels!r}")
        check_penalty(strength, decay)
        self.strength = strength
        self.decay = decay
        self.labels: FisherLabels = labels
        self.batch_size = batch_size
        self.loss_batch_size = loss_batch_size
        self.samples_per_class = samples_per_class
        self._objective: Objective | None = None

    def make_protection(self, model: nn.Module, objective: Objective) -> Protection:
        self._objective = objective
        return Protection(model, strength=self.strength, decay=self.decay, estimate=self._estimate)

    def measured_on(self, task: Task) -> Iterable[Any]:
        return (task,)

    def _estimate(self, model: nn.Module, tasks: Iterable[Any]) -> Params:
        assert self._objective is not None
        (task,) = tasks
        return fisher_of_task(
            model,
            task,
            self._objective,
            labels=self.labels,
            batch_size=self.batch_size,
            loss_batch_size=self.loss_batch_size,
            samples_per_class=self.samples_per_class,
        )
