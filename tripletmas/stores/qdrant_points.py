"""What Qdrant's two engines have in common: named vectors added in place, payloads, ids that are numbers or UUIDs.

A point's id is Qdrant's own; numbers come before UUIDs. Columns are keys of the payload; `a.b` is the key b within a.
Under the cosine Qdrant keeps directions: what a user put in is stored at unit length, and so it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, final
from uuid import UUID

import numpy as np
import torch
from torch import Tensor

from tripletmas.stores.place import Place
from tripletmas.stores.store import (
    COSINE,
    L2,
    ROWS,
    Block,
    Hit,
    Id,
    Switched,
    VectorField,
    check_columns,
    check_queries,
    check_vectors,
    field_among,
)

UNNAMED = "unnamed"  # what we call the one vector that Qdrant calls ""
_NUMBERS = 400_000  # of a request: below Qdrant's limit of 32 MB of JSON
_SAMPLE = 256  # points whose payloads tell which columns there are
_UNIT = 1e-5  # how far from 1 a length may be by rounding alone


class Vector(NamedTuple):
    """A vector as an engine has it.

    Attributes:
        metric: one of `store.METRICS`, or None where `refused` says why it is none for us.
    """

    dim: int
    metric: str | None
    refused: str = ""


class Point(NamedTuple):
    """A point as an engine gives it: `vector` (dim) floats, or None where it has none; `score` as Qdrant counts."""

    id: Id
    vector: Any
    payload: dict[str, Any]
    score: float = 0.0


class Points(Protocol):
    """What an engine does. Vectors have Qdrant's names, the unnamed one ""; keys are paths in a payload.

    What is written outlives the process; after `sync` it outlives a power cut, too.
    """

    def vectors(self) -> dict[str, Vector]: ...

    def count(self, key: str | None = None) -> int: ...

    def keys(self, most: int) -> list[str]: ...

    def scroll(
        self, name: str, offset: Id | None, limit: int, keys: Sequence[str]
    ) -> tuple[list[Point], Id | None]: ...

    def retrieve(self, name: str | None, ids: Sequence[Id], keys: Sequence[str]) -> list[Point]: ...

    def query(
        self, name: str, queries: list[list[float]], k: int, where: Mapping[str, list[Any]], keys: Sequence[str]
    ) -> list[list[Point]]: ...

    def upsert(self, name: str, points: Sequence[Point]) -> None: ...

    def update(self, name: str, ids: Sequence[Id], rows: list[list[float]]) -> None: ...

    def create_vector(self, name: str, dim: int, metric: str) -> None: ...

    def delete_vector(self, name: str) -> None: ...

    def sync(self) -> None: ...

    def notes(self) -> dict[str, Any]: ...

    def set_notes(self, notes: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def first_line(error: Exception) -> str:
    """What an engine says, in a line."""
    return next(filter(None, str(error).splitlines()), type(error).__name__).strip().rstrip(".")


def engine_name(name: str) -> str:
    """Qdrant's name of a vector."""
    return "" if name == UNNAMED else name


@final
class QdrantStore:
    """A collection of Qdrant, as a `Store`."""

    def __init__(self, place: Place, points: Points):
        self.place, self._points = place, points
        if "id" in place.columns:
            raise ValueError(f"{place}: points of Qdrant have ids of their own: leave away ?id={place.columns['id']}")

    def fields(self) -> dict[str, VectorField]:
        found = {}
        for name, each in self._points.vectors().items():
            name = name or UNNAMED
            if name in found:
                raise ValueError(f"{self.place} has a vector of the name {UNNAMED!r} and one without a name")
            if not each.refused:
                found[name] = VectorField(name, each.dim, each.metric)
        return found

    def __len__(self) -> int:
        return self._points.count()

    def columns(self) -> list[str]:
        return self._points.keys(_SAMPLE)

    def scan(
        self, name: str, *, after: Id | None = None, size: int = ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        found, keys = self._field(name), self._keys(columns)
        offset = after = None if after is None else self._id(after)
        limit = min(size, max(1, _NUMBERS // found.dim))
        rows: list[Point] = []
        while True:
            page, offset = self._points.scroll(engine_name(name), offset, limit, keys)
            for point in page:
                if point.id == after:
                    continue
                if rows and (len(rows) == size or type(rows[0].id) is not type(point.id)):
                    yield self._block(rows, found, columns)
                    rows = []
                rows.append(point)
            if offset is None:
                break
        if rows:
            yield self._block(rows, found, columns)

    def read(self, name: str, ids: Sequence[Id], *, columns: Sequence[str] = ()) -> Block:
        found, keys = self._field(name), self._keys(columns)
        wanted = [each for each in map(_known_id, ids) if each is not None]
        there: dict[Id, Point] = {}
        for part in _parts(len(wanted), found.dim):
            there |= {each.id: each for each in self._points.retrieve(engine_name(name), wanted[part], keys)}
        return self._block([there[each] for each in wanted if each in there], found, columns)

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
        found, keys = self._field(name), self._keys(columns)
        check_queries(found, queries, k, metric, self.place)
        asked = {
            path: _meant(value) for path, value in zip(self._keys(where or ()), (where or {}).values(), strict=True)
        }
        rows = queries.detach().cpu().float().tolist()
        answers = []
        for part in _parts(len(rows), found.dim):
            answers += self._points.query(engine_name(name), rows[part], k, asked, keys)
        sign = _squared if metric == L2 else float
        return [[Hit(each.id, sign(each.score), _picked(each.payload, columns)) for each in hits] for hits in answers]

    def add_field(self, new: VectorField) -> None:
        if new.name not in self.fields():
            self._refuse(new.name)
            self._points.create_vector(engine_name(new.name), new.dim, new.metric or COSINE)
            self._points.sync()

    def write(self, name: str, ids: Sequence[Id], vectors: Tensor) -> None:
        found = self._field(name)
        rows = check_vectors(found, ids, vectors, self.place)
        known = list(map(_known_id, ids))
        for part in _parts(len(ids), found.dim):
            pairs = [
                (each, row) for each, row in zip(known[part], rows[part].tolist(), strict=True) if each is not None
            ]
            self._update(name, dict(pairs))
        self._points.sync()

    def _update(self, name: str, rows: dict[Id, list[float]]) -> None:
        """Qdrant refuses a whole request for one id that is gone: then those that are there are written."""
        for _ in range(5):
            if not rows:
                return
            try:
                return self._points.update(engine_name(name), list(rows), list(rows.values()))
            except LookupError:
                rows = {each.id: rows[each.id] for each in self._points.retrieve(None, list(rows), ())}
        raise ValueError(f"{self.place}: points are deleted as fast as their vectors are written: try again later")

    def drop_field(self, name: str) -> None:
        if name in self.fields():
            self._points.delete_vector(engine_name(name))
            self._points.sync()

    def switch(self, old: str, new: str, kept: str) -> Switched:
        for each in (old, new):
            self._field(each)
        use = {each: "no using=" if each == UNNAMED else f"using={each!r}" for each in (old, new)}
        return Switched(
            new, old, f"Qdrant cannot rename a vector: in your queries of {self.place}, write {use[new]} for {use[old]}"
        )

    def notes(self) -> dict[str, Any]:
        return self._points.notes()

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        if notes or self._points.notes():
            self._points.set_notes(notes)

    def insert(self, name: str, ids: Sequence[Id], vectors: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        found = self._field(name)
        rows = check_vectors(found, ids, vectors, self.place).tolist()
        payloads = [
            {key: values[row] for key, values in columns.items() if values[row] is not None} for row in range(len(ids))
        ]
        points = [Point(self._id(each), row, payload) for each, row, payload in zip(ids, rows, payloads, strict=True)]
        for part in _parts(len(ids), found.dim):
            self._points.upsert(engine_name(name), points[part])
        self._points.sync()

    def close(self) -> None:
        self._points.close()

    def _field(self, name: str) -> VectorField:
        fields = self.fields()
        if name not in fields:
            self._refuse(name)
        return field_among(fields, name, self.place)

    def _refuse(self, name: str) -> None:
        there = self._points.vectors().get(engine_name(name))
        if there is not None and there.refused:
            raise ValueError(f"{self.place}: the vector {name!r} {there.refused}")

    def _id(self, given: Id) -> Id:
        known = _known_id(given)
        if known is None:
            raise ValueError(f"{self.place}: an id of Qdrant is a number from 0 to 2**64 - 1 or a UUID, not {given!r}")
        return known

    def _keys(self, columns: Sequence[str] | Mapping[str, str]) -> list[str]:
        """The paths of columns in a payload. Points may differ: one that none of the first has is asked for."""
        known = self.columns() if columns else []
        keys = []
        for each in columns:
            key = each if each not in known and "." in each else _quoted(each)
            if each not in known and not self._points.count(_path(key)):
                check_columns([each], known, self.place)
            keys.append(_path(key))
        return keys

    def _block(self, points: list[Point], found: VectorField, columns: Sequence[str]) -> Block:
        none = [float("nan")] * found.dim
        # NumPy reads lists of numbers several times faster than torch
        rows = torch.from_numpy(np.array([each.vector or none for each in points], np.float32)).view(-1, found.dim)
        if found.metric == COSINE:
            rows = _unit(rows)
        picked = [_picked(each.payload, columns) for each in points]
        return Block([each.id for each in points], rows, {name: [each[name] for each in picked] for name in columns})


def _unit(rows: Tensor) -> Tensor:
    """At unit length, those that are not: the client's local mode gives back what was put in, a server does not."""
    length = rows.norm(dim=1, keepdim=True)
    return torch.where((length - 1).abs().gt(_UNIT) & length.gt(0), rows / length, rows)


def _parts(rows: int, dim: int) -> Iterator[slice]:
    """Slices of so many rows as one request may hold."""
    step = max(1, _NUMBERS // dim)
    return (slice(start, start + step) for start in range(0, rows, step))


def _known_id(given: Id) -> Id | None:
    """An id as Qdrant spells it; None for one that it cannot have."""
    if isinstance(given, int):
        return given if 0 <= given < 2**64 else None
    try:
        return str(UUID(given))
    except ValueError:
        return None


def _squared(distance: float) -> float:
    return -distance * distance


def _meant(value: str) -> list[Any]:
    """What a text can stand for in a payload: Qdrant finds no number by its text."""
    return [value, int(value)] if re.fullmatch(r"-?\d{1,18}", value) else [value]


def _quoted(column: str) -> str:
    return column if re.fullmatch(r"[\w-]+", column) else f'"{column}"'


def _path(key: str) -> str:
    if key.startswith('"'):
        return key
    return ".".join(map(_quoted, key.split(".")))


def _picked(payload: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {name: payload[name] if name in payload else _inside(payload, name) for name in columns}


def _inside(payload: Any, name: str) -> Any:
    for part in name.split("."):
        payload = payload.get(part) if isinstance(payload, Mapping) else None
    return payload
