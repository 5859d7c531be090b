"""The rule of convolutions.

Shapes: n samples, each with `repeats` inputs (usually 1); positions are those of the output, columns the numbers of a
weight's row.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine import fused
from tripletmas.protection.engine.rule import (
    Layout,
    Rule,
    add_products,
    buffer_size,
    magnitude_,
    present,
)

# From this many positions on, a convolution's own backward pass for one sample beats unfolding its input.
_MANY_POSITIONS = 16
# Up to so many weights, so many samples at once as groups of one call beat a call for each (measured on x86, oneDNN).
_FEW_WEIGHTS = 2**16
_SAMPLES_AS_GROUPS = 16


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
        self.input, self.weights = input, present(weight, bias)
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
            self._add_products(total, power)
        else:
            grad, images = (self._input, self._grad) if self.transposed else (self._grad, self._input)
            geometry = fused.Geometry(self.stride, self.padding, self.dilation, self.groups)
            twin = partial(self._add_by_torch, power=power)
            fused.add_windows(total, grad, images, power, geometry, otherwise=twin)

    def _add_by_torch(self, total: Tensor, power: int) -> None:
        if self.groups > 1 and self._weight.shape[1] == 1 and self._grad.shape[1] == 1 and not self.transposed:
            self._add_as_groups(total, power)
        elif self._has_few_positions():
            self._add_products(total, power)
        elif self._is_small():
            self._add_as_groups(total, power, at_once=_SAMPLES_AS_GROUPS)
        else:
            for sample in range(len(self._grad)):
                total.add_(magnitude_(self.of_sample("weight", sample), power))

    def of_sample(self, role: str, sample: int) -> Tensor:
        if role == "bias":
            return self._grad[sample].flatten(2).sum((0, 2))
        grad, images = (_inputs_of(each, sample) for each in (self._grad, self._input))
        return self._weight_gradient(grad, images, self._weight, self.groups)

    def _weight_gradient(self, grad: Tensor, images: Tensor, weight: Tensor, groups: int) -> Tensor:
        geometry = self.stride, self.padding, self.dilation, self.transposed, self.output_padding
        which = [False, True, False]
        return torch.ops.aten.convolution_backward(grad, images, weight, None, *geometry, groups, which)[1]

    def _is_small(self) -> bool:
        """Whether one call with samples as groups is faster than a call for each; in float64, which oneDNN does not
        know, it never is."""
        fits = self._weight.numel() <= _FEW_WEIGHTS and (self._weight.shape[1] == 1 or self._weight.shape[1] >= 16)
        is_fast = (
            self._weight.dtype == torch.float32 and not self._weight.is_cuda and torch.backends.mkldnn.is_available()
        )
        return self._is_plain and self._grad.ndim == 5 and self._grad.shape[1] == 1 and fits and is_fast

    def _add_as_groups(self, total: Tensor, power: int, at_once: int | None = None) -> None:
        """Samples, in chunks, as groups of a convolution on one image with the channels of all."""
        step = min(max(1, buffer_size(self._weight) // self._weight.numel()), at_once or len(self._grad))
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

    def _add_products(self, total: Tensor, power: int) -> None:
        """The convolution as a linear map of the unfolded input, (columns, positions) for each image."""
        rows, columns = len(self._weight), self._weight[0].numel()
        step = max(1, 4 * buffer_size(total) // (columns * self._grad.shape[1] * self._grad.shape[3:].numel()))
        # a view only if the total is stored in the order of its shape; in channels_last it is not
        matrix = total.view(rows, columns) if total.is_contiguous() else total.new_zeros(rows, columns)
        for start in range(0, len(self._grad), step):
            left = self._grad[start : start + step].flatten(3)
            right = self._unfolded(self._input[start : start + step])
            left, right = (each.transpose(2, 3).flatten(1, 2) for each in (left, right))
            twin = partial(add_products, left=left, right=right, power=power)
            if self._is_pointwise:
                fused.add_products(matrix, left, right, power, otherwise=twin)
            else:  # which is itself the twin of a kernel
                twin(matrix)
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


def _inputs_of(tensor: Tensor, sample: int) -> Tensor:
    """(n, repeats, ...) -> (repeats, ...) of a sample.

    A single one keeps the stride that it has in its batch: with another, torch's convolutions in float64 give wrong
    gradients of grouped weights in channels_last.
    """
    return tensor.squeeze(1)[sample : sample + 1] if tensor.shape[1] == 1 else tensor[sample]
