"""Qdrant: a collection of a server, qdrant://HOST:6333/COLLECTION, or of the client's local mode, qdrant://FOLDER#COLLECTION.

A second vector is a named vector, added in place (a server has that since 1.18). Options of a server: ?https=true,
?api_key=KEY. The local mode is another implementation than the server: it holds a collection in memory, writes it
point by point, and reads a folder with pickle, so open only your own.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from tripletmas.basics.locks import is_held
from tripletmas.basics.sentences import listed, suggestion
from tripletmas.stores.place import Place
from tripletmas.stores.qdrant_points import Point, QdrantStore, Vector, engine_name, first_line
from tripletmas.stores.store import COSINE, INNER_PRODUCT, L2, DamagedNotes, Id, NoCollection, VectorField

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
    from qdrant_client.local.qdrant_local import QdrantLocal
except ModuleNotFoundError:
    raise ValueError('a store of Qdrant needs its client: pip install "tripletmas[qdrant]"') from None

_NOTES = "tripletmas"  # a key of the collection's metadata
_SECONDS = 60  # until a server is given up
_DISTANCES = {COSINE: models.Distance.COSINE, INNER_PRODUCT: models.Distance.DOT, L2: models.Distance.EUCLID}
_METRICS = {distance: metric for metric, distance in _DISTANCES.items()}
_OPTIONS = ("https", "api_key")


def open_store(place: Place) -> QdrantStore:
    """The collection at a place.

    Raises:
        ValueError: if there is no such folder, server or collection.
    """
    place = place.of_server()
    _check_options(place)
    if not place.is_server and not (place.path / "meta.json").is_file():
        raise NoCollection(f"{place}: no such folder of Qdrant's local mode: {place.where} (a server is HOST:PORT)")
    client = _client(place)
    try:
        with _told(place):
            names = [each.name for each in client.get_collections().collections]
            names += [each.alias_name for each in client.get_aliases().aliases]
        name = place.need_collection(names)
        if name not in names:
            raise NoCollection(
                f"{place.where} has no collection {name!r}{suggestion(name, names)}: there are {listed(names)}"
            )
        return QdrantStore(place, ClientPoints(place, client))
    except BaseException:
        client.close()
        raise


def create_store(place: Place, new: VectorField, columns: Mapping[str, type], ids: type) -> QdrantStore:
    """A new, empty collection; see `opening.created`."""
    place = place.of_server()
    _check_options(place)
    name, client = place.need_collection(), _client(place)
    try:
        with _told(place):
            there = client.collection_exists(name)
        if there:
            raise ValueError(f"{place} is there already: choose another name")
        with _told(place):
            params = models.VectorParams(size=new.dim, distance=_DISTANCES[new.metric or COSINE])
            client.create_collection(name, {engine_name(new.name): params} if engine_name(new.name) else params)
        return QdrantStore(place, ClientPoints(place, client))
    except BaseException:
        client.close()
        raise


def _check_options(place: Place) -> None:
    if not place.is_server or not place.options.keys() <= set(_OPTIONS):
        place.refuse_options()


def _client(place: Place) -> QdrantClient:
    if not place.is_server:
        if is_held(place.path / ".lock"):
            raise ValueError(f"{place} is open in another process: close it there, or let a server of Qdrant hold it")
        with _told(place):
            return QdrantClient(path=place.where)
    with _told(place):
        scheme = "https" if place.options.get("https", "").lower() in ("1", "true", "yes") else "http"
        return QdrantClient(
            url=f"{scheme}://{place.where}",
            api_key=place.options.get("api_key"),
            timeout=_SECONDS,
            check_compatibility=False,
        )


@contextmanager
def _told(place: Place) -> Iterator[None]:
    """What the client raises becomes one sentence; LookupError, where a point is not there."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Local mode is not recommended")
            yield
    except Exception as error:
        raise _mended(error, place) from None


def _mended(error: Exception, place: Place) -> Exception:
    if isinstance(error, UnexpectedResponse):
        said = error.content.decode(errors="replace")[:300]
        gone = error.status_code == 404 and "No point with id" in said
        return LookupError(said) if gone else ValueError(f"{place}: Qdrant answers {error.status_code}: {said}")
    if isinstance(error, KeyError):
        return LookupError(str(error))
    if isinstance(error, ResponseHandlingException):
        return ValueError(f"{place} does not answer ({first_line(error)}): does a server of Qdrant run there?")
    return ValueError(f"{place}: {first_line(error)}")


def _vector(params: models.VectorParams) -> Vector:
    if params.multivector_config is not None:
        return Vector(params.size, None, "holds several vectors a point, and tripletmas compares one with one")
    if params.datatype == models.Datatype.UINT8:
        return Vector(params.size, None, "holds bytes, not embeddings")
    if params.distance not in _METRICS:
        return Vector(params.size, None, f"is compared by {params.distance.value}, and no model of tripletmas is")
    return Vector(params.size, _METRICS[params.distance])


class _InOne:
    """The database of a local collection, without the commit of each statement."""

    def __init__(self, connection: Any):
        self.execute = connection.execute

    def __enter__(self) -> _InOne:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@contextmanager
def _at_once(client: QdrantClient, name: str) -> Iterator[None]:
    """One transaction for what the local mode writes point by point, each with a commit that waits for the disk.

    On a busy disk that is 18 points a second. A test counts the commits: they tell if another version of the client
    has its database elsewhere.
    """
    local = client._client
    stored: Any = local._get_collection(name).storage if isinstance(local, QdrantLocal) else None
    if stored is None:
        yield
        return
    connection = stored.storage
    stored.storage = _InOne(connection)
    try:
        yield
    finally:  # what was written before an error is so in memory, too
        stored.storage = connection
        connection.commit()


@final
class ClientPoints:
    """`qdrant_points.Points` of the client, over a server or a folder."""

    def __init__(self, place: Place, client: QdrantClient):
        self._place, self._client, self._name = place, client, place.collection

    def vectors(self) -> dict[str, Vector]:
        params = self._info().config.params
        dense = (
            params.vectors if isinstance(params.vectors, Mapping) else {"": params.vectors} if params.vectors else {}
        )
        sparse = Vector(0, None, "is sparse, and embeddings are dense")
        return {name: _vector(each) for name, each in dense.items()} | dict.fromkeys(
            params.sparse_vectors or (), sparse
        )

    def _info(self) -> models.CollectionInfo:
        with _told(self._place):
            return self._client.get_collection(self._name)

    def count(self, key: str | None = None) -> int:
        having = key and models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key=key))])
        with _told(self._place):
            return self._client.count(self._name, count_filter=having or None, exact=True).count

    def keys(self, most: int) -> list[str]:
        indexed = [key for key in self._info().payload_schema if "." not in key and '"' not in key]
        with _told(self._place):
            sample, _ = self._client.scroll(self._name, limit=most, with_payload=True, with_vectors=False)
        return sorted({*indexed, *(key for each in sample for key in each.payload or ())})

    def scroll(self, name: str, offset: Id | None, limit: int, keys: Sequence[str]) -> tuple[list[Point], Id | None]:
        with _told(self._place):
            records, following = self._client.scroll(
                self._name, limit=limit, offset=offset, with_payload=list(keys) or False, with_vectors=[name]
            )
        return [_point(each, name) for each in records], None if following is None else _id(following)

    def retrieve(self, name: str | None, ids: Sequence[Id], keys: Sequence[str]) -> list[Point]:
        with _told(self._place):
            vectors = False if name is None else [name]
            records = self._client.retrieve(
                self._name, list(ids), with_payload=list(keys) or False, with_vectors=vectors
            )
        return [_point(each, name or "") for each in records]

    def query(
        self, name: str, queries: list[list[float]], k: int, where: Mapping[str, list[Any]], keys: Sequence[str]
    ) -> list[list[Point]]:
        must: list[Any] = [
            models.Filter(
                should=[models.FieldCondition(key=key, match=models.MatchValue(value=each)) for each in values]
            )
            for key, values in where.items()
        ]
        requests = [
            models.QueryRequest(
                query=each,
                using=name or None,
                filter=models.Filter(must=must) if must else None,
                limit=k,
                with_payload=list(keys) or False,
            )
            for each in queries
        ]
        with _told(self._place):
            answers = self._client.query_batch_points(self._name, requests)
        return [[Point(_id(each.id), None, each.payload or {}, each.score) for each in one.points] for one in answers]

    def upsert(self, name: str, points: Sequence[Point]) -> None:
        with _told(self._place):
            structs = [
                models.PointStruct(id=each.id, vector={name: each.vector}, payload=each.payload) for each in points
            ]
            with _at_once(self._client, self._name):
                self._client.upsert(self._name, structs, wait=True)

    def update(self, name: str, ids: Sequence[Id], rows: list[list[float]]) -> None:
        with _told(self._place):
            points = [models.PointVectors(id=each, vector={name: row}) for each, row in zip(ids, rows, strict=True)]
            with _at_once(self._client, self._name):
                self._client.update_vectors(self._name, points, wait=True)

    def create_vector(self, name: str, dim: int, metric: str) -> None:
        config = models.DenseVectorConfig(size=dim, distance=_DISTANCES[metric])
        with _told(self._place):
            self._client.create_vector_name(self._name, name, models.DenseVectorNameConfig(dense=config))

    def delete_vector(self, name: str) -> None:
        with _told(self._place), _at_once(self._client, self._name):
            self._client.delete_vector_name(self._name, name)

    def sync(self) -> None:
        pass  # a server answers when its log has it, and the local mode waits for its disk

    def notes(self) -> dict[str, Any]:
        text = (self._info().config.metadata or {}).get(_NOTES)
        try:
            found = json.loads(text) if text else {}
        except (TypeError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise DamagedNotes(f"the notes of tripletmas in {self._place} are damaged: --assume gives new ones")
        return found

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        # a text: a server merges an object into the one that is there
        text = json.dumps(dict(notes)) if notes else None
        with _told(self._place):
            self._client.update_collection(self._name, metadata={_NOTES: text})
        if self.notes() != json.loads(text or "{}"):
            raise ValueError(f"{self._place} keeps no metadata of a collection: that needs Qdrant 1.18 or later")

    def close(self) -> None:
        self._client.close()


def _id(given: Any) -> Id:
    return given if isinstance(given, int) else str(given)


def _point(record: Any, name: str) -> Point:
    vector = record.vector.get(name) if isinstance(record.vector, dict) else record.vector
    return Point(_id(record.id), vector, record.payload or {})
