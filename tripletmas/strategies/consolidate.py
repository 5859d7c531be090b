"""Consolidate: after each task measure which weights matter, and hold those in place while the next is learned."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from tripletmas.params import Params
from tripletmas.protection import MAS, LocalMAS, Protection
from tripletmas.strategies.base import Strategy
from tripletmas.tasks import Task


class Consolidate(Strategy):
    """Train under a `Protection`, which measures importance on the training images of each task, without labels.

    Stores two copies of the trainable parameters; costs one pass over the task's data after each task.

    Args:
        protect: model -> Protection.
        batch_size: samples that are read at once while importance is measured; no result depends on it.
        try_first: measure two samples before the first task, for an estimator that knows some kinds of layers only:
            what it says of the others then comes before the training, not after.
    """

    def __init__(self, protect: Callable[[nn.Module], Protection], *, batch_size: int = 256, try_first: bool = False):
        self.protect = protect
        self.batch_size = batch_size
        self.try_first = try_first

    def prepare(self, model: nn.Module) -> None:
        self.protection = self.protect(model)

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        protection = self._prepared()
        protection.attach(optimizer)
        if self.try_first and not protection.importance:
            protection.estimate(model, [task.train.plain()[[0, 1]]])

    def after_task(self, model: nn.Module, task: Task) -> None:
        self._prepared().consolidate(task.train.plain().loader(self.batch_size))

    def state_dict(self) -> Params:
        return self._prepared().state_dict()

    def load_state_dict(self, state: Params) -> None:
        self._prepared().load_state_dict(state)

    def _prepared(self) -> Protection:
        if self.protection is None:
            raise RuntimeError("call strategy.prepare(model) first")
        return self.protection


def mas(*, strength: float = 0.3, decay: float = 1.0, relative: bool = True) -> Consolidate:
    """Memory Aware Synapses: importance is how much the length of the embedding reacts to a weight.

    Args:
        strength: weight of the penalty; 0 is finetune.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.
        relative: measure importance relative to the mean squared length of the embeddings, so that one strength
            suits all models; false is the unit of the paper.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018; the relative unit is ours.
    """
    return Consolidate(lambda model: MAS(model, strength, decay=decay, relative=relative))


def local_mas(
    *, strength: float = 0.3, decay: float = 1.0, relative: bool = True, left_out: tuple[str, ...] = ()
) -> Consolidate:
    """Local MAS: importance of each layer by itself, without a backward pass; on ReLU layers it is Hebb's rule.

    Args:
        strength: weight of the penalty; 0 is finetune.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.
        relative: measure each layer's importance relative to the mean squared length of its own output.
        left_out: modules or parameters that are not protected; those of other kinds than linear and convolution
            layers, with their batch norm, have to be listed.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, the local version; the relative unit is ours.
    """
    return Consolidate(
        lambda model: LocalMAS(model, strength, decay=decay, relative=relative, left_out=left_out), try_first=True
    )
