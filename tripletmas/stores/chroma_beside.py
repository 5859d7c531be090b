"""The collections that lie beside one of the user's: one for each further vector, and one for what we note.

A collection of Chroma has one vector a point. So a second vector lies in a collection of its own, NAME__FIELD, with the
same ids, documents and metadata, and a switch renames two collections. Chroma does not do that in one step: what is
begun is noted first, and whoever opens the collection next completes it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from tripletmas.stores.chroma_client import find
from tripletmas.stores.place import Place
from tripletmas.stores.store import COSINE, INNER_PRODUCT, L2

VECTOR = "vector"  # what the one vector of a collection is called
SPACES = {COSINE: "cosine", INNER_PRODUCT: "ip", L2: "l2"}
_OURS = "tripletmas"


@dataclass
class State:
    """What we note of a collection, in a collection of ours without points.

    Attributes:
        notes: see `Store.notes`.
        dims: of each vector beside, and of one that has no point yet.
        are_numbers: its ids, which Chroma keeps as texts.
        switch: the names (old, new, kept) of collections that are being renamed.
    """

    notes: dict[str, Any] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    are_numbers: bool = False
    switch: list[str] | None = None


def beside(name: str, vector: str) -> str:
    """The name of the collection that has a vector of the collection `name`."""
    return name if vector == VECTOR else f"{name}__{vector}"


def read_state(client: Any, name: str, place: Place) -> State:
    """What we noted of a collection."""
    found = find(client, beside(name, _OURS))
    if found is None:
        return State()
    try:
        return State(**json.loads((found.metadata or {})[_OURS]))
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"{place}: the notes of tripletmas in the collection {found.name!r} are damaged") from None


def write_state(client: Any, name: str, state: State) -> None:
    """Note it; nothing stays, where there is nothing to note."""
    there = find(client, beside(name, _OURS))
    if state == State():
        if there is not None:
            client.delete_collection(there.name)
        return
    metadata = {_OURS: json.dumps(asdict(state))}
    if there is None:
        client.create_collection(beside(name, _OURS), metadata=metadata, embedding_function=None)
    else:
        there.modify(metadata=metadata)


def complete_switch(client: Any, name: str, place: Place) -> None:
    """Rename what a switch has left to be renamed."""
    state = read_state(client, name, place)
    if state.switch is None:
        return
    old, new, kept = state.switch
    source = find(client, beside(name, new))
    if source is not None:
        before = find(client, beside(name, old))
        if before is not None:
            before.modify(name=beside(name, kept))
        source.modify(name=beside(name, old))
    state.dims.pop(new, None)
    state.switch = None
    write_state(client, name, state)


def create_like(client: Any, base: Any, name: str, metric: str) -> None:
    """A collection like another, but for the metric; its texts are embedded by nothing."""
    configuration: dict[str, Any] | None = {
        kind: {**settings, "space": SPACES[metric]}
        for kind, settings in base.configuration_json.items()
        if kind in ("hnsw", "spann") and settings
    }
    metadata = dict(base.metadata or {})
    if "hnsw:space" in metadata:  # as it was said before there were configurations; it is stronger than they are
        metadata["hnsw:space"], configuration = SPACES[metric], None
    client.create_collection(name, metadata=metadata or None, configuration=configuration, embedding_function=None)
