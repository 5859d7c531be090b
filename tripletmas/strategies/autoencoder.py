"""An undercomplete autoencoder of embeddings: which directions of them a task needs.

Shapes: n samples, dim of the embedding, c numbers in the code.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tripletmas.data.batches import class_balanced_batches
from tripletmas.objectives.objective import Objective

_RATE = 0.01
_BATCH = {"batch_size": 64, "samples_per_class": 4}


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
