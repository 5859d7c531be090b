"""Consolidate: after each task measure which weights matter, and hold those in place while the next is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective
from tripletmas.protection.batches import Forward
from tripletmas.protection.protection import Protection
from tripletmas.strategies.base import Strategy


class Consolidate(Strategy):
    """Train under a `Protection`, which measures importance on the training images of each task, without labels.

    Stores two copies of the trainable parameters; costs one pass over the task's data after each task.

    Args:
        protect: (model, forward) -> Protection; `forward` says how the model is called on a batch, None as always.
        batch_size: samples that are read at once while importance is measured; no exact result depends on it.
        try_first: measure two samples before the first task, for an estimator that knows some kinds of layers only:
            what it says of the others then comes before the training, not after.
        output: what is measured: one of the objective's `measured`.
        shuffled: read the samples in an order drawn by torch's generator, for estimates to which batches matter.
        from_data: the importance is one of the data, so that it can be measured on others, too.
    """

    def __init__(
        self,
        protect: Callable[[nn.Module, Forward | None], Protection],
        *,
        batch_size: int = 256,
        try_first: bool = False,
        output: str = "embedding",
        shuffled: bool = False,
        from_data: bool = True,
    ):
        self.protect = protect
        self.batch_size = batch_size
        self.try_first = try_first
        self.output = output
        self.shuffled = shuffled
        self.from_data = from_data
        self._objective: Objective | None = None
        self._learned = 0

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        if self.output not in objective.measured:
            raise ValueError(
                f"output {self.output!r} is nothing that this objective measures: it has {listed(objective.measured)}; "
                "logits are those of the heads of recognition, parts those of facts"
            )
        self._objective = objective
        self.protections = (self.protect(model, None if self.output == "embedding" else self._output),)

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        protection = self._prepared()
        protection.attach(optimizer)
        if self.try_first and not protection.importance:
            protection.estimate(model, [task.train.plain()[[0, 1]]])

    def after_task(self, model: nn.Module, task: Task) -> None:
        self._learned += 1
        data = task.train.plain()
        data = data.subset(torch.randperm(len(data))) if self.shuffled else data
        self._prepared().consolidate(data.loader(self.batch_size))

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> Params:
        if not self.from_data or self.shuffled or self.output not in ("embedding", "logits"):
            raise ValueError(
                "this importance is not one of unlabelled data (l2, output parts), or depends on batches: use mas"
            )
        return self._prepared().estimate(model, batches)

    def set_strength(self, strength: float) -> None:
        self._prepared().strength = strength

    def state_dict(self) -> Params:
        learned = {} if self.output == "embedding" else {"learned": torch.tensor(self._learned)}
        return self._prepared().state_dict() | learned

    def load_state_dict(self, state: Params) -> None:
        self._learned = int(state.get("learned", 0))
        self._prepared().load_state_dict(state)

    def _prepared(self) -> Protection:
        if not self.protections:
            raise RuntimeError("call strategy.prepare(model, objective, stream) first")
        return self.protections[0]

    def _output(self, model: nn.Module, batch: Any) -> Tensor:
        assert self._objective is not None
        return self._objective.output(self.output, model, batch, self._learned - 1)
