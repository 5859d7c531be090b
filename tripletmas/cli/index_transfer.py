"""The commands that put an index into a store, and take a store into an index file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tripletmas.cli.console import make_parser
from tripletmas.cli.outputs import check_place
from tripletmas.index.file import locked
from tripletmas.index.images import ImageIndex
from tripletmas.stores.opening import created, opened
from tripletmas.stores.place import FILE, Place, read_place
from tripletmas.stores.store import NoCollection
from tripletmas.stores.transfer import VECTOR, columns_of_index, field_for, identity_of_index, pull_points, push_points

_STORE = "the store: SCHEME://WHERE#COLLECTION (docs/stores.md)"


def push(arguments: Sequence[str]) -> dict[str, Any]:
    """Put the vectors of an index into a vector store, with their paths and labels and with what made them.

    A collection that is not there is made; points with the same ids are replaced, others stay.
    """
    parser = make_parser("index push", push.__doc__, "index")
    parser.add_argument("store", type=str, help=_STORE)
    options = parser.parse_args(arguments)
    place, index = _store_of(options.store), ImageIndex.open(options.index)
    identity, name = identity_of_index(index, options.index), place.column("vector", VECTOR)
    try:
        with opened(place) as store:
            put, others = push_points(index, store, identity)
    except NoCollection:
        with created(place, field_for(identity, name), columns_of_index(index)) as store:
            put, others = push_points(index, store, identity)
    rest = f"; {others} other points were there and stay" if others else ""
    print(f"{place}: {put} points of {options.index} are in it{rest}")
    return {"store": str(place), "index": options.index, "points": put, "others": others}


def pull(arguments: Sequence[str]) -> dict[str, Any]:
    """Take the points of a vector store into an index file, which searches exactly, or as --kind says."""
    parser = make_parser("index pull", pull.__doc__)
    parser.add_argument("store", type=str, help=_STORE)
    parser.add_argument("index", type=str, help="the index file to write")
    parser.add_argument("--kind", type=str, default="exact", help="exact, or a factory string of faiss: IVF64,Flat")
    options = parser.parse_args(arguments)
    place = _store_of(options.store)
    check_place("INDEX", options.index, images=[])
    with locked(options.index, new=True):
        if Path(options.index).exists():
            raise ValueError(f"{options.index} exists: name another file")
        with opened(place) as store:
            index, count = pull_points(store, kind=options.kind), len(store)
        index.save(options.index)
    rest = f"; {count - len(index)} points have no vector" if count > len(index) else ""
    print(f"{options.index}: {len(index)} points of {place}{rest}")
    return {"store": str(place), "index": options.index, "vectors": len(index), "without": count - len(index)}


def _store_of(text: str) -> Place:
    place = read_place(text)
    if place.scheme == FILE:
        raise ValueError(f"{text} is no store: write SCHEME://WHERE#COLLECTION, as lancedb://data/shop#products")
    return place
