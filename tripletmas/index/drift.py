"""Drift maps: where vectors of an old model would lie under the new one, learned without any old sample.

All that is known of an update is a set of pairs: samples of the new task, embedded by the model before it learned the
task and after. A map is fitted on these pairs and moves every stored vector. Both passes read the same samples without
augmentation: otherwise the pairs would differ by the augmentation, too.

Pairs and stored vectors lie in one space: for an index of unit vectors give unit vectors, and scale what comes out to
unit length again.

Where a map has something to choose, as the strength of a ridge, it takes what predicts held-out pairs best: the pairs
are cut into five folds of neighbours, and as pairs of one class lie side by side, what is held out are mostly other
classes, as stored vectors are. `choice` chooses among the maps in the same way.

Two models need not be two moments of one: `fitting` has maps between any models, also of other dimensions.

Shapes: n pairs, g stored vectors, dim; new_dim where the new model's embeddings may have another length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from tripletmas.index.maps import FittedMap, affine

DriftMap = Callable[[Tensor], Tensor]  # stored vectors (g, dim) of the old model -> (g, dim) of the new one
DriftMapName = Literal["sdc", "linear", "mlp", "procrustes", "shrunk"]
DRIFT_MAPS: tuple[str, ...] = get_args(DriftMapName)
NONE = "none"  # no map: vectors stay where they are

SIGMA = 0.2  # the main value of the authors' runs; others have 0.3. The embeddings lie on the unit sphere.
_BLOCK_CELLS = 2**24  # (stored vector, pair) cells at once: 64 MB each of distances and weights
_FOLDS = 5
_RIDGES = tuple(10.0**power for power in range(-5, 2))  # in units of the pairs' mean variance along a direction
_HELD = 1e-3  # how much a rotation is held to the identity, in the same unit: decides where the pairs show nothing
_SHRUNK_RIDGE, _SHRUNK_PAIRS = 1e-3, 1.0  # the ridge in the same unit; alpha: pairs for each dimension
_HIDDEN, _STEPS, _BATCH, _RATE = 256, 1000, 256, 1e-3


def fit_drift(kind: str, before: Tensor, after: Tensor, *, seed: int = 0) -> DriftMap:
    """The map called `kind`, fitted on pairs of embeddings (n, dim) of the same samples by the old and the new model.

    sdc: every vector moves as the samples near it moved (`compensate_drift`). linear: an affine map, no further from
    the identity than the pairs call for (`fit_linear`). mlp: the identity plus a small network (`fit_mlp`). procrustes:
    a rotation or reflection (`fit_procrustes`). shrunk: a linear map, the nearer to the identity the fewer the pairs
    (`fit_shrunk`). none: vectors stay where they are. `choice.choose_drift` says which is best for these pairs.

    Raises:
        ValueError: for an unknown kind, for pairs that do not fit each other, for values that are not finite.
    """
    if kind not in (*DRIFT_MAPS, NONE):
        raise ValueError(f"unknown drift map {kind!r}: there are {', '.join(DRIFT_MAPS)} and {NONE}")
    if before.shape != after.shape or before.ndim != 2 or not len(before):
        raise ValueError(
            "before and after must be embeddings (n, dim) of the same n >= 1 samples, got "
            f"{tuple(before.shape)} and {tuple(after.shape)}"
        )
    if not (before.isfinite().all() and after.isfinite().all()):
        raise ValueError("before and after must be finite, but hold NaN or infinity")
    if kind == NONE:
        return FittedMap(NONE, before.shape[1], after.shape[1], {})
    if kind == "mlp":
        return fit_mlp(before, after, seed=seed)
    if kind == "sdc":
        return lambda vectors: compensate_drift(vectors, before, after)
    return {"linear": fit_linear, "procrustes": fit_procrustes, "shrunk": fit_shrunk}[kind](before, after)


def neighbouring_folds(size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(the pairs to fit, the pairs held out) of each of five folds of neighbours; both (size,) bool.

    Fewer than five pairs are held out one by one.
    """
    folds = min(_FOLDS, size)
    fold = torch.arange(size) * folds // max(size, 1)
    for held_out in range(folds):
        yield fold != held_out, fold == held_out


def compensate_drift(vectors: Tensor, before: Tensor, after: Tensor, *, sigma: float = SIGMA) -> Tensor:
    """Vectors (g, dim) of an old model, moved as the samples of a new task moved that lie near them.

    v + sum_i w_i (after_i - before_i), w_i proportional to exp(-||before_i - v||^2 / (2 sigma^2)), with weights that
    sum to 1. They are a softmax: where a vector is so far from every sample that all exponentials vanish in float32,
    the nearest samples' drift counts, and never 0 / 0. Works in blocks, so a million vectors fit.

    Args:
        before: (n, dim) the new task's samples by the model before it learned the task.
        after: (n, dim) the same by the model afterwards.
        sigma: how near a sample must be to count; the authors' runs have 0.2, some 0.3.

    Source: Yu et al., Semantic Drift Compensation, CVPR 2020, there for class means.
    """
    drift = after - before
    moved = torch.empty_like(vectors)
    step = max(1, _BLOCK_CELLS // max(len(before), 1))
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step]
        squared = torch.cdist(block, before).square()
        moved[start : start + step] = block + functional.softmax(-squared / (2 * sigma**2), dim=1) @ drift
    return moved


def fit_linear(before: Tensor, after: Tensor) -> FittedMap:
    """v -> v + (v - m) D + b: least squares with a ridge on D, which pulls the map to a mere shift.

    min_D sum_i ||(after_i - before_i - b) - (before_i - m) D||^2 + ridge ||D||^2, m and b the means of `before` and of
    the drift. The new task's samples span only a part of the space: along directions that they do not show, the ridge
    leaves vectors as they are. Its strength is the one of seven that predicts held-out pairs best (the head of this
    module); with fewer than ten pairs it is the largest.

    Where the new model's vectors have another dimension, v R takes the place of v, and after_i - before_i R that of the
    drift; R is the rotation of `fit_procrustes`, which is found anew for each fold.
    """
    if before.shape[1] == after.shape[1]:
        change, start = _ridge_map(before.double(), (after - before).double(), _nothing)
        return affine("linear", change=change.to(before.dtype), start=start.to(before.dtype))
    return _with_matrix("linear", before, after, lambda x, y: _rotation(x, y, shift=False)[0])


def fit_ridge(before: Tensor, after: Tensor) -> FittedMap:
    """v -> (v - m) W + b: least squares with a ridge on W, m and b the means of `before` and `after`.

    As `fit_linear`, but drawn to 0 and not to where a vector is: for models whose embeddings have nothing in common.
    What lies in directions that the pairs do not show is dropped.
    """
    return _with_matrix("ridge", before, after, _nothing)


def fit_procrustes(before: Tensor, after: Tensor, *, shift: bool | None = None) -> FittedMap:
    """v -> v R, R the rotation or reflection that fits the pairs best: lengths and angles stay as they are.

    max_R tr(R^T (X^T Y + held I)), R = U V^T of the singular value decomposition. The small `held` (ours) decides only
    where the pairs show nothing, as with fewer pairs than dimensions: there R is as near to the identity as it can be,
    where U V^T by itself would be anything. The means may be shifted onto each other first, (v - m) R + m': they are
    where that predicts held-out pairs better; with fewer than ten pairs they are not.

    Source: Schoenemann, A generalized solution of the orthogonal Procrustes problem, Psychometrika 1966.
    """
    kind = before.dtype
    x, y = before.double(), after.double()
    rotation, start = _rotation(x, y, shift=shift_pays(x, y) if shift is None else shift)
    return affine("procrustes", matrix=rotation.to(kind), start=start.to(kind))


def fit_shrunk(before: Tensor, after: Tensor) -> FittedMap:
    """v -> v ((1 - w) W + w I), W the ridge solution from before to after, w = exp(-n / (alpha dim)).

    Without a constant. W alone forgets what lies in directions that the pairs do not show; the fewer the pairs, the
    nearer is the map to the identity. alpha = 1 is ours: with as many pairs as dimensions w is 0.37, with five times as
    many 0.007; so is the ridge, 0.001 of the pairs' mean square along a direction. The pairs should be unit vectors.

    Source: SLDC, arXiv 2511.09926.
    """
    kind, (size, dim) = before.dtype, before.shape
    solution = _ridge_solution(before.double(), after.double(), _SHRUNK_RIDGE)
    weight = math.exp(-size / (_SHRUNK_PAIRS * dim))
    matrix = ((1 - weight) * solution + weight * torch.eye(dim, dtype=solution.dtype)).to(kind)
    return affine("shrunk", matrix=matrix)


def fit_mlp(before: Tensor, after: Tensor, *, seed: int = 0, base: FittedMap | None = None) -> FittedMap:
    """v -> v + W2 relu(W1 v + b1) + b2, trained by AdamW on the squared distance; at first it is the identity.

    1000 steps of 256 pairs, the rate falling to 0 along half a cosine; a function of the pairs and the seed alone.

    Args:
        base: what stands in the place of the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    dim, new_dim = before.shape[1], after.shape[1]
    start = FittedMap("mlp", dim, new_dim, {}) if base is None else base
    weights = {
        "first": (torch.randn(dim, _HIDDEN, generator=generator) * dim**-0.5),
        "second": torch.zeros(_HIDDEN, new_dim),
        "first_bias": torch.zeros(_HIDDEN),
        "second_bias": torch.zeros(new_dim),
    }
    optimizer = torch.optim.AdamW([value.requires_grad_() for value in weights.values()], lr=_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    x, y = before.float(), (after - start(before)).float()
    scale = y.square().sum(dim=1).mean().sqrt().clamp_min(1e-12)  # drifts of any size are learned alike

    def drift(vectors: Tensor) -> Tensor:
        hidden = functional.relu(vectors @ weights["first"] + weights["first_bias"])
        return hidden @ weights["second"] + weights["second_bias"]

    with torch.enable_grad():
        for _ in range(_STEPS):
            chosen = torch.randint(len(x), (min(_BATCH, len(x)),), generator=generator)
            optimizer.zero_grad()
            (drift(x[chosen]) - y[chosen] / scale).square().sum(dim=1).mean().backward()
            optimizer.step()
            schedule.step()
    learned = {name: value.detach() for name, value in weights.items()}
    return FittedMap("mlp", dim, new_dim, {**start.tensors, **learned, "scale": scale})


# --- ridges and rotations, in float64: x (n, dim) is to become y (n, new_dim)

_Start = Callable[[Tensor, Tensor], Tensor]  # x and y -> the matrix (dim, new_dim) that a ridge pulls to


def _nothing(x: Tensor, y: Tensor) -> Tensor:
    return torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)


def _with_matrix(kind: str, before: Tensor, after: Tensor, toward: _Start) -> FittedMap:
    """v -> v W + s, W drawn to a matrix by a ridge."""
    x, y = before.double(), after.double()
    change, start = _ridge_map(x, y, toward)
    return affine(kind, matrix=(toward(x, y) + change).to(before.dtype), start=start.to(before.dtype))


def _ridge_map(x: Tensor, y: Tensor, toward: _Start) -> tuple[Tensor, Tensor]:
    """(D (dim, new_dim), the constant (new_dim,)) for which x (toward + D) + constant is near to y."""
    ridge = _best_ridge(x, y, toward) if len(x) >= 2 * _FOLDS else _RIDGES[-1]
    rest = y - x @ toward(x, y)
    centre, shift = x.mean(dim=0), rest.mean(dim=0)
    change = _ridge_solution(x - centre, rest - shift, ridge)
    return change, shift - centre @ change


def _ridge_answers(x: Tensor, y: Tensor, ridge: float, asked: Tensor) -> Tensor:
    """What `_ridge_solution` makes of others (m, dim); with few pairs the matrix itself is not needed for that."""
    size, dim = x.shape
    if size >= dim:
        return asked @ _ridge_solution(x, y, ridge)
    return asked @ x.T @ torch.linalg.solve(x @ x.T + _held(x, ridge) * torch.eye(size, dtype=x.dtype), y)


def _held(x: Tensor, ridge: float) -> Tensor:
    """The ridge in the unit of the products of x: of the mean over directions of ||x||^2."""
    return ridge * (x.square().sum() / x.shape[1]).clamp_min(torch.finfo(x.dtype).tiny)


def _ridge_solution(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """(dim, dim) minimising ||y - x D||^2 + ridge * scale ||D||^2, scale the mean over directions of ||x||^2."""
    size, dim = x.shape
    held = _held(x, ridge)
    if size < dim:  # the same with a smaller system: X^T (X X^T + held I)^-1 Y
        return x.T @ torch.linalg.solve(x @ x.T + held * torch.eye(size, dtype=x.dtype), y)
    return torch.linalg.solve(x.T @ x + held * torch.eye(dim, dtype=x.dtype), x.T @ y)


def _best_ridge(x: Tensor, y: Tensor, toward: _Start = _nothing) -> float:
    errors = dict.fromkeys(_RIDGES, 0.0)
    for inside, outside in neighbouring_folds(len(x)):
        matrix = toward(x[inside], y[inside])
        rest, wanted = (y[rows] - x[rows] @ matrix for rows in (inside, outside))
        centre, shift = x[inside].mean(dim=0), rest.mean(dim=0)
        for ridge in _RIDGES:
            found = _ridge_answers(x[inside] - centre, rest - shift, ridge, x[outside] - centre) + shift
            errors[ridge] += float((found - wanted).square().sum())
    return min(errors, key=lambda ridge: (errors[ridge], -ridge))


def _rotation(x: Tensor, y: Tensor, *, shift: bool) -> tuple[Tensor, Tensor]:
    """(R (dim, new_dim), the constant (new_dim,) that is added) for which x R + constant is nearest to y."""
    centre, target = (each.mean(dim=0) if shift else torch.zeros_like(each[0]) for each in (x, y))
    x, y = x - centre, y - target
    if x.shape[1] != y.shape[1]:
        rotation = _between_dimensions(x, y)
        return rotation, target - centre @ rotation
    basis = torch.linalg.qr(torch.cat([x, y]).T)[0]  # what is orthogonal to all pairs stays as it is
    held = (_HELD * x.square().sum() / x.shape[1]).clamp_min(torch.finfo(x.dtype).tiny)
    same = torch.eye(basis.shape[1], dtype=x.dtype)
    left, _, right = torch.linalg.svd(basis.T @ (x.T @ y) @ basis + held * same)
    rotation = torch.eye(x.shape[1], dtype=x.dtype) + basis @ (left @ right - same) @ basis.T
    return rotation, target - centre @ rotation


def _between_dimensions(x: Tensor, y: Tensor) -> Tensor:
    """(dim, new_dim): U V^T of x^T y, without the directions whose singular value is 0 but for rounding."""
    (left, in_x), (right, in_y) = (torch.linalg.qr(each.T) for each in (x, y))  # (dim, min(n, dim)) and the rest
    u, values, v = torch.linalg.svd(in_x @ in_y.T, full_matrices=False)
    shown = values > values.max() * max(x.shape) * torch.finfo(x.dtype).eps
    return left @ u[:, shown] @ v[shown] @ right.T


def shift_pays(before: Tensor, after: Tensor) -> bool:
    """Whether `fit_procrustes` predicts held-out pairs better with the means shifted onto each other; of few, not."""
    x, y = before.double(), after.double()
    if len(x) < 2 * _FOLDS:
        return False
    errors = {False: 0.0, True: 0.0}
    for inside, outside in neighbouring_folds(len(x)):
        for shift in errors:
            rotation, start = _rotation(x[inside], y[inside], shift=shift)
            errors[shift] += float((x[outside] @ rotation + start - y[outside]).square().sum())
    return errors[True] < errors[False]
