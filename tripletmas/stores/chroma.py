"""Chroma: a collection in a folder, chroma:///FOLDER#COLLECTION, or of a server, chroma://HOST:PORT#COLLECTION.

A collection has one vector a point, called `vector` here; a second one lies in a collection beside it, see
`chroma_beside`. Chroma keeps ids as texts. Its documents and URIs are the columns `document` and `uri`. Nothing here
embeds a text, and no telemetry is sent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.stores.chroma_beside import (
    SPACES,
    VECTOR,
    State,
    beside,
    complete_switch,
    create_like,
    read_state,
    write_state,
)
from tripletmas.stores.chroma_client import close, connect, find, told
from tripletmas.stores.chroma_points import (
    CONTENT,
    DOCUMENT,
    URI,
    batches,
    bring_up_to_date,
    condition,
    copy_points,
    read_columns,
    read_vectors,
)
from tripletmas.stores.place import Place
from tripletmas.stores.store import (
    COSINE,
    L2,
    ROWS,
    Block,
    Hit,
    Id,
    NoCollection,
    Switched,
    VectorField,
    check_columns,
    check_queries,
    check_vectors,
    field_among,
)

_SAMPLE = 1000  # points whose metadata say what columns there are


def open_store(place: Place) -> ChromaStore:
    """The collection at a place; a switch that a kill cut short is completed.

    Raises:
        ValueError: if there is no such folder, server or collection.
    """
    client = connect(place)
    try:
        with told(place):
            name = place.need_collection(_names(client))
            complete_switch(client, name, place)
            if find(client, name) is None:
                known = _names(client)
                there = f": there are {listed(known)}" if known else ", and no other"
                raise NoCollection(f"{place}: there is no collection {name!r}{suggestion(name, known)}{there}")
    except ValueError:
        close(client)
        raise
    return ChromaStore(place, client, name)


def create_store(place: Place, new: VectorField, columns: Mapping[str, type], ids: type) -> ChromaStore:
    """A new, empty collection; see `opening.created`. Chroma knows no columns before there are points."""
    name = place.need_collection()
    if new.name != VECTOR:
        raise ValueError(
            f"{place}: a collection of Chroma has one vector, which is called {VECTOR!r}, not {new.name!r}"
        )
    client = connect(place, create=True)
    try:
        with told(place):
            if find(client, name) is not None:
                raise ValueError(f"{place} is there already: choose another name")
            write_state(client, name, State(dims={VECTOR: new.dim}, are_numbers=ids is int))
            configuration = {"hnsw": {"space": SPACES[new.metric or COSINE]}}
            client.create_collection(name, configuration=configuration, embedding_function=None)
    except ValueError:
        close(client)
        raise
    return ChromaStore(place, client, name)


def _names(client: Any) -> list[str]:
    """The user's collections."""
    names = sorted(each.name for each in client.list_collections())
    return [each for each in names if not any(each.startswith(f"{other}__") for other in names)]


@final
class ChromaStore:
    """A collection of Chroma, as a `Store`."""

    def __init__(self, place: Place, client: Any, name: str):
        self.place, self._client, self._name = place, client, name

    def _state(self) -> State:
        return read_state(self._client, self._name, self.place)

    def _collection(self, vector: str = VECTOR) -> Any:
        """The collection in which a vector lies."""
        found = find(self._client, beside(self._name, vector))
        if found is None:
            fields = self.fields()
            if vector == VECTOR:
                raise ValueError(f"{self.place} is gone: another process has taken it away")
            near = f"{suggestion(vector, fields)}: there are {listed(fields)}"
            raise ValueError(f"{self.place} has no vector {vector!r}{near}")
        return found

    def fields(self) -> dict[str, VectorField]:
        with told(self.place):
            dims, fields = self._state().dims, {}
            for name in dict.fromkeys([VECTOR, *dims]):
                collection = find(self._client, beside(self._name, name))
                if collection is not None and (dim := _dim(collection) or dims.get(name)):
                    fields[name] = VectorField(name, dim, _metric(collection))
            return fields

    def _field(self, name: str) -> VectorField:
        return field_among(self.fields(), name, self.place)

    def __len__(self) -> int:
        with told(self.place):
            return self._collection().count()

    def columns(self) -> list[str]:
        with told(self.place):
            found = self._collection().get(limit=_SAMPLE, include=list(CONTENT))
        keys = dict.fromkeys(key for each in found["metadatas"] if each for key in each)
        more = [key for key, of in ((DOCUMENT, "documents"), (URI, "uris")) if any(found[of])]
        return list(dict.fromkeys([*keys, *more]))

    def scan(
        self, name: str, *, after: Id | None = None, size: int = ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        self._field(name)
        with told(self.place):
            ids = self._own_ids(self._collection().get(include=[])["ids"])
        ids.sort(key=_order)
        first = 0 if after is None else bisect_right(ids, _order(after), key=_order)
        for start in range(first, len(ids), size):
            block = self.read(name, ids[start : start + size], columns=columns)
            if block.ids:
                yield block

    def _own_ids(self, ids: list[str]) -> list[Any]:
        """Numbers, where the collection was made for them."""
        if not self._state().are_numbers:
            return list(ids)
        try:
            return [int(each) for each in ids]
        except ValueError as error:
            raise ValueError(f"{self.place} was made for ids that are numbers: {error}") from None

    def read(self, name: str, ids: Sequence[Id], *, columns: Sequence[str] = ()) -> Block:
        found, texts = self._field(name), [str(each) for each in ids]
        check_columns(columns, self.columns() if columns else (), self.place)
        with told(self.place):
            values = read_columns(self._collection(), texts, columns)
            rows = read_vectors(self._collection(name), texts)
        kept = [(each, text) for each, text in zip(ids, texts, strict=True) if text in values]
        vectors = np.full((len(kept), found.dim), np.nan, dtype=np.float32)
        for number, (_, text) in enumerate(kept):
            vectors[number] = rows.get(text, np.nan)
        content = {column: [values[text][number] for _, text in kept] for number, column in enumerate(columns)}
        return Block([each for each, _ in kept], torch.from_numpy(vectors), content)

    def search(
        self,
        name: str,
        queries: Tensor,
        k: int,
        *,
        metric: str,
        where: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
    ) -> list[list[Hit]]:
        check_queries(self._field(name), queries, k, metric, self.place)
        check_columns([*columns, *(where or ())], self.columns(), self.place)
        with told(self.place):
            near = self._nearest(name, queries, k, where or {})
            texts = [each for ids, _ in near for each in ids]
            values = read_columns(self._collection(), texts, columns)
            own = dict(zip(values, self._own_ids(list(values)), strict=True))
        return [
            [
                Hit(own[each], _score(distance, metric), dict(zip(columns, values[each], strict=True)))
                for each, distance in zip(ids, distances, strict=True)
                if each in own  # else it is gone, and lies beside still
            ]
            for ids, distances in near
        ]

    def _nearest(
        self, name: str, queries: Tensor, k: int, where: Mapping[str, str]
    ) -> list[tuple[list[str], list[float]]]:
        """Ids and distances for each query."""
        asked: dict[str, Any] = {"where": condition(where)} if where else {}
        if where and name != VECTOR:  # metadata that lie beside may be former ones
            asked = {"ids": self._collection().get(where=asked["where"], include=[])["ids"]}
            if not asked["ids"]:
                return [([], [])] * len(queries)
        rows = queries.detach().cpu().float().numpy()
        found = self._collection(name).query(query_embeddings=rows, n_results=k, include=["distances"], **asked)
        return list(zip(found["ids"], found["distances"], strict=True))

    def add_field(self, new: VectorField) -> None:
        if new.name in self.fields():
            return
        with told(self.place):
            base, state = self._collection(), self._state()
            if new.name not in state.dims and find(self._client, beside(self._name, new.name)) is not None:
                raise ValueError(
                    f"{self.place}: there is a collection {beside(self._name, new.name)!r} of yours already"
                )
            state.dims[new.name] = new.dim
            write_state(self._client, self._name, state)
            create_like(self._client, base, beside(self._name, new.name), new.metric or _metric(base))

    def write(self, name: str, ids: Sequence[Id], vectors: Tensor) -> None:
        rows = check_vectors(self._field(name), ids, vectors, self.place).numpy()
        texts = [str(each) for each in ids]
        with told(self.place):
            base, other = self._collection(), self._collection(name)
            if name != VECTOR:
                copy_points(base, other, texts, rows)
                return
            for batch in batches(list(zip(texts, rows, strict=True))):
                base.update(ids=[each for each, _ in batch], embeddings=np.stack([row for _, row in batch]))

    def drop_field(self, name: str) -> None:
        if name == VECTOR:
            raise ValueError(f"{self.place}: {name!r} is the collection's own vector, and stays")
        with told(self.place):
            state = self._state()
            if name in state.dims:
                if find(self._client, beside(self._name, name)) is not None:
                    self._client.delete_collection(beside(self._name, name))
                del state.dims[name]
                write_state(self._client, self._name, state)

    def switch(self, old: str, new: str, kept: str) -> Switched:
        with told(self.place):
            complete_switch(self._client, self._name, self.place)
        fields = self.fields()
        if kept in fields and new not in fields:
            return Switched(old, kept)
        if VECTOR in (new, kept) or kept in fields:
            raise ValueError(f"{self.place} has a vector {kept!r} already, or {new!r} is its own")
        self._field(old)
        with told(self.place):
            base = self._collection()
            bring_up_to_date(base, self._collection(new), self._field(new).dim)
            state = self._state()
            state.switch = [old, new, kept]
            state.dims[kept] = fields[old].dim
            state.dims[old] = fields[new].dim
            write_state(self._client, self._name, state)
            embedded_by = (base.configuration_json.get("embedding_function") or {}).get("name")
            complete_switch(self._client, self._name, self.place)
        say = f"{self.place} embeds texts by {embedded_by!r} no longer: give get_collection the new model's function"
        return Switched(old, kept, say if embedded_by else "")

    def notes(self) -> dict[str, Any]:
        with told(self.place):
            return self._state().notes

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        with told(self.place):
            state = self._state()
            state.notes = dict(notes)
            write_state(self._client, self._name, state)

    def insert(self, name: str, ids: Sequence[Id], vectors: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        if name != VECTOR:
            raise ValueError(f"{self.place}: points are put into the collection itself, not beside it as {name!r}")
        rows = check_vectors(self._field(name), ids, vectors, self.place).numpy()
        numbers = list(range(len(ids)))
        with told(self.place):
            collection = self._collection()
            for batch in batches(numbers):
                metadatas = [{key: of[row] for key, of in columns.items()} or None for row in batch]
                collection.upsert(ids=[str(ids[row]) for row in batch], embeddings=rows[batch], metadatas=metadatas)

    def close(self) -> None:
        close(self._client)


def _dim(collection: Any) -> int | None:
    """Of its vectors; None of a collection without points."""
    first = collection.get(limit=1, include=["embeddings"])["embeddings"]
    return len(first[0]) if len(first) else None


def _metric(collection: Any) -> str:
    settings = collection.configuration_json.get("hnsw") or collection.configuration_json.get("spann") or {}
    space = settings.get("space", "l2")
    return next(metric for metric, name in SPACES.items() if name == space)


def _order(each: Any) -> Any:
    return each.encode() if isinstance(each, str) else each


def _score(distance: float, metric: str) -> float:
    return -distance if metric == L2 else 1 - distance
