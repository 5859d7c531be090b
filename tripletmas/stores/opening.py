"""A store by its place: the engine's module is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tripletmas.stores.place import FILE, SCHEMES, Place, read_place
from tripletmas.stores.store import Store, VectorField


def _engine(place: Place) -> Any:
    name = "index_file" if place.scheme == FILE else SCHEMES[place.scheme]
    return importlib.import_module(f"tripletmas.stores.{name}")


@contextmanager
def opened(text: str | Place) -> Iterator[Store]:
    """The store at a place, closed at the end.

    Raises:
        ValueError: if it is not there, or a package is missing.
    """
    place = read_place(text) if isinstance(text, str) else text
    store: Store = _engine(place).open_store(place)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def created(text: str | Place, new: VectorField, columns: Mapping[str, type], *, ids: type = int) -> Iterator[Store]:
    """A new and empty collection at a place, closed at the end.

    Args:
        new: the vector that its points will have.
        columns: name -> str or int.
        ids: int or str.

    Raises:
        ValueError: if it is there already.
    """
    place = read_place(text) if isinstance(text, str) else text
    store: Store = _engine(place).create_store(place, new, columns, ids)
    try:
        yield store
    finally:
        store.close()
