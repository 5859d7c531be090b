"""The rules but that of convolutions: linear maps, scales, tables, copies, and weights in several calls.

Shapes: n samples, each with `repeats` inputs (usually 1), p positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from tripletmas.protection.engine import fused
from tripletmas.protection.engine.rule import (
    Layout,
    Rule,
    SmallWeights,
    add_products,
    buffer_size,
    magnitude_,
    present,
)

# Samples whose gradients of a small weight in several calls are summed together.
_MOST_AT_ONCE = 16


class Linear(Rule):
    """input (..., in), weight (out, in), bias (out): any number of positions a sample.

    Args:
        transposed: the weight is (in, out), as in `input @ weight`.
    """

    def __init__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *, transposed: bool = False):
        self.input, self.weights, self.transposed = input, present(weight, bias), transposed

    def accepts(self, layout: Layout) -> bool:
        return layout.dim < self.input.ndim - 1

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._grad = _positions_and_channels(layout.by_sample(grad, num_samples))
        input = _positions_and_channels(layout.by_sample(self.input, num_samples))
        self._left, self._right = (input, self._grad) if self.transposed else (self._grad, input)

    def add(self, role: str, total: Tensor, power: int) -> None:
        if role == "bias":
            total.add_(magnitude_(self._grad.sum(1), power).sum(0))
        else:
            twin = partial(add_products, left=self._left, right=self._right, power=power)
            fused.add_products(total, self._left, self._right, power, otherwise=twin)

    def of_sample(self, role: str, sample: int) -> Tensor:
        return self._grad[sample].sum(0) if role == "bias" else self._left[sample].t() @ self._right[sample]

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        if role == "bias":
            return self._grad[start:stop].sum(1)
        return self._left[start:stop].transpose(1, 2) @ self._right[start:stop]

    def factors(self) -> tuple[Tensor, Tensor]:
        """(n, p, rows) and (n, p, columns), whose product over positions is a sample's gradient of the weight."""
        return self._left, self._right


class Scale(SmallWeights):
    """`scaled(input) * weight + bias`: what a normalisation ends in, and PReLU with a bend in place of a scale.

    Args:
        scaled: what the weight is multiplied with, a function of inputs in the shape of `input`.
        along: the weights are as long as the last dimensions, or as dimension 1, the channels, or are one number.
    """

    def __init__(
        self,
        input: Tensor,
        weights: dict[str, Tensor],
        scaled: Callable[[Tensor], Tensor],
        along: Literal["last", "channels", "nothing"],
    ):
        self.input, self.weights, self.scaled, self.along = input, weights, scaled, along

    def accepts(self, layout: Layout) -> bool:
        if self.along == "channels":
            return layout.dim == 0 and self.input.ndim > 1
        return self.along == "nothing" or layout.dim < self.input.ndim - next(iter(self.weights.values())).ndim

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        grad = self._grad[start:stop]  # (samples, repeats, ...)
        if role == "weight":
            images = self._input[start:stop]
            grad = self.scaled(images.flatten(0, 1)).view_as(images).mul_(grad)
        shape = self.weights[role].shape
        if self.along == "nothing":
            return grad.flatten(1).sum(1).view(-1, *shape)
        if self.along == "last":
            return grad.flatten(1, grad.ndim - len(shape) - 1).sum(1)
        return grad.flatten(3).sum((1, 3)) if grad.ndim > 3 else grad.sum(1)


class Embedding(Rule):
    """weight (words, dim), looked up at `input`, integers of any shape."""

    def __init__(self, input: Tensor, weight: Tensor, padding_index: int | None):
        self.input, self.weights, self.padding_index = input, {"weight": weight}, padding_index

    def accepts(self, layout: Layout) -> bool:
        return layout.dim < self.input.ndim

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        grad = _positions_and_channels(layout.by_sample(grad, num_samples))
        words = layout.by_sample(self.input, num_samples).flatten(1).long()
        num_words = len(self.weights["weight"])
        if self.padding_index is not None:  # its row has no gradient
            grad = grad.masked_fill((words == self.padding_index % num_words).unsqueeze(-1), 0)
        # a word that occurs several times in a sample has one gradient in it: its sum
        sample = torch.arange(num_samples, device=words.device).unsqueeze(1)
        pairs, place = (sample * num_words + words).unique(return_inverse=True)
        self._rows = grad.new_zeros(len(pairs), grad.shape[-1]).index_add_(0, place.flatten(), grad.flatten(0, 1))
        self._samples, self._words = pairs // num_words, pairs % num_words

    def add(self, role: str, total: Tensor, power: int) -> None:
        total.index_add_(0, self._words, magnitude_(self._rows.clone(), power))

    def of_sample(self, role: str, sample: int) -> Tensor:
        own = self._samples == sample
        return torch.zeros_like(self.weights["weight"]).index_add_(0, self._words[own], self._rows[own])


class Copies(SmallWeights):
    """A tensor that is copied for every sample, by broadcasting or by `expand`: class tokens, positions, scales.

    It is given the gradient with respect to the copies, which have the shape `shape`.
    """

    def __init__(self, weight: Tensor, shape: torch.Size):
        self.input, self.weights, self._shape = weight, {"weight": weight}, shape

    def accepts(self, layout: Layout) -> bool:
        """Whether the tensor, aligned with the last dimensions of the shape, is the same for all samples."""
        size, before = self.input.shape, len(self._shape) - self.input.ndim
        if before < 0 or (layout.dim >= before and size[layout.dim - before] != 1):
            return False
        return all(own in (1, whole) for own, whole in zip(size, self._shape[before:], strict=True))

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._grad = layout.by_sample(grad, num_samples).sum(1)  # (n, ...) without the samples' dimension
        self._dim = layout.dim

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        grad = self._grad[start:stop].unsqueeze(self._dim + 1)
        shape = self.input.shape
        return grad.sum_to_size(len(grad), *(1,) * (grad.ndim - 1 - len(shape)), *shape).view(-1, *shape)


class Several(Rule):
    """A weight in several calls, of which the backward passes are over: a sample's gradients are summed first.

    Args:
        uses: the rule of each call, and the role of the weight in it; the weight has no other role here.
    """

    def __init__(self, uses: Sequence[tuple[Rule, str]], num_samples: int):
        self._uses, self._num_samples = uses, num_samples

    def of_sample(self, role: str, sample: int) -> Tensor:
        return sum(rule.of_sample(own, sample) for rule, own in self._uses)  # pyright: ignore[reportReturnType]

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        return sum(rule.gradients(own, start, stop) for rule, own in self._uses)  # pyright: ignore[reportReturnType]

    def add(self, role: str, total: Tensor, power: int) -> None:
        factors = [rule.factors() for rule, own in self._uses if isinstance(rule, Linear) and own == "weight"]
        if len(factors) == len(self._uses):  # as if each had more positions
            left, right = (torch.cat(each, 1) for each in zip(*factors, strict=True))
            twin = partial(add_products, left=left, right=right, power=power)
            fused.add_products(total, left, right, power, otherwise=twin)
            return
        step = min(_MOST_AT_ONCE, max(1, buffer_size(total) // total.numel()))
        for start in range(0, self._num_samples, step):
            gradients = self.gradients(role, start, min(start + step, self._num_samples))
            total.add_(magnitude_(gradients, power).sum(0))


def _positions_and_channels(tensor: Tensor) -> Tensor:
    """(n, ..., channels) as (n, p, channels)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:-1]), tensor.shape[-1])
