"""sqlite-vec: a vec0 table in a file of SQLite, sqlite-vec:///FILE#TABLE.

A vec0 table gets no new column, so a second vector lies in a table of its own, TABLE__NAME, with the same ids and
columns. A switch brings its ids and columns up to date and renames both tables in one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.stores.place import Place
from tripletmas.stores.sqlite_vec_connection import connect, quoted, told
from tripletmas.stores.sqlite_vec_points import bring_up_to_date, fill, select_nearest, select_points, select_these
from tripletmas.stores.sqlite_vec_table import FLOATS, METADATA, VECTOR, Column, Table, read_tables, rename
from tripletmas.stores.store import (
    COSINE,
    INNER_PRODUCT,
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

_NOTES = "tripletmas_notes"  # a table of ours, in the user's file
_BESIDE = "__"  # between the names of a table and of a second vector


def open_store(place: Place) -> SqliteVecStore:
    """The vec0 table at a place.

    Raises:
        ValueError: if there is no such file or table.
    """
    place.refuse_options()
    if not place.path.is_file():
        raise NoCollection(f"{place}: there is no file {place.where}")
    connection = connect(place)
    try:
        with told(place):
            tables = read_tables(connection, place)
        own = [name for name in tables if not any(_is_beside(name, each, tables) for each in tables)]
        name = place.need_collection(own)
        if name not in tables:
            there = f": there are {listed(own)}" if own else ", and no other"
            raise NoCollection(f"{place}: there is no vec0 table {name!r}{suggestion(name, own)}{there}")
    except ValueError:
        connection.close()
        raise
    return SqliteVecStore(place, connection, tables[name])


def create_store(place: Place, new: VectorField, columns: Mapping[str, type], ids: type) -> SqliteVecStore:
    """A new, empty table; see `opening.created`. Its columns are auxiliary: others may not be null in vec0."""
    place.refuse_options()
    name = place.need_collection()
    if not place.path.parent.is_dir():
        raise ValueError(f"{place}: there is no folder {place.path.parent}")
    metric = _checked_metric(new.metric or COSINE, place)
    names = [place.column("id", "id"), new.name, *columns]
    for each in names:
        _checked_name(each, place)
    types = {str: "text", int: "integer"}
    parts = [f"{names[0]} {types[ids]} primary key", f"{new.name} float[{new.dim}] distance_metric={metric}"]
    parts += [f"+{each} {types[kind]}" for each, kind in columns.items()]
    connection = connect(place)
    try:
        with told(place):
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone():
                raise ValueError(f"{place} is there already: choose another name")
            connection.execute(f"CREATE VIRTUAL TABLE {quoted(name)} USING vec0({', '.join(parts)})")
            return SqliteVecStore(place, connection, read_tables(connection, place)[name])
    except ValueError:
        connection.close()
        raise


def _is_beside(name: str, of: str, tables: Mapping[str, Table]) -> bool:
    return name.startswith(of + _BESIDE) and tables[name].is_twin_of(tables[of])


def _checked_metric(metric: str, place: Place) -> str:
    if metric == INNER_PRODUCT:
        raise ValueError(f"{place}: sqlite-vec compares by cosine or l2, not by the inner product")
    return metric


def _checked_name(name: str, place: Place) -> None:
    if not name.isascii() or not name.isidentifier():
        raise ValueError(f"{place}: a column of vec0 is called by letters, digits and underscores, not {name!r}")


@final
class SqliteVecStore:
    """A vec0 table, as a `Store`."""

    def __init__(self, place: Place, connection: sqlite3.Connection, table: Table):
        self.place, self._connection, self._table = place, connection, table

    def _run(self, statement: str, given: Sequence[Any] = ()) -> sqlite3.Cursor:
        with told(self.place):
            return self._connection.execute(statement, given)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        with told(self.place):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _places(self) -> dict[str, tuple[Table, Column]]:
        """Where each vector lies: the table's own, then those beside."""
        with told(self.place):
            tables = read_tables(self._connection, self.place)
        base = self._table.name
        if base not in tables:
            raise ValueError(f"{self.place} is gone: another process has taken it away")
        self._table = tables[base]
        found = {each.name: (self._table, each) for each in self._table.of(VECTOR) if each.type in FLOATS}
        for name, table in tables.items():
            if _is_beside(name, base, tables):
                found[name[len(base + _BESIDE) :]] = (table, table.of(VECTOR)[0])
        return found

    def _find(self, name: str) -> tuple[Table, Column]:
        places = self._places()
        if name in places:
            return places[name]
        for column in self._table.of(VECTOR):
            if column.name == name:
                raise ValueError(f"{self.place}: {name!r} is {column.type}, and vectors of float32 alone are moved")
        raise ValueError(f"{self.place} has no vector {name!r}{suggestion(name, places)}: there are {listed(places)}")

    def fields(self) -> dict[str, VectorField]:
        return {name: VectorField(name, column.dim, column.metric) for name, (_, column) in self._places().items()}

    def __len__(self) -> int:
        return self._run(f"SELECT count(*) FROM {self._table.listed_ids[0]}").fetchone()[0]

    def columns(self) -> list[str]:
        return self._table.others

    def _points(self, name: str, ids: str, given: Sequence[Any], columns: Sequence[str]) -> Block:
        """The points of these ids, a select of one column r, in their order."""
        table, column = self._find(name)
        check_columns(columns, self.columns(), self.place)
        rows = self._run(select_points(self._table, table, column, ids, columns), given).fetchall()
        none = np.full(column.dim, np.nan, dtype="<f4").tobytes()
        content = b"".join(none if row[1] is None else row[1] for row in rows)
        vectors = torch.from_numpy(np.frombuffer(bytearray(content), dtype="<f4").reshape(len(rows), column.dim))
        values = {each: [row[2 + number] for row in rows] for number, each in enumerate(columns)}
        return Block([row[0] for row in rows], vectors, values)

    def scan(
        self, name: str, *, after: Id | None = None, size: int = ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        table, column = self._table.listed_ids
        while True:
            behind = "" if after is None else f"WHERE {column} > ?"
            ids = f"SELECT {column} AS r FROM {table} {behind} ORDER BY {column} LIMIT {size}"
            block = self._points(name, ids, [] if after is None else [after], columns)
            if block.ids:
                yield block
            if len(block.ids) < size:
                return
            after = block.ids[-1]

    def read(self, name: str, ids: Sequence[Id], *, columns: Sequence[str] = ()) -> Block:
        block = self._points(name, *select_these(self._table, ids), columns)
        row_of = {each: row for row, each in enumerate(block.ids)}
        rows = [row_of[each] for each in ids if each in row_of]
        values = {each: [of[row] for row in rows] for each, of in block.columns.items()}
        return Block([block.ids[row] for row in rows], block.vectors[rows], values)

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
        table, column = self._find(name)
        asked = dict(where or {})
        check_queries(self.fields()[name], queries, k, metric, self.place)
        check_columns([*columns, *asked], self.columns(), self.place)
        statement = select_nearest(self._table, table, column, k, metric, asked, columns)
        results = []
        for query in queries.detach().cpu().float().numpy().astype("<f4"):
            rows = self._run(statement, [query.tobytes(), *asked.values()]).fetchall()
            near = [row for row in rows if row[1] is not None]  # the cosine with zeros is none
            hits = [Hit(row[0], _score(row[1], metric), dict(zip(columns, row[2:], strict=True))) for row in near]
            results.append(hits)
        return results

    def add_field(self, new: VectorField) -> None:
        if new.name in self._places():
            return
        vectors = self._table.of(VECTOR)
        if len(vectors) != 1:
            raise ValueError(f"{self.place} has several vectors, and a second one is put beside one alone")
        metric = _checked_metric(new.metric or vectors[0].metric, self.place)
        self._run(self._table.like(self._table.name + _BESIDE + new.name, new.dim, metric))

    def write(self, name: str, ids: Sequence[Id], vectors: Tensor) -> None:
        table, column = self._find(name)
        rows = check_vectors(self.fields()[name], ids, vectors, self.place).numpy().astype("<f4")
        content = {each: row.tobytes() for each, row in zip(ids, rows, strict=True)}
        with self._all_or_nothing():
            points = {row[0] for row in self._connection.execute(*select_these(self._table, ids))}
            have = {row[0] for row in self._connection.execute(*select_these(table, ids))}
            update = f"UPDATE {table.quoted} SET {quoted(column.name)} = ? WHERE {table.key} = ?"
            self._connection.executemany(update, [(content[each], each) for each in content if each in points & have])
            fill(self._connection, self._table, table, column, [(content[e], e) for e in content if e in points - have])

    def drop_field(self, name: str) -> None:
        table, _ = self._places().get(name, (None, None))
        if table == self._table:
            raise ValueError(f"{self.place}: {name!r} is the table's own vector, and stays")
        if table is not None:
            self._run(f"DROP TABLE {table.quoted}")

    def switch(self, old: str, new: str, kept: str) -> Switched:
        places = self._places()
        if kept in places and new not in places:
            return Switched(old, kept)
        (before, _), (after, column) = self._find(old), self._find(new)
        if after == self._table or kept in places:
            wrong = f"{new!r} is its own already" if after == self._table else f"there is a vector {kept!r} already"
            raise ValueError(f"{self.place}: {wrong}")
        self._run("PRAGMA legacy_alter_table = ON")
        try:
            with self._all_or_nothing():
                bring_up_to_date(self._connection, self._table, after, column)
                rename(self._connection, before.name, self._table.name + _BESIDE + kept)
                rename(self._connection, after.name, before.name)
                counts = f"SELECT count(*) FROM {before.quoted}"
                self._connection.execute(counts).fetchone()  # reads it under its new name, or all is undone
        finally:
            self._run("PRAGMA legacy_alter_table = OFF")
        return Switched(old, kept)

    def notes(self) -> dict[str, Any]:
        if not self._run("SELECT 1 FROM sqlite_master WHERE name = ?", [_NOTES]).fetchone():
            return {}
        row = self._run(f"SELECT notes FROM {_NOTES} WHERE collection = ?", [self._table.name]).fetchone()
        try:
            return json.loads(row[0]) if row else {}
        except (ValueError, TypeError):
            raise DamagedNotes(
                f"the notes of tripletmas in {self.place} are damaged: --assume gives new ones"
            ) from None

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        if not notes and not self.notes():
            return
        name = self._table.name
        with self._all_or_nothing():
            self._run(f"CREATE TABLE IF NOT EXISTS {_NOTES} (collection TEXT PRIMARY KEY, notes TEXT NOT NULL)")
            if notes:
                self._run(f"INSERT OR REPLACE INTO {_NOTES} VALUES (?, ?)", [name, json.dumps(dict(notes))])
                return
            self._run(f"DELETE FROM {_NOTES} WHERE collection = ?", [name])
            if not self._run(f"SELECT count(*) FROM {_NOTES}").fetchone()[0]:
                self._run(f"DROP TABLE {_NOTES}")

    def insert(self, name: str, ids: Sequence[Id], vectors: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        table, _ = self._find(name)
        if table != self._table:
            raise ValueError(f"{self.place}: points are put into the table itself, not beside it as {name!r}")
        rows = check_vectors(self.fields()[name], ids, vectors, self.place).numpy().astype("<f4")
        check_columns(list(columns), self.columns(), self.place)
        vectors_of = {each.name: None for each in table.of(VECTOR)}
        with self._all_or_nothing():
            have = {row[0] for row in self._connection.execute(*select_these(table, ids))}
            names = [*vectors_of, *table.others]
            select = f"SELECT {', '.join(map(quoted, names))} FROM {table.quoted} WHERE {table.key} = ?"
            for number, each in enumerate(ids):
                there = self._connection.execute(select, [each]).fetchone() if each in have else ()
                row = dict(zip(names, there, strict=False))
                row |= {key: of[number] for key, of in columns.items()} | {name: rows[number].tobytes()}
                self._connection.execute(f"DELETE FROM {table.quoted} WHERE {table.key} = ?", [each])
                listed_names = ", ".join([table.key, *map(quoted, row)])
                marks = ", ".join("?" * (1 + len(row)))
                values = [_kept(table, key, value) for key, value in row.items()]
                self._connection.execute(
                    f"INSERT INTO {table.quoted} ({listed_names}) VALUES ({marks})", [each, *values]
                )

    def close(self) -> None:
        self._connection.close()


def _kept(table: Table, name: str, value: Any) -> Any:
    """A value as vec0 takes it: where it filters by numbers with a point, it takes no others."""
    column = next(each for each in table.arguments if each.name == name)
    has_point = column.kind == METADATA and column.type in ("float", "double")
    return float(value) if has_point and isinstance(value, int) else value


def _score(distance: float, metric: str) -> float:
    return 1 - distance if metric == COSINE else -(distance**2)
