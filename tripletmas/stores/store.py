"""What every store can do, and what goes in and out of it.

A store is one collection of points in an engine: a table, a collection. A point has an id, vectors under names, and
columns of the user's, which we read and never change.

Shapes: n points, q queries, k ranks, dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.stores.place import Place

COSINE, INNER_PRODUCT, L2 = METRICS = ("cosine", "inner_product", "l2")
Id = int | str  # of a point

ROWS = 16384  # read at once


class NoCollection(ValueError):
    """There is no such collection, and one could be made there."""


class DamagedNotes(ValueError):
    """What we kept in a store cannot be read, and others may take its place."""


@dataclass(frozen=True)
class VectorField:
    """A vector that the points of a store have, or can have.

    Attributes:
        metric: that the store is set to compare them by; None where each query says it.
    """

    name: str
    dim: int
    metric: str | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """Some points of a store.

    Attributes:
        ids: (n), all int or all str.
        vectors: (n, dim) float32; a row of nan for a point without this vector.
        columns: name -> (n) values of a column that was asked for; None where a point has none.
    """

    ids: list[Any]
    vectors: Tensor
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def without_vector(self) -> Tensor:
        """(n,) bool: the points that have no such vector."""
        return self.vectors.isnan().all(dim=1)


class Hit(NamedTuple):
    """A point that was found. A larger score is nearer: cosine, inner product, or the negative squared distance."""

    id: Any
    score: float
    columns: dict[str, Any]


class Switched(NamedTuple):
    """What a store's own users find after a switch.

    Attributes:
        active: the field that holds the vectors to be searched.
        kept: the field that holds the former ones.
        say: what is to be changed in a user's code; "" for nothing.
    """

    active: str
    kept: str
    say: str = ""


class Store(Protocol):
    """One collection of an engine. Every method raises ValueError, with a sentence, for what the user can mend."""

    place: Place

    def fields(self) -> dict[str, VectorField]:
        """The vectors that points can have, by name; with `place`'s vector= alone, where it names one, and our own."""
        ...

    def __len__(self) -> int:
        """How many points there are."""
        ...

    def columns(self) -> list[str]:
        """The names of the user's columns, without id and vectors; those known, where points may differ."""
        ...

    def scan(
        self, name: str, *, after: Id | None = None, size: int = ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        """All points in the order of their ids (numbers, or texts by their UTF-8), in blocks of `size`.

        Points that come, go or change meanwhile may be told of or not; no other is missed or told of twice.

        Args:
            name: of the vector.
            after: begin behind this id, which need not be there.
        """
        ...

    def read(self, name: str, ids: Sequence[Id], *, columns: Sequence[str] = ()) -> Block:
        """These points, in the order of `ids`; those that are not there are left out."""
        ...

    def search(
        self,
        name: str,
        queries: Tensor,
        k: int,
        *,
        metric: str,
        where: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
    ) -> list[list[Hit]]:
        """The k nearest of each query (q, dim), best first, as the engine finds them; fewer where there are fewer.

        Args:
            metric: one of METRICS. An error where the store is set to another.
            where: column -> value: points that have these alone.
        """
        ...

    def add_field(self, new: VectorField) -> None:
        """Give the points one more vector, which none has yet; nothing, where that field is there."""
        ...

    def write(self, name: str, ids: Sequence[Id], vectors: Tensor) -> None:
        """Set one vector (n, dim) of these points and nothing else of them; the engine has it when this returns.

        Points that are not there (any more) are left out. To write the same again changes nothing.
        """
        ...

    def drop_field(self, name: str) -> None:
        """Take one vector from all points; nothing, where that field is not there."""
        ...

    def switch(self, old: str, new: str, kept: str) -> Switched:
        """Let the store's users find the vectors `new` where they found `old`, which are kept under the name `kept`.

        In one step, where the engine can rename; else `say` says what they have to change. `switch(active, kept, new)`
        goes back. Called again, as after a kill, it completes what was begun, or changes nothing.
        """
        ...

    def notes(self) -> dict[str, Any]:
        """What `set_notes` kept in the store; {} for nothing."""
        ...

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        """Keep a small JSON object of ours in the store, beside what the user keeps there; {} removes it."""
        ...

    def insert(self, name: str, ids: Sequence[Id], vectors: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add points with one vector (n, dim) and columns; one that is there already is replaced."""
        ...

    def close(self) -> None:
        """Let go of the engine."""
        ...


def field_of(store: Store, name: str | None = None) -> VectorField:
    """The field of this name; for None the one that `place` names, or the only one there is.

    Raises:
        ValueError: if there is none, or several and none is named.
    """
    fields = store.fields()
    name = name or store.place.columns.get("vector")
    if name is None:
        if len(fields) == 1:
            return next(iter(fields.values()))
        have = f"several vectors, {listed(fields)}" if fields else "no vectors"
        raise ValueError(f"{store.place} has {have}: name one by ?vector=NAME")
    return field_among(fields, name, store.place)


def field_among(fields: Mapping[str, VectorField], name: str, place: Place) -> VectorField:
    """The one of these fields of a store that has this name; a ValueError that suggests one, where none has."""
    if name not in fields:
        raise ValueError(f"{place} has no vector {name!r}{suggestion(name, fields)}: there are {listed(fields)}")
    return fields[name]


def check_vectors(new: VectorField, ids: Sequence[Id], vectors: Tensor, place: Place) -> Tensor:
    """The vectors (n, dim) as they are written, float32 on the CPU.

    Raises:
        ValueError: naming the point, if a value is not finite; if the dimension or the number differ.
    """
    if vectors.shape != (len(ids), new.dim):
        raise ValueError(
            f"{place}: vectors of {new.name!r} have dim {new.dim}, and these are {tuple(vectors.shape)} for {len(ids)} "
            "points"
        )
    rows = vectors.detach().to("cpu", torch.float32).contiguous()
    if bool(torch.linalg.vector_norm(rows, dim=1).isfinite().all()):  # one look at each value
        return rows
    bad = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{place}: the vector of point {ids[bad[0]]!r} holds NaN or infinity")
    return rows


def check_queries(found: VectorField, queries: Tensor, k: int, metric: str, place: Place) -> None:
    """Raises ValueError where a search does not fit the field."""
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    if queries.ndim != 2 or queries.shape[1] != found.dim:
        raise ValueError(f"{place}: vectors of {found.name!r} have dim {found.dim}, and queries {tuple(queries.shape)}")
    if not bool(queries.isfinite().all()):
        raise ValueError("queries hold NaN or infinity")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if found.metric not in (None, metric):
        raise ValueError(f"{place} compares {found.name!r} by {found.metric}, and {metric} was asked for")


def check_columns(names: Sequence[str], known: Sequence[str], place: Place) -> None:
    """Raises ValueError for a column that a store does not have."""
    for name in names:
        if name not in known:
            there = f": there are {listed(known)}" if known else ", and no other"
            raise ValueError(f"{place} has no column {name!r}{suggestion(name, known)}{there}")
