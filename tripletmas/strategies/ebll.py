"""EBLL: keep still what earlier tasks need of the embedding, as an undercomplete autoencoder of each has found it.

Shapes: n samples, dim of the embedding, c numbers in the code.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tripletmas.basics.weights import Params, device_of
from tripletmas.data.batches import class_balanced_batches
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import embed
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.distill import soft_target_loss
from tripletmas.strategies.teacher import Teacher

_RATE = 0.01
_BATCH = {"batch_size": 64, "samples_per_class": 4}


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
        weights = strength, code, reconstruction, distillation
        if not all(weight >= 0 for weight in weights) or code_epochs < 1 or temperature <= 0:
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
        if not self.code:
            return
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


class Encoder(NamedTuple):
    """What is kept of an autoencoder: `encode` is all that it does.

    Args:
        mean, deviation: (dim,), of the task's embeddings, which are standardised with them.
        weight: (c, dim).
        bias: (c,).
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor


def encode(encoder: Encoder, embeddings: Tensor) -> Tensor:
    """sigmoid(weight (embedding - mean) / deviation + bias), (n, c)."""
    standard = (embeddings - encoder.mean) / encoder.deviation
    return functional.linear(standard, encoder.weight, encoder.bias).sigmoid()


def train_encoder(
    embeddings: Tensor,
    labels: Tensor,
    objective: Objective,
    *,
    size: int,
    epochs: int,
    reconstruction: float,
    generator: torch.Generator,
) -> Encoder:
    """Train encoder and linear decoder by AdamW on class-balanced batches; the decoder is not needed any more then.

    Objective: reconstruction * mean squared error, in standard deviations + loss(decoded embeddings, labels). No
    parameter of the loss itself is changed.

    Args:
        embeddings: (n, dim), on the device where the objective computes.
        size: numbers in the code (c).
        generator: draws first weights and batches, on the CPU.
    """
    mean, deviation = embeddings.mean(dim=0), embeddings.std(dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)  # a number that is the same for all samples stays itself
    dim = embeddings.shape[1]
    shapes = [((size, dim), dim), ((size,), dim), ((dim, size), size), ((dim,), size)]
    weight, bias, back, back_bias = parameters = [
        ((2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs)).to(embeddings.device).requires_grad_()
        for shape, inputs in shapes
    ]
    encoder = Encoder(mean, deviation, weight, bias)
    optimizer = torch.optim.AdamW(parameters, lr=_RATE)
    for _ in range(epochs):
        for batch in class_balanced_batches(labels.cpu(), **_BATCH, generator=generator):
            decoded = functional.linear(encode(encoder, embeddings[batch]), back, back_bias) * deviation + mean
            error = ((decoded - embeddings[batch]) / deviation).square().mean()
            loss = reconstruction * error + objective(decoded, labels[batch])
            gradients = torch.autograd.grad(loss, parameters)  # not backward(): the loss may have parameters, too
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return Encoder(mean, deviation, weight.detach(), bias.detach())
