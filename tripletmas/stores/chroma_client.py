"""A client of Chroma, by a folder or a server's address, and what Chroma refuses, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tripletmas.basics.sentences import suggestion
from tripletmas.stores.place import COLUMNS, Place
from tripletmas.stores.store import NoCollection

try:
    import chromadb
    import httpx
    from chromadb.config import Settings
    from chromadb.errors import ChromaError, NotFoundError
except ModuleNotFoundError:
    raise ValueError('a store of Chroma needs its package: pip install "tripletmas[chroma]"') from None

_FILE = "chroma.sqlite3"  # that makes a folder one of Chroma
_HEAD = b"SQLite format 3"
_SENTENCES = {
    "migrations": "its files are of another version of Chroma: a program of yours has to open and change them first",
    "database is locked": "another process is writing to it, so nothing was changed: try again when that is done",
}
_OPTIONS = ("ssl", "tenant", "database")


def connect(place: Place, *, create: bool = False) -> Any:
    """A client for a place: HOST:PORT of a server, :TOKEN@ before it, or a folder.

    Args:
        create: make the folder, where it is not there.

    Raises:
        ValueError: if there is no such folder or server, or its files are of another version.
    """
    for name in place.options:
        if name not in _OPTIONS:
            raise ValueError(f"{place} has no option {name!r}{suggestion(name, (*COLUMNS, *_OPTIONS))}")
    with told(place):
        server = _address(place)
        return _by_folder(place, create) if server is None else _by_server(place, *server)


def _address(place: Place) -> tuple[str, int] | None:
    """Host and port, where a place is no folder."""
    host, colon, port = place.where.rpartition("@")[2].partition(":")
    if not colon or "/" in host or not host or place.path.is_dir():
        return None
    if not port.rstrip("/").isdigit():
        raise ValueError(f"{place}: the port of a server is a number, and {port!r} is none")
    return host, int(port.rstrip("/"))


def _by_folder(place: Place, create: bool) -> Any:
    file = place.path / _FILE
    is_there = file.is_file()
    if not is_there and not create:
        raise NoCollection(f"{place}: there is no folder of Chroma {place.where}")
    if is_there:
        with file.open("rb") as opened:
            if opened.read(len(_HEAD)) != _HEAD:
                raise ValueError(f"{place}: {file} is no database")
    # a store that is there is opened as it is: Chroma would bring files of an older version to its own
    migrations = "validate" if is_there else "apply"
    settings = Settings(anonymized_telemetry=False, migrations=migrations)
    return chromadb.PersistentClient(place.where, settings, **_rooms(place))


def _by_server(place: Place, host: str, port: int) -> Any:
    token = place.where.rpartition("@")[0].partition(":")[2]
    headers = {"x-chroma-token": token} if token else None
    is_safe = place.options.get("ssl", "").lower() in ("1", "true", "yes")
    settings = Settings(anonymized_telemetry=False)
    return chromadb.HttpClient(host, port, ssl=is_safe, headers=headers, settings=settings, **_rooms(place))


def _rooms(place: Place) -> dict[str, str]:
    return {name: place.options[name] for name in ("tenant", "database") if name in place.options}


def close(client: Any) -> None:
    """Let go of the folder, or of the connections to the server, which Chroma's own `close` leaves open."""
    servers = (client._server, client._admin_client._server)
    sessions = [vars(each)["_session"] for each in servers if "_session" in vars(each)]
    client.close()
    for session in sessions:
        session.close()


def find(client: Any, name: str) -> Any:
    """The collection of a name, whose texts nothing embeds; None where there is none."""
    try:
        return client.get_collection(name, embedding_function=None)
    except NotFoundError:
        return None


@contextmanager
def told(place: Place) -> Iterator[None]:
    """What Chroma refuses becomes a ValueError of one line that begins with the place."""
    try:
        yield
    except NoCollection:
        raise
    except (ChromaError, httpx.HTTPError, OSError, ValueError, TypeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ValueError) and text.startswith(str(place)):
            raise
        told_text = next((ours for theirs, ours in _SENTENCES.items() if theirs in text), text)
        raise ValueError(f"{place}: {told_text}") from None
