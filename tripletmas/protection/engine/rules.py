"""The rules, and the table: function -> what makes a rule of its arguments.

Shapes: n samples, each with `repeats` inputs (usually 1), p positions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine import fused
from tripletmas.protection.engine.rule import Layout, Rule, SmallWeights, add_products, buffer_size, magnitude_

# From this many positions on, a convolution's own backward pass for one sample beats unfolding its input.
_MANY_POSITIONS = 16


class Linear(Rule):
    """input (..., in), weight (out, in), bias (out): any number of positions a sample.

    Args:
        transposed: the weight is (in, out), as in `input @ weight`.
    """

    def __init__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *, transposed: bool = False):
        self.input, self.weights, self.transposed = input, _present(weight, bias), transposed

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
            _add_products(total, self._left, self._right, power)

    def of_sample(self, role: str, sample: int) -> Tensor:
        return self._grad[sample].sum(0) if role == "bias" else self._left[sample].t() @ self._right[sample]


class Convolution(Rule):
    """Convolutions of one to three dimensions, plain and transposed, with stride, dilation, groups and padding.

    Ways to the weight's gradient, all exact. Pointwise: as a linear map. On a GPU: a kernel that unfolds the input as
    it goes. Else, depthwise (and in general few weights a group): samples as further groups of one call. Few positions:
    a matrix product with the unfolded input. Else the convolution's own backward pass, a sample at a time.
    """

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        transposed: bool = False,
        output_padding: Any = 0,
    ):
        self.input, self.weights = input, _present(weight, bias)
        self._weight, self.kernel = weight.detach(), tuple(weight.shape[2:])
        self.stride, self.dilation = self._per_dimension(stride), self._per_dimension(dilation)
        self.added = self._zeros_around(padding) if isinstance(padding, str) else []
        self.padding = self._per_dimension(0 if isinstance(padding, str) else padding)
        self.output_padding = self._per_dimension(output_padding)
        self.groups, self.transposed = groups, transposed
        self._is_plain = groups == 1 and not transposed
        self._is_pointwise = self._is_plain and not any(self.padding) and not self.added and set(self.kernel) == {1}

    def accepts(self, layout: Layout) -> bool:
        return layout.dim == 0 and self.input.ndim == self._weight.ndim

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._grad = layout.by_sample(grad, num_samples)  # (n, repeats, channels, ...)
        self._input = layout.by_sample(F.pad(self.input, self.added) if self.added else self.input, num_samples)

    def add(self, role: str, total: Tensor, power: int) -> None:
        if role == "bias":
            total.add_(magnitude_(self._grad.flatten(3).sum((1, 3)), power).sum(0))
        elif self._is_pointwise:
            self._add_products(total, power, _add_products)
        else:
            grad, images = (self._input, self._grad) if self.transposed else (self._grad, self._input)
            geometry = fused.Geometry(self.stride, self.padding, self.dilation, self.groups)
            twin = partial(self._add_by_torch, power=power)
            fused.add_windows(total, grad, images, power, geometry, otherwise=twin)

    def _add_by_torch(self, total: Tensor, power: int) -> None:
        if self.groups > 1 and self._weight.shape[1] == 1 and self._grad.shape[1] == 1 and not self.transposed:
            self._add_as_groups(total, power)
        elif self._has_few_positions():
            self._add_products(total, power, add_products)
        else:
            for sample in range(len(self._grad)):
                total.add_(magnitude_(self.of_sample("weight", sample), power))

    def of_sample(self, role: str, sample: int) -> Tensor:
        if role == "bias":
            return self._grad[sample].flatten(2).sum((0, 2))
        return self._weight_gradient(self._grad[sample], self._input[sample], self._weight, self.groups)

    def _weight_gradient(self, grad: Tensor, images: Tensor, weight: Tensor, groups: int) -> Tensor:
        geometry = self.stride, self.padding, self.dilation, self.transposed, self.output_padding
        which = [False, True, False]
        return torch.ops.aten.convolution_backward(grad, images, weight, None, *geometry, groups, which)[1]

    def _add_as_groups(self, total: Tensor, power: int) -> None:
        """Samples, in chunks, as groups of a convolution on one image with the channels of all."""
        step = max(1, buffer_size(self._weight) // self._weight.numel())
        for start in range(0, len(self._grad), step):
            grad, images = self._grad[start : start + step], self._input[start : start + step]
            n = len(grad)
            grad, images = (each.flatten(0, 2).unsqueeze(0) for each in (grad, images))
            repeated = self._weight.repeat(n, *(1,) * (self._weight.ndim - 1))
            gradients = self._weight_gradient(grad, images, repeated, n * self.groups).view(n, *self._weight.shape)
            total.add_(magnitude_(gradients, power).sum(0))

    def _has_few_positions(self) -> bool:
        positions = self._grad.shape[1] * self._grad.shape[3:].numel()
        return self._is_plain and self._grad.ndim == 5 and (positions < _MANY_POSITIONS or self._grad.is_cuda)

    def _add_products(self, total: Tensor, power: int, add: Callable[[Tensor, Tensor, Tensor, int], None]) -> None:
        """The convolution as a linear map of the unfolded input, (columns, positions) for each image."""
        rows, columns = len(self._weight), self._weight[0].numel()
        step = max(1, 4 * buffer_size(total) // (columns * self._grad.shape[1] * self._grad.shape[3:].numel()))
        # a view only if the total is stored in the order of its shape; in channels_last it is not
        matrix = total.view(rows, columns) if total.is_contiguous() else total.new_zeros(rows, columns)
        for start in range(0, len(self._grad), step):
            left = self._grad[start : start + step].flatten(3)
            right = self._unfolded(self._input[start : start + step])
            left, right = (each.transpose(2, 3).flatten(1, 2) for each in (left, right))
            add(matrix, left, right, power)
        if not total.is_contiguous():
            total.add_(matrix.view(total.shape))

    def _unfolded(self, images: Tensor) -> Tensor:
        """(n, repeats, channels, ...) -> (n, repeats, columns, positions)."""
        if self._is_pointwise:
            return images[(..., *(slice(None, None, step) for step in self.stride))].flatten(3)
        unfolded = F.unfold(images.flatten(0, 1), self.kernel, self.dilation, self.padding, self.stride)
        return unfolded.unflatten(0, images.shape[:2])

    def _per_dimension(self, value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, (tuple, list)) else (int(value),)
        return values * len(self.kernel) if len(values) == 1 else values

    def _zeros_around(self, padding: str) -> list[int]:
        """As `F.pad` takes them: "same" may need one more at the end than at the start, which one number cannot say."""
        if padding == "valid":
            return []
        amounts = [step * (size - 1) for size, step in zip(self.kernel, self.dilation, strict=True)]
        return [side for amount in reversed(amounts) for side in (amount // 2, amount - amount // 2)]


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


# --- from a call to a rule: None where a rule does not apply


def _matmul(input: Tensor, other: Tensor) -> Rule | None:
    return Linear(input, other, transposed=True) if other.ndim == 2 and input.ndim >= 2 else None


def _transposed_convolution(*args: Any, **kwargs: Any) -> Rule:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    return Convolution(**dict(zip(names, args, strict=False)), **kwargs, transposed=True)


def _normalisation(function: Callable[..., Tensor], along: Literal["last", "channels"]) -> Callable[..., Rule | None]:
    def make(*args: Any, **kwargs: Any) -> Rule | None:
        options = _bound(function, args, kwargs)
        if options.get("training"):
            return None  # normalised by the batch: samples influence each other
        weights = _present(options.pop("weight", None), options.pop("bias", None))
        return Scale(options.pop("input"), weights, partial(function, **options), along)

    return make


def _prelu(input: Tensor, weight: Tensor) -> Rule:
    return Scale(
        input, {"weight": weight}, partial(torch.clamp, max=0), "nothing" if weight.numel() == 1 else "channels"
    )


def _embedding(*args: Any, **kwargs: Any) -> Rule | None:
    call = _bound(F.embedding, args, kwargs)
    # the first changes the weight while it is looked up, the second counts words over the whole batch
    if call.get("max_norm") is not None or call.get("scale_grad_by_freq"):
        return None
    return Embedding(call["input"], call["weight"], call.get("padding_idx"))


def _bound(function: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call by name, without defaults."""
    return dict(_signature(function).bind(*args, **kwargs).arguments)


_signature = cache(inspect.signature)

RULES: dict[Callable[..., Any], Callable[..., Rule | None]] = {
    F.linear: Linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), Convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed_convolution),
    F.layer_norm: _normalisation(F.layer_norm, "last"),
    F.rms_norm: _normalisation(F.rms_norm, "last"),
    **{each: _normalisation(each, "channels") for each in (F.batch_norm, F.instance_norm, F.group_norm)},
    F.prelu: _prelu,
    F.embedding: _embedding,
}


def _present(weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
    """The weights that a call has, by role."""
    return {role: each for role, each in (("weight", weight), ("bias", bias)) if each is not None}


def _add_products(total: Tensor, left: Tensor, right: Tensor, power: int) -> None:
    """As `add_products`, on a GPU by a kernel; at one position there is no gradient of a sample to take together."""
    twin = partial(add_products, left=left, right=right, power=power)
    if left.shape[1] == 1:
        twin(total)
    else:
        fused.add_products(total, left, right, power, otherwise=twin)


def _positions_and_channels(tensor: Tensor) -> Tensor:
    """(n, ..., channels) as (n, p, channels)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:-1]), tensor.shape[-1])
