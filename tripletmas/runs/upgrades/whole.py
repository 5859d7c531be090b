"""What a whole store gives for the measuring part of a sample, read block by block; memory holds one block.

Shapes: m points of the part, g points of a block, dim of the old vectors, new_dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tripletmas.index.base import unit
from tripletmas.runs.upgrades.expected import AS_IT_IS, OLD, Held
from tripletmas.runs.upgrades.fitted import Fitted
from tripletmas.runs.upgrades.neighbours import Nearest, right_first, shared


class Points(NamedTuple):
    """Some points of a store.

    Attributes:
        numbers: (g,) that tell them from others.
        vectors: (g, dim) as they are stored; nan for those without one.
        labels: (g,), NO_LABEL for none.
    """

    numbers: Tensor
    vectors: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """Points of which both models' vectors are known, as they are compared.

    Attributes:
        numbers: (m,) that they have among `Points`.
        old, new: (m, dim) and (m, new_dim).
        labels: (m,), NO_LABEL for none.
    """

    numbers: Tensor
    old: Tensor
    new: Tensor
    labels: Tensor

    def rows(self, rows: Tensor) -> Pairs:
        """Some of them."""
        return Pairs(self.numbers[rows], self.old[rows], self.new[rows], self.labels[rows])


def search_whole(
    blocks: Iterable[Points],
    pairs: Pairs,
    fitted: Fitted,
    *,
    metric: str,
    counts: Tensor | None,
    shares: Sequence[float] = (),
) -> Held:
    """What is known of pairs that no map was fitted on, in the whole store and among themselves.

    Args:
        blocks: of the whole store.
        counts: how many points of each label it holds; None where it has none.
        shares: of the points, that may be embedded again, those first of which the map is least sure.
    """
    move = fitted.map
    inside = _Galleries(fitted, pairs.old, shares)
    found: _Found = {
        name: Nearest(pairs.old if name == OLD else pairs.new, metric, own=pairs.numbers)
        for name in (OLD, 0.0, *shares, 1.0, *([AS_IT_IS] if move.dim == move.new_dim else []))
    }
    size = 0
    for block in blocks:
        size += len(block.numbers)
        vectors = unit(block.vectors) if move.normalize else block.vectors
        there = inside.of(vectors)
        for name, each in found.items():
            each.add(there[name] if isinstance(name, float) else vectors, block.numbers, block.labels)
    right = {} if counts is None else _right(found, pairs.labels, counts)
    own = inside.of(pairs.old)
    return Held(pairs.old, pairs.new, own, inside.again(pairs.old), pairs.labels, right, _same(found), size, metric)


_Found = dict[str | float, Nearest]


def _right(found: _Found, labels: Tensor, counts: Tensor) -> dict[str | float, Tensor]:
    """Of galleries that are the actual ones, and not pretended."""
    return {
        name: right_first(each, labels, counts)
        for name, each in found.items()
        if name == 0 or not isinstance(name, float)
    }


def _same(found: _Found) -> dict[str | float, Tensor]:
    """What each has in common with what is pretended to be embedded again, or with what is moved."""
    return {
        name: shared(each.numbers, found[1.0 if isinstance(name, float) else 0.0].numbers)
        for name, each in found.items()
    }


class _Galleries:
    """A share of a gallery as it is pretended to be embedded again, and the rest moved.

    Args:
        old: (m, dim) a sample, of which the least sure share says from where on vectors are embedded again.
    """

    def __init__(self, fitted: Fitted, old: Tensor, shares: Sequence[float]):
        self._fitted = fitted
        unsure = fitted.uncertainty(old)
        self._least = {share: float(unsure.quantile(1 - share)) for share in shares}

    def again(self, vectors: Tensor) -> dict[float, Tensor]:
        """share -> (g,) which vectors would be embedded again."""
        unsure = self._fitted.uncertainty(vectors)
        some = {share: unsure > least for share, least in self._least.items()}
        return {0.0: torch.zeros_like(unsure, dtype=torch.bool), **some, 1.0: torch.ones_like(unsure, dtype=torch.bool)}

    def of(self, vectors: Tensor) -> dict[float, Tensor]:
        """share -> (g, new_dim) for the old vectors (g, dim)."""
        moved = self._fitted.map.apply(vectors)
        pretended = self._fitted.pretended(vectors, moved)
        return {share: torch.where(rows[:, None], pretended, moved) for share, rows in self.again(vectors).items()}
