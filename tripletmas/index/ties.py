"""Exact scores of pairs, and the order among scores that float32 cannot tell apart.

The exact score of a query x and a vector y, both float32, is the sum of the float64 terms x_j y_j ("inner_product") or
-(x_j - y_j)^2 ("l2"), off by about 2^-106 of the sum of their magnitudes before it is rounded once. For ordinary
vectors the order of summation is then lost in the rounding, and scores that are equal mathematically (duplicates,
permuted entries, integer codes) are equal in bits; where large terms cancel almost entirely they may not be. Equal
scores are ordered by position in the gallery, smallest first.

A search computes quickly and within a known bound. `refined` recomputes only what lies closer to its neighbour in the
ranked list than that bound tells apart: first in plain float64, then, of what that leaves, exactly.

Shapes: n pairs, r queries, m candidates a query, dim.
Source: the sum is the TwoSum of Knuth, The Art of Computer Programming 2, 4.2.2, over a tree of halves.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53  # units of rounding
_PAIR_CELLS = 2**21  # (pair, dim) cells in float64 at once: 16 MB


def rounding_bound(lengths: Tensor, longest: float, dim: int, metric: str, unit_of_rounding: float) -> Tensor:
    """How far a score that was computed with this unit of rounding can lie from the exact one, for each query.

    A sum of products in any order errs by at most dim * unit * |x| |y|. The square of a distance is computed as
    |x|^2 + |y|^2 - 2 x y, so its error grows with the lengths, not with the distance: near vectors cancel.

    Args:
        lengths: (r,) of the queries.
        longest: length of the longest vector that they are compared to.
    """
    size = lengths.double() * longest if metric == "inner_product" else 2 * (lengths.double() + longest).square()
    return (dim + 8) * (unit_of_rounding * size + 2.0**-126)  # near zero rounding is absolute


def pair_scores(
    queries: Tensor, vectors: Tensor, rows: Tensor, positions: Tensor, metric: str, *, exact: bool
) -> Tensor:
    """Scores (n,) float64 of the pairs (queries[rows[i]], vectors[positions[i]]): exact, or in plain float64."""
    scores = torch.empty(len(rows), dtype=torch.float64)
    step = max(_PAIR_CELLS // queries.shape[1], 1)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        x = queries[rows[block].to(queries.device)].cpu().double()
        y = vectors[positions[block].to(vectors.device)].cpu().double()
        terms = x.mul_(y) if metric == "inner_product" else x.sub_(y).square_().neg_()
        scores[block] = _exact_sum(terms) if exact else terms.sum(dim=1)
    return scores


def refined(
    queries: Tensor,
    vectors: Tensor,
    scores: Tensor,
    positions: Tensor,
    bounds: tuple[Tensor, ...],
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Ranked lists in their exact order: by exact score, largest first, then by position.

    Args:
        scores: (r, m) float64, best first, off by at most the first of the bounds.
        positions: (r, m) in the gallery.
        bounds: (r,) each: of the given scores and, if there are two, of plain float64, which is then tried first.

    Returns: scores (r, m), with what was recomputed in place of what was too coarse, and positions (r, m).
    """
    for number, bound in enumerate(bounds):
        exact = number == len(bounds) - 1
        close = scores[:, :-1] - scores[:, 1:] <= 2 * bound[:, None]
        rows = close.any(dim=1).nonzero().flatten()
        if not len(rows):
            continue
        close = torch.nn.functional.pad(close[rows], (1, 1))
        near = close[:, 1:] | close[:, :-1]
        some_scores, some_positions = scores[rows], positions[rows]
        some_scores[near] = pair_scores(
            queries, vectors, rows[near.nonzero()[:, 0]], some_positions[near], metric, exact=exact
        )
        some_scores, some_positions = ordered(some_scores, some_positions)
        if len(rows) == len(scores):
            scores, positions = some_scores, some_positions
        else:
            scores[rows], positions[rows] = some_scores, some_positions
    return scores, positions


def ordered(scores: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Each row by score, largest first, and equal scores by position, smallest first."""
    higher, lower = scores[:, :-1], scores[:, 1:]
    wrong = (higher < lower) | ((higher == lower) & (positions[:, :-1] > positions[:, 1:]))
    rows = wrong.any(dim=1).nonzero().flatten()
    if not len(rows):  # most rows are in order already, and to see that is much quicker than to sort them
        return scores, positions
    by_position = positions[rows].sort(dim=1)
    by_score = scores[rows].gather(1, by_position.indices).sort(dim=1, descending=True, stable=True)
    return (
        scores.index_copy(0, rows, by_score.values),
        positions.index_copy(0, rows, by_position.values.gather(1, by_score.indices)),
    )


def first_equal(rows: Tensor) -> Tensor:
    """For each row (n, dim) float32 the position of the first row that equals it, (n,).

    Rows are told apart by a hash; in the unlikely case that two different rows share one, the later counts as new.
    """
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    step = max(_PAIR_CELLS // rows.shape[1], 1)
    blocks = (block.cpu() + 0.0 for block in rows.split(step))  # -0.0 equals 0.0; not all of them at once
    key = torch.cat([(block.view(torch.int32).long() * weights).sum(dim=1) for block in blocks])
    _, group = key.unique(return_inverse=True)
    own = torch.arange(len(rows))
    first = torch.full((len(rows),), len(rows)).scatter_reduce(0, group, own, "amin")[group]
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        differs = (rows[first[block].to(rows.device)] != rows[block]).any(dim=1).cpu()
        first[block] = torch.where(differs, own[block], first[block])
    return first


def _exact_sum(terms: Tensor) -> Tensor:
    """The sum of each row, (n,): pairs are added, and what rounding takes from each sum is kept and added last."""
    errors = torch.zeros(len(terms), dtype=torch.float64)
    while terms.shape[1] > 1:
        half = (terms.shape[1] + 1) // 2
        left, right = terms[:, :half], torch.nn.functional.pad(terms[:, half:], (0, 2 * half - terms.shape[1]))
        total = left + right
        virtual = total - left
        errors += ((left - (total - virtual)) + (right - virtual)).sum(dim=1)
        terms = total
    return terms[:, 0] + errors
