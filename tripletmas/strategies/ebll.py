"""EBLL: keep still what earlier tasks need of the embedding, as an autoencoder of each has found it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.weights import Params, device_of
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import embed
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.autoencoder import Encoder, encode, train_encoder
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.distill import soft_target_loss
from tripletmas.strategies.teacher import Teacher


class EBLL(Strategy):
    """Encoder Based Lifelong Learning: add strength/2 * sum_i mean_k ||code_i(F(x_k)) - code_i(F*(x_k))||^2.

    code_i is the encoder of earlier task i: linear on standardised embeddings, then a sigmoid; F* is the model at the
    end of the previous task, x_k are samples of the new one. In recognition LwF's soft targets are added, as in the
    paper; for metric losses `distill+ebll` does it.
    Stores one copy of weights and buffers, in recognition of the old heads, and an encoder a task, (code + 2) * dim +
    code numbers; costs a forward pass a step, and the training of an autoencoder on the embeddings after each task.

    Args:
        strength: weight of all that is added; 0 is finetune.
        code: numbers in a code, fewer than the embedding has; 0 for a quarter of them.
        code_epochs: passes over the task's embeddings when its autoencoder is trained.
        reconstruction: weight of the reconstruction error beside the task's own loss on the reconstruction.
        distillation: in recognition, weight of the soft targets beside the codes.
        temperature: of the soft targets.

    Source: Rannen et al., Encoder Based Lifelong Learning, ICCV 2017. Ours: standardised embeddings, and one strength.
    """

    def __init__(
        self,
        *,
        strength: float = 1.0,
        code: int = 0,
        code_epochs: int = 50,
        reconstruction: float = 1.0,
        distillation: float = 1.0,
        temperature: float = 2.0,
    ):
        if min(strength, code, reconstruction, distillation) < 0 or code_epochs < 1 or temperature <= 0:
            raise ValueError("strength, code and weights must be >= 0, code_epochs >= 1 and temperature > 0")
        self.strength, self.code, self.code_epochs = strength, code, code_epochs
        self.reconstruction, self.distillation, self.temperature = reconstruction, distillation, temperature
        self._encoders: list[Encoder] = []
        self._teacher: Teacher | None = None
        self._objective: Objective | None = None

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        self._encoders, self._objective = [], objective
        self._teacher = Teacher(model, objective.heads)

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        dim = embed(model, task.train.plain().subset([0])).vectors.shape[1]
        if self.code >= dim:
            raise ValueError(f"code must be < {dim}, the length of the embedding, to leave anything out: {self.code}")

    def loss(self, model: nn.Module, inputs: Tensor, embeddings: Tensor) -> Tensor | None:
        teacher = self._prepared()
        if not self.strength or not teacher.num_tasks:
            return None
        found, wanted = embeddings.float(), teacher.embeddings(inputs)
        moved = [(encode(each, found) - encode(each, wanted)).square().sum(dim=1).mean() for each in self._encoders]
        total = torch.stack(moved).sum() / 2
        assert self._objective is not None
        if len(self._objective.heads):
            logits = [head(found) for head in self._objective.heads[: teacher.num_tasks]]
            total = total + self.distillation * soft_target_loss(logits, teacher.logits(wanted), self.temperature)
        return self.strength * total

    def after_task(self, model: nn.Module, task: Task) -> None:
        teacher = self._prepared()
        assert self._objective is not None
        embedded, device = self._objective.embed(model, task.train.plain()), device_of(model)
        encoder = train_encoder(
            embedded.vectors.to(device),
            embedded.labels.to(device),
            self._objective,
            size=self.code or max(1, embedded.vectors.shape[1] // 4),
            epochs=self.code_epochs,
            reconstruction=self.reconstruction,
            generator=torch.Generator().manual_seed(torch.initial_seed()),
        )
        self._encoders.append(encoder)
        teacher.follow()

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def state_dict(self) -> Params:
        encoders = [encoder._asdict().items() for encoder in self._encoders]
        codes = {f"code/{number}/{key}": value for number, part in enumerate(encoders) for key, value in part}
        return self._prepared().state_dict() | codes

    def load_state_dict(self, state: Params) -> None:
        teacher = self._prepared()
        teacher.load_state_dict(state)
        self._encoders = [
            Encoder(*(state[f"code/{number}/{key}"].to(teacher.device) for key in Encoder._fields))
            for number in range(teacher.num_tasks)
        ]

    def _prepared(self) -> Teacher:
        if self._teacher is None:
            raise RuntimeError("call strategy.prepare(model, objective, stream) first")
        return self._teacher
