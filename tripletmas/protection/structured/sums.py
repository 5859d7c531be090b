"""Second moments of the inputs of linear maps, summed up as the inputs come.

Of a wide map is kept what its moment does to random vectors, from which its large directions are found; the moment
itself is never made: Tropp et al., Fixed-Rank Approximation of a Positive-Semidefinite Matrix from Streaming Data,
NeurIPS 2017.

Shapes: inputs (groups, columns, rows); moments (groups, columns, columns); sketches (groups, columns, vectors + 1),
whose last column is the moment's diagonal.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tripletmas.protection.structured.gram_matrix import MOST, GramMatrix, above_rounding, eigenvectors, largest
from tripletmas.protection.structured.linear_map import LinearMap

WIDE = 1024  # columns from which on a square moment costs more at each step than it is worth
_VECTORS = 2 * MOST
_COMPUTED_WHOLE = 256  # columns of a product with itself; of wider ones half is computed
# So many rows of a map count fully; of later ones fewer and fewer, drawn at random, each for all around it.
_ROWS, _ROWS_OF_WIDE, _ROWS_OF_GROUPS = 16384, 4096, 1024


@final
class MomentSums:
    """The sums so far, which are linear in what was seen: those of several processes add.

    Args:
        exact: count all inputs, and make every moment; else see `relative_grams`.

    Attributes:
        sums: of each map its moment, of which the half under the diagonal is right, or its sketch.
    """

    def __init__(self, *, exact: bool):
        self._exact = exact
        self.sums: dict[LinearMap, Tensor] = {}
        self._seen: dict[LinearMap, int] = {}
        self._kept: dict[int, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)  # a function of the data alone

    def draw(self, each: LinearMap, columns: int, rows: int) -> Tensor | None:
        """As `engine.inputs.Sums`."""
        before = self._seen.get(each, 0)
        self._seen[each] = before + rows
        fully = _ROWS if columns * each.groups <= WIDE else _ROWS_OF_WIDE if each.groups == 1 else _ROWS_OF_GROUPS
        most = int(fully * rows / (before + rows))
        if self._exact or rows <= most:
            return None
        return torch.randint(rows, (max(1, most),), generator=self._generator)

    def add_moment(self, each: LinearMap, moment: Tensor) -> None:
        """As `engine.inputs.Sums`."""
        if each in self.sums:
            self.sums[each].add_(moment)
        else:
            self.sums[each] = moment

    def add_inputs(self, each: LinearMap, inputs: Tensor, weight: float) -> None:
        """As `engine.inputs.Sums`."""
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        columns = inputs.shape[1] + (each.bias is not None)
        is_sketched = columns > WIDE and not self._exact
        if each not in self.sums:
            self.sums[each] = inputs.new_zeros(len(inputs), columns, _VECTORS + 1 if is_sketched else columns)
        if is_sketched:
            _add_to_sketch(self.sums[each], inputs, weight, self._vectors(columns, inputs))
        else:
            _add_to_moment(self.sums[each], inputs, weight)

    def _vectors(self, columns: int, like: Tensor) -> Tensor:
        if columns not in self._kept:
            self._kept[columns] = _vectors(columns, like)
        return self._kept[columns].to(like)


def gram_of(total: Tensor) -> GramMatrix:
    """The moment that was summed up, or of one that was never made what `largest` keeps."""
    if total.shape[1] == total.shape[2]:
        return torch.tril(total) + torch.tril(total, -1).mT
    columns, products, squares = total.shape[1], total[..., :-1], total[..., -1]
    inside = _vectors(columns, total).mT @ products
    values, vectors = eigenvectors((inside + inside.mT) / 2)
    known = above_rounding(values, _VECTORS)
    factor = products @ (vectors * (known / values.where(known, torch.ones_like(values)).sqrt()).unsqueeze(1))
    return largest(factor, squares)


def _add_to_moment(total: Tensor, inputs: Tensor, weight: float) -> None:
    columns = inputs.shape[1]
    _add_products(total[:, :columns, :columns], inputs, weight)
    if total.shape[1] > columns:  # a bias is applied to ones
        total[:, columns, :columns].add_(inputs.sum(2), alpha=weight)
        total[:, columns, columns].add_(weight * inputs.shape[2])


def _add_products(total: Tensor, inputs: Tensor, weight: float) -> None:
    """total += weight inputs inputs^T, of what lies under the diagonal at least."""
    columns = inputs.shape[1]
    if columns <= _COMPUTED_WHOLE:
        total.baddbmm_(inputs, inputs.mT, alpha=weight)
        return
    first, rest = slice(0, columns // 2), slice(columns // 2, None)
    _add_products(total[:, first, first], inputs[:, first], weight)
    _add_products(total[:, rest, rest], inputs[:, rest], weight)
    total[:, rest, first].baddbmm_(inputs[:, rest], inputs[:, first].mT, alpha=weight)


def _add_to_sketch(total: Tensor, inputs: Tensor, weight: float, vectors: Tensor) -> None:
    columns = inputs.shape[1]
    products = inputs.mT @ vectors[:columns]  # (groups, rows, vectors)
    squares = torch.linalg.vector_norm(inputs, dim=2).square()
    if total.shape[1] > columns:
        products = products + vectors[columns]
        total[:, columns, :-1].add_(products.sum(1), alpha=weight)
        total[:, columns, -1].add_(weight * inputs.shape[2])
    total[:, :columns, :-1].baddbmm_(inputs, products, alpha=weight)
    total[:, :columns, -1].add_(squares, alpha=weight)


def _vectors(columns: int, like: Tensor) -> Tensor:
    """Random (columns, vectors), the same whenever they are asked for."""
    return torch.randn(columns, _VECTORS, generator=torch.Generator().manual_seed(columns)).to(like)
