"""Distill: on the samples of the new task, keep to what the model said before. LwF, and its form for embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from tripletmas.basics.weights import Params
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.teacher import Teacher


class Distill(Strategy):
    """Learning without Forgetting (LwF): add strength * distance(what the model says, what the last task's said).

    The teacher is the model at the end of the previous task, in eval mode; both see the same samples, of the new task.
    cosine: mean_k 1 - cos(F(x_k), F*(x_k)). squared: mean_k ||F(x_k) - F*(x_k)||^2. soft_targets, for recognition: the
    cross-entropy of the old heads' softened outputs, then and now (see `soft_target_loss`).
    Stores one copy of weights and buffers, for soft targets of the old heads, too; costs a forward pass a step.

    Args:
        strength: weight of the distance; 0 is finetune.
        distance: between embeddings cosine or squared; or soft_targets, which needs the heads of recognition. null is
            soft_targets in recognition, whose heads see the length of the embedding too, and else cosine.
        temperature: of soft targets; higher weighs improbable classes more.

    Source: Li and Hoiem, Learning without Forgetting, ECCV 2016, whose loss is soft_targets. The paper first trains the
    new head alone, and does not multiply by temperature^2.
    """

    def __init__(
        self,
        *,
        strength: float = 1.0,
        distance: Literal["cosine", "squared", "soft_targets"] | None = None,
        temperature: float = 2.0,
    ):
        if not strength >= 0 or temperature <= 0:
            raise ValueError(f"strength must be >= 0 and temperature > 0, got {strength} and {temperature}")
        if distance not in (None, "cosine", "squared", "soft_targets"):
            raise ValueError(f"distance must be 'cosine', 'squared' or 'soft_targets', got {distance!r}")
        self.strength = strength
        self.distance = distance
        self.temperature = temperature
        self._heads = nn.ModuleList()
        self._teacher: Teacher | None = None

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        self._heads = objective.heads if self.distance in (None, "soft_targets") else nn.ModuleList()
        if self.distance == "soft_targets" and not len(objective.heads):
            raise ValueError(
                "distance 'soft_targets' needs heads: use it with --objective recognition, or distance 'cosine' or "
                "'squared', which compare embeddings"
            )
        self._teacher = Teacher(model, self._heads)

    def loss(self, model: nn.Module, inputs: Tensor, embeddings: Tensor) -> Tensor | None:
        teacher = self._prepared()
        if not self.strength or not teacher.num_tasks:
            return None
        found, wanted = embeddings.float(), teacher.embeddings(inputs)
        if len(self._heads):
            logits = [head(found) for head in self._heads[: teacher.num_tasks]]
            return self.strength * soft_target_loss(logits, teacher.logits(wanted), self.temperature)
        distance = squared_distance if self.distance == "squared" else cosine_distance
        return self.strength * distance(found, wanted)

    def after_task(self, model: nn.Module, task: Task) -> None:
        self._prepared().follow()

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def state_dict(self) -> Params:
        return self._prepared().state_dict()

    def load_state_dict(self, state: Params) -> None:
        self._prepared().load_state_dict(state)

    def _prepared(self) -> Teacher:
        if self._teacher is None:
            raise RuntimeError("call strategy.prepare(model, objective, stream) first")
        return self._teacher


def cosine_distance(embeddings: Tensor, others: Tensor) -> Tensor:
    """mean_k 1 - cos(a_k, b_k) of two (n, dim)."""
    return (1 - functional.cosine_similarity(embeddings, others)).mean()


def squared_distance(embeddings: Tensor, others: Tensor) -> Tensor:
    """mean_k ||a_k - b_k||^2 of two (n, dim)."""
    return (embeddings - others).square().sum(dim=1).mean()


def soft_target_loss(logits: Sequence[Tensor], targets: Sequence[Tensor], temperature: float) -> Tensor:
    """T^2 * sum over heads, mean over samples of -sum_j p_j log q_j, p = softmax(target / T), q = softmax(logits / T).

    Args:
        logits, targets: (n, c) for each head. With T^2 the gradient's scale hardly depends on the temperature T (Hinton
            et al., Distilling the Knowledge in a Neural Network, 2015).
    """
    per_head = [
        functional.cross_entropy(logit / temperature, (target / temperature).softmax(dim=1))
        for logit, target in zip(logits, targets, strict=True)
    ]
    return temperature**2 * sum(per_head[1:], start=per_head[0])
