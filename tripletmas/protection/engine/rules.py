"""The rules but that for convolutions, and the table: function -> rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.accumulate import add_products, magnitude_
from tripletmas.protection.engine.convolution import Convolution
from tripletmas.protection.engine.layout import Layout
from tripletmas.protection.engine.rule import Rule, SmallWeights, Weights, given

# --- linear maps


class Linear(Rule):
    """input (..., in), weight (out, in), bias (out): any number of positions a sample."""

    def __init__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None):
        self.input, self.weights = input, {"weight": weight, "bias": bias}

    def run(self, weights: Weights) -> Tensor:
        return F.linear(self.input, given(weights["weight"]), weights["bias"])

    def accepts(self, layout: Layout) -> bool:
        return layout.dim < self.input.ndim - 1

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._left = _positions_and_channels(layout.by_sample(grad, num_samples))
        self._right = _positions_and_channels(layout.by_sample(self.input, num_samples))

    def add(self, role: str, total: Tensor, power: int) -> None:
        if role == "bias":
            total.add_(magnitude_(self._left.sum(1), power).sum(0))
        else:
            add_products(total, self._left, self._right, power)

    def of_sample(self, role: str, sample: int) -> Tensor:
        left = self._left[sample]
        return left.sum(0) if role == "bias" else left.t() @ self._right[sample]


class MatMul(Rule):
    """input (..., in) @ weight (in, out)."""

    def __init__(self, input: Tensor, other: Tensor):
        self.input, self.weights = input, {"weight": other}

    def run(self, weights: Weights) -> Tensor:
        return self.input @ given(weights["weight"])

    def accepts(self, layout: Layout) -> bool:
        return layout.dim < self.input.ndim - 1

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._left = _positions_and_channels(layout.by_sample(self.input, num_samples))
        self._right = _positions_and_channels(layout.by_sample(grad, num_samples))

    def add(self, role: str, total: Tensor, power: int) -> None:
        add_products(total, self._left, self._right, power)

    def of_sample(self, role: str, sample: int) -> Tensor:
        return self._left[sample].t() @ self._right[sample]


# --- few weights


class Scale(SmallWeights):
    """A normalisation that ends in `normalised * weight + bias`.

    Args:
        weights: "weight", and "bias" where the function has one.
        function: (input, **weights) -> output; with None for weights, what is normalised only.
        channels_last: whether weights are as long as the last dimensions, or as dimension 1, the channels.
    """

    def __init__(
        self,
        input: Tensor,
        weights: Weights,
        function: Callable[..., Tensor],
        channels_last: bool,
    ):
        self.input, self.weights = input, weights
        self._function, self._channels_last = function, channels_last

    def run(self, weights: Weights) -> Tensor:
        return self._function(self.input, **weights)

    def accepts(self, layout: Layout) -> bool:
        if not self._channels_last:
            return layout.dim == 0 and self.input.ndim > 1
        weight = next(each for each in self.weights.values() if each is not None)
        return layout.dim < self.input.ndim - weight.ndim

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        grad = self._grad[start:stop]  # (samples, repeats, ...)
        if role == "weight":
            images = self._input[start:stop]
            normalized = self._function(images.flatten(0, 1), **dict.fromkeys(self.weights)).view_as(images)
            grad = normalized.mul_(grad)
        weight = given(self.weights[role])
        if self._channels_last:
            return grad.flatten(1, grad.ndim - weight.ndim - 1).sum(1)
        return grad.flatten(3).sum((1, 3)) if grad.ndim > 3 else grad.sum(1)


class PReLU(SmallWeights):
    """max(0, x) + weight * min(0, x), one weight for all or one for each channel (dimension 1)."""

    def __init__(self, input: Tensor, weight: Tensor):
        self.input, self.weights = input, {"weight": weight}

    def run(self, weights: Weights) -> Tensor:
        return F.prelu(self.input, given(weights["weight"]))

    def accepts(self, layout: Layout) -> bool:
        return layout.dim == 0 or given(self.weights["weight"]).numel() == 1

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        product = self._input[start:stop].clamp(max=0).mul_(self._grad[start:stop])
        weight = given(self.weights["weight"])
        if weight.numel() == 1:
            return product.flatten(1).sum(1).view(-1, *weight.shape)
        return product.flatten(3).sum((1, 3)) if product.ndim > 3 else product.sum(1)


class Embedding(Rule):
    """weight (words, dim), looked up at `input`, integers of any shape."""

    def __init__(self, input: Tensor, weight: Tensor, padding_index: int | None):
        self.input, self._padding_index = input, padding_index
        self.weights = {"weight": weight}

    def run(self, weights: Weights) -> Tensor:
        return F.embedding(self.input, given(weights["weight"]), self._padding_index)

    def accepts(self, layout: Layout) -> bool:
        return layout.dim < self.input.ndim

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        grad = _positions_and_channels(layout.by_sample(grad, num_samples))
        words = layout.by_sample(self.input, num_samples).flatten(1).long()
        num_words = len(given(self.weights["weight"]))
        if self._padding_index is not None:  # its row has no gradient
            grad = grad.masked_fill((words == self._padding_index % num_words).unsqueeze(-1), 0)
        # a word that occurs several times in a sample has one gradient in it: its sum
        sample = torch.arange(num_samples, device=words.device).unsqueeze(1)
        pairs, place = (sample * num_words + words).unique(return_inverse=True)
        self._rows = grad.new_zeros(len(pairs), grad.shape[-1]).index_add_(0, place.flatten(), grad.flatten(0, 1))
        self._samples, self._words = pairs // num_words, pairs % num_words

    def add(self, role: str, total: Tensor, power: int) -> None:
        total.index_add_(0, self._words, magnitude_(self._rows.clone(), power))

    def of_sample(self, role: str, sample: int) -> Tensor:
        own = self._samples == sample
        return torch.zeros_like(given(self.weights["weight"])).index_add_(0, self._words[own], self._rows[own])


class Copies(SmallWeights):
    """A tensor that is copied for every sample, by broadcasting or by `expand`: class tokens, positions, scales.

    Its call is not run by the rule; it is given the gradient with respect to the copies.
    """

    def __init__(self, weight: Tensor):
        self.input, self.weights = weight, {"weight": weight}

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._grad = layout.by_sample(grad, num_samples).sum(1)  # (n, ...) without the samples' dimension
        self._layout, self._ndim, self._num_samples = layout, grad.ndim, num_samples

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        grad = self._grad[start:stop].unsqueeze(self._layout.dim + 1)
        weight = given(self.weights["weight"])
        return grad.sum_to_size(len(grad), *(1,) * (self._ndim - weight.ndim), *weight.shape).view(-1, *weight.shape)


# --- from a call to a rule: None where a rule does not apply


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Rule:
    return Linear(input, weight, bias)


def _matmul(input: Tensor, other: Tensor) -> Rule | None:
    return MatMul(input, other) if other.ndim == 2 and input.ndim >= 2 else None


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Rule:
    return Convolution(input, weight, bias, stride, padding, dilation, groups)


def _transposed_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Rule:
    return Convolution(
        input, weight, bias, stride, padding, dilation, groups, transposed=True, output_padding=output_padding
    )


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Rule | None:
    if training:
        return None  # normalised by the batch: samples influence each other
    normalize = partial(F.batch_norm, running_mean=running_mean, running_var=running_var, eps=eps)
    return Scale(input, {"weight": weight, "bias": bias}, normalize, channels_last=False)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Rule:
    statistics = {"running_mean": running_mean, "running_var": running_var, "use_input_stats": use_input_stats}
    normalize = partial(F.instance_norm, momentum=momentum, eps=eps, **statistics)
    return Scale(input, {"weight": weight, "bias": bias}, normalize, channels_last=False)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Rule:
    normalize = partial(F.group_norm, num_groups=num_groups, eps=eps)
    return Scale(input, {"weight": weight, "bias": bias}, normalize, channels_last=False)


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Rule:
    normalize = partial(F.layer_norm, normalized_shape=normalized_shape, eps=eps)
    return Scale(input, {"weight": weight, "bias": bias}, normalize, channels_last=True)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Rule:
    normalize = partial(F.rms_norm, normalized_shape=normalized_shape, eps=eps)
    return Scale(input, {"weight": weight}, normalize, channels_last=True)


def _prelu(input: Tensor, weight: Tensor) -> Rule:
    return PReLU(input, weight)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Rule | None:
    # the first changes the weight while it is looked up, the second counts words over the whole batch
    return None if max_norm is not None or scale_grad_by_freq else Embedding(input, weight, padding_idx)


RULES: dict[Callable[..., Any], Callable[..., Rule | None]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed_convolution),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.prelu: _prelu,
    F.embedding: _embedding,
}


def _positions_and_channels(tensor: Tensor) -> Tensor:
    """(n, ..., channels) as (n, p, channels)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:-1]), tensor.shape[-1])
