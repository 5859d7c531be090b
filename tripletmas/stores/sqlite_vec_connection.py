"""A connection to a file of SQLite that knows sqlite-vec, and what SQLite refuses, as a sentence."""

from __future__ import annotations

import ctypes
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tripletmas.stores.place import Place

try:
    import sqlite_vec
except ModuleNotFoundError:
    raise ValueError('a store of sqlite-vec needs its package: pip install "tripletmas[sqlite-vec]"') from None

_SECONDS = 10  # to wait for another process that writes
_CACHE = 64  # MiB: a vector lies in a blob of a thousand, to whose middle SQLite walks page by page


def connect(place: Place) -> sqlite3.Connection:
    """A connection to the file of a place, which is made where it is not there; every statement is a transaction.

    Raises:
        ValueError: if the file is none of SQLite's, or this Python cannot load sqlite-vec.
    """
    with told(place):
        connection = _with_extension(place.path)
        try:
            connection.execute(f"PRAGMA cache_size = {-1024 * _CACHE}")
            connection.execute("PRAGMA synchronous = FULL")  # also reads the file's head
            connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error:
            connection.close()
            raise
    return connection


def quoted(name: str) -> str:
    """A name as it stands in a statement."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def told(place: Place) -> Iterator[None]:
    """What SQLite refuses becomes a ValueError of one line."""
    try:
        yield
    except sqlite3.Error as error:
        text = " ".join(str(error).split())
        if "is locked" in text or "is busy" in text:
            text = "another process is writing to it, so nothing was changed: try again when that is done"
        elif "not a database" in text:
            text = "this is no file of SQLite"
        raise ValueError(f"{place}: {text}") from None


def _with_extension(path: Path) -> sqlite3.Connection:
    # no thread of ours uses it at the same time as another, and SQLite itself takes care of it
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        return _with_automatic_extension(path)
    connection = _open(path)
    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    connection.enable_load_extension(False)
    return connection


def _with_automatic_extension(path: Path) -> sqlite3.Connection:
    """By a Python that was built without loading extensions: SQLite itself gives it to what is opened next."""
    with closing(sqlite3.connect(":memory:")) as probe:
        options = {row[0] for row in probe.execute("PRAGMA compile_options")}
    try:
        if "OMIT_LOAD_EXTENSION" in options:
            raise AttributeError
        import _sqlite3

        library: Any = ctypes.CDLL(_sqlite3.__file__)  # and the libsqlite3 that it is linked to
        register, take_back = library.sqlite3_auto_extension, library.sqlite3_cancel_auto_extension
    except (AttributeError, ImportError, OSError):
        raise ValueError(
            "this Python's SQLite cannot load sqlite-vec: use a Python that was built with "
            "--enable-loadable-sqlite-extensions"
        ) from None
    file = next(Path(sqlite_vec.loadable_path()).parent.glob("vec0.*"))
    start = ctypes.cast(ctypes.CDLL(str(file)).sqlite3_vec_init, ctypes.c_void_p)
    register(start)
    try:
        return _open(path)
    finally:
        take_back(start)


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_SECONDS, isolation_level=None, check_same_thread=False)
