"""L2: hold all weights near those of the task before, each as firmly as any other."""

from __future__ import annotations

from tripletmas.protection.importance.uniform import uniform_importance
from tripletmas.protection.protection import Protection
from tripletmas.strategies.consolidate import Consolidate


def l2(*, strength: float = 0.01, decay: float = 1.0) -> Consolidate:
    """Hold every weight where the last task left it: what importance adds shows in the difference to this.

    Penalty: strength * t * sum_i (theta_i - theta*_i)^2 after t tasks, since each adds an importance of 1 to every
    weight; with decay 0 it stays strength * sum_i (theta_i - theta*_i)^2.
    Stores two copies of the weights; costs nothing after a task.

    Args:
        strength: weight of the penalty; 0 is finetune.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.

    Source: the baseline "L2" of Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017.
    """
    return Consolidate(
        lambda model, _: Protection(model, strength=strength, decay=decay, estimate=uniform_importance), from_data=False
    )
