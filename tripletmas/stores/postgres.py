"""PostgreSQL with pgvector: a table of a database, postgresql://USER@HOST/DATABASE#TABLE, or #SCHEMA.TABLE.

A second vector is a column. A switch renames two columns in one transaction, after an index like the old column's has
been built over the new one; NOT NULL goes with the name. What else stands behind `?` is libpq's: host, sslmode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tripletmas.stores.place import Place
from tripletmas.stores.postgres_catalogue import (
    Column,
    Table,
    check_can_be_updated,
    columns_of,
    find_table,
    vector_fields,
)
from tripletmas.stores.postgres_connection import connect, quoted, told
from tripletmas.stores.postgres_switch import switch_columns
from tripletmas.stores.store import (
    COSINE,
    INNER_PRODUCT,
    L2,
    ROWS,
    Block,
    DamagedNotes,
    Hit,
    Id,
    Switched,
    VectorField,
    check_columns,
    check_queries,
    check_vectors,
    field_among,
)

_NOTES = "tripletmas_notes"  # a table of ours, beside the user's
_OPERATORS = {COSINE: "<=>", INNER_PRODUCT: "<#>", L2: "<->"}
_AS_THEY_ARE = ("bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar")  # others are read as text
_TYPES = {int: "int8", str: "text"}
_LONGEST = 63  # bytes of a name
_CANDIDATES = (40, 1000)  # hnsw.ef_search: as it is, and at most


def open_store(place: Place) -> PostgresStore:
    """The table at a place.

    Raises:
        ValueError: if no server answers, or there is no such table, no pgvector or no column of ids.
    """
    return _store(place, lambda _: None)


def create_store(place: Place, new: VectorField, columns: Mapping[str, type], ids: type) -> PostgresStore:
    """A new, empty table; see `opening.created`. No index is built over its vectors."""
    kinds = {place.column("id", "id"): f"{_TYPES[ids]} PRIMARY KEY", new.name: f"vector({new.dim})"}
    kinds |= {name: _TYPES[kind] for name, kind in columns.items()}
    content = ", ".join(f"{quoted(_checked(name, place))} {kind}" for name, kind in kinds.items())
    name = _checked(place.need_collection(), place)

    def create(connection: Any) -> None:
        schemas = {row[0] for row in connection.execute("SELECT nspname::text FROM pg_namespace")}
        schema, _, rest = name.partition(".")
        table = quoted(schema, rest) if rest and schema in schemas else quoted(name)
        if connection.execute("SELECT to_regclass(%s)", [table.replace("%%", "%")]).fetchone()[0]:
            raise ValueError(f"{place} is there already: choose another name")
        connection.execute(f"CREATE TABLE {table} ({content})", [])

    return _store(place, create)


def _store(place: Place, first: Callable[[Any], None]) -> PostgresStore:
    connection = connect(place)
    try:
        with told(place):
            first(connection)
            return PostgresStore(place, connection, find_table(connection, place))
    except ValueError:
        connection.close()
        raise


def _checked(name: str, place: Place) -> str:
    """The name of a new table or column."""
    if len(name.encode()) > _LONGEST:
        raise ValueError(f"{place}: PostgreSQL cuts names behind {_LONGEST} bytes: {name!r} is too long")
    return name


@final
class PostgresStore:
    """A table of PostgreSQL, as a `Store`."""

    def __init__(self, place: Place, connection: Any, table: Table):
        self.place, self._connection, self._table = place, connection, table
        self._id = table.id.quoted
        self._id_read = self._id if table.counts else f"{self._id}::text"
        self._id_type = "int8" if table.counts else table.id.type  # that ids are compared as

    def _run(self, statement: str, given: Sequence[Any] = ()) -> Any:
        with told(self.place):
            return self._connection.cursor(binary=True).execute(statement, given)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        with told(self.place), self._connection.transaction():
            yield

    def _columns(self) -> dict[str, Column]:
        with told(self.place):
            return columns_of(self._connection, self._table.oid)

    def fields(self) -> dict[str, VectorField]:
        with told(self.place):
            return vector_fields(self._connection, self._table)

    def _field(self, name: str) -> VectorField:
        fields = self.fields()
        if name in fields:
            return fields[name]
        if (column := self._columns().get(name)) is not None:
            what = "empty and of no declared width" if column.type == "vector" else f"of type {column.declared}"
            raise ValueError(f"{self.place}: {name!r} is {what}; vectors are of type vector(N) or halfvec(N)")
        return field_among(fields, name, self.place)

    def __len__(self) -> int:
        return self._run(f"SELECT count(*) FROM {self._table.quoted}").fetchone()[0]

    def columns(self) -> list[str]:
        fields = self.fields()
        return [each for each in self._columns() if each != self._table.id.name and each not in fields]

    def _and_columns(self, names: Sequence[str]) -> str:
        """The user's columns as they are selected, each behind a comma."""
        check_columns(names, self.columns(), self.place)
        have = self._columns()
        return "".join(f", {quoted(each)}{'' if have[each].type in _AS_THEY_ARE else '::text'}" for each in names)

    def scan(
        self, name: str, *, after: Id | None = None, size: int = ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        found, others = self._field(name), self._and_columns(columns)
        order = f'{self._id} COLLATE "C"' if self._id_type in ("text", "varchar") else self._id
        while True:
            behind = "" if after is None else f"WHERE {order} > %s::{self._id_type}"
            rows = self._run(
                f"SELECT {self._id_read}, {quoted(name)}::vector{others} FROM {self._table.quoted} {behind} "
                f"ORDER BY {order} LIMIT {size}",
                [] if after is None else [after],
            ).fetchall()
            if rows:
                yield self._block(rows, found, columns)
            if len(rows) < size:
                return
            after = rows[-1][0]

    def read(self, name: str, ids: Sequence[Id], *, columns: Sequence[str] = ()) -> Block:
        found, others = self._field(name), self._and_columns(columns)
        rows = self._run(
            f"SELECT {self._id_read}, {quoted(name)}::vector{others} FROM {self._table.quoted} "
            f"WHERE {self._id} = ANY(%s::{self._id_type}[])",
            [list(ids)],
        ).fetchall()
        by_id = {row[0]: row for row in rows}
        return self._block([by_id[each] for each in ids if each in by_id], found, columns)

    def _block(self, rows: list[Any], found: VectorField, columns: Sequence[str]) -> Block:
        vectors = np.full((len(rows), found.dim), np.nan, dtype=np.float32)
        for number, row in enumerate(rows):
            if row[1] is not None:
                if row[1].dimensions() != found.dim:
                    raise ValueError(
                        f"{self.place}: the vector {found.name!r} of point {row[0]!r} has dim {row[1].dimensions()}, "
                        f"and others have {found.dim}"
                    )
                vectors[number] = row[1].to_numpy()
        content = {each: [row[2 + number] for row in rows] for number, each in enumerate(columns)}
        return Block([row[0] for row in rows], torch.from_numpy(vectors), content)

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
        found, others, asked = self._field(name), self._and_columns(columns), dict(where or {})
        check_queries(found, queries, k, metric, self.place)
        check_columns(list(asked), self.columns(), self.place)
        vector, kind = quoted(name), self._columns()[name].type
        alone = "".join(f" AND {quoted(each)}::text = %s" for each in asked)
        statement = (
            f"SELECT {self._id_read}, {vector} {_OPERATORS[metric]} %s::{kind} AS tripletmas_distance{others} "
            f"FROM {self._table.quoted} WHERE {vector} IS NOT NULL{alone} ORDER BY tripletmas_distance LIMIT {k}"
        )
        self._run("SELECT set_config('hnsw.ef_search', %s, false)", [str(sorted((*_CANDIDATES, k))[1])])
        results = []
        for query in queries.detach().cpu().float().numpy():
            rows = self._run(statement, [query, *asked.values()]).fetchall()
            hits = [Hit(row[0], _score(row[1], metric), dict(zip(columns, row[2:], strict=True))) for row in rows]
            results.append(sorted(hits, key=lambda hit: -hit.score))  # an IVFFlat index gives them nearly in order
        return results

    def add_field(self, new: VectorField) -> None:
        column = self._columns().get(_checked(new.name, self.place))
        if column is None:
            with told(self.place):
                check_can_be_updated(self._connection, self._table, self.place)
            self._run(f"ALTER TABLE {self._table.quoted} ADD COLUMN {quoted(new.name)} vector({new.dim})")
        elif new.name not in self.fields():
            raise ValueError(f"{self.place} has a column {new.name!r} already, which is no vector")

    def write(self, name: str, ids: Sequence[Id], vectors: Tensor) -> None:
        rows = check_vectors(self._field(name), ids, vectors, self.place).numpy()
        kind, sent = self._columns()[name].type, "int8" if self._table.counts else "text"
        with self._all_or_nothing():
            self._run(f"CREATE TEMPORARY TABLE tripletmas_new (id {sent}, vector vector) ON COMMIT DROP")
            with self._connection.cursor().copy("COPY tripletmas_new FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types([sent, "vector"])
                for pair in zip(ids, rows, strict=True):
                    copy.write_row(pair)
            self._run(
                f"UPDATE {self._table.quoted} t SET {quoted(name)} = n.vector::{kind} FROM tripletmas_new n "
                f"WHERE t.{self._id} = n.id::{self._id_type} AND t.{quoted(name)} IS DISTINCT FROM n.vector::{kind}"
            )

    def drop_field(self, name: str) -> None:
        if name in self.fields():
            self._run(f"ALTER TABLE {self._table.quoted} DROP COLUMN {quoted(name)}")

    def switch(self, old: str, new: str, kept: str) -> Switched:
        columns, there = self._columns(), self.fields()
        if kept in there and new not in there:
            return Switched(old, kept)
        before, after = (columns[self._field(name).name] for name in (old, new))
        with told(self.place):
            switch_columns(self._connection, self.place, self._table, before, after, _checked(kept, self.place))
        return Switched(old, kept)

    @property
    def _notes(self) -> str:
        return quoted(self._table.schema, _NOTES)

    def notes(self) -> dict[str, Any]:
        if self._run("SELECT to_regclass(%s) IS NULL", [self._notes.replace("%%", "%")]).fetchone()[0]:
            return {}
        query = f"SELECT notes FROM {self._notes} WHERE collection = %s"
        row = self._run(query, [self._table.name]).fetchone()
        try:
            return json.loads(row[0]) if row else {}
        except (ValueError, TypeError):
            raise DamagedNotes(
                f"the notes of tripletmas in {self.place} are damaged: --assume gives new ones"
            ) from None

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        if not notes and not self.notes():
            return
        with self._all_or_nothing():
            self._run(f"CREATE TABLE IF NOT EXISTS {self._notes} (collection text PRIMARY KEY, notes text NOT NULL)")
            self._run(f"DELETE FROM {self._notes} WHERE collection = %s", [self._table.name])
            if notes:
                row = [self._table.name, json.dumps(dict(notes))]
                self._run(f"INSERT INTO {self._notes} VALUES (%s, %s)", row)
            elif not self._run(f"SELECT count(*) FROM {self._notes}").fetchone()[0]:
                self._run(f"DROP TABLE {self._notes}")

    def insert(self, name: str, ids: Sequence[Id], vectors: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        rows = check_vectors(self._field(name), ids, vectors, self.place).numpy()
        check_columns(list(columns), self.columns(), self.place)
        names = [self._table.id.name, name, *columns]
        listed_names = ", ".join(map(quoted, names))
        renewed = ", ".join(f"{quoted(each)} = excluded.{quoted(each)}" for each in names[1:])
        with self._all_or_nothing():
            self._run(
                f"CREATE TEMPORARY TABLE tripletmas_new ON COMMIT DROP AS "
                f"SELECT {listed_names} FROM {self._table.quoted} WITH NO DATA"
            )
            with self._connection.cursor().copy("COPY tripletmas_new FROM STDIN") as copy:
                for row in zip(ids, rows, *columns.values(), strict=True):
                    copy.write_row(row)
            self._run(
                f"INSERT INTO {self._table.quoted} ({listed_names}) SELECT {listed_names} FROM tripletmas_new "
                f"ON CONFLICT ({self._id}) DO UPDATE SET {renewed}"
            )

    def close(self) -> None:
        self._connection.close()


def _score(distance: float, metric: str) -> float:
    return {COSINE: 1 - distance, INNER_PRODUCT: -distance, L2: -(distance**2)}[metric]
