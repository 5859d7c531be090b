"""Images of which a model makes (nearly) one vector: nothing can be found among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tripletmas.index.base import are_one_vector, relative_spread
from tripletmas.objectives.collapse import NEARLY

_SEVERAL = 10  # vectors: fewer may lie close to each other by chance


def refuse_collapse(
    vectors: Tensor, images: Sequence[Tensor], rows: Sequence[int], *, by: str, labels: Iterable[str | None] = ()
) -> None:
    """Raise a ValueError where images that differ have (nearly) one and the same vector: nothing could be found.

    Args:
        vectors: (n, dim), as they are compared.
        rows: which of the images they are of; images that cannot be read any more count as different.
        by: what made the vectors, in words.
        labels: of the images. Those of a single class may lie close to each other, but not in one point.
    """
    known = set(labels)
    spread, one = relative_spread(vectors), are_one_vector(vectors)
    nearly = spread <= NEARLY and (len(known) > 1 or None in known) and len(vectors) >= _SEVERAL
    if (one and not _are_one_image(images, rows)) or (nearly and not one and not _are_alike(images, rows)):
        how = "" if one else "nearly "
        raise ValueError(
            f"{by} gives {len(vectors)} images {how}one and the same vector: it has collapsed, and all are found "
            f"{how}equally near. Train it anew (a lower --training.lr, another --loss); --force goes on all the same"
        )


def _are_one_image(images: Sequence[Tensor], rows: Sequence[int]) -> bool:
    try:
        first = images[rows[0]]
        return all(torch.equal(images[row], first) for row in rows[1:])
    except ValueError:
        return False


def _are_alike(images: Sequence[Tensor], rows: Sequence[int]) -> bool:
    """Whether images, or a hundred of them, differ as little as nearly equal vectors do."""
    try:
        some = [images[row].double().flatten() for row in rows[:: -(-len(rows) // 100)]]
        return len({len(each) for each in some}) == 1 and relative_spread(torch.stack(some)) <= NEARLY
    except ValueError:
        return False
