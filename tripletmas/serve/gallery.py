"""What is served: a gallery that is searched, whatever holds it, and the refusal of a request.

Shapes: q queries, dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Id = int | str
SOME = 12  # items that a gallery shows to begin with


class Refusal(Exception):
    """A request that is not answered: its HTTP status, and one sentence that says why and what to do."""

    def __init__(self, status: int, sentence: str, *, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


@dataclass(frozen=True)
class Item:
    """Something that a gallery holds.

    Attributes:
        id: its number, or its name, in the gallery.
        path: of its file; of a text its file and its line there. None where the gallery has none.
        text: None for images.
    """

    id: Id
    label: str | None = None
    path: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Neighbour:
    """An item that was found; the larger its score, the nearer it is."""

    item: Item
    score: float


@dataclass(frozen=True)
class Wanted:
    """Which neighbours are asked for: the k nearest, of these those with a score of `min_score` or more, of a label."""

    k: int = 10
    min_score: float | None = None
    label: str | None = None


@dataclass(frozen=True)
class Facts:
    """What is told of a gallery.

    Attributes:
        measure: what the scores are.
        stale: how many vectors are of another model than the one that embeds the queries.
        labels: how many items have each label; {} where the gallery does not tell.
        some: a few items, to begin with.
        filters: whether neighbours of one label can be asked for.
        note: what a reader has to know of what is found; "" for nothing.
        more: whatever else is known of it.
    """

    name: str
    size: int
    dim: int
    metric: str
    normalize: bool
    measure: str
    stale: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    some: Sequence[Item] = ()
    filters: bool = True
    note: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


class Gallery(Protocol):
    """What is searched. Several threads may ask it at once."""

    def facts(self) -> Facts: ...

    def search(self, vectors: Tensor, wanted: Wanted) -> list[list[Neighbour]]:
        """The neighbours of each of these raw vectors (q, dim) of the model that is served, nearest first.

        Raises:
            Refusal: for a label that nothing has, where that is known.
        """
        ...

    def item(self, id: str) -> Item:
        """What has this id, as it stands in an address.

        Raises:
            Refusal: if nothing has it.
        """
        ...

    def vector(self, item: Item) -> Tensor | None:
        """The vector (dim,) of an item, to search by; None where it must be embedded anew, since spaces differ."""
        ...
