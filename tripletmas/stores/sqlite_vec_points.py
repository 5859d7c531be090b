"""Statements that read the points of a vec0 table and of those beside it, and what keeps these like the user's.

`base` is the user's table, `table` the one in which a vector `column` lies: the same, or one beside it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from tripletmas.stores.sqlite_vec_connection import quoted
from tripletmas.stores.sqlite_vec_table import METADATA, PARTITION, Column, Table
from tripletmas.stores.store import COSINE, L2, Id

_DISTANCES = {COSINE: "vec_distance_cosine", L2: "vec_distance_L2"}
_MOST = 4096  # neighbours that vec0 gives


def select_these(table: Table, ids: Sequence[Id]) -> tuple[str, list[str]]:
    """A select of those of these ids that a table has, as r, and what is given to it."""
    listed, column = table.listed_ids
    text = json.dumps(list(ids), ensure_ascii=False)
    return f"SELECT {column} AS r FROM {listed} WHERE {column} IN (SELECT value FROM json_each(?))", [text]


def select_points(base: Table, table: Table, column: Column, ids: str, columns: Sequence[str]) -> str:
    """Id, vector and columns of the points whose ids `ids` selects as r, in their order."""
    joined, of = f"({ids})", "b"
    if columns or table == base:  # r stands first: else the whole table would be read
        joined += f" CROSS JOIN {base.quoted} b ON b.{base.key} = r"
    if table != base:
        joined, of = f"{joined} LEFT JOIN {table.quoted} p ON p.{table.key} = r", "p"
    return f"SELECT r, {of}.{quoted(column.name)}{_listed(columns)} FROM {joined} ORDER BY r"


def select_nearest(
    base: Table, table: Table, column: Column, k: int, metric: str, asked: Iterable[str], columns: Sequence[str]
) -> str:
    """Id, distance and columns of the nearest; given are the query, and the values of the columns `asked`."""
    vector, asked = quoted(column.name), list(asked)
    filters = {each.name for each in table.of(METADATA, PARTITION) if each.type == "text"}
    if table == base and k <= _MOST and filters.issuperset(asked):
        alone = "".join(f" AND {quoted(each)} = ?" for each in asked)
        return (
            f"SELECT {table.key}, distance{_listed(columns)} FROM {table.quoted} b "
            f"WHERE {vector} MATCH ? AND k = {k}{alone} ORDER BY distance"
        )
    # what vec0 does not filter by, or what lies beside, is compared one by one
    alone = "".join(f" AND CAST(b.{quoted(each)} AS TEXT) = ?" for each in asked)
    of, joined = "b", ""
    if table != base:
        of, joined = "v", f" JOIN {base.quoted} b ON b.{base.key} = v.{table.key}"
    return (
        f"SELECT {of}.{table.key}, {_DISTANCES[metric]}({of}.{vector}, ?) AS d{_listed(columns)} "
        f"FROM {table.quoted} {of}{joined} WHERE d IS NOT NULL{alone} ORDER BY d LIMIT {k}"
    )


def _listed(columns: Iterable[str]) -> str:
    return "".join(f", b.{quoted(each)}" for each in columns)


def fill(
    connection: sqlite3.Connection, base: Table, table: Table, column: Column, rows: Sequence[tuple[bytes, Id]]
) -> None:
    """Put points, vectors and ids, into a table beside the user's, with the columns that they have there."""
    others = "".join(f", {quoted(each)}" for each in table.others)
    connection.executemany(
        f"INSERT INTO {table.quoted} ({table.key}, {quoted(column.name)}{others}) "
        f"SELECT {table.key}, ?{others} FROM {base.quoted} WHERE {table.key} = ?",
        rows,
    )


def bring_up_to_date(connection: sqlite3.Connection, base: Table, table: Table, column: Column) -> None:
    """Let a table beside the user's have the points and columns that this has now; zeros where a vector lacks."""
    names = ", ".join([table.key, *map(quoted, table.others)])
    (ids, key), (base_ids, _) = table.listed_ids, base.listed_ids
    delete = f"DELETE FROM {table.quoted} WHERE {table.key} = ?"
    gone = connection.execute(f"SELECT {key} FROM {ids} WHERE {key} NOT IN (SELECT {key} FROM {base_ids})").fetchall()
    connection.executemany(delete, gone)
    differing = f"SELECT {names} FROM {base.quoted} EXCEPT SELECT {names} FROM {table.quoted}"
    zeros, rows = bytes(4 * column.dim), []
    for each, *_ in connection.execute(differing).fetchall():
        vector = f"SELECT {quoted(column.name)} FROM {table.quoted} WHERE {table.key} = ?"
        row = connection.execute(vector, [each]).fetchone()
        rows.append((row[0] if row else zeros, each))
    connection.executemany(delete, [(each,) for _, each in rows])
    fill(connection, base, table, column, rows)
