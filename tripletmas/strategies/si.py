"""Synaptic intelligence: weights are held as firmly as their own way through a task has lowered its loss."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from tripletmas.basics.weights import Params
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective
from tripletmas.protection.protection import Protection
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.path_integral import PathIntegral


class SynapticIntelligence(Strategy):
    """Synaptic intelligence: importance is what each weight contributed to the fall of the loss, summed while training.

    Penalty: strength * sum_i Omega_i (theta_i - theta*_i)^2. Each task adds max(omega_i, 0) / (change_i^2 + damping) to
    Omega_i, where omega_i = - sum over steps of (gradient of the task's loss, without the penalty) * (change of
    theta_i), and change_i is that over the whole task. The gradient is the one that the optimizer is given: that of the
    batch, clipped where `clip` is set. Needs no pass over the data.
    Stores two copies of the weights, during a task four, in a step six.

    Args:
        strength: weight of the penalty; 0 is finetune.
        damping: bounds the importance of weights that have hardly moved, in squared units of the weights: where
            change_i^2 is far below it, Omega_i is omega_i / damping.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.

    Source: Zenke, Poole and Ganguli, Continual Learning Through Synaptic Intelligence, ICML 2017. The authors' released
    runs have a damping of 0.1 on permuted MNIST and of 0.001 on CIFAR-10 (ganguli-lab/pathint). A negative omega_i
    would push its weight away from the reference, without bound: here it counts as 0; the authors' code adds it, and
    then sets a negative Omega_i to 0.
    """

    def __init__(self, *, strength: float = 10.0, damping: float = 0.1, decay: float = 1.0):
        if not damping > 0:
            raise ValueError(f"damping must be > 0, got {damping}")
        self.strength = strength
        self.damping = damping
        self.decay = decay
        self._path: PathIntegral | None = None

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        path = self._path = PathIntegral(model)
        self.protections = (
            Protection(
                model, strength=self.strength, decay=self.decay, estimate=lambda model, batches: path.end(self.damping)
            ),
        )

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        path, protection = self._prepared()
        path.begin(optimizer)
        protection.attach(optimizer)

    def after_step(self, model: nn.Module) -> None:
        self._prepared()[0].after_step()

    def after_task(self, model: nn.Module, task: Task) -> None:
        self._prepared()[1].consolidate(())

    def set_strength(self, strength: float) -> None:
        self._prepared()[1].strength = strength

    def state_dict(self) -> Params:
        path, protection = self._prepared()
        return path.state_dict() | protection.state_dict()

    def load_state_dict(self, state: Params) -> None:
        path, protection = self._prepared()
        path.load_state_dict(state)
        protection.load_state_dict(state)

    def _prepared(self) -> tuple[PathIntegral, Protection]:
        if self._path is None:
            raise RuntimeError("call strategy.prepare(model, objective, stream) first")
        return self._path, self.protections[0]
