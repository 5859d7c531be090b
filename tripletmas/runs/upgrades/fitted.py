"""A map that was chosen for pairs, and what it misses: by how much it is off, and for which vectors it is least sure.

What a map misses is known of the pairs that it was not fitted on: each fifth of them is predicted by a map of the same
kind that was fitted on the other four.

Shapes: n pairs, g vectors, dim of the old model, new_dim of the new one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tripletmas.index.base import unit
from tripletmas.index.choice import Choice, choose_map
from tripletmas.index.drift import neighbouring_folds
from tripletmas.index.fitting import fit_map, maps_between
from tripletmas.index.maps import FittedMap

_NEAR = 10  # pairs, by which the map is judged where a vector lies


@dataclass(frozen=True, eq=False)
class Fitted:
    """A map, why it was chosen, and the pairs.

    Attributes:
        old: (n, dim) vectors of the pairs by the old model, as they are compared.
        missed: (n, new_dim) what a map that was not fitted on a pair lacks of its new vector.
    """

    map: FittedMap
    choice: Choice
    old: Tensor
    missed: Tensor

    def pretended(self, vectors: Tensor, moved: Tensor) -> Tensor:
        """Moved vectors (g, new_dim), off by what the map misses of the pair that lies nearest to where they were."""
        nearest = _products(vectors, self.old).argmax(dim=1)
        there = moved + self.missed[nearest]
        return unit(there) if self.map.normalize else there

    def uncertainty(self, vectors: Tensor) -> Tensor:
        """(g,) how far off the map is expected to be: the mean length of what it misses of the ten nearest pairs.

        Neighbours are expected to be alike, so that what is embedded again first are whole neighbourhoods.
        """
        compared = unit(vectors) if self.map.normalize else vectors
        nearest = _products(compared, self.old).topk(min(_NEAR, len(self.old)), dim=1).indices
        return self.missed.norm(dim=1)[nearest].mean(dim=1)


def fit(
    old: Tensor, new: Tensor, *, normalize: bool = True, seed: int = 0, kinds: tuple[str, ...] | None = None
) -> Fitted:
    """The map that predicts held-out pairs (n, dim) and (n, new_dim) best, fitted on all of them.

    Args:
        kinds: the candidates; None for all that there are but mlp, which takes longest, and kept the most
            neighbours nowhere (docs/upgrades.md).

    Raises:
        ValueError: as `choose_map`.
    """
    if kinds is None:
        kinds = tuple(kind for kind in maps_between(old.shape[1], new.shape[1]) if kind != "mlp")
    choice = choose_map(old, new, normalize=normalize, seed=seed, kinds=kinds)
    missed = torch.empty_like(new)
    for inside, outside in neighbouring_folds(len(old)):
        move = fit_map(choice.name, old[inside], new[inside], normalize=normalize, seed=seed)
        missed[outside] = new[outside] - move.apply(old[outside])
    return Fitted(fit_map(choice.name, old, new, normalize=normalize, seed=seed), choice, old, missed)


def _products(vectors: Tensor, old: Tensor) -> Tensor:
    """The larger the nearer, (g, n): negative squared distances but for a constant of each vector."""
    return 2 * vectors.nan_to_num() @ old.T - old.square().sum(dim=1)
