"""An index file put into a store, and a store taken into an index file, with what made the vectors.

Shapes: n points, dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tripletmas.basics.progress import told
from tripletmas.index.changes import add_images, check_new, with_ids
from tripletmas.index.images import ImageIndex, Part, Reading, Settings
from tripletmas.stores.identity import Identity, Notes, active_field, identity_of, read_notes, write_notes
from tripletmas.stores.store import ROWS, Store, VectorField, check_columns, field_of

_ROUNDING = 1e-5  # of a length
VECTOR = "vector"  # what the vectors of a new collection are called


def identity_of_index(index: ImageIndex, file: str) -> Identity:
    """What made the vectors of an index.

    Raises:
        ValueError: if it has none, or they lie in the spaces of several models.
    """
    spaces = dict.fromkeys(part.moved_to for part in index.parts)
    if len(spaces) != 1:
        several = f"{file} has vectors in the spaces of {len(spaces)} models: tripletmas index refresh {file} first"
        raise ValueError(several if spaces else f"{file} holds no vectors")
    s, model = index.settings, next(iter(spaces))
    moved_from = next((part.model for part in index.parts if part.model != model), "")
    return Identity(model, s.transform, s.dim, s.metric, s.normalize, index.run, index.parts[-1].after_task, moved_from)


def columns_of_index(index: ImageIndex) -> dict[str, type]:
    """What an index knows of its images or texts, as columns of a store."""
    return {"path": str, "label": str, **({"text": str} if index.texts else {})}


def field_for(identity: Identity, name: str = VECTOR) -> VectorField:
    """The field that vectors of an identity are put into."""
    return VectorField(name, identity.dim, identity.compared_by)


def push_points(index: ImageIndex, store: Store, identity: Identity) -> tuple[int, int]:
    """Put all points of an index into a store; those with the same ids are replaced.

    Killed and called again, it ends the same. Points that the index does not have stay.

    Returns:
        How many were put there, and how many others there are.

    Raises:
        ValueError: if other vectors are in the store, or if it is being upgraded.
    """
    notes = read_notes(store)
    name = active_field(store, notes)
    if notes.upgrade is not None:
        raise ValueError(f"{store.place} is being upgraded: finish that (--drop-old) or take it back (--rollback)")
    if (dim := field_of(store, name).dim) != identity.dim:
        raise ValueError(f"{store.place} holds vectors of dim {dim}, and the index those of dim {identity.dim}")
    refuse_other(store, notes, name, identity, empty=not len(store))
    write_notes(store, notes.with_identity(name, identity))
    columns = columns_of_index(index)
    for start in told(range(0, len(index), ROWS), "pushed block", -(-len(index) // ROWS)):
        rows = range(start, min(start + ROWS, len(index)))
        of: dict[str, list[Any]] = {
            "path": [index.paths[row] for row in rows],
            "label": [index.label_of(row) for row in rows],
            "text": [index.texts[row] for row in rows] if index.texts else [],
        }
        chosen = torch.arange(rows.start, rows.stop)
        vectors, ids = index.vectors[chosen], index.ids[chosen].tolist()
        store.insert(name, ids, vectors, {each: of[each] for each in columns})
    return len(index), len(store) - len(index)


def refuse_other(store: Store, notes: Notes, name: str, identity: Identity, *, empty: bool = False) -> None:
    """Raise a ValueError where what made the vectors of a field is not known, or does not compare with this.

    Args:
        empty: the field has no vectors yet, and gets these.
    """
    if empty and name not in notes.identities:
        return
    there = identity_of(store, notes, name)
    if (how := there.differs(identity)) and not (empty and there.dim == identity.dim):
        raise ValueError(
            f"the vectors {name!r} of {store.place} are of {how}: tripletmas upgrade {store.place} brings them to "
            "another model"
        )


def pull_points(store: Store, *, kind: str = "exact") -> ImageIndex:
    """The points of a store as an index, in memory.

    Ids that are numbers stay; others become numbers in their order. A point without a vector is left out.

    Raises:
        ValueError: if what made the vectors is not known; if two points have one path.
    """
    notes = read_notes(store)
    name = active_field(store, notes)
    identity = identity_of(store, notes, name)
    ids, items, vectors = _read(store, name, isinstance(identity.shown, Reading))
    settings = Settings(identity.dim, identity.shown, identity.metric, identity.normalize, kind)
    empty = ImageIndex.empty(settings, identity.source)
    check_new(empty, items.paths)
    by = identity.embedded_by
    part = Part(by or identity.model, max(identity.after_task, 0), identity.model, ("upgrade",) if by else ())
    index = add_images(empty, vectors, items.paths, items.labels, part, texts=items.texts)
    if bool(((vectors.norm(dim=1) - 1).abs() < _ROUNDING).all()):
        index = replace(index, vectors=vectors)  # scaled already: once more would change their bytes
    are_numbers = all(isinstance(each, int) and each >= 0 for each in ids)
    return with_ids(index, torch.tensor(ids, dtype=torch.int64)) if are_numbers else index


class _Items(NamedTuple):
    """What an index knows of its items; a point without a path is called by its id."""

    paths: list[str]
    labels: list[str | None]
    texts: list[str]


def _read(store: Store, name: str, are_texts: bool) -> tuple[list[Any], _Items, Tensor]:
    """(ids, what is known of them, vectors (n, dim)) of all points that have this vector."""
    path, label, text = (store.place.column(each, each) for each in ("path", "label", "text"))
    named = [path, label, *([text] if are_texts else [])]
    check_columns(named[2:], store.columns(), store.place)
    wanted = [each for each in named if each in store.columns()]
    ids: list[Any] = []
    values: dict[str, list[Any]] = {each: [] for each in wanted}
    rows = [torch.empty(0, field_of(store, name).dim)]
    for block in told(store.scan(name, columns=wanted), "pulled block", -(-len(store) // ROWS)):
        kept = (~block.without_vector()).nonzero().flatten().tolist()
        ids += [block.ids[row] for row in kept]
        rows.append(block.vectors[kept])
        for each in wanted:
            values[each] += [block.columns[each][row] for row in kept]
    return ids, _items(ids, values.get(path), values.get(label), values.get(text)), torch.cat(rows)


def _items(ids: list[Any], paths: list[Any] | None, labels: list[Any] | None, texts: list[Any] | None) -> _Items:
    nothing = [None] * len(ids)
    return _Items(
        [str(each or own) for each, own in zip(paths or nothing, ids, strict=True)],
        [None if each is None else str(each) for each in labels or nothing],
        [str(each or "") for each in texts or ()],
    )
