"""A Gram as it is kept: square, or, where that is large, its large directions and the same little in every other that
inputs have.

Shapes: square (groups, columns, columns); factor (groups, columns, rank), rest (groups, columns); matrices
(groups, rows, columns).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KEPT = 0.99  # of the trace, by a low rank
MOST, _FEWEST, _SHARE = 128, 3, 16  # directions of one: at most, at least, and one of so many columns
_NARROW, _NARROW_IN_GROUPS = 256, 8  # columns up to which a Gram stays square; of several groups one has few rows


class LowRank(NamedTuple):
    """factor factor^T + diag(rest); the columns of the factor are at right angles to each other, and the rest is one
    number, and 0 in the columns that no input has."""

    factor: Tensor
    rest: Tensor

    def kept_share(self) -> float:
        """The share of the trace that lies in the directions of the factor, over groups."""
        inside = float(self.factor.square().sum() + self.factor.shape[2] * self.rest.amax(1).sum())
        return inside / float(diagonal(self).sum())


GramMatrix = Tensor | LowRank


def times(matrices: Tensor, gram: GramMatrix) -> Tensor:
    """matrices @ Gram; one of one column is a number for each group."""
    if isinstance(gram, LowRank):
        product = matrices @ gram.factor @ gram.factor.transpose(1, 2)
        return product.addcmul_(matrices, gram.rest.unsqueeze(1))
    return matrices * gram if gram.shape[-1] == 1 else matrices @ gram


def energy(matrices: Tensor, gram: GramMatrix) -> Tensor:
    """tr(W A W^T), over groups: what the map answers, squared, where A is the second moment of its inputs."""
    return (matrices * times(matrices, gram)).sum()


def diagonal(gram: GramMatrix) -> Tensor:
    """(groups, columns)."""
    if isinstance(gram, LowRank):
        return gram.factor.square().sum(2) + gram.rest
    return gram.diagonal(dim1=1, dim2=2)


def scaled(gram: GramMatrix, factor: Tensor | float) -> GramMatrix:
    """The Gram times a factor >= 0."""
    if isinstance(gram, LowRank):
        return LowRank(gram.factor * factor**0.5, gram.rest * factor)
    return gram * factor


def added(one: GramMatrix, other: GramMatrix) -> GramMatrix:
    """The sum; of two of low rank it is of low rank again, and the square itself is never made."""
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        factor, rest = torch.cat([one.factor, other.factor], dim=2), one.rest + other.rest
        own = factor.square().sum((1, 2))
        trace, seen = own + rest.sum(1), (rest > 0) | factor.any(2)
        level = rest.sum(1) / seen.sum(1).clamp_min(1)
        return cut(factor, level, seen, torch.minimum(KEPT * trace, (1 + KEPT) / 2 * own), trace)
    return square(one) + square(other)


def of_groups(gram: GramMatrix, groups: slice) -> GramMatrix:
    """Of some of the groups: a view."""
    return LowRank(gram.factor[groups], gram.rest[groups]) if isinstance(gram, LowRank) else gram[groups]


def square(gram: GramMatrix) -> Tensor:
    """(groups, columns, columns)."""
    if isinstance(gram, LowRank):
        return gram.factor @ gram.factor.transpose(1, 2) + torch.diag_embed(gram.rest)
    return gram


def largest_curvature(gram: GramMatrix) -> Tensor:
    """The largest eigenvalue of all groups' Grams, a scalar, by power iteration: within a few per cent, from below."""
    vector = torch.ones_like(diagonal(gram)).unsqueeze(1)
    for _ in range(20):
        vector = times(vector, gram)
        vector = vector / vector.norm(dim=2, keepdim=True).clamp_min(1e-30)
    return times(vector, gram).norm(dim=2).max()


def eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; in float64 where LAPACK's float32 does not converge."""
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except RuntimeError:  # LinAlgError is one
        values, vectors = torch.linalg.eigh(symmetric.double())
    return values.to(symmetric.dtype), vectors.to(symmetric.dtype)


def most_directions(columns: int) -> int:
    """Of a Gram of so many columns: what a layer learns lies in few, and the others are held alike."""
    return min(MOST, max(_FEWEST, columns // _SHARE))


def narrowed(moment: Tensor) -> GramMatrix:
    """Of a square Gram what `cut` keeps, where it has many columns; else all of it."""
    groups, columns, _ = moment.shape
    if columns <= (_NARROW_IN_GROUPS if groups > 1 else _NARROW):
        return moment
    vectors, values, _ = spectrum(moment)
    factor = vectors * values.sqrt().unsqueeze(1)
    return largest(factor, diagonal(moment))


def largest(factor: Tensor, squares: Tensor) -> LowRank:
    """Of factor factor^T what `cut` keeps; the diagonal (groups, columns) says what is left of the trace, and where."""
    trace = squares.sum(1)
    return cut(factor, torch.zeros_like(trace), squares > 0, KEPT * trace, trace)


def above_rounding(values: Tensor, size: int) -> Tensor:
    """Which eigenvalues (groups, n), of matrices of this size, can be told from 0."""
    return values > values.amax(1, keepdim=True) * size * torch.finfo(values.dtype).eps


class Spectrum(NamedTuple):
    """Eigenvectors (groups, columns, n), their eigenvalues (groups, n), and that of all other directions (groups,).

    Of eigenvalues that cannot be told from 0 the vectors are 0. In columns that no input has it is 0.
    """

    vectors: Tensor
    large: Tensor
    little: Tensor


def spectrum(gram: GramMatrix) -> Spectrum:
    """Of a Gram."""
    if isinstance(gram, LowRank):
        large = gram.factor.square().sum(1)
        vectors = gram.factor / large.sqrt().clamp_min(1e-30).unsqueeze(1)
        little = gram.rest.amax(1)
        return Spectrum(vectors, large + little.unsqueeze(1), little)
    seen = diagonal(gram).amax(0) > 0  # of thousands of columns that no input has LAPACK does not find the eigenvectors
    seen |= ~seen.any()
    values, inside = eigenvectors(gram[:, seen][:, :, seen])
    known = above_rounding(values, gram.shape[-1])
    vectors = inside.new_zeros(len(gram), gram.shape[1], values.shape[1])
    vectors[:, seen] = inside * known.unsqueeze(1)
    return Spectrum(vectors, values * known, torch.zeros_like(values[:, 0]))


def cut(factor: Tensor, level: Tensor, seen: Tensor, kept: Tensor, trace: Tensor) -> LowRank:
    """factor factor^T, and a level (groups,) in every other direction of the columns that are seen (groups, columns).

    With no more directions than have `kept` (groups,) of the factor's, nor than `most_directions`; what is left of the
    trace (groups,) is spread over the others.
    """
    values, vectors = eigenvectors(factor.mT @ factor)
    known = above_rounding(values, values.shape[1])
    needed = int((values.flip(1).cumsum(1) < kept.unsqueeze(1)).sum(1).max()) + 1
    rank = min(int(known.sum(1).max()), needed, most_directions(factor.shape[1]))
    values, vectors, known = values[:, -rank:], vectors[..., -rank:], known[:, -rank:]
    large = (values + level.unsqueeze(1)) * known
    others = (seen.sum(1) - known.sum(1)).clamp_min(1)
    little = ((trace - large.sum(1)) / others).clamp_min(0).unsqueeze(1)
    length = (large - little).clamp_min(0) / values.where(known, torch.ones_like(values))
    return LowRank(factor @ vectors * length.sqrt().unsqueeze(1), little * seen)
