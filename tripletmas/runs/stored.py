"""The model that made the vectors of a store: found by what the store notes of it, or checked on the store's own items.

Shapes: n points, dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tripletmas.data.images import ImageFiles, missing_images
from tripletmas.data.tokens import Tokenizer
from tripletmas.index.base import disagreement
from tripletmas.index.images import Reading
from tripletmas.runs import trust
from tripletmas.runs.directory import RunDirectory, is_run
from tripletmas.runs.models import RunModel, embed_images, embed_texts, identity_by, weight_hashes
from tripletmas.stores.identity import Identity
from tripletmas.stores.store import COSINE, L2, Block, Id, Store, check_columns

_OTHER = 0.02  # of how vectors differ: what decoding and half precision change is less, another model far more
_LOOKED_AT = 32  # items of a store
_SHOWN = 12  # digits of a hash


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
        what = "text" if isinstance(model.shown, Tokenizer) else "path"
        column = store.place.column(what, what)
        raise ValueError(f"{store.place}: no item can be read by its column {column!r}, to check what made its vectors")
    block = store.read(name, ids)
    made = embedded(model, wanted, invert=invert)
    if made.shape != block.vectors.shape:
        raise ValueError(
            f"{store.place} has vectors of dim {block.vectors.shape[1]}, and {model.run} makes {model.dim}"
        )
    off = disagreement(block.vectors, made)
    if math.isnan(off):
        raise ValueError(
            f"{store.place}: the {len(ids)} vectors that could be looked at are all one, and any model might have made "
            "them: at least two that differ are needed, of items that can be read"
        )
    if off > _OTHER:
        raise ValueError(
            f"{model.run} did not make the vectors {name!r} of {store.place}: of {len(ids)} items, its own vectors lie "
            f"{off:.3f} of a spread from those that are stored (of the same model below {_OTHER})"
        )
    lengths = block.vectors.norm(dim=1)
    field = store.fields()[name]
    normalize = field.metric == COSINE or bool(((lengths - 1).abs() < 1e-3).all())
    metric = L2 if field.metric == L2 else "inner_product"
    return identity_by(model, metric=metric, normalize=normalize, invert=invert)


def look(store: Store, name: str, model: RunModel) -> tuple[list[Id], list[str]]:
    """(ids, items) of some points of a store that have this vector, and whose picture or text is there."""
    what = "text" if isinstance(model.shown, Tokenizer) else "path"
    column = store.place.column(what, what)
    check_columns([column], store.columns(), store.place)
    for block in store.scan(name, size=_LOOKED_AT * 8, columns=[column]):
        items = block.columns[column]
        if there := _there(block, items, pictures=what == "path"):
            some = there[:: max(1, len(there) // _LOOKED_AT)][:_LOOKED_AT]
            return [block.ids[row] for row in some], [items[row] for row in some]
    return [], []


def _there(block: Block, items: Sequence[str | None], *, pictures: bool) -> list[int]:
    """The rows of a block that have a vector and an item, which is there."""
    bare = block.without_vector().tolist()
    rows = [row for row, item in enumerate(items) if item and not bare[row]]
    gone = set(missing_images([str(items[row]) for row in rows])) if pictures else set()
    return [row for number, row in enumerate(rows) if number not in gone]


def embedded(model: RunModel, items: Sequence[str], *, invert: bool = False) -> Tensor:
    """(n, dim) of files of images, or of texts, by a model."""
    if isinstance(model.shown, Tokenizer):
        return embed_texts(model, items)
    return embed_images(model, ImageFiles.at(list(items), model.prepared), invert=invert, option=None)[0]
