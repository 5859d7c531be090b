"""A virtual table vec0 of sqlite-vec as it was declared, and its renaming, which sqlite-vec leaves half done."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from typing import NamedTuple

from tripletmas.stores.place import Place
from tripletmas.stores.sqlite_vec_connection import quoted

ID, VECTOR, METADATA, PARTITION, AUXILIARY, OPTION = "id", "vector", "metadata", "partition", "auxiliary", "option"
_FORMS = {
    ID: r"(?P<name>\w+)\s+(?P<type>integer|int|text)\s+primary\s+key",
    PARTITION: r"(?P<name>\w+)\s+(?P<type>\w+)\s+partition\s+key",
    VECTOR: r"(?P<name>\w+)\s+(?P<type>\w+)\s*\[\s*(?P<dim>\d+)\s*\](\s*distance_metric\s*=\s*(?P<metric>\w+))?",
    AUXILIARY: r"\+\s*(?P<name>\w+)\s+(?P<type>\w+)",
    OPTION: r"(?P<name>\w+)\s*=\s*(?P<type>\w+)",
    METADATA: r"(?P<name>\w+)\s+(?P<type>\w+)",
}
_TABLE = re.compile(r"\s*create\s+virtual\s+table\b.*?\busing\s+vec0\s*\((?P<columns>.*)\)\s*;?\s*", re.I | re.S)
_SHADOW = re.compile(r"_(info|chunks|rowids|auxiliary|(vector_chunks|metadatachunks|metadatatext)\d\d)")
FLOATS = ("float", "f32", "float32")


class Column(NamedTuple):
    """One of the arguments of a vec0 table; `text` is what was typed."""

    kind: str
    name: str
    type: str
    text: str
    dim: int = 0
    metric: str = "l2"


@dataclass(frozen=True)
class Table:
    """A vec0 table. Without a key of its own its ids are SQLite's rowids."""

    name: str
    arguments: tuple[Column, ...]

    def of(self, *kinds: str) -> list[Column]:
        """The columns of these kinds."""
        return [each for each in self.arguments if each.kind in kinds]

    @property
    def key(self) -> str:
        """Of its ids, quoted."""
        return quoted(next((each.name for each in self.of(ID)), "rowid"))

    @property
    def are_texts(self) -> bool:
        """Whether its ids are texts."""
        return any(each.type == "text" for each in self.of(ID))

    @property
    def quoted(self) -> str:
        return quoted(self.name)

    @property
    def listed_ids(self) -> tuple[str, str]:
        """The table and column of sqlite-vec's own that has all ids in their order."""
        return quoted(f"{self.name}_rowids"), "id" if self.are_texts else "rowid"

    @property
    def others(self) -> list[str]:
        """The names of the user's columns beside id and vectors."""
        return [each.name for each in self.of(METADATA, PARTITION, AUXILIARY)]

    def like(self, name: str, dim: int, metric: str) -> str:
        """The statement that makes a table of another name, the same but for the one vector."""
        vector = self.of(VECTOR)[0]
        new = f"{vector.name} float[{dim}] distance_metric={metric}"
        arguments = ", ".join(new if each is vector else each.text for each in self.arguments)
        return f"CREATE VIRTUAL TABLE {quoted(name)} USING vec0({arguments})"

    def is_twin_of(self, other: Table) -> bool:
        """Whether nothing but the vectors differ."""
        mine, theirs = ([each[:3] for each in table.arguments if each.kind != VECTOR] for table in (self, other))
        vectors = [[each.name for each in table.of(VECTOR)] for table in (self, other)]
        return mine == theirs and vectors[0] == vectors[1] and len(vectors[0]) == 1


def read_tables(connection: sqlite3.Connection, place: Place) -> dict[str, Table]:
    """The vec0 tables of a file.

    Raises:
        ValueError: if one is declared in a way that is not known.
    """
    found = {}
    for name, text in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"):
        if (match := _TABLE.fullmatch(text or "")) is not None:
            columns = [_column(argument.strip(), name, place) for argument in match["columns"].split(",")]
            found[name] = Table(name, tuple(columns))
    return found


def _column(text: str, table: str, place: Place) -> Column:
    for kind, form in _FORMS.items():
        if match := re.fullmatch(form, text, re.I):
            given = {key: value for key, value in match.groupdict().items() if value is not None}
            dim, metric = int(given.get("dim", 0)), given.get("metric", "l2").lower()
            return Column(kind, given["name"], given["type"].lower(), text, dim, metric)
    raise ValueError(f"{place}: the table {table!r} declares {text!r}, which is not known here: sqlite-vec 0.1 is")


def rename(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Rename a vec0 table with the tables in which it keeps its content: ALTER TABLE alone leaves those behind.

    Within a transaction, under `PRAGMA legacy_alter_table = ON`: the user's views go on to read the name.
    """
    connection.execute(f"ALTER TABLE {quoted(old)} RENAME TO {quoted(new)}")
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for name in names:
        if name.startswith(old) and _SHADOW.fullmatch(name[len(old) :]):
            connection.execute(f"ALTER TABLE {quoted(name)} RENAME TO {quoted(new + name[len(old) :])}")
