"""Qdrant Edge, the engine without a server: a shard is a folder, qdrant-edge:///FOLDER, or one of several, #NAME.

A second vector is a named vector, added in place. A shard has no metadata: what we keep of it is a file in its folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final
from uuid import UUID

from tripletmas.basics.files import make_folder, read_json, save_json
from tripletmas.basics.sentences import listed, suggestion
from tripletmas.stores.place import Place
from tripletmas.stores.qdrant_points import Point, QdrantStore, Vector, engine_name, first_line
from tripletmas.stores.store import COSINE, INNER_PRODUCT, L2, Id, NoCollection, VectorField

try:
    import qdrant_edge as edge
except ModuleNotFoundError:
    raise ValueError('a store of Qdrant Edge needs its package: pip install "tripletmas[qdrant-edge]"') from None

_NOTES = "tripletmas.json"
_CONFIG = "edge_config.json"
_SPARE = 128 << 20  # bytes of a disk that stay free: its log alone is made of files of 32 MB
_DISTANCES = {COSINE: edge.Distance.Cosine, INNER_PRODUCT: edge.Distance.Dot, L2: edge.Distance.Euclid}
_METRICS = {"Cosine": COSINE, "Dot": INNER_PRODUCT, "Euclid": L2}


def open_store(place: Place) -> QdrantStore:
    """The shard at a place.

    Raises:
        ValueError: if there is none, or another process has it open.
    """
    place.refuse_options()
    if not place.path.is_dir():
        raise NoCollection(f"{place}: no such folder of Qdrant Edge: {place.where}")
    if not _is_shard(_folder(place)):
        names = sorted(each.name for each in place.path.iterdir() if _is_shard(each))
        name = place.need_collection(names)
        there = f"{suggestion(name, names)}: there are {listed(names)}" if names else ", and no other"
        raise NoCollection(f"{place.where} has no shard {name!r}{there}")
    with _told(place):
        shard = edge.EdgeShard.load(str(_folder(place)))
    return QdrantStore(place, ShardPoints(place, shard))


def create_store(place: Place, new: VectorField, columns: Mapping[str, type], ids: type) -> QdrantStore:
    """A new, empty shard; see `opening.created`."""
    place.refuse_options()
    folder = _folder(place)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{place} is there already: choose another name")
    make_folder(folder)
    params = edge.EdgeVectorParams(new.dim, _DISTANCES[new.metric or COSINE])
    with _told(place):
        shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={engine_name(new.name): params}))
    return QdrantStore(place, ShardPoints(place, shard))


def _folder(place: Place) -> Path:
    return place.path / place.collection if place.collection else place.path


def _is_shard(folder: Path) -> bool:
    return (folder / _CONFIG).is_file()


@contextmanager
def _told(place: Place) -> Iterator[None]:
    """What the engine raises becomes one sentence; LookupError, where a point is not there."""
    try:
        yield
    except Exception as error:
        said = first_line(error)
        if "No point with id" in said:
            raise LookupError(said) from None
        if "WouldBlock" in said:
            raise ValueError(f"{place} is open in another process: close it there") from None
        raise ValueError(f"{place}: {said}") from None


def _vector(params: Mapping[str, Any]) -> Vector:
    size, distance = params["size"], params["distance"]
    if params.get("multivector_config"):
        return Vector(size, None, "holds several vectors a point, and tripletmas compares one with one")
    if params.get("datatype") == "uint8":
        return Vector(size, None, "holds bytes, not embeddings")
    if distance not in _METRICS:
        return Vector(size, None, f"is compared by {distance}, and no model of tripletmas is")
    return Vector(size, _METRICS[distance])


@final
class ShardPoints:
    """`qdrant_points.Points` of a shard."""

    def __init__(self, place: Place, shard: edge.EdgeShard):
        self._place, self._shard, self._folder = place, shard, _folder(place)

    def vectors(self) -> dict[str, Vector]:
        config = read_json(self._folder / _CONFIG, "it is Qdrant's own: take it from a backup")
        sparse = Vector(0, None, "is sparse, and embeddings are dense")
        found = {name: _vector(each) for name, each in config.get("vectors", {}).items()}
        return found | dict.fromkeys(config.get("sparse_vectors", ()), sparse)

    def count(self, key: str | None = None) -> int:
        with _told(self._place):
            having = edge.Filter(must_not=[edge.IsEmptyCondition(key)]) if key else None
            return self._shard.count(edge.CountRequest(filter=having, exact=True))

    def keys(self, most: int) -> list[str]:
        with _told(self._place):
            records, _ = self._shard.scroll(edge.ScrollRequest(limit=most, with_payload=True))
        return sorted({key for each in records for key in each.payload or ()})

    def scroll(self, name: str, offset: Id | None, limit: int, keys: Sequence[str]) -> tuple[list[Point], Id | None]:
        with _told(self._place):
            request = edge.ScrollRequest(
                limit=limit, offset=offset, with_vector=[name], with_payload=list(keys) or False
            )
            records, following = self._shard.scroll(request)
        return [_point(each, name) for each in records], None if following is None else _id(following)

    def retrieve(self, name: str | None, ids: Sequence[Id], keys: Sequence[str]) -> list[Point]:
        with _told(self._place):
            vectors = False if name is None else [name]
            records = self._shard.retrieve(list(ids), with_payload=list(keys) or False, with_vector=vectors)
        return [_point(each, name or "") for each in records]

    def query(
        self, name: str, queries: list[list[float]], k: int, where: Mapping[str, list[Any]], keys: Sequence[str]
    ) -> list[list[Point]]:
        with _told(self._place):
            must: list[Any] = [
                edge.Filter(should=[edge.FieldCondition(key, match=edge.MatchValue(each)) for each in values])
                for key, values in where.items()
            ]
            asked = edge.Filter(must=must) if must else None
            payload = list(keys) or False
            requests = [
                edge.QueryRequest(limit=k, query=edge.Query.Nearest(each, name), filter=asked, with_payload=payload)
                for each in queries
            ]
            answers = self._shard.query_batch(edge.QueryBatchRequest(requests))
        return [[Point(_id(each.id), None, each.payload or {}, each.score) for each in one] for one in answers]

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        self._update(
            edge.UpdateOperation.upsert_points(
                [edge.Point(each.id, {name: each.vector}, each.payload) for each in points]
            )
        )

    def update(self, name: str, ids: Sequence[Id], rows: list[list[float]]) -> None:
        points = [edge.PointVectors(each, {name: row}) for each, row in zip(ids, rows, strict=True)]
        self._update(edge.UpdateOperation.update_vectors(points))

    def create_vector(self, name: str, dim: int, metric: str) -> None:
        self._update(edge.UpdateOperation.create_dense_vector(name, dim, _DISTANCES[metric]))

    def delete_vector(self, name: str) -> None:
        self._update(edge.UpdateOperation.delete_vector_name(name))

    def _update(self, operation: edge.UpdateOperation) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < _SPARE:  # its files are mapped: without room for a page the system ends the process
            raise ValueError(
                f"{self._place}: {free >> 20} MB are left on its disk: make room, {_SPARE >> 20} MB at least"
            )
        with _told(self._place):
            self._shard.update(operation)

    def sync(self) -> None:
        with _told(self._place):
            self._shard.flush()

    def notes(self) -> dict[str, Any]:
        if not (self._folder / _NOTES).exists():
            return {}
        return read_json(self._folder / _NOTES, "--assume gives new ones")

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        if notes:
            save_json(self._folder / _NOTES, dict(notes))
        else:
            (self._folder / _NOTES).unlink(missing_ok=True)

    def close(self) -> None:
        with _told(self._place):
            self._shard.close()


def _id(given: Any) -> Id:
    return given if isinstance(given, int) else str(UUID(str(given)))


def _point(record: Any, name: str) -> Point:
    vector = record.vector  # once: the engine makes a new list each time
    vector = vector.get(name) if isinstance(vector, dict) else vector
    return Point(_id(record.id), vector, record.payload or {})
