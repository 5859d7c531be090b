"""The quadratic form of a linear map: how much of its response a change of its weights is, over several tasks.

A stored vector of task t was made by the weights W_t of its time, so what an old index needs is

    sum_t tr((W - W_t) A_t (W - W_t)^T),   A_t the input Gram of task t in the unit of the map's response then.

Around the last weights R it is tr(D A D^T) + 2 tr(D C^T) + T, with D = W - R, A = sum_t A_t, C = sum_t (R - W_t) A_t
and T its value at R: its memory does not grow with the tasks. Its gradient is 2 (D A + C).

Shapes: matrices D, C (groups, rows, columns); Grams A stand for (groups, columns, columns).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tripletmas.protection.structured.gram_matrix import GramMatrix, Spectrum, added, diagonal, scaled, times


class Quadratic(NamedTuple):
    """Attributes:
    gram: A.
    offset: C; None where all tasks have the same reference.
    value: T, a scalar.
    tasks: how many tasks are in it, each with what `decay` left of it.
    """

    gram: GramMatrix
    offset: Tensor | None
    value: Tensor
    tasks: float

    def of(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """(the form, a scalar; half its gradient, like `change`) at a change D of the weights."""
        product = times(change, self.gram)
        if self.offset is None:
            return (change * product).sum() + self.value, product
        return (change * (product + 2 * self.offset)).sum() + self.value, product + self.offset

    def share(self, change: Tensor) -> Tensor:
        """The form at a change D of the weights, on the average over the tasks; a scalar."""
        return self.of(change)[0] / self.tasks

    def nearest(self, change: Tensor, most: float, spectrum: Spectrum) -> Tensor:
        """The change that is nearest to this one and at which the form is at most so much; where it is so nowhere, one
        at which it is about least. The spectrum is that of the Gram.

        It is D - m H (I + m A)^-1 with H = D A + C half the gradient, and the form there is less by
        sum_j |H q_j|^2 m (2 + m l_j) / (1 + m l_j)^2, q_j and l_j eigenvectors and eigenvalues of A: m is searched.
        """
        value, half = self.of(change)
        vectors, large, little = spectrum
        turned = half @ vectors
        slopes = turned.square().sum(1)
        other = (half.square().sum((1, 2)) - slopes.sum(1)).clamp_min(0) * (little > 0)
        slopes, values = (
            torch.cat([one.flatten(), other.flatten()]).to("cpu", torch.float64)
            for one, other in ((slopes, other), (large, little))
        )
        low, high = 1e-6 / float(values.max()), 1e12 / float(values.max())
        for _ in range(60):
            middle = (low * high) ** 0.5
            less = (slopes * middle * (2 + middle * values) / (1 + middle * values).square()).sum()
            low, high = (low, middle) if float(value) - float(less) <= most else (middle, high)
        everywhere = (high * (little > 0) / (1 + high * little)).view(-1, 1, 1)
        back = half * everywhere + turned * ((high / (1 + high * large)).unsqueeze(1) - everywhere) @ vectors.mT
        return change - back

    def anchored(self, change: Tensor, *, own: bool) -> Quadratic:
        """The same form around the weights after a change D; unless `own`, every task has its reference there."""
        if not own:
            return self._replace(offset=None, value=torch.zeros_like(self.value))
        value, half = self.of(change)
        return self._replace(offset=half, value=value)

    def with_task(self, gram: GramMatrix, weight: float, decay: float) -> Quadratic:
        """`decay` times the form, and a task that was learned at the reference and counts `weight`."""
        offset = None if self.offset is None else self.offset * decay
        return Quadratic(added(scaled(self.gram, decay), gram), offset, self.value * decay, self.tasks * decay + weight)


def first_task(gram: GramMatrix, weight: float = 1.0) -> Quadratic:
    """The form of one task, which counts `weight`."""
    return Quadratic(gram, None, diagonal(gram).new_zeros(()), weight)
