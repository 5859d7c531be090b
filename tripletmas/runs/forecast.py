"""Forecast: how far an update moved stored vectors, and what searching them costs, told without any old image.

The images of a new task say little of it. A strategy that holds old responses moves them and nothing else, so that they
tell of far too much; distillation holds them while all else moves, so that they tell of far too little. Hence images
are imagined for stored vectors: an image of the new task is changed until the old model puts it where a stored vector
lies (`imagine`). Where the new model puts it stands for the vector's re-embedding, as what is stored and as a query.

Where a protection knows how far the responses of each layer to old inputs have moved (`Gram.shares`), vectors move no
further than that allows: an imagined image reaches what no old image does, and such a protection leaves that free.

Shapes: g vectors of a part, n of them with an imagined image, dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tripletmas.basics.files import without_nan
from tripletmas.index.base import unit
from tripletmas.index.choice import Limit
from tripletmas.index.drift import fit_drift
from tripletmas.index.exact import ExactIndex
from tripletmas.runs.moves import allowed_move

FRESH, STALE, COMPENSATED = "fresh", "stale", "compensated"
GALLERIES = (STALE, COMPENSATED, FRESH)
_STEPS, _RATE = 30, 0.05  # of the search for an image; in units of the range of its values
_BATCH = 64
_SCALES = (0.8, 1.0, 1.25)  # how far vectors may have moved, where an imagined image moved by 1
_ENOUGH = 10  # queries of each class that stand for the class
# gallery -> (what is added, how far the ends of the interval lie off): scripts/reproduce_forecast.py chose them on runs
# of seed 0, so that nine of ten measurements lie inside, and judges them on others
CALIBRATION = {STALE: (0.0, 0.027), COMPENSATED: (0.08, 0.111), FRESH: (0.005, 0.105)}


@dataclass(frozen=True, eq=False)
class Part:
    """Stored vectors of one model, of unit length, and where others have some of them.

    Attributes:
        vectors, labels: (g, dim), (g,).
        compensated: (g, dim), as a map moves them; None where no map is in use.
        rows: (n,), those of which the rest is known; they are the queries.
        now: (n, dim), where the present model puts the images that stand for these rows.
        before: (n, dim), where the model before the update put them.
        is_current: the vectors are of the present model.
        weight: how much the part counts in means over parts.
    """

    vectors: Tensor
    labels: Tensor
    compensated: Tensor | None
    rows: Tensor
    now: Tensor
    before: Tensor
    is_current: bool = False
    weight: float = 1.0


class Interval(NamedTuple):
    """What is expected of a number: the most likely, and between what it lies nine times out of ten."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What an update did to stored vectors.

    Attributes:
        cosine: between a stored vector and its re-embedding, the mean over parts that are not current.
        nine_in_ten: nine of ten vectors have a larger cosine.
        between: the mean cosine of two stored vectors of a part: what the other two are to be compared with.
        recall: gallery ("stale", "compensated" where a map is in use, "fresh") -> recall@1, the mean over parts.
        num_vectors, num_imagined: how many are stored that are not current, and how many of them have an image.
    """

    cosine: float
    nine_in_ten: float
    between: float
    recall: dict[str, Interval]
    num_vectors: int
    num_imagined: int

    def sentences(self) -> list[str]:
        """How far vectors moved, and by how much that was told."""
        return [
            f"expected cosine between a stored vector and its re-embedding: {self.cosine:.2f}, 90 % of them above "
            f"{self.nine_in_ten:.2f} (between two stored vectors: {self.between:.2f})",
            f"told by {self.num_imagined} images that were imagined for {self.num_vectors} stored vectors; no old "
            "image was read",
        ]

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write."""
        return without_nan({**vars(self), "recall": {name: list(each) for name, each in self.recall.items()}})


def imagine(model: nn.Module, targets: Tensor, images: Tensor, *, steps: int = _STEPS, rate: float = _RATE) -> Tensor:
    """Images (n, ...) that a model embeds in the direction of the targets (n, dim) of unit length, made of others.

    Each starts as the one of `images` (m, ...) that the model puts nearest to its target, and is changed by Adam on the
    cosine, within the range of values that `images` have.

    Args:
        model: in eval mode; its weights and their gradients stay as they are. It gets copies, which it may change.
        rate: how far a value goes in a step, as a share of that range.

    Source: Goswami et al., Resurrecting Old Classes with New Data (ADC), CVPR 2024, push new images onto class means
        so; here each goes to a vector that is stored, and as far as it takes.
    """
    low, high = float(images.min()), float(images.max())
    with torch.no_grad():
        embedded = torch.cat([unit(model(block.clone())) for block in images.split(_BATCH)])
    found = []
    for block in targets.split(_BATCH):
        made = images[(block @ embedded.T).argmax(dim=1)].clone().requires_grad_()
        optimizer = torch.optim.Adam([made], lr=rate * (high - low))
        for _ in range(steps):
            cosines = (nn.functional.normalize(model(made.clone()), dim=1) * block).sum()
            (made.grad,) = torch.autograd.grad(-cosines, [made])
            optimizer.step()
            with torch.no_grad():
                made.clamp_(low, high)
        found.append(made.detach())
    return torch.cat(found)


def forecast_of(
    parts: Sequence[Part],
    *,
    shares: Mapping[str, float] | None = None,
    calibration: Mapping[str, tuple[float, float]] = CALIBRATION,
) -> Forecast:
    """What is expected of stored vectors after an update.

    Args:
        shares: of each layer's squared response to old inputs, the share that has changed; None or {} if not known.
        calibration: gallery -> (what is added to what was found, how much wider the interval is at each end).
    """
    old = [part for part in parts if not part.is_current]
    scale = allowed_scale(old, shares or {})
    cosines = [cosine_to_stored(part, scale) for part in old]
    recall = {}
    for name, (low, middle, high) in simulated(parts, scale).items():
        shift, margin = calibration[name]
        low, middle, high = low + shift - margin, middle + shift, high + shift + margin
        recall[name] = Interval(*(min(max(each, 0.0), 1.0) for each in (low, middle, high)))
    return Forecast(
        cosine=float(torch.stack([each.mean() for each in cosines]).mean()),
        nine_in_ten=float(torch.cat(cosines).quantile(0.1)),
        between=sum(mean_cosine(part.vectors[part.rows]) for part in old) / len(old),
        recall=recall,
        num_vectors=sum(len(part.vectors) for part in old),
        num_imagined=sum(len(part.rows) for part in old),
    )


def limit_of(shares: Mapping[str, float], stored: Sequence[Tensor]) -> Limit | None:
    """The same, of these stored vectors (g, dim), for the choice of a map."""
    most = allowed_move(shares)
    return None if most is None else Limit(unit(torch.cat(list(stored))), most)


def allowed_scale(parts: Sequence[Part], shares: Mapping[str, float]) -> float:
    """By how much the movement of imagined images is scaled down, so that it fits what layers say; 1 if it does.

    The squared change of a unit vector is twice its 1 - cosine, and grows as the shares do.
    """
    moved = 1 - float(torch.stack([cosine_to_stored(part, 1.0).mean() for part in parts]).mean())
    allowed = allowed_move(shares)
    return math.sqrt(allowed / moved) if allowed is not None and moved > allowed else 1.0


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


def simulated(parts: Sequence[Part], scale: float = 1.0) -> dict[str, Interval]:
    """gallery -> recall@1 as the mean over parts, where vectors moved `scale` times as far as their images.

    What is stored is searched as it lies. It is stale by as much as queries have moved, so that its interval spans what
    is found where they moved by 0.8 to 1.25 of that. What re-embedding finds is the mean of two: by the new model,
    which keeps imagined images of old classes and real ones of new classes apart more than it should, and by the model
    before the update, which had not learned to.
    """
    stored, moved = (
        [part.vectors for part in parts],
        [part.compensated for part in parts if part.compensated is not None],
    )
    now = now_at(parts, scale)
    stale = [mean_recall(parts, now_at(parts, scale * each), stored) for each in _SCALES]
    found = {STALE: Interval(min(stale), stale[_SCALES.index(1.0)], max(stale))}
    if len(moved) == len(parts):
        found[COMPENSATED] = Interval(*3 * (mean_recall(parts, now, moved),))
    again = (again_recall(parts, now) + again_recall(parts, [part.before for part in parts])) / 2
    return {**found, FRESH: Interval(*3 * (again,))}


def now_at(parts: Sequence[Part], scale: float) -> list[Tensor]:
    """Where the queries of each part are, if they moved `scale` times as far as their images."""
    return [on_the_way(part.vectors[part.rows], part.now, scale) for part in parts]


def again_recall(parts: Sequence[Part], ends: Sequence[Tensor]) -> float:
    """recall@1 as the mean over parts, where one model has embedded everything, and its rows (n, dim) are known.

    The rows alone are searched, as many of each part, if there are at least ten of each class; else all vectors, moved
    as their rows were.
    """
    if any(len(part.rows) < _ENOUGH * len(part.labels.unique()) for part in parts):
        return mean_recall(parts, ends, [moved_like(p.vectors, p.rows, e) for p, e in zip(parts, ends, strict=True)])
    count = min(len(part.rows) for part in parts)
    drawn = [torch.linspace(0, len(part.rows) - 1, count).round().long() for part in parts]
    vectors = [each[rows] for each, rows in zip(ends, drawn, strict=True)]
    labels = [part.labels[part.rows[rows]] for part, rows in zip(parts, drawn, strict=True)]
    found = [
        replace(part, vectors=each, labels=of, rows=torch.arange(count))
        for part, each, of in zip(parts, vectors, labels, strict=True)
    ]
    return mean_recall(found, vectors, vectors)


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


def mean_recall(parts: Sequence[Part], queries: Sequence[Tensor], galleries: Sequence[Tensor]) -> float:
    """recall@1 of each part's queries (n, dim), which stand for its rows, in all galleries (g, dim) together; the mean.

    A query's own vector is left out of its search. What has no other of its label to find does not count, nor does a
    part with no other query; nan where none is left.
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
        if counted.any():
            found.append((float(right[counted].double().mean()), part.weight))
        start += len(part.labels)
    return sum(recall * weight for recall, weight in found) / sum(weight for _, weight in found) if found else math.nan
