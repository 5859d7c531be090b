"""A connection to PostgreSQL, and what the server says as sentences that show no password."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlencode

from tripletmas.stores.place import Place

try:
    import psycopg
    from pgvector.psycopg import register_vector
    from psycopg import sql as sql
    from psycopg.conninfo import conninfo_to_dict
except ModuleNotFoundError:
    raise ValueError('a store of PostgreSQL needs its packages: pip install "tripletmas[postgres]"') from None

_SECONDS = 10  # to wait for a server
_LOCKED = "30s"  # to wait for another's lock, where the server says nothing
_FIRST = (0, 5)  # version of pgvector
_ITERATIVE = (0, 8)  # goes on where a filter leaves too few of what its index found


def connect(place: Place) -> Any:
    """A connection, each statement a transaction of its own, that knows the types of pgvector.

    Raises:
        ValueError: if no server answers, or its database has no pgvector.
    """
    options = f"?{urlencode(place.options, quote_via=quote)}" if place.options else ""
    with told(place):
        given: dict[str, Any] = conninfo_to_dict(f"postgresql://{place.where}{options}")
        given.setdefault("connect_timeout", _SECONDS)
        given.setdefault("application_name", "tripletmas")
        # a statement that is prepared is unknown to the next server behind a pool
        connection = psycopg.connect(**given, autocommit=True, prepare_threshold=None, client_encoding="utf8")
    try:
        with told(place):
            _set_up(connection, place)
    except ValueError:
        connection.close()
        raise
    return connection


def _set_up(connection: Any, place: Place) -> None:
    found = connection.execute(
        "SELECT extversion, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
        "WHERE extname = 'vector'"
    ).fetchone()
    if found is None:
        raise ValueError(f"{place}: this database has no pgvector: its owner says CREATE EXTENSION vector")
    version = _version(found[0])
    if version < _FIRST:
        raise ValueError(f"{place} has pgvector {found[0]}, and {'.'.join(map(str, _FIRST))} is needed: update it")
    # the types and operators, wherever the extension lies; and what is committed is on the disk
    connection.execute(
        "SELECT set_config('search_path', current_setting('search_path') || ', ' || quote_ident(%s), false),"
        " set_config('lock_timeout', CASE current_setting('lock_timeout') WHEN '0' THEN %s"
        " ELSE current_setting('lock_timeout') END, false),"
        " set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
        " ELSE current_setting('synchronous_commit') END, false)",
        [found[1], _LOCKED],
    )
    register_vector(connection)
    if version >= _ITERATIVE:
        connection.execute("SELECT '[0]'::vector")  # loads the library, which knows the settings
        connection.execute("SET hnsw.iterative_scan = strict_order")
        connection.execute("SET ivfflat.iterative_scan = relaxed_order")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def quoted(*names: str) -> str:
    """A name, or SCHEMA and NAME, as it stands in a statement whose values are given beside it."""
    return sql.Identifier(*names).as_string().replace("%", "%%")


@contextmanager
def told(place: Place) -> Iterator[None]:
    """What PostgreSQL refuses becomes a ValueError of one line."""
    try:
        yield
    except psycopg.Error as error:
        raise ValueError(f"{place}: {_without_password(_sentence(error), place)}") from None


def _sentence(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "another session has locked the table, so nothing was changed: try again when that is done"
    parts = [error.diag.message_primary, error.diag.message_detail, error.diag.message_hint]
    return " ".join(": ".join(filter(None, parts)).split()) or " ".join(str(error).split())


def _without_password(text: str, place: Place) -> str:
    login = place.where.rpartition("@")[0].partition(":")[2]
    # one that is not %-encoded is cut at these signs, and shown in parts
    for word in (login, unquote(login), place.options.get("password", ""), *re.split("[/:?@]", login)):
        text = text.replace(word, "***") if word else text
    return text
