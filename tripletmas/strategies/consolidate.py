"""Consolidate: after each task measure which weights matter, and hold those in place while the next is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.weights import Params
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.recognition.heads import Recognition
from tripletmas.objectives.retrieval.losses import MetricLoss
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
        output: measure the embedding, the logits of the head of the task that was learned, or the parts of the
            embedding that the facts of each image have.
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
        if output not in ("embedding", "logits", "parts"):
            raise ValueError(f"output must be 'embedding', 'logits' or 'parts', got {output!r}")
        self.protect = protect
        self.batch_size = batch_size
        self.try_first = try_first
        self.output = output
        self.shuffled = shuffled
        self.from_data = from_data
        self._recognition: Recognition | None = None
        self._facts: FactLoss | None = None
        self._head = 0

    def prepare(self, model: nn.Module, loss: MetricLoss, stream: Stream) -> None:
        if self.output == "logits":
            if not isinstance(loss, Recognition):
                raise ValueError("output 'logits' needs heads: use it with --objective recognition")
            self._recognition = loss
        if self.output == "parts":
            if not isinstance(loss, FactLoss):
                raise ValueError("output 'parts' needs facts: use it with --data facts or shapes-facts")
            self._facts = loss
        forward = {"embedding": None, "logits": self._logits, "parts": self._parts}[self.output]
        self.protections = (self.protect(model, forward),)

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        protection = self._prepared()
        protection.attach(optimizer)
        if self.try_first and not protection.importance:
            protection.estimate(model, [task.train.plain()[[0, 1]]])

    def after_task(self, model: nn.Module, task: Task) -> None:
        if self._recognition:
            self._head = self._recognition.head_for(task.classes)
        data = task.train.plain()
        data = data.subset(torch.randperm(len(data))) if self.shuffled else data
        self._prepared().consolidate(data.loader(self.batch_size))

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> Params:
        if not self.from_data or self.shuffled or self._facts:
            raise ValueError(
                "this importance is not one of unlabelled data (l2, output parts), or depends on batches: use mas"
            )
        return self._prepared().estimate(model, batches)

    def set_strength(self, strength: float) -> None:
        self._prepared().strength = strength

    def state_dict(self) -> Params:
        head = {"head": torch.tensor(self._head)} if self._recognition else {}
        return self._prepared().state_dict() | head

    def load_state_dict(self, state: Params) -> None:
        self._head = int(state.get("head", 0))
        self._prepared().load_state_dict(state)

    def _prepared(self) -> Protection:
        if not self.protections:
            raise RuntimeError("call strategy.prepare(model, loss, stream) first")
        return self.protections[0]

    def _logits(self, model: nn.Module, batch: Any) -> Tensor:
        assert self._recognition is not None
        return self._recognition.logits(model(batch[0]), self._head)

    def _parts(self, model: nn.Module, batch: Any) -> Tensor:
        assert self._facts is not None
        embeddings = model(batch[0])
        parts = self._facts.parts_of(batch[1].to(embeddings.device))
        return embeddings * parts.repeat_interleave(embeddings.shape[1] // parts.shape[1], dim=1)
