"""Maps from the vectors of one model to those of any other, fitted on pairs: those of `drift`, and one more.

Shapes: n pairs, dim of the old model, new_dim of the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from tripletmas.index.drift import NONE, fit_linear, fit_mlp, fit_procrustes, fit_ridge, fit_shrunk
from tripletmas.index.maps import FittedMap

_KINDS = (NONE, "procrustes", "shrunk", "linear", "ridge", "mlp")  # the simpler ones first
_NEED_IDENTITY = (NONE, "shrunk")


def fit_map(
    kind: str,
    before: Tensor,
    after: Tensor,
    *,
    normalize: bool = True,
    seed: int = 0,
    shift: bool | None = None,
) -> FittedMap:
    """The map called `kind` from one model's vectors to any other's, fitted on pairs (n, dim) and (n, new_dim).

    none, procrustes, shrunk and linear are those of `fit_drift`; between spaces of two dimensions there is no identity,
    so that none and shrunk are not to be had, procrustes keeps lengths as far as it can, and linear is drawn to that.
    ridge: an affine map of which nothing is known beforehand (`fit_ridge`). mlp: ridge, and a small network for what
    that leaves (`fit_mlp`).

    Args:
        normalize: the pairs are of unit length, and the map keeps vectors so.
        shift: of procrustes.

    Raises:
        ValueError: for an unknown kind, or one that these dimensions have not; for pairs that do not fit each other, or
            are not finite.
    """
    _check(kind, before, after)
    fits: dict[str, Callable[[], FittedMap]] = {
        NONE: lambda: FittedMap(NONE, before.shape[1], after.shape[1], {}),
        "procrustes": lambda: fit_procrustes(before, after, shift=shift),
        "shrunk": lambda: fit_shrunk(before, after),
        "linear": lambda: fit_linear(before, after),
        "ridge": lambda: fit_ridge(before, after),
        "mlp": lambda: fit_mlp(before, after, seed=seed, base=fit_ridge(before, after)),
    }
    return replace(fits[kind](), normalize=normalize)


def _check(kind: str, before: Tensor, after: Tensor) -> None:
    """Raises ValueError as `fit_map`."""
    known = maps_between(before.shape[-1], after.shape[-1])
    if kind not in known:
        raise ValueError(
            f"there is no map {kind!r} from {before.shape[-1]} to {after.shape[-1]} dimensions, only {', '.join(known)}"
        )
    if before.ndim != 2 or after.ndim != 2 or len(before) != len(after) or not len(before):
        raise ValueError(
            "before and after must be embeddings (n, dim) and (n, new_dim) of the same n >= 1 samples, got "
            f"{tuple(before.shape)} and {tuple(after.shape)}"
        )
    if not (before.isfinite().all() and after.isfinite().all()):
        raise ValueError("before and after must be finite, but hold NaN or infinity")


def maps_between(dim: int, new_dim: int) -> tuple[str, ...]:
    """The kinds of `fit_map` from vectors of one dimension to those of another, the simpler ones first."""
    return _KINDS if dim == new_dim else tuple(kind for kind in _KINDS if kind not in _NEED_IDENTITY)
