"""What the weights of a call are applied to: its second moment where that is a number or two a channel or a word, else
the inputs themselves, in parts.

Shapes: moments (groups, columns, columns); parts (groups, columns, rows), without the 1 that a bias is applied to: a
convolution's patches are so copied in long runs, of a line of the image, not in those of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletmas.protection.engine.convolution import Convolution
from tripletmas.protection.engine.kinds import Embedding, Linear, Scale
from tripletmas.protection.engine.rule import buffer_size

# (columns, rows of a pass) -> the rows that count, as their numbers; None for all
Draw = Callable[[int, int], Tensor | None]


def own_moment(rule: Embedding | Scale, *, has_weight: bool, has_bias: bool) -> Tensor:
    """The sum over samples and positions of a a^T, a 1 after a where there is a bias, of each word or channel by
    itself."""
    if isinstance(rule, Scale):
        return _of_scale(rule, has_weight, has_bias)
    counts = torch.bincount(rule.input.flatten().long(), minlength=len(rule.weights["weight"]))
    if rule.padding_index is not None:  # its row is not trained
        counts[rule.padding_index] = 0
    return counts.to(rule.weights["weight"].dtype).view(-1, 1, 1)


def input_parts(rule: Linear | Convolution, draw: Draw) -> Iterator[tuple[Tensor, float]]:
    """The inputs of a call, of which one stands for so many: parts (groups, columns, rows) and that number."""
    if isinstance(rule, Convolution):
        yield from _patch_parts(rule, draw)
        return
    inputs = rule.input.flatten(0, -2)
    chosen = draw(inputs.shape[1], len(inputs))
    counted = inputs if chosen is None else inputs[chosen.to(inputs.device)]
    yield counted.t().unsqueeze(0), len(inputs) / max(1, len(counted))


def _of_scale(rule: Scale, has_weight: bool, has_bias: bool) -> Tensor:
    """Of each channel by itself: the normalised input, and a 1."""
    shape = next(iter(rule.weights.values())).shape
    inputs = rule.scaled(rule.input) if has_weight else torch.ones_like(rule.input)
    if rule.along == "channels":
        inputs = inputs.transpose(0, 1).flatten(1)
    elif rule.along == "last":
        inputs = inputs.reshape(-1, shape.numel()).t()
    else:
        inputs = inputs.reshape(1, -1)
    square = inputs.square().sum(1)
    if not (has_weight and has_bias):
        return square.view(-1, 1, 1)
    total = inputs.sum(1)
    return torch.stack([square, total, total, torch.full_like(total, inputs.shape[1])], 1).view(-1, 2, 2)


def _patch_parts(rule: Convolution, draw: Draw) -> Iterator[tuple[Tensor, float]]:
    images = _padded(rule)
    windows = _windows(rule, images)
    columns = windows.shape[1] // rule.groups * math.prod(rule.kernel)
    places = torch.Size([windows.shape[0], *windows.shape[2 : 2 + len(rule.kernel)]])
    # as many rows at a time as fit a buffer, and as many as there are columns: sums of squares cost, too
    rows, at_once = places.numel(), max(columns, buffer_size(windows) // (columns * rule.groups))
    chosen = draw(columns, rows)
    if chosen is None:
        for part in windows.split(max(1, at_once * len(windows) // rows)):
            yield _patches(rule, part), 1.0
        return
    pixels, numbers = _pixels(images)
    under = _windows(rule, numbers)
    for part in chosen.to(images.device).split(at_once):
        where: list[Any] = list(torch.unravel_index(part, places))
        kernels = under[(where[0], slice(None), *where[1:])]
        yield _drawn_patches(rule, pixels, kernels), rows / len(chosen)


def _patches(rule: Convolution, windows: Tensor) -> Tensor:
    """What a convolution's weight is applied to: (groups, channels of a group * kernel, rows).

    Args:
        windows: (n, channels, *positions, *kernel).
    """
    dims = len(rule.kernel)
    windows = _as_applied(rule, windows).unflatten(1, (rule.groups, -1))  # (n, groups, channels, ...)
    last = windows.ndim
    patches = windows.permute(1, 2, *range(last - dims, last), 0, *range(3, last - dims))
    return patches.flatten(2 + dims).flatten(1, 1 + dims)


def _drawn_patches(rule: Convolution, pixels: Tensor, kernels: Tensor) -> Tensor:
    """The same of single places. All channels of a pixel lie side by side, and are copied at once.

    Args:
        pixels: (pixels, channels).
        kernels: (rows, 1, *kernel), the numbers of the pixels under the kernel.
    """
    numbers = _as_applied(rule, kernels).flatten(1)
    found = pixels.index_select(0, numbers.flatten())
    return found.view(*numbers.shape, rule.groups, -1).permute(2, 3, 1, 0).flatten(1, 2)


def _as_applied(rule: Convolution, windows: Tensor) -> Tensor:
    """A transposed convolution adds up in the output what lies mirrored in the input."""
    return windows.flip(list(range(-len(rule.kernel), 0))) if rule.transposed else windows


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """(pixels, channels) of images (n, channels, *positions), and the numbers of these pixels (n, 1, *positions)."""
    pixels = images.movedim(1, -1)
    numbers = torch.arange(pixels[..., 0].numel(), device=images.device)
    return pixels.flatten(0, -2), numbers.view(len(images), 1, *images.shape[2:])


def _padded(rule: Convolution) -> Tensor:
    """The images (n, channels, *positions) over which the kernel goes."""
    images = rule.input if rule.input.ndim == len(rule.kernel) + 2 else rule.input.unsqueeze(0)
    if rule.transposed:
        return _spaced(rule, images)
    sides = rule.added or [side for amount in reversed(rule.padding) for side in (amount, amount)]
    return F.pad(images, sides) if any(sides) else images


def _windows(rule: Convolution, images: Tensor) -> Tensor:
    """Views of what is under the kernel at all its places: (n, channels, *positions, *kernel)."""
    stride = (1,) * len(rule.kernel) if rule.transposed else rule.stride
    for dim, (size, jump, spread) in enumerate(zip(rule.kernel, stride, rule.dilation, strict=True)):
        # one dimension after the other: windows of the span, of which every `spread`-th is under the kernel
        images = images.unfold(dim + 2, spread * (size - 1) + 1, jump)[..., ::spread]
    return images


def _spaced(rule: Convolution, images: Tensor) -> Tensor:
    """The image of which a transposed convolution is a plain one: zeros between its pixels and around them."""
    sizes = [(size - 1) * jump + 1 for size, jump in zip(images.shape[2:], rule.stride, strict=True)]
    spaced = images.new_zeros(*images.shape[:2], *sizes)
    spaced[(..., *(slice(None, None, jump) for jump in rule.stride))] = images
    sides = []
    for size, pad, spread, more in zip(rule.kernel, rule.padding, rule.dilation, rule.output_padding, strict=True):
        around = spread * (size - 1) - pad
        sides.append((around, around + more))
    return F.pad(spaced, [side for pair in reversed(sides) for side in pair])
