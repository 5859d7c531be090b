"""The rule for convolutions. Shapes: n samples, each of `repeats` images (usually 1) with channels and positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.accumulate import add_products, buffer_size, magnitude_
from tripletmas.protection.engine.layout import Layout
from tripletmas.protection.engine.rule import Rule, Weights, given

# From this many positions on, a convolution's own backward pass for one sample beats unfolding its input.
_MANY_POSITIONS = 16


class Convolution(Rule):
    """Convolutions of one to three dimensions, plain and transposed, with stride, dilation, groups and padding.

    Three ways to the weight's gradient, all exact. Depthwise (and in general few weights a group): samples as further
    groups of one call. Few positions: a matrix product with the unfolded input. Else the convolution's own backward
    pass, a sample at a time.
    """

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        *,
        transposed: bool = False,
        output_padding: Any = 0,
    ):
        spatial = weight.ndim - 2
        self.stride, self.dilation = _per_dimension(stride, spatial), _per_dimension(dilation, spatial)
        if isinstance(padding, str):
            input, padding = _padded_by_hand(input, padding, weight.shape[2:], self.dilation)
        self.padding, self.output_padding = _per_dimension(padding, spatial), _per_dimension(output_padding, spatial)
        self.groups, self.transposed = groups, transposed
        self.input, self.weights = input, {"weight": weight, "bias": bias}

    def run(self, weights: Weights) -> Tensor:
        return torch.convolution(
            self.input,
            given(weights["weight"]),
            weights["bias"],
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    def accepts(self, layout: Layout) -> bool:
        return layout.dim == 0 and self.input.ndim == given(self.weights["weight"]).ndim

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._grad = layout.by_sample(grad, num_samples)  # (n, repeats, channels, ...)
        self._input = layout.by_sample(self.input, num_samples)
        self._num_samples = num_samples

    def add(self, role: str, total: Tensor, power: int) -> None:
        if role == "bias":
            total.add_(magnitude_(self._grad.flatten(3).sum((1, 3)), power).sum(0))
        elif self._is_depthwise():
            self._add_as_groups(total, power)
        elif self._is_pointwise() or self._has_few_positions():
            self._add_products(total, power)
        else:
            for sample in range(self._num_samples):
                total.add_(magnitude_(self.of_sample(role, sample), power))

    def of_sample(self, role: str, sample: int) -> Tensor:
        if role == "bias":
            return self._grad[sample].flatten(2).sum((0, 2))
        weight = given(self.weights["weight"]).detach()
        return self._weight_gradient(self._grad[sample], self._input[sample], weight, self.groups)

    def _weight_gradient(self, grad: Tensor, images: Tensor, weight: Tensor, groups: int) -> Tensor:
        return torch.ops.aten.convolution_backward(
            grad,
            images,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            groups,
            [False, True, False],
        )[1]

    def _is_depthwise(self) -> bool:
        weight = given(self.weights["weight"])
        return self.groups > 1 and weight.shape[1] == 1 and self._grad.shape[1] == 1 and not self.transposed

    def _add_as_groups(self, total: Tensor, power: int) -> None:
        """Samples, in chunks, as groups of a convolution on one image with the channels of all."""
        weight = given(self.weights["weight"]).detach()
        step = max(1, buffer_size(weight) // weight.numel())
        for start in range(0, self._num_samples, step):
            parts = (each[start : start + step] for each in (self._grad, self._input))
            grad, images = (each.flatten(0, 2).unsqueeze(0) for each in parts)
            n = min(step, self._num_samples - start)
            repeated = weight.repeat(n, *(1,) * (weight.ndim - 1))
            gradients = self._weight_gradient(grad, images, repeated, n * self.groups).view(n, *weight.shape)
            total.add_(magnitude_(gradients, power).sum(0))

    def _is_pointwise(self) -> bool:
        weight = given(self.weights["weight"])
        plain = self.groups == 1 and not self.transposed and not any(self.padding)
        return plain and all(size == 1 for size in weight.shape[2:])

    def _has_few_positions(self) -> bool:
        plain = self._grad.ndim == 5 and self.groups == 1 and not self.transposed
        positions = self._grad.shape[1] * self._grad.shape[3:].numel()
        return plain and (positions < _MANY_POSITIONS or self._grad.is_cuda)

    def _add_products(self, total: Tensor, power: int) -> None:
        """The convolution as a linear map of the unfolded input, (columns, positions) for each image."""
        weight = given(self.weights["weight"])
        columns = weight[0].numel()
        step = max(1, 4 * buffer_size(total) // (columns * self._grad.shape[1] * self._grad.shape[3:].numel()))
        # a view only if the total is stored in the order of its shape; in channels_last it is not
        matrix = total.view(len(weight), columns) if total.is_contiguous() else total.new_zeros(len(weight), columns)
        for start in range(0, self._num_samples, step):
            left = self._grad[start : start + step].flatten(3)
            right = self._unfolded(self._input[start : start + step])
            left, right = (each.transpose(2, 3).flatten(1, 2) for each in (left, right))
            add_products(matrix, left, right, power)
        if not total.is_contiguous():
            total.add_(matrix.view(total.shape))

    def _unfolded(self, images: Tensor) -> Tensor:
        """(n, repeats, channels, ...) -> (n, repeats, columns, positions)."""
        if self._is_pointwise():
            return images[(..., *(slice(None, None, step) for step in self.stride))].flatten(3)
        size = tuple(given(self.weights["weight"]).shape[2:])
        unfolded = F.unfold(images.flatten(0, 1), size, tuple(self.dilation), tuple(self.padding), tuple(self.stride))
        return unfolded.unflatten(0, images.shape[:2])


def _per_dimension(value: Any, dimensions: int) -> list[int]:
    return (
        [int(value)] * dimensions
        if not isinstance(value, (tuple, list))
        else list(value) * (dimensions if len(value) == 1 else 1)
    )


def _padded_by_hand(input: Tensor, padding: str, kernel: torch.Size, dilation: list[int]) -> tuple[Tensor, int]:
    """padding="same" may need one more zero at the end than at the start, which numbers alone cannot say."""
    if padding == "valid":
        return input, 0
    amounts = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    sides = [side for amount in reversed(amounts) for side in (amount // 2, amount - amount // 2)]
    return F.pad(input, sides), 0
