"""Memory Aware Synapses, in its global and its local form."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.sentences import listed
from tripletmas.basics.shares import share
from tripletmas.basics.weights import Params, device_of, eval_mode
from tripletmas.data.batches import shared_loader
from tripletmas.data.tasks import Task
from tripletmas.objectives.objective import Objective
from tripletmas.protection import protection
from tripletmas.protection.guard import check_penalty
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.strategies.consolidate import Consolidate


class MAS(Consolidate):
    """Memory Aware Synapses: importance is how much the length of the output reacts to a weight, without labels.

    Penalty: strength * sum_i Omega_i (theta_i - theta*_i)^2, Omega = (1/n) sum_k |d ||F(x_k)||^2 / d theta|.
    Stores two copies of the weights; costs a forward and a backward pass over the data after each task.

    Args:
        strength: weight of the penalty; 0 is finetune.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.
        relative: measure importance relative to the mean squared length of the output, so that one strength
            suits all models; false is the unit of the paper.
        batch_gradients: take the magnitude of the summed gradient of so many samples, as most public code does, in
            place of each sample's; inexact, for comparison only. null is exact.
        output: what F is: the embedding; in recognition also the logits of the task's head, as in the paper; for facts
            also only those parts of the embedding (subject, predicate, object) that a fact of the image has.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018; the relative unit is ours.
    """

    def __init__(
        self,
        *,
        strength: float = 0.3,
        decay: float = 1.0,
        relative: bool = True,
        output: Literal["embedding", "logits", "parts"] = "embedding",
        batch_gradients: int | None = None,
    ):
        check_penalty(strength, decay)
        self.strength, self.decay, self.relative = strength, decay, relative
        self.output: str = output
        self.batch_gradients = batch_gradients
        self._objective: Objective | None = None
        self._learned = 0

    def check(self, model: nn.Module, batch: Any) -> None:
        if self.output == "embedding" and _are_of_one_length(model, batch[0]):
            mas_importance(model, [batch])  # which tells a normalisation from chance

    def make_protection(self, model: nn.Module, objective: Objective) -> protection.Protection:
        if self.output not in objective.measured:
            raise ValueError(
                f"output {self.output!r} is nothing that this objective measures: it has {listed(objective.measured)}; "
                "logits are those of the heads of recognition, parts those of facts"
            )
        self._objective = objective
        forward = None if self.output == "embedding" else self._output
        if self.batch_gradients is None:
            return protection.MAS(model, self.strength, decay=self.decay, relative=self.relative, forward=forward)
        estimate = partial(mas_importance, relative=self.relative, forward=forward, approximate="batch")
        return protection.Protection(model, strength=self.strength, decay=self.decay, estimate=estimate)

    def measured_on(self, task: Task) -> Iterable[Any]:
        data = task.train.plain()
        if self.batch_gradients is None:
            return shared_loader(data, num_workers=self.num_workers)
        batches = torch.randperm(len(data)).split(self.batch_gradients)
        own = [batches[number].tolist() for number in share(len(batches))]
        return data.loader(batches=own, num_workers=self.num_workers)

    def after_task(self, model: nn.Module, task: Task) -> None:
        self._learned += 1
        self.prepared().consolidate(self.measured_on(task))

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        if self.batch_gradients is not None or self.output == "parts":
            raise ValueError("this importance depends on batches, or on the facts of images: use mas with its defaults")
        return self.prepared().add_unlabelled(batches, weight=weight)

    def state_dict(self) -> Params:
        learned = {} if self.output == "embedding" else {"learned": torch.tensor(self._learned)}
        return self.prepared().state_dict() | learned

    def load_state_dict(self, state: Params) -> None:
        self._learned = int(state.get("learned", 0))
        self.prepared().load_state_dict(state)

    def _output(self, model: nn.Module, batch: Any) -> Tensor:
        assert self._objective is not None
        return self._objective.output(self.output, model, batch, self._learned - 1)


class LocalMAS(Consolidate):
    """Local MAS: importance of each layer by itself, without a backward pass; on ReLU layers it is Hebb's rule.

    Penalty and memory are those of mas; costs a forward pass over the data after each task.

    Args:
        strength: weight of the penalty; 0 is finetune.
        decay: what is left of the importance of earlier tasks when a task is added; 1 sums all tasks.
        relative: measure each layer's importance relative to the mean squared length of its own output.
        left_out: modules or parameters that are not protected; those of other kinds than linear and convolution
            layers, with their batch norm, have to be listed.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, the local version; the relative unit is ours.
    """

    def __init__(
        self,
        *,
        strength: float = 0.3,
        decay: float = 1.0,
        relative: bool = True,
        left_out: tuple[str, ...] = (),
    ):
        check_penalty(strength, decay)
        self.strength, self.decay, self.relative, self.left_out = strength, decay, relative, left_out

    def check(self, model: nn.Module, batch: Any) -> None:
        local_mas_importance(model, [batch], left_out=self.left_out)

    def make_protection(self, model: nn.Module, objective: Objective) -> protection.Protection:
        return protection.LocalMAS(
            model, self.strength, decay=self.decay, relative=self.relative, left_out=self.left_out
        )

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        self.prepared().attach(optimizer)
        if not self.prepared().importance:  # what it says of layers that it does not know comes before the training
            self.prepared().estimate(model, [task.train.plain()[[0, 1]]])

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        return self.prepared().add_unlabelled(batches, weight=weight)


def _are_of_one_length(model: nn.Module, samples: Tensor) -> bool:
    """Whether all embeddings have the same length, other than 0, as normalised ones have."""
    with eval_mode(model), torch.no_grad():
        lengths = model(samples.clone().to(device_of(model))).float().norm(dim=1)
    return bool(lengths.max() > 0) and bool(lengths.max() - lengths.min() <= 1e-5 * lengths.max())
