"""A client of Milvus: connecting, pages of rows in the order of their keys, what it says as one sentence.

Milvus Lite runs in this process, as a server in threads, and one process alone may have its folder open.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from tripletmas.basics.locks import is_held
from tripletmas.index.base import give_back_parameters
from tripletmas.stores.place import Place
from tripletmas.stores.store import COSINE, INNER_PRODUCT, L2, Id, NoCollection

try:
    import grpc
    from pymilvus import CollectionSchema, DataType, MilvusClient
    from pymilvus.exceptions import MilvusException
except ModuleNotFoundError:
    raise ValueError('a store of Milvus needs its client: pip install "tripletmas[milvus]"') from None

METRIC_NAMES = {COSINE: "COSINE", INNER_PRODUCT: "IP", L2: "L2"}
METRICS = {name: metric for metric, name in METRIC_NAMES.items()}
INTEGERS = (DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64)
REALS = (DataType.FLOAT, DataType.DOUBLE)
VECTORS = (
    DataType.FLOAT_VECTOR,
    DataType.FLOAT16_VECTOR,
    DataType.BFLOAT16_VECTOR,
    DataType.BINARY_VECTOR,
    DataType.SPARSE_FLOAT_VECTOR,
    DataType.INT8_VECTOR,
)
MOST = 16384  # rows of an answer, by a server's own limit
_BYTES = 32_000_000  # of vectors in a request
_STATE = {"total_rows", "indexed_rows", "pending_index_rows", "state", "index_state_fail_reason"}  # of an index
_LOGGERS = ("pymilvus", "milvus_lite")
_OPTIONS = ("https", "token", "database")


def quoted(value: Any) -> str:
    """A value in an expression of Milvus, whose texts are those of JSON."""
    return json.dumps(value, ensure_ascii=False)


def collections(client: MilvusClient) -> list[str]:
    """The names of those that there are."""
    return list(_now(client.list_collections()))


def aliases(client: MilvusClient, name: str) -> list[str]:
    """The other names of a collection."""
    return list(_now(client.list_aliases(name))["aliases"])


def _now(answer: Any) -> Any:
    """What a client that waits answers: its signatures cover one that does not, too."""
    return answer


@contextmanager
def told(place: Place) -> Iterator[None]:
    """What the client raises becomes one sentence, and nothing of it is printed."""
    give_back_parameters()  # Milvus Lite searches by faiss in this process
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except MilvusException as error:
        raise ValueError(f"{place}: {_first_line(error.message or str(error))}") from None
    except grpc.RpcError as error:
        said = getattr(error, "details", lambda: "")() or str(error)
        raise ValueError(f"{place}: {_first_line(said)}") from None
    except (OSError, TypeError) as error:
        raise ValueError(f"{place}: {_first_line(str(error))}") from None
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _first_line(said: str) -> str:
    return next(filter(None, said.splitlines()), "Milvus gives no reason").strip().rstrip(".")


def connect(place: Place, *, new: bool = False) -> tuple[MilvusClient, Callable[[], None]]:
    """A client, and what lets go of it.

    Args:
        new: a folder of Milvus Lite that is not there is made.

    Raises:
        ValueError: if there is none, it is of an older version, another process has it open, or no server answers.
    """
    if place.is_server:
        return _connect_server(place)
    _check_folder(place, new)
    try:
        from milvus_lite.server_manager import server_manager_instance as servers
    except ModuleNotFoundError:
        raise ValueError('a folder of Milvus Lite needs its package: pip install "tripletmas[milvus]"') from None
    path = str(place.path.absolute())
    ours = path not in servers._servers  # that runs already in this process is let run
    if ours and place.path.exists() and is_held(place.path / "LOCK"):
        raise ValueError(f"{place} is open in another process: close it there, or let a server of Milvus hold it")
    with told(place):
        client = MilvusClient(path)

    def close() -> None:
        client.close()
        if ours:
            with told(place):
                servers.release_server(path)

    return client, close


def _check_folder(place: Place, new: bool) -> None:
    place.refuse_options()
    if not place.where.endswith(".db"):
        raise ValueError(
            f"{place}: the folder of Milvus Lite has a name that ends with .db, and {place.where} does not"
        )
    if place.path.is_file():
        raise ValueError(
            f"{place} is a file of Milvus Lite before 3.0, which made no folders: export it by that version"
        )
    if new:
        place.path.parent.mkdir(parents=True, exist_ok=True)
    elif not (place.path / "collections").is_dir():
        raise NoCollection(f"{place}: no such folder of Milvus Lite: {place.where} (a server is HOST:PORT)")


def _connect_server(place: Place) -> tuple[MilvusClient, Callable[[], None]]:
    if not place.options.keys() <= set(_OPTIONS):
        place.refuse_options()
    scheme = "https" if place.options.get("https", "").lower() in ("1", "true", "yes") else "http"
    token, database = place.options.get("token", ""), place.options.get("database", "")
    with told(place):
        client = MilvusClient(f"{scheme}://{place.where.rstrip('/')}", token=token, db_name=database)
    return client, client.close


@final
class Table:
    """A collection of Milvus: its schema as it was when this was made, and its rows.

    Attributes:
        name: its own, also where an alias led here.
        key: the field of ids; `texts` says whether they are.
        vectors: the fields of dense vectors -> dim.
        scalars: the other fields -> type.
        dynamic: whether rows can have further keys.
    """

    def __init__(self, place: Place, client: MilvusClient, name: str):
        self._place, self._client = place, client
        with told(place):
            self.about: dict[str, Any] = dict(_now(client.describe_collection(name)))
        self.name: str = self.about["collection_name"]
        fields = self.about["fields"]
        key = next(each for each in fields if each.get("is_primary"))
        self.key: str = key["name"]
        self.texts: bool = key["type"] == DataType.VARCHAR
        self.types: dict[str, Any] = {each["name"]: each["type"] for each in fields}
        self.vectors = {
            each["name"]: int(each["params"]["dim"]) for each in fields if each["type"] == DataType.FLOAT_VECTOR
        }
        self.scalars = {each: kind for each, kind in self.types.items() if kind not in VECTORS and each != self.key}
        self.dynamic = bool(self.about.get("enable_dynamic_field"))
        self._ready = False

    @property
    def properties(self) -> dict[str, Any]:
        """The user's and ours."""
        return dict(self.about.get("properties") or {})

    @property
    def everything(self) -> str:
        """An expression that all rows fulfil."""
        return f'{self.key} >= ""' if self.texts else f"{self.key} >= {-(2**63)}"

    def schema(self) -> CollectionSchema:
        """To make another one like it."""
        return CollectionSchema.construct_from_dict(self.about)

    def all_but(self, name: str) -> list[str]:
        """To ask for all of a row but one field."""
        return [each for each in self.types if each != name] + ["$meta"] * self.dynamic

    def fits(self, key: Id) -> bool:
        """Whether it can be an id here."""
        return isinstance(key, str) if self.texts else isinstance(key, int) and -(2**63) <= key < 2**63

    def indexes(self) -> dict[str, dict[str, Any]]:
        """Field -> what an index over it was made with."""
        with told(self._place):
            found = [self._client.describe_index(self.name, each) for each in self._client.list_indexes(self.name)]
        return {each["field_name"]: {key: each[key] for key in each if key not in _STATE} for each in found}

    def metric(self, name: str) -> str | None:
        """That an index over a vector compares by."""
        return METRICS.get(self.indexes().get(name, {}).get("metric_type", ""))

    def ready(self) -> None:
        """Have the rows where they can be asked for: Milvus calls that loading."""
        if not self._ready:
            with told(self._place):
                self._client.load_collection(self.name)
            self._ready = True

    def query(self, expression: str, outputs: Sequence[str], limit: int | None = None) -> list[dict[str, Any]]:
        """Rows that fulfil an expression; the `limit` first by their keys."""
        self.ready()
        # as Milvus' own iterator asks, whose expressions break on a quote in a key
        paging = {} if limit is None else {"limit": limit, "iterator": "True", "reduce_stop_for_best": "True"}
        with told(self._place):
            return list(
                self._client.query(
                    self.name, filter=expression, output_fields=list(outputs), consistency_level="Strong", **paging
                )
            )

    def pages(self, outputs: Sequence[str], *, after: Id | None = None) -> Iterator[list[dict[str, Any]]]:
        """All rows in the order of their keys, from behind `after`."""
        limit = self.most()
        while True:
            rows = self.query(self.everything if after is None else f"{self.key} > {quoted(after)}", outputs, limit)
            keys = [row[self.key] for row in rows]
            if keys != sorted(keys):
                raise ValueError(
                    f"{self._place}: this version of Milvus gives rows in no order, and some would be missed"
                )
            if rows:
                yield rows
            if len(rows) < limit:
                return
            after = keys[-1]

    def most(self) -> int:
        """Rows that one request may ask for, or hold."""
        return max(1, min(MOST, _BYTES // (4 * max(1, sum(self.vectors.values())))))

    def of(self, keys: Sequence[Id], outputs: Sequence[str]) -> dict[Id, dict[str, Any]]:
        """Key -> row, of those that are there."""
        wanted = [each for each in dict.fromkeys(keys) if self.fits(each)]
        found: dict[Id, dict[str, Any]] = {}
        for part in _parts(wanted, self.most()):
            expression = f"{self.key} in [{', '.join(map(quoted, part))}]"
            found |= {row[self.key]: row for row in self.query(expression, outputs)}
        return found

    def upsert(self, rows: Sequence[Mapping[str, Any]], *, partial: bool = False) -> None:
        """Put rows in, in place of those of the same keys; `partial`: only the fields that they have."""
        for part in _parts(rows, self.most()):
            with told(self._place):
                self._client.upsert(self.name, [dict(row) for row in part], partial_update=partial)

    def delete(self, keys: Sequence[Id]) -> None:
        """Take rows out."""
        for part in _parts(keys, self.most()):
            with told(self._place):
                self._client.delete(self.name, ids=list(part))


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
