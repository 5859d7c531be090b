"""Two columns of a table change their names, with what belongs to a name: NOT NULL, and an index over the vectors."""

from __future__ import annotations

import re
from typing import Any

from tripletmas.basics.sentences import listed
from tripletmas.stores.place import Place
from tripletmas.stores.postgres_catalogue import Ann, Column, Table, columns_of, dependents, indexes_over
from tripletmas.stores.postgres_connection import quoted, sql

_MOST_INDEXED = 2000  # dims, by pgvector's indexes over the type vector


def switch_columns(connection: Any, place: Place, table: Table, old: Column, new: Column, kept: str) -> None:
    """The column `new` gets the name of `old`, which gets the name `kept`, in one transaction.

    Raises:
        ValueError: where something else depends on the old column and would go with it, or its index or NOT NULL
            cannot be given to the new one.
    """
    if bound := dependents(connection, table, old):
        raise ValueError(
            f"{place}: {listed(bound)} would go on with the former vectors: drop what depends on the column "
            f"{old.name!r}, and make it again after the switch"
        )
    if kept in columns_of(connection, table.oid):
        raise ValueError(f"{place} has a column {kept!r} already: the former vectors need another name")
    if old.required:
        _check_complete(connection, place, table, old, new)
    for index in indexes_over(connection, table, old):
        _index_like(connection, place, table, index, old, new)
    alter = f"ALTER TABLE {table.quoted}"
    with connection.transaction():
        if old.required:  # rows that come without the former vector are to be taken
            connection.execute(f"{alter} ALTER COLUMN {new.quoted} SET NOT NULL", [])
            connection.execute(f"{alter} ALTER COLUMN {old.quoted} DROP NOT NULL", [])
        connection.execute(f"{alter} RENAME COLUMN {old.quoted} TO {quoted(kept)}", [])
        connection.execute(f"{alter} RENAME COLUMN {new.quoted} TO {old.quoted}", [])


def _check_complete(connection: Any, place: Place, table: Table, old: Column, new: Column) -> None:
    query = f"SELECT count(*) FROM {table.quoted} WHERE {new.quoted} IS NULL"
    if missing := connection.execute(query, []).fetchone()[0]:
        raise ValueError(
            f"{place}: {missing} points have no vector {new.name!r}, and {old.name!r} is NOT NULL: give them one "
            "before the switch, or take NOT NULL away"
        )


def _index_like(connection: Any, place: Place, table: Table, index: Ann, old: Column, new: Column) -> None:
    """Build an index over the new column as there is one over the old: queries are as fast after the switch."""
    operators = f"{new.type}_{index.operators.split('_', 1)[1]}"
    condition = _moved(place, index, old, new)
    have = indexes_over(connection, table, new)
    like = (index.method, operators, condition)
    if any((each.method, each.operators, each.condition) == like and each.valid for each in have):
        return
    if new.dim > _MOST_INDEXED:
        raise ValueError(
            f"{place}: the index {index.name!r} cannot be had over {new.dim} dims, {_MOST_INDEXED} at most: drop it "
            "first"
        )
    for each in have:
        if not each.valid:  # building it was cut short
            connection.execute(f"DROP INDEX {quoted(table.schema, each.name)}", [])
    meanwhile = "" if table.is_partitioned else "CONCURRENTLY "  # rows can be written meanwhile
    rest = f" WITH ({', '.join(index.options)})" if index.options else ""
    rest += f" WHERE {condition}" if condition else ""
    start = f"CREATE INDEX {meanwhile}ON {table.quoted} USING {index.method} ({new.quoted} {operators})"
    connection.execute(start + rest.replace("%", "%%"), [])


def _moved(place: Place, index: Ann, old: Column, new: Column) -> str | None:
    """The condition of a partial index, for the other column."""
    if index.condition is None or old.name not in index.condition:
        return index.condition
    if index.condition == f"({_plain(old)} IS NOT NULL)":
        return f"({_plain(new)} IS NOT NULL)"
    raise ValueError(f"{place}: the condition of the index {index.name!r} speaks of {old.name!r}: drop it first")


def _plain(column: Column) -> str:
    """As PostgreSQL writes a column in a condition: in quotes only where it must."""
    return column.name if re.fullmatch("[a-z_][a-z0-9_]*", column.name) else sql.Identifier(column.name).as_string()
