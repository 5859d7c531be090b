"""What a rule is: the gradient of every single sample, from one batch's backward pass, for one call of a function.

A rule is made from the arguments of the call, and is later given the gradient with respect to what the call returned.
That and the saved input are all it takes. Weights reach a function as parameters or as tensors that are computed from
parameters alone; a rule does not mind which. Below are the two things of which rules are made: where the samples are in
a tensor, and sums of magnitudes over them.

Shapes: n samples, p positions (all but samples and channels), weights (rows, columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# How far a sample's values in a batch may be from those it has alone, relative to their norm: rounding, not influence.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
# Numbers in a temporary tensor, by device: on a CPU what stays in its cache, on a GPU what fills it with work.
_BUFFER = {"cpu": 2**20, "cuda": 2**26}
# Below this many positions a product is bound by writing its result: several samples at once, in strips of rows.
_FEW_POSITIONS = 32
_SAMPLES_AT_ONCE = 16


class Rule:
    """One call of a function with weights. Abstract: concrete rules are final.

    Attributes:
        input: what the weights are applied to.
        weights: those that the call has, by role ("weight", "bias").
    """

    input: Tensor
    weights: dict[str, Tensor]

    def accepts(self, layout: Layout) -> bool:
        """Whether the samples may be where this layout says they are in the output."""
        raise NotImplementedError

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        """Take the gradient with respect to the output; `add` and `of_sample` may be called from here on."""
        raise NotImplementedError

    def of_sample(self, role: str, sample: int) -> Tensor:
        """The gradient of one sample, in the shape of the weight."""
        raise NotImplementedError

    def gradients(self, role: str, start: int, stop: int) -> Tensor:
        """Of the samples [start, stop): (samples, *weight.shape)."""
        return torch.stack([self.of_sample(role, sample) for sample in range(start, stop)])

    def add(self, role: str, total: Tensor, power: int) -> None:
        """total += sum_k |gradient_k|^power; `of_sample` is no longer right after it."""
        raise NotImplementedError


def present(weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
    """The weights that a call has, by role."""
    return {role: each for role, each in (("weight", weight), ("bias", bias)) if each is not None}


class SmallWeights(Rule):
    """Weights that are few compared with what they are applied to: all samples' gradients fit in memory, by chunks."""

    def backward(self, grad: Tensor, layout: Layout, num_samples: int) -> None:
        self._grad = layout.by_sample(grad, num_samples)
        self._input = layout.by_sample(self.input, num_samples)

    def of_sample(self, role: str, sample: int) -> Tensor:
        return self.gradients(role, sample, sample + 1)[0]

    def add(self, role: str, total: Tensor, power: int) -> None:
        num_samples = len(self._grad)
        step = max(1, buffer_size(self._grad) * num_samples // max(1, self._grad.numel()))
        for start in range(0, num_samples, step):
            total.add_(magnitude_(self.gradients(role, start, min(start + step, num_samples)), power).sum(0))


# --- where the samples of a batch are in a tensor inside the model


@dataclass(frozen=True)
class Layout:
    """The samples are along `dim`, (n, repeats) merged into one; `minor`: in the order (repeats, n).

    A layer may see the samples along any dimension, or merged with another one (windows of an image, positions of a
    sequence).
    """

    dim: int
    minor: bool = False

    def by_sample(self, tensor: Tensor, num_samples: int) -> Tensor:
        """The tensor as (n, repeats, ...), without `dim`; a view where strides allow."""
        repeats = tensor.shape[self.dim] // num_samples
        if self.minor:
            return tensor.unflatten(self.dim, (repeats, num_samples)).movedim((self.dim + 1, self.dim), (0, 1))
        return tensor.unflatten(self.dim, (num_samples, repeats)).movedim((self.dim, self.dim + 1), (0, 1))


def layouts_by_shape(alone: torch.Size, batched: torch.Size, num_samples: int) -> list[Layout]:
    """The layouts that the shapes allow: none, one, or the two orders of a merged dimension.

    Args:
        alone: of what a layer returns for one sample alone.
        batched: of what it returns for the whole batch.
    """
    if len(alone) != len(batched):
        return []
    differing = [dim for dim in range(len(alone)) if alone[dim] != batched[dim]]
    if len(differing) != 1 or batched[differing[0]] != num_samples * alone[differing[0]]:
        return []
    dim = differing[0]
    return [Layout(dim)] if alone[dim] == 1 else [Layout(dim), Layout(dim, minor=True)]


def is_near(found: Tensor, alone: Tensor) -> Tensor:
    """Whether these are the values that the sample has alone, up to rounding; to look at it, a GPU is waited for."""
    if not alone.is_floating_point():
        return (found == alone).all()
    tolerance = _TOLERANCE.get(alone.dtype, _TOLERANCE[torch.float32])
    return (found - alone).norm() <= tolerance * alone.norm()


# --- sums over samples of |gradient|^power, without ever holding the gradients of all samples


def buffer_size(tensor: Tensor) -> int:
    """How many numbers a temporary tensor on the device of this one should have at most."""
    return _BUFFER.get(tensor.device.type, _BUFFER["cuda"])


def magnitude_(gradient: Tensor, power: int) -> Tensor:
    """|gradient|^power, in place."""
    return gradient.abs_() if power == 1 else gradient.square_()


def add_products(total: Tensor, left: Tensor, right: Tensor, power: int) -> None:
    """total += sum_k |left_k^T right_k|^power.

    A weight that is applied at several positions has, for sample k, the gradient `left_k^T right_k`, a product over
    positions. It goes into a small buffer that is used again and again; its magnitude is then added to the total.

    Args:
        total: (rows, columns).
        left: (n, p, rows).
        right: (n, p, columns).
    """
    num_samples, positions, num_rows = left.shape
    columns = right.shape[2]
    if positions == 1:  # |b a^T| = |b| |a|^T: no gradient of a single sample is needed
        total.addmm_(magnitude_(left[:, 0].clone(), power).t(), magnitude_(right[:, 0].clone(), power))
        return
    size = buffer_size(total)
    at_once = 1 if positions >= _FEW_POSITIONS else min(num_samples, _SAMPLES_AT_ONCE)
    height = max(1, min(num_rows, size // (columns * at_once)))
    at_once = max(1, min(num_samples, size // (height * columns)))
    buffer = total.new_empty(at_once * height * columns)
    for top in range(0, num_rows, height):
        strip = total[top : top + height]
        transposed = left[:, :, top : top + height].transpose(1, 2)
        for start in range(0, num_samples, at_once):
            some = transposed[start : start + at_once]
            products = buffer[: len(some) * strip.numel()].view(len(some), *strip.shape)
            torch.bmm(some, right[start : start + at_once], out=products)
            magnitude_(products, power)
            strip.add_(products[0] if len(some) == 1 else products.sum(0))
