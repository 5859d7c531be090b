"""Consolidate: after each task measure which weights matter, and hold those in place while the next is learned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from tripletmas.basics.weights import Params
from tripletmas.data.batches import shared_loader
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.base import Strategy

if TYPE_CHECKING:
    from tripletmas.protection.guard import Guard


class Consolidate(Strategy):
    """Train under a `Guard`, which takes in each task at its end. Concrete ones say which.

    Stores two copies of the trainable parameters.

    Attributes:
        num_workers: processes that load what importance is measured on, as the objective's embedding has them.
    """

    num_workers = 0

    def make_protection(self, model: nn.Module, objective: Objective) -> Guard:
        """What holds the weights of this model, trained for this objective."""
        raise NotImplementedError

    def measured_on(self, task: Task) -> Iterable[Any]:
        """What importance is measured on after a task: batches of its training samples, without augmentation.

        Of several processes each has its own; sums are taken over all.
        """
        return shared_loader(task.train.plain(), num_workers=self.num_workers)

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        self.protections = (self.make_protection(model, objective),)
        self.num_workers = objective.embed.num_workers

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        self.prepared().attach(optimizer)

    def after_task(self, model: nn.Module, task: Task) -> None:
        self.prepared().consolidate(self.measured_on(task))

    def set_strength(self, strength: float) -> None:
        self.prepared().strength = strength

    def state_dict(self) -> Params:
        return self.prepared().state_dict()

    def load_state_dict(self, state: Params) -> None:
        self.prepared().load_state_dict(state)

    def prepared(self) -> Guard:
        """The protection, once `prepare` was called."""
        if not self.protections:
            raise RuntimeError("call strategy.prepare(model, objective, stream) first")
        return self.protections[0]
