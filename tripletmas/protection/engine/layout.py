"""Where the samples of a batch are in a tensor inside the model.

A layer may see the samples along any dimension, or merged with another one (windows of an image, positions of a
sequence). The layout is found by passing one sample alone through the model and comparing what each layer returns with
what it returned in the batch: shapes say along which dimension the samples are, values in which order, and that the
other samples of the batch have no influence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# How far a sample's values in a batch may be from those it has alone, relative to their norm: rounding, not influence.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}


@dataclass(frozen=True)
class Layout:
    """The samples are along `dim`, (n, repeats) merged into one; `minor`: in the order (repeats, n)."""

    dim: int
    minor: bool = False

    def by_sample(self, tensor: Tensor, num_samples: int) -> Tensor:
        """The tensor as (n, repeats, ...), without `dim`; a view where strides allow."""
        repeats = tensor.shape[self.dim] // num_samples
        if self.minor:
            return tensor.unflatten(self.dim, (repeats, num_samples)).movedim((self.dim + 1, self.dim), (0, 1))
        return tensor.unflatten(self.dim, (num_samples, repeats)).movedim((self.dim, self.dim + 1), (0, 1))


def find_layout(alone: Tensor, batched: Tensor, num_samples: int, sample: int) -> Layout | None:
    """The layout in which `batched` has `alone` as its sample number `sample`; None if there is none, or two.

    Args:
        alone: what a layer returns for the sample alone.
        batched: what it returns for the whole batch.
    """
    candidates = layouts_by_shape(alone.shape, batched.shape, num_samples)
    near = [each for each in candidates if is_near(each.by_sample(batched, num_samples)[sample], alone, each)]
    return near[0] if len(near) == 1 else None


def layouts_by_shape(alone: torch.Size, batched: torch.Size, num_samples: int) -> list[Layout]:
    """The layouts that the shapes allow: none, one, or the two orders of a merged dimension."""
    if len(alone) != len(batched):
        return []
    differing = [dim for dim in range(len(alone)) if alone[dim] != batched[dim]]
    if len(differing) != 1 or batched[differing[0]] != num_samples * alone[differing[0]]:
        return []
    dim = differing[0]
    return [Layout(dim)] if alone[dim] == 1 else [Layout(dim), Layout(dim, minor=True)]


def is_near(found: Tensor, alone: Tensor, layout: Layout | None = None) -> bool:
    """Whether these are the values that the sample has alone, up to rounding."""
    if layout is not None:
        alone = alone.movedim(layout.dim, 0)
    if not alone.is_floating_point():
        return torch.equal(found, alone)
    tolerance = _TOLERANCE.get(alone.dtype, _TOLERANCE[torch.float32])
    return bool((found - alone).norm() <= tolerance * alone.norm())
