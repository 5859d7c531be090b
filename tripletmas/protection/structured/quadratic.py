"""The quadratic form of a linear map: how much of its response a change of its weights is, over several tasks.

A stored vector of task t was made by the weights W_t of its time, so what an old index needs is

    sum_t tr((W - W_t) A_t (W - W_t)^T),   A_t the input Gram of task t in the unit of the map's response then.

Around the last weights R it is tr(D A D^T) + 2 tr(D C^T) + T, with D = W - R, A = sum_t A_t, C = sum_t (R - W_t) A_t
and T its value at R: its memory does not grow with the tasks. Its gradient is 2 (D A + C).

Of weights that are spread over processes D and C are the rows that this one has, and A is whole.

Shapes: matrices D, C (groups, rows, columns); Grams A stand for (groups, columns, columns).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tripletmas.protection.structured.gram_matrix import GramMatrix, Spectrum, added, diagonal, of_groups, scaled, times
from tripletmas.protection.structured.local_map import LocalMap

_COMPACT = {torch.float64: torch.float32, torch.float32: torch.bfloat16}  # half as many bits


class Quadratic(NamedTuple):
    """Attributes:
    gram: A.
    offset: C; None where all tasks have the same reference. It may have half as many bits.
    value: T, a scalar.
    tasks: how many tasks are in it, each with what `decay` left of it.
    """

    gram: GramMatrix
    offset: Tensor | None
    value: Tensor
    tasks: float

    def moved(self, change: Tensor, here: LocalMap | None = None) -> tuple[Tensor, Tensor]:
        """(what a change D of the weights adds to T, a scalar; half the form's gradient, like `change`).

        Args:
            here: what this process has of the map, whose part of the sum it is then; None for all of it.
        """
        half = times(change, self.gram if here is None else of_groups(self.gram, here.groups))
        if self.offset is None:
            return _inner(change, half), half
        offset = self.offset.to(half.dtype)
        half.add_(offset)  # in place, as in `times`: at a large layer new memory costs more than sums
        return _inner(change, half + offset), half

    def of(self, change: Tensor, here: LocalMap | None = None) -> tuple[Tensor, Tensor]:
        """(the form, a scalar; half its gradient, like `change`) at a change D of the weights."""
        moved, half = self.moved(change, here)
        return (moved if here is None else here.total(moved)) + self.value, half

    def nearest(self, change: Tensor, most: float, spectrum: Spectrum, here: LocalMap | None = None) -> Tensor:
        """The change that is nearest to this one and at which the form is at most so much; where it is so nowhere, one
        at which it is about least. The spectrum is that of the Gram."""
        value, half = self.of(change, here)
        edge = to_edge(float(value), half, most, spectrum, here)
        return change - edge.multiplier * edge.half

    def anchored(self, change: Tensor, here: LocalMap | None = None, *, own: bool, exact: bool = True) -> Quadratic:
        """The same form around the weights after a change D; unless `own`, every task has its reference there.

        Unless `exact`, the offset has half as many bits: T is not touched by that, and of what changes add to it later
        the part 2 tr(D C^T) is within rounding, of float32 within 0.4 %.
        """
        if not own:
            return self._replace(offset=None, value=torch.zeros_like(self.value))
        value, half = self.of(change, here)
        return self._replace(offset=half if exact else half.to(_COMPACT.get(half.dtype, half.dtype)), value=value)

    def with_task(self, gram: GramMatrix, weight: float, decay: float) -> Quadratic:
        """`decay` times the form, and a task that was learned at the reference and counts `weight`."""
        offset = None if self.offset is None else self.offset * decay
        return Quadratic(added(scaled(self.gram, decay), gram), offset, self.value * decay, self.tasks * decay + weight)


def first_task(gram: GramMatrix, weight: float = 1.0) -> Quadratic:
    """The form of one task, which counts `weight`."""
    return Quadratic(gram, None, diagonal(gram).new_zeros(()), weight)


class Edge(NamedTuple):
    """Where a form is as much as is allowed, seen from a change D beyond it.

    Attributes:
        multiplier, half: the nearest change there is D - multiplier * half, and half the form's gradient there.
        value: of the form there.
    """

    multiplier: float
    half: Tensor
    value: float


def to_edge(value: float, half: Tensor, most: float, spectrum: Spectrum, here: LocalMap | None = None) -> Edge:
    """Of a change D, at which the form is `value` and half its gradient H = D A + C, the nearest at which it is `most`.

    Half the gradient there is G = H (I + m A)^-1, the change D - m G, and the form there is less by
    sum_j |H q_j|^2 m (2 + m l_j) / (1 + m l_j)^2, q_j and l_j eigenvectors and eigenvalues of A: m is searched.
    """
    groups = slice(None) if here is None else here.groups
    vectors, large, little = (each[groups] for each in spectrum)
    turned = half @ vectors
    slopes = turned.square().sum(1)
    other = (torch.linalg.vector_norm(half, dim=(1, 2)).square() - slopes.sum(1)).clamp_min(0) * (little > 0)
    if here is not None:
        slopes, other = (here.total_of_groups(each, len(spectrum.little)) for each in (slopes, other))
    multiplier, less = _multiplier(value, most, slopes, other, spectrum)
    everywhere = ((little > 0) / (1 + multiplier * little)).view(-1, 1, 1)
    there = turned.mul_((1 / (1 + multiplier * large)).unsqueeze(1) - everywhere) @ vectors.mT
    return Edge(multiplier, there.addcmul_(half, everywhere), value - less)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """The sum of their products, a scalar. Not by `torch.dot`: its last bit depends on where the numbers lie in memory,
    and a resumed run must end as one that was not interrupted."""
    return (one * other).sum()


def _multiplier(value: float, most: float, slopes: Tensor, other: Tensor, spectrum: Spectrum) -> tuple[float, float]:
    """The m at which a form of this value is `most`, as `to_edge` has it, and how much less that is.

    By Newton's method from 0: the form is convex in m, so that it comes to the edge from one side.

    Args:
        slopes, other: |H q_j|^2 over all rows: (groups, n) in the directions of the spectrum, (groups,) in all others.
    """
    slopes, values = (
        torch.cat([one.flatten(), rest.flatten()]).to("cpu", torch.float64)
        for one, rest in ((slopes, other), (spectrum.large, spectrum.little))
    )
    multiplier, less, furthest = 0.0, 0.0, 1e12 / float(values.max())
    for _ in range(100):
        steepness = 2 * float((slopes / (1 + multiplier * values) ** 3).sum())
        step = (value - less - most) / steepness if steepness > 0 else furthest
        multiplier = min(multiplier + step, furthest)
        less = float((slopes * multiplier * (2 + multiplier * values) / (1 + multiplier * values).square()).sum())
        if step <= 1e-9 * multiplier or multiplier == furthest:
            break
    return multiplier, less
