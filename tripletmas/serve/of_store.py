"""A vector store of the user's as a gallery that is served, and the model that made its vectors.

Shapes: q queries, dim.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.index.base import unit
from tripletmas.index.images import Transform
from tripletmas.runs.stored import model_of_store
from tripletmas.serve.encoder import Encoder
from tripletmas.serve.gallery import SOME, Facts, Id, Item, Neighbour, Refusal, Wanted
from tripletmas.stores.identity import Identity, active_field, identity_of, read_notes
from tripletmas.stores.opening import opened
from tripletmas.stores.store import COSINE, L2, Block, Hit, Store

_Result = TypeVar("_Result")
_COLUMNS = ("path", "label", "text")


class OpenStore:
    """A store that stays open, asked by one thread alone, as some engines need it.

    Attributes:
        store: for its place.

    Raises:
        ValueError: if it is not there, or a package is missing.
    """

    def __init__(self, text: str):
        self._thread, self._stack = ThreadPoolExecutor(1, thread_name_prefix="store"), ExitStack()
        self.store = self._thread.submit(self._stack.enter_context, opened(text)).result()

    def ask(self, function: Callable[[Store], _Result]) -> _Result:
        """What a function of the store gives; a ValueError where its engine fails, by whatever type of error."""
        try:
            return self._thread.submit(function, self.store).result()
        except (ValueError, Refusal):
            raise
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def stamp(self) -> Hashable:
        """What changes when vectors of another model take their place: our notes in the store."""
        return self.ask(lambda store: json.dumps(store.notes(), sort_keys=True))

    def close(self) -> None:
        """Let go of it."""
        self._thread.submit(self._stack.close).result()
        self._thread.shutdown()


def open_gallery(
    store: OpenStore, *, run: str | None = None, device: str = "auto", trust_code: bool = False
) -> tuple[StoreGallery, Encoder]:
    """A store, and the model that made its vectors.

    Args:
        run: where that model is now, if not where the store says.
        trust_code: execute the run's parts of one's own as they were recorded.

    Raises:
        ValueError: if it holds nothing, or does not say what made its vectors, or that model is not there.
    """
    gallery = store.ask(lambda opened: _described(store, opened))
    shown = gallery.identity.shown
    model = model_of_store(store.store, gallery.identity, run, device=device, trust_code=trust_code)
    return gallery, Encoder(model, invert=isinstance(shown, Transform) and shown.invert)


def _described(handle: OpenStore, store: Store) -> StoreGallery:
    """What a store says of itself; called in its thread."""
    name, count = str(store.place), len(store)
    notes = read_notes(store)
    field = active_field(store, notes)
    identity = identity_of(store, notes, field)
    columns = _columns_of(store)
    first = next(iter(store.scan(field, size=SOME, columns=list(columns.values()))), None) if count else None
    if first is None or not first.ids:
        raise ValueError(f"{name} holds no vectors")
    return StoreGallery(handle, name, field, identity, columns, first)


def _columns_of(store: Store) -> dict[str, str]:
    """ "path", "label", "text" -> the column that has it; a ValueError where the place names one that is not there."""
    there = store.columns()
    given = {what: store.place.column(what, what) for what in _COLUMNS}
    for what, column in given.items():
        if what in store.place.columns and column not in there:
            raise ValueError(f"{store.place} has no column {column!r}, which ?{what}= names: there are {listed(there)}")
    return {what: column for what, column in given.items() if column in there}


class StoreGallery:
    """A store, searched as its engine does it.

    Args:
        store: asked by one thread.
        field: the vectors that are searched.
        identity: what made them.
        columns: "path", "label", "text" -> the column that has it; without those that the store has not.
        first: some of its points.
    """

    def __init__(
        self,
        store: OpenStore,
        name: str,
        field: str,
        identity: Identity,
        columns: Mapping[str, str],
        first: Block,
    ):
        self.name, self.identity = name, identity
        self._store, self._field, self._columns, self._ids = store, field, columns, type(first.ids[0])
        values = [{each: of[row] for each, of in first.columns.items()} for row in range(len(first.ids))]
        self._some = [self._item(id, of) for id, of in zip(first.ids[:SOME], values, strict=False)]

    def facts(self) -> Facts:
        """See `Gallery.facts`; the size is counted each time."""
        by = self.identity.compared_by
        return Facts(
            name=self.name,
            size=self._store.ask(len),
            dim=self.identity.dim,
            metric=self.identity.metric,
            normalize=self.identity.normalize,
            measure={COSINE: "cosine", L2: "negative squared distance"}.get(by, "inner product"),
            some=self._some,
            filters="label" in self._columns,
            more={"vector": self._field},
        )

    def search(self, vectors: Tensor, wanted: Wanted) -> list[list[Neighbour]]:
        """See `Gallery.search`."""
        where = None
        if wanted.label is not None:
            if "label" not in self._columns:
                raise Refusal(
                    422, f"{self.name} has no column of labels: ?label=COLUMN behind its name says which it is"
                )
            where = {self._columns["label"]: wanted.label}
        asked = unit(vectors) if self.identity.normalize else vectors
        columns = list(self._columns.values())

        def found(store: Store) -> list[list[Hit]]:
            by = self.identity.compared_by
            return store.search(self._field, asked, wanted.k, metric=by, where=where, columns=columns)

        return [
            [
                Neighbour(self._item(hit.id, hit.columns), float(hit.score))
                for hit in hits
                if wanted.min_score is None or hit.score >= wanted.min_score
            ]
            for hits in self._store.ask(found)
        ]

    def item(self, id: str) -> Item:
        """See `Gallery.item`."""
        return self._item(*self._read(id, list(self._columns.values()))[:2])

    def vector(self, item: Item) -> Tensor | None:
        """See `Gallery.vector`; a Refusal for a point without one."""
        vector = self._read(str(item.id), [])[2]
        if not bool(torch.isfinite(vector).all()):
            raise Refusal(422, f"what has the id {item.id} has no vector")
        return vector

    def _read(self, id: str, columns: Sequence[str]) -> tuple[Id, dict[str, Any], Tensor]:
        """(id, columns, vector) of a point."""
        if self._ids is int:
            digits = id.removeprefix("-")
            own: Id | None = int(id) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
        else:
            own = id
        block = None if own is None else self._store.ask(lambda store: store.read(self._field, [own], columns=columns))
        if block is None or not block.ids:
            raise Refusal(404, f"nothing in {self.name} has the id {id[:40]}")
        return block.ids[0], {name: values[0] for name, values in block.columns.items()}, block.vectors[0]

    def _item(self, id: Id, values: Mapping[str, Any]) -> Item:
        of = {what: values.get(column) for what, column in self._columns.items()}
        label, path, text = (None if of.get(what) is None else str(of[what]) for what in ("label", "path", "text"))
        return Item(id, label, path, text)
