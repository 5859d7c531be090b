"""Sums over samples of |per-sample gradient|^p, without ever holding the gradients of all samples.

A weight that is applied at several positions has, for sample k, the gradient `left_k^T right_k`, a product over
positions. It goes into a small buffer that is used again and again; its magnitude is then added to the total.

Shapes: n samples, p positions, weights (rows, columns).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers in the buffer, by device: on a CPU what stays in its cache, on a GPU what fills it with work.
_BUFFER = {"cpu": 2**20, "cuda": 2**26}
# Below this many positions a product is bound by writing its result: several samples at once, in strips of rows.
_FEW_POSITIONS = 32
_SAMPLES_AT_ONCE = 16


def buffer_size(tensor: Tensor) -> int:
    """How many numbers a temporary tensor on the device of this one should have at most."""
    return _BUFFER.get(tensor.device.type, _BUFFER["cuda"])


def magnitude_(gradient: Tensor, power: int) -> Tensor:
    """|gradient|^power, in place."""
    return gradient.abs_() if power == 1 else gradient.square_()


def add_products(total: Tensor, left: Tensor, right: Tensor, power: int) -> None:
    """total += sum_k |left_k^T right_k|^power.

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
