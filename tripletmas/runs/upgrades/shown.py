"""What both models are shown of a sample: the pictures, or texts, of points of a store.

They are named by a column of the store, or lie in a folder or a CSV file, from which some are drawn. Those are known
again in the store by their vectors: the old model gives a picture the vector that is stored for it.

Shapes: n points, dim of the old model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tripletmas.data.tokens import Tokenizer
from tripletmas.index.base import disagreement, unit
from tripletmas.runs.upgrades.sample import LEAST
from tripletmas.stores.store import Id, Store

if TYPE_CHECKING:
    from tripletmas.runs.models import RunModel

_AGREES = 0.98  # cosine, in the middle, of a stored vector and what the model that made it gives: JPEG and half
_CHANGED = 0.9  # precision cost less; a single picture below this was exchanged since
_OTHER = 0.05  # of how vectors differ: another model of one run can pass for the same by the cosine alone
_SAME = 0.995  # by which an item is known again in a store


@dataclass(frozen=True, eq=False)
class Items:
    """Pictures, by their paths, or texts.

    Attributes:
        names: the paths, or the texts themselves.
        labels: their classes; None for one without.
    """

    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    are_texts: bool

    def rows(self, rows: Sequence[int]) -> Items:
        """Some of them."""
        return Items(tuple(self.names[row] for row in rows), tuple(self.labels[row] for row in rows), self.are_texts)

    @property
    def what(self) -> str:
        """What they are, in a word."""
        return "texts" if self.are_texts else "pictures"


def check_models(old: RunModel, new: RunModel, texts: bool) -> None:
    """Raises ValueError where two models are one, or are not shown the same."""
    if isinstance(new.shown, Tokenizer) != texts:
        reads, takes = (new, old) if not texts else (old, new)
        raise ValueError(f"{reads.run} reads texts and {takes.run} takes images: an upgrade is from one to its like")
    if old.hash == new.hash and (texts or old.prepared == new.prepared):
        raise ValueError(f"{old.run} and {new.run} are one model ({old.hash[:12]}): there is nothing to upgrade")


def agreeing(stored: Tensor, embedded: Tensor, *, of: str, normalize: bool) -> tuple[Tensor, float]:
    """(the rows whose stored vector (n, dim) is what the old model gives, (n, dim) raw; the cosine in the middle).

    Args:
        of: the store, for the error.
        normalize: only the direction of vectors counts.

    Raises:
        ValueError: if most are not, saying how far.
    """
    cosines = (unit(stored) * unit(embedded)).sum(dim=1)
    middle, off = float(cosines.median()), disagreement(stored, embedded)
    if middle < _AGREES or off > _OTHER:
        raise ValueError(
            f"the vectors of {of} are not those that --old gives: between what is stored of {len(stored)} points and "
            f"what it makes of them, the cosine is {middle:.3f} in the middle, and the distance {off:.3f} of their "
            f"spread; of the right model it is 1, and below {_OTHER}; name the model that made them, or say how its "
            "images were prepared (--old-size, --invert)"
        )
    ratio = float((stored.norm(dim=1) / embedded.norm(dim=1).clamp_min(1e-12)).median())
    if not normalize and abs(ratio - 1) > 1 - _AGREES:
        raise ValueError(
            f"the vectors of {of} have {ratio:.3f} times the length of those that --old gives: it is not the model "
            "that made them, or they were scaled"
        )
    return (cosines >= _CHANGED).nonzero().flatten(), middle


def known_again(store: Store, name: str, vectors: Tensor, what: str) -> tuple[list[Id | None], Tensor]:
    """(the point whose vector is that of an item, whose raw vectors (n, dim) are given; these stored vectors (n, dim)).

    None for an item that no point is, and for the second of two that are one point.

    Args:
        what: the items are, in a word.

    Raises:
        ValueError: if most items are no points of the store, saying how far they are from any.
    """
    ids, stored, best = _nearest_points(store, name, vectors)
    found = [each if float(cosine) >= _SAME else None for each, cosine in zip(ids, best, strict=True)]
    first = {each: item for item, each in reversed(list(enumerate(found))) if each is not None}
    if len(first) < max(LEAST, len(ids) // 2):
        raise ValueError(
            f"only {len(first)} of {len(ids)} {what} are points of {store.place}: between what --old makes of them and "
            f"the nearest stored vector the cosine is {float(best.median()):.3f} in the middle, and of the right model "
            f"it is 1; name the model that made the vectors, and give {what} that are in the store"
        )
    return [each if each is not None and first[each] == item else None for item, each in enumerate(found)], stored


def _nearest_points(store: Store, name: str, vectors: Tensor) -> tuple[list[Id | None], Tensor, Tensor]:
    """(the point whose vector has the largest cosine to each of these (n, dim), its vector (n, dim), that cosine)."""
    wanted, best = unit(vectors), torch.full((len(vectors),), -2.0)
    ids: list[Id | None] = [None] * len(vectors)
    stored = torch.zeros_like(vectors)
    for block in store.scan(name):
        cosines, rows = (wanted @ unit(block.vectors.nan_to_num()).T).max(dim=1)
        for item in (cosines > best).nonzero().flatten().tolist():
            row = int(rows[item])
            best[item], ids[item], stored[item] = cosines[item], block.ids[row], block.vectors[row]
    return ids, stored, best


def absolute(names: Sequence[str], root: str) -> tuple[str, ...]:
    """Paths below a folder or an archive."""
    return tuple(os.path.join(root, name) for name in names)
