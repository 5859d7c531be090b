"""The same command for a store: the nearest of its points, as the model that made their vectors sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

from jsonargparse import Namespace

from tripletmas.cli.asked import asked_images, asked_texts
from tripletmas.cli.found import say, tell
from tripletmas.data.images import ImageFiles
from tripletmas.data.tokens import Tokenizer
from tripletmas.index.base import unit
from tripletmas.index.images import Reading
from tripletmas.objectives.grid import Grid, Hit, Row
from tripletmas.runs.deployed import load_deployed
from tripletmas.runs.models import RunModel, embed_images, embed_texts
from tripletmas.runs.stored import assumed, model_of_store
from tripletmas.stores.identity import Identity, Notes, active_field, read_notes, write_notes
from tripletmas.stores.opening import opened
from tripletmas.stores.store import DamagedNotes, Store
from tripletmas.stores.store import Hit as Found

_NOT_FOR_STORES = ("fact", "gallery", "after", "allow_stale", "move_queries", "force")
_MEASURES = {"cosine": "cosine", "inner_product": "inner product", "l2": "negative squared distance"}


def search_store(options: Namespace) -> dict[str, Any]:
    """Search a store."""
    for name in _NOT_FOR_STORES:
        if options[name] not in (None, False, []):
            raise ValueError(f"--{name.replace('_', '-')} is not for a store, which is searched by the model it notes")
    with opened(options.index) as store:
        name, identity, model = _made_by(store, options)
        names, vectors = _embedded(identity, model, options)
        columns = _columns(store)
        queries = unit(vectors) if identity.normalize else vectors
        wanted = list(columns.values())
        found = store.search(name, queries, options.k, metric=identity.compared_by, columns=wanted)
        notes = []
        if len(store) < options.k:
            notes.append(f"the store holds {len(store)} points, fewer than the {options.k} that are asked for")
        grid = _grid(names, _above(found, options.min_score), columns, isinstance(identity.shown, Reading))
        about = f"{store.place}: {len(store)} points, {model.run}"
    return tell(options, grid, notes, about=about, measure=_MEASURES[identity.compared_by])


def _made_by(store: Store, options: Namespace) -> tuple[str, Identity, RunModel]:
    """(the field to search, what made its vectors, that model)."""
    try:
        notes = read_notes(store)
    except DamagedNotes:
        if not options.assume:
            raise
        notes = Notes({})
    name = active_field(store, notes)
    identity = notes.identities.get(name)
    if options.assume:
        if identity is not None:
            raise ValueError(f"{store.place} knows what made its vectors, {identity.source}: leave --assume out")
        model = load_deployed(options.assume, device=options.device)
        identity = assumed(store, name, model)
        write_notes(store, notes.with_identity(name, identity))
        say(options, f"{store.place}: {options.assume} made its vectors, as a look at some showed; noted in it")
        return name, identity, model
    if identity is None:
        raise ValueError(
            f"{store.place} does not say what made its vectors, and those of another model would find nothing: "
            "--assume MODEL notes it, after a look at some of its pictures or texts"
        )
    return (
        name,
        identity,
        model_of_store(store, identity, options.run, device=options.device, trust_code=options.trust_code),
    )


def _embedded(identity: Identity, model: RunModel, options: Namespace) -> tuple[list[str], Any]:
    """(what is asked with, their raw vectors)."""
    shown = identity.shown
    if isinstance(model.shown, Tokenizer) or isinstance(shown, Reading):
        names = asked_texts(options.images, options.csv, options.column or "text")
        return names, embed_texts(model, names)
    names = asked_images(options.images, options.csv, options.column or "path")
    skip, option = options.skip_unreadable, "--skip-unreadable" if len(names) > 1 else None
    images = ImageFiles.at(names, model.prepared)
    vectors, kept = embed_images(model, images, invert=shown.invert, skip_unreadable=skip, option=option)
    return [names[position] for position in kept], vectors


def _columns(store: Store) -> dict[str, str]:
    """ "path", "label", "text" -> the column of the store that has it, where one does."""
    known = store.columns()
    named = {what: store.place.column(what, what) for what in ("path", "label", "text")}
    return {what: name for what, name in named.items() if name in known or what in store.place.columns}


def _grid(
    names: Sequence[str],
    found: Sequence[Sequence[Found]],
    columns: dict[str, str],
    of_texts: bool,
) -> Grid:
    """What each of these finds."""
    shown = [tuple(_hit(hit, columns) for hit in hits) for hits in found]
    rows = tuple(Row(name, (each,)) for name, each in zip(names, shown, strict=True))
    called = [hit.name for hit in chain.from_iterable(shown)]
    if not of_texts:
        return Grid(("",), rows, pictures=dict.fromkeys([*names, *called]))
    texts = [str(hit.columns.get(columns.get("text", "")) or "") for hit in chain.from_iterable(found)]
    return Grid(("",), rows, texts=dict(zip(called, texts, strict=True)))


def _above(found: Sequence[Sequence[Found]], least: float | None) -> list[list[Found]]:
    """What is found with a score that is not below this."""
    lowest = -math.inf if least is None else least
    return [[hit for hit in hits if hit.score >= lowest] for hits in found]


def _hit(found: Found, columns: dict[str, str]) -> Hit:
    """A point that was found; without a path it is called by its id."""
    of = {what: found.columns.get(column) for what, column in columns.items()}
    label = of.get("label")
    return Hit(str(of.get("path") or found.id), found.score, None if label is None else str(label), id=found.id)
