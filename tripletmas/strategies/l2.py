"""L2: hold all weights near those of the task before, each as firmly as any other."""

from __future__ import annotations

from torch import nn

from tripletmas.objectives.objective import Objective
from tripletmas.protection.guard import check_penalty
from tripletmas.protection.importance.uniform import uniform_importance
from tripletmas.protection.protection import Protection
from tripletmas.strategies.consolidate import Consolidate


class L2(Consolidate):
    """Hold every weight where the last task left it: what importance adds shows in the difference to this.

    Penalty: strength * t * sum_i (theta_i - theta*_i)^2 after t tasks, since each adds an importance of 1 to every
    weight; with decay 0 it stays strength * sum_i (theta_i - theta*_i)^2.
    Stores two copies of the weights; costs nothing after a task.

    Args:
        strength: weight of the penalty; 0 is finetune.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.

    Source: the baseline "L2" of Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017.
    """

    def __init__(self, *, strength: float = 0.01, decay: float = 1.0):
        check_penalty(strength, decay)
        self.strength, self.decay = strength, decay

    def make_protection(self, model: nn.Module, objective: Objective) -> Protection:
        return Protection(model, strength=self.strength, decay=self.decay, estimate=uniform_importance)
