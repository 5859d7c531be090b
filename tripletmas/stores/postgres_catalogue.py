"""What PostgreSQL's catalogue says of a table: its ids, its vectors, the indexes over them and what depends on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.stores.place import Place
from tripletmas.stores.postgres_connection import quoted
from tripletmas.stores.store import COSINE, INNER_PRODUCT, L2, NoCollection, VectorField

_NUMBERS, _TEXTS = ("int2", "int4", "int8"), ("text", "varchar", "uuid")
_OPERATORS = {"l2": L2, "ip": INNER_PRODUCT, "cosine": COSINE}  # in the name of an index's operator class
VECTORS = ("vector", "halfvec")


class Column(NamedTuple):
    """A column of a table; `type` without, `declared` with what stands in brackets; `dim` -1 where none is declared."""

    number: int
    name: str
    type: str
    declared: str
    dim: int
    required: bool

    @property
    def quoted(self) -> str:
        return quoted(self.name)


@dataclass(frozen=True)
class Table:
    """A table; `id` is the column of its points' ids."""

    oid: int
    schema: str
    name: str
    is_partitioned: bool
    id: Column

    @property
    def quoted(self) -> str:
        return quoted(self.schema, self.name)

    @property
    def counts(self) -> bool:
        """Whether ids are numbers."""
        return self.id.type in _NUMBERS


class Ann(NamedTuple):
    """An index over one vector alone."""

    oid: int
    name: str
    method: str
    operators: str
    options: list[str] | None
    condition: str | None
    valid: bool

    @property
    def metric(self) -> str | None:
        return _OPERATORS.get(self.operators.split("_")[1])


def find_table(connection: Any, place: Place) -> Table:
    """The table of a place.

    Raises:
        ValueError: if there is none, it is no table, or no column of it can be the id.
    """
    rows = connection.execute(
        "SELECT c.oid::int8, nspname::text, relname::text, relkind IN ('r', 'p'), relkind = 'p',"
        " pg_table_is_visible(c.oid), EXISTS (SELECT FROM pg_attribute JOIN pg_type t ON t.oid = atttypid WHERE"
        " attrelid = c.oid AND NOT attisdropped AND typname = ANY(%s)) FROM pg_class c JOIN pg_namespace n ON n.oid ="
        " relnamespace WHERE relkind = ANY(%s) AND nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%%'",
        [list(VECTORS), ["r", "p", "v", "m", "f"]],
    )
    tables = [_Found(*row) for row in rows]
    by_name = {f"{each.schema}.{each.name}": each for each in tables} | {each.shown: each for each in tables}
    known = sorted(each.shown for each in tables if each.has_vectors and each.is_table)
    name = place.need_collection(known)
    if name not in by_name:
        there = f": there are {listed(known)}" if known else ", and no other that has vectors"
        raise NoCollection(f"{place}: there is no table {name!r}{suggestion(name, known)}{there}")
    found = by_name[name]
    if not found.is_table:
        raise ValueError(f"{place}: {name!r} is a view or a foreign table, and vectors are moved in a table")
    identifier = _id_column(connection, place, found.oid)
    return Table(found.oid, found.schema, found.name, found.is_partitioned, identifier)


class _Found(NamedTuple):
    oid: int
    schema: str
    name: str
    is_table: bool
    is_partitioned: bool
    visible: bool
    has_vectors: bool

    @property
    def shown(self) -> str:
        return self.name if self.visible else f"{self.schema}.{self.name}"


def columns_of(connection: Any, oid: int) -> dict[str, Column]:
    """The columns of a table."""
    rows = connection.execute(
        "SELECT attnum, attname::text, typname::text, format_type(atttypid, atttypmod), atttypmod, attnotnull FROM"
        " pg_attribute JOIN pg_type t ON t.oid = atttypid WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        [oid],
    )
    return {row[1]: Column(*row) for row in rows}


def _id_column(connection: Any, place: Place, oid: int) -> Column:
    """The column that ?id= names, or the primary key."""
    columns = columns_of(connection, oid)
    primary, unique = _keys(connection, oid, columns)
    name = place.columns.get("id", primary[0] if len(primary) == 1 else "")
    if name in unique and columns[name].type in _NUMBERS + _TEXTS:
        return columns[name]
    if not name:
        wrong = f" has {f'the primary key {listed(primary)}' if primary else 'no primary key'}"
    elif name not in columns:
        wrong = f" has no column {name!r} of ids{suggestion(name, columns)}"
    elif name not in unique:
        wrong = f": the column {name!r} may be null or say the same twice"
    else:
        wrong = f": ids are numbers or texts, and the column {name!r} is {columns[name].declared}"
    others = listed(unique) or "which there is none"
    raise ValueError(f"{place}{wrong}: ?id=COLUMN names one that is unique and never null, of {others}")


def _keys(connection: Any, oid: int, columns: dict[str, Column]) -> tuple[list[str], list[str]]:
    """The columns of the primary key, and those that are unique and never null, each alone."""
    rows = connection.execute(
        "SELECT indisprimary, array_agg(attname::text) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND"
        " attnum = ANY(indkey) WHERE indrelid = %s AND indisunique AND indisvalid AND indpred IS NULL AND indexprs IS"
        " NULL AND indnkeyatts = indnatts GROUP BY indexrelid, indisprimary",
        [oid],
    ).fetchall()
    primary = next((names for is_primary, names in rows if is_primary), [])
    return primary, [names[0] for _, names in rows if len(names) == 1 and columns[names[0]].required]


def vector_fields(connection: Any, table: Table) -> dict[str, VectorField]:
    """The vectors of a table; a column without a declared dim has that of the first vector in it."""
    fields = {}
    for column in columns_of(connection, table.oid).values():
        if column.type not in VECTORS:
            continue
        dim = column.dim
        if dim < 0:
            query = f"SELECT vector_dims({column.quoted}) FROM {table.quoted} WHERE {column.quoted} IS NOT NULL LIMIT 1"
            first = connection.execute(query, []).fetchone()
            if first is None:
                continue
            dim = first[0]
        metrics = {each.metric for each in indexes_over(connection, table, column) if each.valid}
        fields[column.name] = VectorField(column.name, dim, metrics.pop() if len(metrics) == 1 else None)
    return fields


def indexes_over(connection: Any, table: Table, column: Column) -> list[Ann]:
    """The indexes over this vector and nothing else."""
    rows = connection.execute(
        "SELECT indexrelid::int8, k.relname::text, amname::text, opcname::text, k.reloptions, pg_get_expr(indpred,"
        " indrelid), indisvalid FROM pg_index JOIN pg_class k ON k.oid = indexrelid JOIN pg_am m ON m.oid = relam JOIN"
        " pg_opclass o ON o.oid = indclass[0] WHERE indrelid = %s AND indnatts = 1 AND indkey[0] = %s",
        [table.oid, column.number],
    )
    return [Ann(*row) for row in rows]


def dependents(connection: Any, table: Table, column: Column) -> list[str]:
    """What else depends on a column and would go on with it under another name: views, checks, other indexes."""
    rows = connection.execute(
        "SELECT DISTINCT pg_describe_object(classid, objid, objsubid) FROM pg_depend WHERE refclassid ="
        " 'pg_class'::regclass AND refobjid = %s AND refobjsubid = %s AND NOT (classid = 'pg_class'::regclass AND"
        " objid = ANY(%s)) AND NOT (classid = 'pg_constraint'::regclass AND objid IN (SELECT oid FROM pg_constraint"
        " WHERE contype = 'n'))",
        [table.oid, column.number, [each.oid for each in indexes_over(connection, table, column)]],
    )
    return sorted(row[0] for row in rows)


def check_can_be_updated(connection: Any, table: Table, place: Place) -> None:
    """Raises ValueError where to update a row may change more of it, or where some rows are not seen."""
    triggers = connection.execute(
        "SELECT tgname::text FROM pg_trigger WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled <> 'D' AND"
        " tgtype & 16 > 0 AND tgattr = ''::int2vector ORDER BY 1",
        [table.oid],
    ).fetchall()
    if triggers:
        name = triggers[0][0]
        raise ValueError(
            f"{place}: the trigger {name!r} would run for every point that gets a vector, and may change it: "
            f"ALTER TABLE {table.quoted} DISABLE TRIGGER {quoted(name)}, until all have theirs"
        )
    if connection.execute("SELECT row_security_active(%s::oid)", [table.oid]).fetchone()[0]:
        raise ValueError(f"{place}: row security may hide points from this user: ask as the table's owner")
