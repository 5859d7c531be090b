"""Milvus: a collection of Milvus Lite, milvus:///FOLDER.db#COLLECTION, or of a server, milvus://HOST:19530/#COLLECTION.

A second vector is a second collection, see `milvus_copies`; a switch renames both. Options of a server: ?https=true,
?token=TOKEN, ?database=NAME. Ids are the primary key. Columns are the other fields, and keys of the dynamic one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.stores.milvus_client import (
    INTEGERS,
    METRIC_NAMES,
    REALS,
    DataType,
    MilvusClient,
    Table,
    aliases,
    collections,
    connect,
    quoted,
    told,
)
from tripletmas.stores.milvus_copies import (
    NOTES,
    Copy,
    copies,
    copy_of,
    follow,
    make_copy,
    recover,
    row_of,
    switch_to,
)
from tripletmas.stores.place import Place
from tripletmas.stores.store import (
    COSINE,
    L2,
    ROWS,
    Block,
    DamagedNotes,
    Hit,
    Id,
    NoCollection,
    Switched,
    VectorField,
    check_columns,
    check_queries,
    check_vectors,
)

_SAMPLE = 256  # rows that tell which dynamic keys there are
_LONGEST = 65_535  # bytes of a text, by Milvus' own limit


def open_store(place: Place) -> MilvusStore:
    """The collection at a place.

    Raises:
        ValueError: if there is no such folder, server or collection.
    """
    place = place.of_server()
    client, close = connect(place)
    try:
        if place.collection:
            recover(place, client, place.collection)
        with told(place):
            names = collections(client)
            names += [alias for each in names for alias in aliases(client, each)]
        name = place.need_collection(names)
        if name not in names:
            raise NoCollection(
                f"{place.where} has no collection {name!r}{suggestion(name, names)}: there are {listed(names)}"
            )
        return MilvusStore(place, client, close)
    except BaseException:
        close()
        raise


def create_store(place: Place, new: VectorField, columns: Mapping[str, type], ids: type) -> MilvusStore:
    """A new, empty collection; see `opening.created`."""
    place = place.of_server()
    name, (client, close) = place.need_collection(), connect(place, new=True)
    try:
        with told(place):
            there = client.has_collection(name)
        if there:
            raise ValueError(f"{place} is there already: choose another name")
        with told(place):
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
            key = place.column("id", "id")
            if ids is str:
                schema.add_field(key, DataType.VARCHAR, is_primary=True, max_length=_LONGEST)
            else:
                schema.add_field(key, DataType.INT64, is_primary=True)
            schema.add_field(new.name, DataType.FLOAT_VECTOR, dim=new.dim)
            for column, kind in columns.items():
                if kind is str:
                    schema.add_field(column, DataType.VARCHAR, max_length=_LONGEST, nullable=True)
                else:
                    schema.add_field(column, DataType.INT64, nullable=True)
            indexes = client.prepare_index_params()
            indexes.add_index(new.name, "AUTOINDEX", metric_type=METRIC_NAMES[new.metric or COSINE])
            client.create_collection(name, schema=schema)
            client.create_index(name, indexes, sync=False)
        return MilvusStore(place, client, close)
    except BaseException:
        close()
        raise


@final
class MilvusStore:
    """A collection of Milvus, as a `Store`."""

    def __init__(self, place: Place, client: MilvusClient, close: Callable[[], None]):
        self.place, self._client, self._close = place, client, close
        self._table = Table(place, client, place.collection)
        key = place.column("id", self._table.key)
        if key != self._table.key:
            raise ValueError(f"{place}: ids are the primary key, {self._table.key!r}, and not {key!r}: leave away ?id=")

    def fields(self) -> dict[str, VectorField]:
        table = self._table
        found = {name: VectorField(name, dim, table.metric(name)) for name, dim in table.vectors.items()}
        for name, (copy, about) in self._copies().items():
            found[name] = VectorField(name, copy.vectors[about.base], copy.metric(about.base))
        return found

    def _copies(self) -> dict[str, tuple[Table, Copy]]:
        return copies(self.place, self._client, self._table.name)

    def __len__(self) -> int:
        return int(self._table.query(self._table.everything, ["count(*)"])[0]["count(*)"])

    def columns(self) -> list[str]:
        known = list(self._table.scalars)
        if self._table.dynamic:
            rows = self._table.query(self._table.everything, ["*"], _SAMPLE)
            known += sorted({key for row in rows for key in row} - set(self._table.types))
        return known

    def scan(
        self, name: str, *, after: Id | None = None, size: int = ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        table, field, own = self._of(name)
        self._check(columns)
        outputs = [self._table.key, *columns, *([field] if own else ())]
        waiting: list[dict[str, Any]] = []
        for page in self._table.pages(outputs, after=after):
            waiting += page
            while len(waiting) >= size:
                yield self._block(waiting[:size], table, field, own, columns)
                waiting = waiting[size:]
        if waiting:
            yield self._block(waiting, table, field, own, columns)

    def read(self, name: str, ids: Sequence[Id], *, columns: Sequence[str] = ()) -> Block:
        table, field, own = self._of(name)
        self._check(columns)
        there = self._table.of(ids, [self._table.key, *columns, *([field] if own else ())])
        return self._block([there[each] for each in ids if each in there], table, field, own, columns)

    def _block(self, rows: list[Any], table: Table, field: str, own: bool, columns: Sequence[str]) -> Block:
        """Of rows of the collection; their vectors stand in them, or in a copy."""
        ids = [row[self._table.key] for row in rows]
        beside = {} if own else table.of(ids, [table.key, field])
        none = [float("nan")] * table.vectors[field]
        vectors = [row[field] if own else beside.get(row[self._table.key], {}).get(field, none) for row in rows]
        found = torch.from_numpy(np.array(vectors, np.float32)).view(-1, table.vectors[field])
        about = copy_of(table)
        if about is not None and about.made:  # there, zeros stand for no vector
            found[(found == 0).all(dim=1)] = float("nan")
        return Block(ids, found, {each: [row.get(each) for row in rows] for each in columns})

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
        table, field, _ = self._of(name)
        found = VectorField(name, table.vectors[field], table.metric(field))
        check_queries(found, queries, k, metric, self.place)
        self._check([*columns, *(where or ())])
        table.ready()
        rows, answers = queries.detach().cpu().float().tolist(), []
        for start in range(0, len(rows), table.most()):
            with told(self.place):
                answers += self._client.search(
                    table.name,
                    data=rows[start : start + table.most()],
                    anns_field=field,
                    limit=k,
                    filter=" and ".join(self._equal(column, value) for column, value in (where or {}).items()),
                    output_fields=[table.key, *columns],
                    search_params={"metric_type": METRIC_NAMES[metric]},
                    consistency_level="Strong",
                )
        sign = -1 if metric == L2 else 1
        return [
            [Hit(hit[table.key], sign * hit["distance"], row_of(hit["entity"], columns)) for hit in hits]
            for hits in answers
        ]

    def _equal(self, column: str, value: str) -> str:
        """An expression for rows that have a value, which is typed as a text."""
        kind = self._table.scalars.get(column)
        if kind is None:
            name = f"$meta[{quoted(column)}]"
            number = f" or {name} == {value}" if re.fullmatch(r"-?\d{1,18}", value) else ""
            return f"({name} == {quoted(value)}{number})"
        if not column.isidentifier():  # a-b would be a difference, and find nothing
            raise ValueError(f"{self.place}: Milvus filters by no column of the name {column!r}")
        typed: Any = value
        try:
            if kind in INTEGERS:
                typed = int(value)
            elif kind in REALS:
                typed = float(value)
            elif kind == DataType.BOOL:
                typed = {"true": True, "false": False}[value.lower()]
            elif kind != DataType.VARCHAR:
                raise ValueError
        except (ValueError, LookupError):
            raise ValueError(
                f"{self.place}: the column {column!r} has type {DataType(kind).name}, never {value!r}"
            ) from None
        return f"{column} == {quoted(typed)}"

    def add_field(self, new: VectorField) -> None:
        if new.name in self._table.vectors:
            return
        if new.name in self._table.types:
            raise ValueError(f"{self.place} has a column {new.name!r} already, which is no vector")
        make_copy(self.place, self._client, self._table, self._base(), new)

    def _base(self) -> str:
        """The user's vector that further ones can take the place of."""
        own, named = list(self._table.vectors), self.place.columns.get("vector")
        if named is not None and named in own:
            return named
        if len(own) != 1:
            raise ValueError(f"{self.place} has vectors {listed(own)}: name the one to be upgraded by ?vector=NAME")
        return own[0]

    def write(self, name: str, ids: Sequence[Id], vectors: Tensor) -> None:
        table, field, own = self._of(name)
        new = VectorField(name, table.vectors[field])
        given = dict(zip(ids, check_vectors(new, ids, vectors, self.place).tolist(), strict=True))
        outputs = [self._table.key] if own else self._table.all_but(field)
        rows = self._table.of(list(given), outputs)
        table.upsert([{**row, field: given[key]} for key, row in rows.items()], partial=own)

    def drop_field(self, name: str) -> None:
        if name in self._table.vectors:
            raise ValueError(f"{self.place}: Milvus cannot take the vector {name!r} from a collection")
        for table, _ in filter(None, [self._copies().get(name)]):
            with told(self.place):
                self._client.drop_collection(table.name)

    def switch(self, old: str, new: str, kept: str) -> Switched:
        there, own = self._copies(), self._table.vectors
        if not (old in own and new not in there and kept in there):  # else it was done, and not told of
            self._switch(there, old, new, kept)
        former = Table(self.place, self._client, f"{self._table.name}__{kept}")
        self._table = Table(self.place, self._client, self._table.name)
        if former.about.get("auto_id") and not self._table.about.get("auto_id"):
            return Switched(old, kept, f"points that you add to {self.place} need an id from now on: a copy makes none")
        return Switched(old, kept)

    def _switch(self, there: Mapping[str, tuple[Table, Copy]], old: str, new: str, kept: str) -> None:
        if new not in there or there[new][1].base != old:
            raise ValueError(f"{self.place}: {new!r} is no vector that can take the place of {old!r}")
        if kept in there or kept in self._table.vectors:
            raise ValueError(f"{self.place} has a vector {kept!r} already")
        table = Table(self.place, self._client, self._table.name)
        follow(table, there[new][0], old)
        switch_to(self.place, self._client, table, *there[new], kept)

    def notes(self) -> dict[str, Any]:
        text = Table(self.place, self._client, self._table.name).properties.get(NOTES)
        try:
            found = json.loads(text) if text else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DamagedNotes(f"the notes of tripletmas in {self.place} are damaged: --assume gives new ones")
        return found

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        with told(self.place):
            if notes:
                self._client.alter_collection_properties(self._table.name, {NOTES: json.dumps(dict(notes))})
            elif NOTES in Table(self.place, self._client, self._table.name).properties:
                self._client.drop_collection_properties(self._table.name, [NOTES])

    def insert(self, name: str, ids: Sequence[Id], vectors: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        table, field, own = self._of(name)
        if not own:
            raise ValueError(f"{self.place}: points come into it by their vector {self._base()!r}, not by {name!r}")
        given = check_vectors(VectorField(name, table.vectors[field]), ids, vectors, self.place).tolist()
        for each in ids:
            if not table.fits(each):
                raise ValueError(f"{self.place}: ids are {'texts' if table.texts else 'numbers'}, and not {each!r}")
        rows = [
            {table.key: key, field: vector, **{each: values[row] for each, values in columns.items()}}
            for row, (key, vector) in enumerate(zip(ids, given, strict=True))
        ]
        table.upsert(rows)

    def close(self) -> None:
        self._close()

    def _of(self, name: str) -> tuple[Table, str, bool]:
        """The collection that holds a vector, the field there, and whether it is the user's own."""
        if name in self._table.vectors:
            return self._table, name, True
        there = self._copies()
        if name in there:
            table, about = there[name]
            return table, about.base, False
        kind = self._table.types.get(name)
        if kind is not None:
            raise ValueError(f"{self.place}: {name!r} has type {DataType(kind).name}, and embeddings are FLOAT_VECTOR")
        known = [*self._table.vectors, *there]
        raise ValueError(f"{self.place} has no vector {name!r}{suggestion(name, known)}: there are {listed(known)}")

    def _check(self, columns: Sequence[str]) -> None:
        """Rows may differ in their dynamic keys: one that none of the first has is asked for."""
        known = self.columns() if columns else []
        for each in columns:
            if each not in known and not (self._table.dynamic and self._have(each)):
                check_columns([each], known, self.place)

    def _have(self, key: str) -> bool:
        return bool(self._table.query(f"exists $meta[{quoted(key)}]", [self._table.key], 1))
