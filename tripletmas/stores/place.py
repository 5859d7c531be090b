"""Where a store is, as a user types it: SCHEME://WHERE#COLLECTION?path=COLUMN.

lancedb:///data/shop#products            a table in a folder
qdrant://localhost:6333/#products        a collection of a server
shop.index                               an index file of our own: no scheme

After `?`, which may also stand before `#`: vector= names the vector where a collection has several, id=, path=, label=
and text= the columns (fields of the payload) that hold a point's id, the path of its picture, its class, its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from tripletmas.basics.sentences import suggestion

FILE = "file"  # an index file of our own
SCHEMES = {
    "lancedb": "lancedb",
    "qdrant": "qdrant",
    "qdrant-edge": "qdrant_edge",
    "milvus": "milvus",
    "postgresql": "postgres",
    "chroma": "chroma",
    "sqlite-vec": "sqlite_vec",
}  # -> the module of the engine
COLUMNS = ("vector", "id", "path", "label", "text")


@dataclass(frozen=True)
class Place:
    """A collection of an engine.

    Attributes:
        scheme: the engine; `FILE` for an index file of our own.
        where: the path of a local engine, else HOST:PORT with what stands before and behind it.
        collection: its name; "" where none was given.
        columns: "vector", "id", "path", "label", "text" -> the name that the URL gives it.
        options: what else stands behind `?`, for the engine.
    """

    scheme: str
    where: str
    collection: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As it was typed, without a password."""
        if self.scheme == FILE:
            return self.where
        login, at, host = self.where.rpartition("@")
        user, colon, _ = login.partition(":")
        where = f"{user}{':***' if colon else ''}{at}{host}"
        return f"{self.scheme}://{where}{'#' if self.collection else ''}{self.collection}"

    @property
    def path(self) -> Path:
        """Of a local engine, or of an index file."""
        return Path(self.where)

    @property
    def is_server(self) -> bool:
        """Whether it says HOST:PORT, and is no folder."""
        return re.fullmatch(r"[^/]+:\d+(/.*)?", self.where) is not None

    def of_server(self) -> Place:
        """The same; the collection of a server may also stand behind its port, as in HOST:PORT/COLLECTION."""
        host, _, rest = self.where.rstrip("/").partition("/")
        if self.collection or not rest or not self.is_server:
            return self
        return replace(self, where=host, collection=rest)

    @property
    def slug(self) -> str:
        """The same as a part of a file's name."""
        return "".join(letter if letter.isalnum() else "-" for letter in str(self)).strip("-")

    def column(self, what: str, default: str) -> str:
        """The name of a column of the user's."""
        return self.columns.get(what, default)

    def refuse_options(self) -> None:
        """Raises ValueError for what stands behind `?` and is no column; for engines that know nothing else."""
        for name in self.options:
            raise ValueError(f"{self} has no option {name!r}{suggestion(name, COLUMNS)}: ?{', '.join(COLUMNS)}=NAME")

    def need_collection(self, known: list[str] | None = None) -> str:
        """The name of the collection.

        Args:
            known: those that there are, to suggest one.

        Raises:
            ValueError: if none was given.
        """
        if not self.collection:
            there = f": there are {', '.join(sorted(known))}" if known else ""
            raise ValueError(f"{self} names no collection: write {self}#NAME{there}")
        return self.collection


def is_store(text: str) -> bool:
    """Whether a text names a store by a scheme, and not a file."""
    return "://" in text


def read_place(text: str) -> Place:
    """The place that a text names.

    Raises:
        ValueError: for an unknown scheme, or if it says nothing of where.
    """
    if not text:
        raise ValueError("a store has an empty name: write an index file, or SCHEME://WHERE#COLLECTION")
    if not is_store(text):
        return Place(FILE, text)
    scheme, _, rest = text.partition("://")
    scheme = {"postgres": "postgresql"}.get(scheme.lower(), scheme.lower())
    if scheme not in SCHEMES:
        raise ValueError(
            f"unknown kind of store {scheme!r}{suggestion(scheme, SCHEMES)}; the name of an index file has no ://"
        )
    return _place(scheme, rest)


def _place(scheme: str, rest: str) -> Place:
    """The place of a known scheme; `rest` is what stands behind ://."""
    parts = urlsplit(f"//{rest}" if not rest.startswith("/") else f"file://{rest}")
    collection, _, late = parts.fragment.partition("?")
    given = dict(parse_qsl("&".join(filter(None, (parts.query, late))), keep_blank_values=True))
    where = unquote(parts.netloc + parts.path) if scheme != "postgresql" else parts.netloc + parts.path
    if not where:
        raise ValueError(f"{scheme}:// does not say where: write {scheme}://WHERE#COLLECTION")
    _check_login(scheme, where, parts.fragment)
    columns = {name: given.pop(name) for name in COLUMNS if name in given}
    place = Place(scheme, where, unquote(collection), columns, given)
    for name in [each for each, value in columns.items() if not value]:
        raise ValueError(f"{place}: {name}= is empty")
    return place


def _check_login(scheme: str, where: str, behind: str) -> None:
    """Raise a ValueError for a password that is cut at a #: what stands behind it would be shown as a collection."""
    if scheme == "postgresql" and ":" in where and "/" not in where and "@" in behind:
        raise ValueError(f"{scheme}://USER:PASSWORD@HOST/DATABASE: in a password # is written %23, / is %2F, ? is %3F")
