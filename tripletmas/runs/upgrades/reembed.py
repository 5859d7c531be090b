"""Points of an upgraded store that are embedded anew by the new model: those first of which the map is least sure.

Moved vectors and those that are embedded anew lie in one space, and are searched together.

Shapes: n points, dim of the old model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from tripletmas.basics.progress import told
from tripletmas.data.images import ImageFiles
from tripletmas.data.tokens import Tokenizer
from tripletmas.index.base import unit
from tripletmas.runs.models import NoneReadable, RunModel, embed_images, embed_texts
from tripletmas.runs.upgrades.kept import Plan
from tripletmas.runs.upgrades.sample import columns_of
from tripletmas.stores.identity import Upgrade
from tripletmas.stores.store import Id, Store
from tripletmas.stores.upgrading import embedded_anew, write_anew

logger = logging.getLogger(__name__)

_AT_ONCE = 256  # points that are embedded and written: what a kill can cost


def least_sure(store: Store, upgrade: Upgrade, plan: Plan) -> list[Id]:
    """The points whose vectors the map moved, those first of which it is least sure."""
    ids: list[Id] = []
    unsure: list[Tensor] = []
    anew = embedded_anew(upgrade)
    for block in store.scan(upgrade.old):
        keep = [
            row for row, bare in enumerate(block.without_vector().tolist()) if not bare and block.ids[row] not in anew
        ]
        ids += [block.ids[row] for row in keep]
        unsure.append(plan.fitted.uncertainty(block.vectors[keep]))
    order = torch.cat(unsure).argsort(descending=True, stable=True) if unsure else torch.empty(0, dtype=torch.int64)
    return [ids[row] for row in order.tolist()]


def embed_anew(store: Store, upgrade: Upgrade, plan: Plan, model: RunModel, count: int) -> tuple[int, int]:
    """Embed so many points anew, with those that were before; killed and called again, it goes on.

    Returns:
        How many were embedded by this call, and how many could not be read and stay as they were moved.

    Raises:
        ValueError: if the store does not say where the pictures, or the texts, of its points are.
    """
    texts = isinstance(model.shown, Tokenizer)
    column, _ = columns_of(store, texts=texts)
    wanted = count - len(embedded_anew(upgrade))
    done = missing = 0
    order = least_sure(store, upgrade, plan) if wanted > 0 else []

    def chunks() -> Iterator[list[Id]]:
        """The next ones, as many as are still wanted: for each that cannot be read another follows."""
        start = 0
        while done < wanted and start < len(order):
            chunk = order[start : start + min(_AT_ONCE, wanted - done)]
            start += len(chunk)
            yield chunk

    for ids in told(chunks(), "embedded anew block", -(-max(wanted, 0) // _AT_ONCE)):
        block = store.read(upgrade.old, ids, columns=[column])
        vectors, kept = _embedded(model, [str(each or "") for each in block.columns[column]], plan)
        missing += len(block.ids) - len(kept)
        if kept:
            write_anew(store, upgrade, [block.ids[row] for row in kept], vectors)
        done += len(kept)
    return done, missing


def _embedded(model: RunModel, items: list[str], plan: Plan) -> tuple[Tensor, list[int]]:
    """(vectors as they are compared, the positions of the items that can be read)."""
    if isinstance(model.shown, Tokenizer):
        kept = [row for row, item in enumerate(items) if item]
        vectors = embed_texts(model, [items[row] for row in kept]) if kept else torch.empty(0, model.dim)
    else:
        invert = getattr(plan.becomes.shown, "invert", False)
        try:
            vectors, kept = embed_images(
                model, ImageFiles.at(items, model.prepared), invert=invert, skip_unreadable=True
            )
        except NoneReadable:
            vectors, kept = torch.empty(0, model.dim), []
    return (unit(vectors) if plan.becomes.normalize else vectors), kept
