"""The model that made the vectors of a store: found by what the store notes of it, or checked on the store's own items.

Shapes: n points, dim.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tripletmas.data.images import ImageFiles, missing_images
from tripletmas.data.tokens import Tokenizer
from tripletmas.index.base import unit
from tripletmas.index.images import Reading
from tripletmas.runs import trust
from tripletmas.runs.directory import RunDirectory, is_run
from tripletmas.runs.models import RunModel, embed_images, embed_texts, transform_of, weight_hashes
from tripletmas.stores.identity import Identity
from tripletmas.stores.store import COSINE, L2, Id, Store, check_columns

SAME = 0.99  # of the stored vectors' variance: what decoding and half precision change is less, another model far more
_LOOKED_AT = 32  # items of a store
_SHOWN = 12  # digits of a hash


def identity_by(
    model: RunModel, *, metric: str = "inner_product", normalize: bool = True, invert: bool = False
) -> Identity:
    """What a store notes of vectors by this model.

    Args:
        metric, normalize: how they are compared, as `Identity` says it.
    """
    source = os.path.abspath(model.run) if os.path.exists(model.run) else model.run
    reads = model.shown
    shown = Reading(reads.identity, reads.max_length) if isinstance(reads, Tokenizer) else transform_of(model, invert)
    return Identity(model.hash, shown, model.dim, metric, normalize, source, model.after_task)


def model_of_store(
    store: Store, identity: Identity, given: str | None = None, *, device: str = "auto", trust_code: bool = False
) -> RunModel:
    """The model in whose space the vectors of a field lie: of the run that made them the one of that task.

    Args:
        given: where it is now; None: where the store says.

    Raises:
        ValueError: if it is not there, or is another.
    """
    from tripletmas.runs.deployed import load_deployed  # models of all kinds, for those who only check need none

    source = given or identity.source
    try:
        model = load_deployed(source, after=_task_of(source, identity.model, trust_code), device=device)
    except (ValueError, OSError) as error:
        hint = "" if given else f" (so {store.place} says of its vectors; --run says where that model is now)"
        raise ValueError(f"{error}{hint}") from None
    shown = identity.shown
    invert = not isinstance(shown, Reading) and shown.invert
    made = identity_by(model, metric=identity.metric, normalize=identity.normalize, invert=invert)
    if how := identity.differs(made):
        raise ValueError(f"the vectors of {store.place} are of {how}: --run names the model that made them")
    return model


def _task_of(source: str, model: str, trust_code: bool) -> int | None:
    """After which task of a run the model has these weights; None of no run, or of none of its tasks."""
    if not is_run(Path(source)):
        return None
    run = RunDirectory.open(source)
    if trust_code:
        trust.accept(run.config().get("code"), unseen=True)
    return max((task for task, each in enumerate(weight_hashes(run)) if each == model), default=None)


def assumed(store: Store, name: str, model: RunModel, *, invert: bool = False) -> Identity:
    """What made the vectors of a field that notes nothing: this model, if it makes those of some of the store's items.

    Raises:
        ValueError: if none of them can be read, or the vectors are another model's.
    """
    ids, wanted = look(store, name, model)
    if not ids:
        column = store.place.column("text" if isinstance(model.shown, Tokenizer) else "path", "path")
        raise ValueError(f"{store.place}: no item can be read by its column {column!r}, to check what made its vectors")
    block = store.read(name, ids)
    made = embedded(model, wanted, invert=invert)
    agreed = agreement(block.vectors, made, store)
    if not agreed >= SAME:
        raise ValueError(
            f"{model.run} did not make the vectors {name!r} of {store.place}: of {len(ids)} items, its own vectors "
            f"explain {agreed:.3f} of how those that are stored differ (of the same model above {SAME})"
        )
    lengths = block.vectors.norm(dim=1)
    field = store.fields()[name]
    normalize = field.metric == COSINE or bool(((lengths - 1).abs() < 1e-3).all())
    metric = L2 if field.metric == L2 else "inner_product"
    return identity_by(model, metric=metric, normalize=normalize, invert=invert)


def agreement(stored: Tensor, made: Tensor, store: Store) -> float:
    """How far vectors (n, dim) that are stored are those that were made now: 1 for the same, of any lengths.

    1 - sum ||s_i - m_i||^2 / sum ||s_i - s||^2 of unit vectors, s the mean. The cosine would not do: vectors of a model
    that has learned little lie so close to each other that those of any other task of it seem the same.

    Returns:
        Also below 0; nan for vectors that are all one.

    Raises:
        ValueError: if they have another dimension.
    """
    if stored.shape != made.shape:
        raise ValueError(f"{store.place} has vectors of dim {stored.shape[1]}, and the model makes {made.shape[1]}")
    have, now = unit(stored.double()), unit(made.double())
    spread = (have - have.mean(dim=0)).square().sum()
    return 1 - float((have - now).square().sum() / spread) if bool(spread > 0) else math.nan


def look(store: Store, name: str, model: RunModel) -> tuple[list[Id], list[str]]:
    """(ids, items) of some points of a store that have this vector, and whose picture or text is there."""
    texts = isinstance(model.shown, Tokenizer)
    column = store.place.column("text" if texts else "path", "text" if texts else "path")
    check_columns([column], store.columns(), store.place)
    for block in store.scan(name, size=_LOOKED_AT * 8, columns=[column]):
        have = (~block.without_vector()).tolist()
        rows = [row for row, value in enumerate(block.columns[column]) if value and have[row]]
        if not texts:
            gone = set(missing_images([block.columns[column][row] for row in rows]))
            rows = [row for number, row in enumerate(rows) if number not in gone]
        if rows:
            rows = rows[:: max(1, len(rows) // _LOOKED_AT)][:_LOOKED_AT]
            return [block.ids[row] for row in rows], [block.columns[column][row] for row in rows]
    return [], []


def embedded(model: RunModel, items: Sequence[str], *, invert: bool = False) -> Tensor:
    """(n, dim) of files of images, or of texts, by a model."""
    if isinstance(model.shown, Tokenizer):
        return embed_texts(model, items)
    return embed_images(model, ImageFiles.at(list(items), model.prepared), invert=invert, option=None)[0]
