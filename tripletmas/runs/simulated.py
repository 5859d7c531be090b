"""What searches find where vectors have moved: imagined images stand for what is stored, as queries and embedded again.

Shapes: g vectors of a part, n of them with an imagined image, dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tripletmas.index.base import unit
from tripletmas.index.drift import fit_drift
from tripletmas.index.exact import ExactIndex

FRESH, STALE, COMPENSATED = "fresh", "stale", "compensated"
GALLERIES = (STALE, COMPENSATED, FRESH)
_ENOUGH = 10  # queries of each class that stand for the class


@dataclass(frozen=True, eq=False)
class Part:
    """Stored vectors of one model, of unit length, and where others have some of them.

    Attributes:
        vectors, labels: (g, dim), (g,).
        compensated: (g, dim), as a map moves them; None where no map is in use.
        rows: (n,), those of which the rest is known; they are the queries.
        now: (n, dim), where the present model puts the images that stand for these rows.
        before: (n, dim), where the model before the update put them.
        compensated_before: (g, dim), as maps had moved them before the update; None where that is not known.
        is_current, was_current: the vectors are of the present model, of the model before the update.
        weight: how much the part counts in means over parts.
    """

    vectors: Tensor
    labels: Tensor
    compensated: Tensor | None
    rows: Tensor
    now: Tensor
    before: Tensor
    compensated_before: Tensor | None = None
    is_current: bool = False
    was_current: bool = False
    weight: float = 1.0


def stale_parts(parts: Sequence[Part]) -> list[Part]:
    """Those that are not of the present model."""
    return [part for part in parts if not part.is_current]


def before_update(parts: Sequence[Part]) -> list[Part]:
    """The parts that there were before the update, as they were then."""
    return [
        replace(part, now=part.before, compensated=part.compensated_before, is_current=part.was_current)
        for part in stale_parts(parts)
    ]


# --- how far vectors move


def cosine_to_stored(part: Part, scale: float) -> Tensor:
    """(n,) between the vectors of a part and their re-embeddings."""
    stored = part.vectors[part.rows]
    return (stored * on_the_way(stored, part.now, scale)).sum(dim=1)


def mean_cosine(vectors: Tensor) -> float:
    """Of two of these unit vectors (n, dim), each with each other; nan for fewer than two."""
    n = len(vectors)
    return (float(vectors.double().sum(dim=0).square().sum()) - n) / (n * (n - 1)) if n > 1 else math.nan


def on_the_way(start: Tensor, end: Tensor, scale: float) -> Tensor:
    """Unit vectors (n, dim) on the way from start to end, and beyond: at 0 the start, at 1 the end."""
    return end if scale == 1 else unit(start + scale * (end - start))


def now_at(parts: Sequence[Part], scale: float) -> list[Tensor]:
    """Where the queries of each part are, if they moved `scale` times as far as their images."""
    return [on_the_way(part.vectors[part.rows], part.now, scale) for part in parts]


def moved_like(vectors: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """All vectors (g, dim), moved as those at `rows` (n,) move to `ends` (n, dim).

    By an affine map fitted on these, and by what it leaves unexplained of the one that is nearest.
    """
    move = fit_drift("linear", vectors[rows], ends)
    rest = ends - unit(move(vectors[rows]))
    nearest = ExactIndex.over(vectors[rows].contiguous()).search(vectors, 1)[1][:, 0]
    moved = unit(unit(move(vectors)) + rest[nearest])
    moved[rows] = ends
    return moved


# --- what is found


def simulated(parts: Sequence[Part], scale: float = 1.0) -> dict[str, list[float]]:
    """gallery -> recall@1 of each part, where vectors moved `scale` times as far as their images.

    What is stored, and what a map has moved, is searched as it lies. Embedded again is what imagined images stand for.
    """
    now = now_at(parts, scale)
    found = {STALE: recalls(parts, now, [part.vectors for part in parts])}
    moved = [part.compensated for part in parts if part.compensated is not None]
    if len(moved) == len(parts):
        found[COMPENSATED] = recalls(parts, now, moved)
    return {**found, FRESH: again_recalls(parts, now)}


def again_recalls(parts: Sequence[Part], ends: Sequence[Tensor]) -> list[float]:
    """recall@1 of each part, where one model has embedded everything, and its rows (n, dim) are known.

    The rows alone are searched, as many of each part, if there are at least ten of each class; else all vectors, moved
    as their rows were.
    """
    if any(len(part.rows) < _ENOUGH * len(part.labels.unique()) for part in parts):
        return recalls(parts, ends, [moved_like(p.vectors, p.rows, e) for p, e in zip(parts, ends, strict=True)])
    count = min(len(part.rows) for part in parts)
    drawn = [torch.linspace(0, len(part.rows) - 1, count).round().long() for part in parts]
    vectors = [each[rows] for each, rows in zip(ends, drawn, strict=True)]
    labels = [part.labels[part.rows[rows]] for part, rows in zip(parts, drawn, strict=True)]
    found = [
        replace(part, vectors=each, labels=of, rows=torch.arange(count))
        for part, each, of in zip(parts, vectors, labels, strict=True)
    ]
    return recalls(found, vectors, vectors)


def recalls(parts: Sequence[Part], queries: Sequence[Tensor], galleries: Sequence[Tensor]) -> list[float]:
    """recall@1 of each part's queries (n, dim), which stand for its rows, in all galleries (g, dim) together.

    A query's own vector is left out of its search. What has no other of its label to find does not count; nan for a
    part with no other query.
    """
    gallery, labels = torch.cat(list(galleries)).contiguous(), torch.cat([part.labels for part in parts])
    values, counts = labels.unique(return_counts=True)
    index, start, found = ExactIndex.over(gallery), 0, []
    for part, query in zip(parts, queries, strict=True):
        of, own = part.labels[part.rows], part.rows + start
        counted = torch.isin(of, values[counts > 1])
        nearest = index.search(query, 2)[1]
        first = torch.where(nearest[:, 0] == own, nearest[:, 1], nearest[:, 0])
        right = labels[first] == of
        found.append(float(right[counted].double().mean()) if counted.any() else math.nan)
        start += len(part.labels)
    return found


def mean_of(parts: Sequence[Part], found: Sequence[float]) -> float:
    """The mean over parts by their weight, without those that are nan; nan where none is left."""
    told = [(each, part.weight) for part, each in zip(parts, found, strict=True) if not math.isnan(each)]
    return sum(each * weight for each, weight in told) / sum(weight for _, weight in told) if told else math.nan
