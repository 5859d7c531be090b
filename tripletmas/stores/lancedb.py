"""LanceDB: a table in a folder, lancedb:///FOLDER#TABLE. A second vector is a column; a switch renames two columns.

Points are read from one version of the table, so what is written meanwhile disturbs no scan. Every write makes a new
version; the former ones stay, as LanceDB keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.stores.place import Place
from tripletmas.stores.store import (
    COSINE,
    INNER_PRODUCT,
    L2,
    ROWS,
    Block,
    DamagedNotes,
    Hit,
    Id,
    NoCollection,
    Switched,
    VectorField,
    check_columns,
    check_queries,
    check_vectors,
    field_among,
)

try:
    import lancedb
    import pyarrow as pa
except ModuleNotFoundError:
    raise ValueError('a store of LanceDB needs its package: pip install "tripletmas[lancedb]"') from None

_NOTES = "tripletmas"  # a key of the metadata of the column of ids
_DISTANCES = {COSINE: "cosine", INNER_PRODUCT: "dot", L2: "l2"}
_INDEXES = {
    "IvfFlat": "IVF_FLAT",
    "IvfSq": "IVF_SQ",
    "IvfPq": "IVF_PQ",
    "IvfHnswSq": "IVF_HNSW_SQ",
    "IvfHnswPq": "IVF_HNSW_PQ",
}


def open_store(place: Place) -> LanceStore:
    """The table at a place.

    Raises:
        ValueError: if there is no such folder, table, or column of ids.
    """
    place.refuse_options()
    if not place.path.is_dir():
        raise NoCollection(f"{place}: no such folder of LanceDB: {place.where}")
    base = lancedb.connect(place.where)
    names = _tables(base)
    name = place.need_collection(names)
    if name not in names:
        raise NoCollection(f"{place.where} has no table {name!r}{suggestion(name, names)}: there are {listed(names)}")
    try:
        table = base.open_table(name)
    except Exception as error:
        raise ValueError(f"{place} cannot be opened: {_first_line(error)}") from None
    return LanceStore(place, base, table)


def create_store(place: Place, new: VectorField, columns: Mapping[str, type], ids: type) -> LanceStore:
    """A new, empty table; see `opening.created`."""
    place.refuse_options()
    base, name = lancedb.connect(place.where), place.need_collection()
    if name in _tables(base):
        raise ValueError(f"{place} is there already: choose another name")
    for column in (place.column("id", "id"), new.name, *columns):
        _quoted(column)
    types = {str: pa.string(), int: pa.int64()}
    fields = [pa.field(place.column("id", "id"), types[ids]), pa.field(new.name, pa.list_(pa.float32(), new.dim))]
    fields += [pa.field(column, types[kind]) for column, kind in columns.items()]
    return LanceStore(place, base, base.create_table(name, schema=pa.schema(fields)))


def _tables(base: Any) -> list[str]:
    names, token = [], None
    while True:
        found = base.list_tables(page_token=token)
        names += found.tables
        token = found.page_token
        if not token:
            return names


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@final
class LanceStore:
    """A table of LanceDB, as a `Store`."""

    def __init__(self, place: Place, base: Any, table: Any):
        self.place, self._base, self._table = place, base, table
        self._id = place.column("id", "id")
        schema = table.schema
        if self._id not in schema.names:
            scalars = [each.name for each in schema if pa.types.is_integer(each.type) or pa.types.is_string(each.type)]
            raise ValueError(f"{place} has no column {self._id!r} of ids: ?id=COLUMN names it, of {listed(scalars)}")
        kind = schema.field(self._id).type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f"{place}: ids are numbers or texts, and the column {self._id!r} is {kind}")

    def fields(self) -> dict[str, VectorField]:
        self._table.checkout_latest()
        found = {}
        for each in self._table.schema:
            if pa.types.is_fixed_size_list(each.type) and pa.types.is_floating(each.type.value_type):
                found[each.name] = VectorField(each.name, each.type.list_size, self._metric(each.name))
        return found

    def _metric(self, name: str) -> str | None:
        """That an index over a column compares by."""
        for index in self._table.list_indices():
            if list(index.columns) == [name] and (stats := self._table.index_stats(index.name)) is not None:
                return {text: metric for metric, text in _DISTANCES.items()}.get(stats.distance_type or "")
        return None

    def __len__(self) -> int:
        self._table.checkout_latest()
        return self._table.count_rows()

    def columns(self) -> list[str]:
        return [each for each in self._table.schema.names if each != self._id and each not in self.fields()]

    def scan(
        self, name: str, *, after: Id | None = None, size: int = ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        check_columns(columns, self.columns(), self.place)
        found = self._field(name)
        snapshot = self._base.open_table(self.place.collection)
        snapshot.checkout(snapshot.version)
        listed_ids = snapshot.search().select([self._id]).with_row_id(True).limit(None).to_arrow()
        ids, rows = listed_ids[self._id].to_numpy(zero_copy_only=False), listed_ids["_rowid"].to_numpy()
        if ids.dtype == object:
            ids = self._texts(ids)
        order = np.argsort(ids, kind="stable")
        ids, rows = ids[order], rows[order]
        self._check_ids(ids)
        if after is not None:
            first = np.searchsorted(ids, after.encode() if isinstance(after, str) else after, side="right")
            ids, rows = ids[first:], rows[first:]
        for start in range(0, len(rows), size):
            wanted = rows[start : start + size].tolist()
            read = snapshot.take_row_ids(wanted).select([self._id, found.name, *columns]).to_arrow()
            yield self._block(self._ordered(read, ids[start : start + size]), found, columns)

    def _ordered(self, read: Any, ids: Any) -> Any:
        """What was read in any order, in that of these ids."""
        texts = (each.encode() if isinstance(each, str) else each for each in read[self._id].to_pylist())
        place_of = {each: row for row, each in enumerate(texts)}
        return read.take(pa.array([place_of[each] for each in ids.tolist()]))

    def _texts(self, ids: Any) -> Any:
        """Ids that are texts, as their UTF-8: so they are compared."""
        if any(each is None for each in ids):
            raise ValueError(f"{self.place}: a point has no id in the column {self._id!r}")
        return np.array([each.encode() for each in ids], dtype=object)

    def _check_ids(self, ids: Any) -> None:
        if ids.dtype.kind == "f":  # what pyarrow makes of numbers among which one is missing
            raise ValueError(f"{self.place}: a point has no id in the column {self._id!r}")
        same = np.nonzero(ids[1:] == ids[:-1])[0]
        if len(same):
            twice = ids[same[0]]
            twice = twice.decode() if isinstance(twice, bytes) else int(twice)
            raise ValueError(f"{self.place}: two points have the id {twice!r} in the column {self._id!r}")

    def _block(self, read: Any, found: VectorField, columns: Sequence[str]) -> Block:
        vectors = read[found.name].combine_chunks()
        flat = vectors.flatten() if not vectors.null_count else None
        if flat is None or flat.null_count:
            none = [float("nan")] * found.dim
            rows = torch.tensor([each or none for each in vectors.to_pylist()], dtype=torch.float32)
        else:
            array = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
            rows = torch.from_numpy(np.array(array)).view(-1, found.dim)  # a copy: Arrow's memory is read-only
        return Block(read[self._id].to_pylist(), rows, {each: read[each].to_pylist() for each in columns})

    def _field(self, name: str) -> VectorField:
        return field_among(self.fields(), name, self.place)

    def read(self, name: str, ids: Sequence[Id], *, columns: Sequence[str] = ()) -> Block:
        check_columns(columns, self.columns(), self.place)
        found = self._field(name)
        query = self._table.search().where(f"{_quoted(self._id)} IN ({', '.join(map(_literal, ids)) or 'NULL'})")
        read = query.select([self._id, found.name, *columns]).limit(None).to_arrow()
        place_of = {each: row for row, each in enumerate(read[self._id].to_pylist())}
        kept = [place_of[each] for each in ids if each in place_of]
        return self._block(read.take(pa.array(kept, pa.int64())), found, columns)

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
        found = self._field(name)
        check_queries(found, queries, k, metric, self.place)
        check_columns([*columns, *(where or ())], self.columns(), self.place)
        asked = " AND ".join(f"{_quoted(column)} = {_literal(value)}" for column, value in (where or {}).items())
        results = []
        for query in queries.detach().cpu().float().numpy():
            # one by one: LanceDB gives the answers to several without saying which are whose
            search = self._table.search(query, vector_column_name=name).distance_type(_DISTANCES[metric])
            search = search.where(asked, prefilter=True) if asked else search
            rows = search.select([self._id, *columns, "_distance"]).limit(k).to_list()
            hits = [Hit(each[self._id], _score(each["_distance"], metric), _of(each, columns)) for each in rows]
            results.append(hits)
        return results

    def add_field(self, new: VectorField) -> None:
        if new.name in self.fields():
            return
        if new.name in self._table.schema.names:
            raise ValueError(f"{self.place} has a column {new.name!r} already, which is no vector")
        self._table.add_columns(pa.field(new.name, pa.list_(pa.float32(), new.dim)))

    def write(self, name: str, ids: Sequence[Id], vectors: Tensor) -> None:
        found = self._field(name)
        rows = check_vectors(found, ids, vectors, self.place)
        if len(ids):
            source = pa.table(
                {self._id: pa.array(ids, self._table.schema.field(self._id).type), name: self._as_list(rows)}
            )
            self._table.merge_insert(self._id).when_matched_update_all().execute(source)

    def _as_list(self, rows: Tensor) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().ravel()), rows.shape[1])

    def drop_field(self, name: str) -> None:
        if name in self.fields():
            self._table.drop_columns([name])

    def switch(self, old: str, new: str, kept: str) -> Switched:
        there = self.fields()
        if kept in there and new not in there:
            return Switched(old, kept)
        self._index_like(old, new)
        renames = ({"path": old, "rename": kept}, {"path": new, "rename": old})
        self._table.alter_columns(*renames)
        return Switched(old, kept)

    def _index_like(self, old: str, new: str) -> None:
        """Give one column an index over it like the other's: after the switch queries are as fast as before."""
        have = {tuple(each.columns): each for each in self._table.list_indices()}
        like = have.get((old,))
        if like is None or (new,) in have:
            return
        kind = _INDEXES.get(str(like.index_type))
        stats = self._table.index_stats(like.name)
        if kind and stats is not None:
            self._table.create_index(metric=stats.distance_type, vector_column_name=new, index_type=kind)

    def notes(self) -> dict[str, Any]:
        self._table.checkout_latest()
        text = (self._table.schema.field(self._id).metadata or {}).get(_NOTES.encode(), b"")
        with suppress(ValueError):
            return json.loads(text) if text else {}
        raise DamagedNotes(f"the notes of tripletmas in {self.place} are damaged: --assume gives new ones")

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        if not notes and not self.notes():
            return
        text = json.dumps(dict(notes)) if notes else None
        self._table.update_field_metadata({"path": self._id, "metadata": {_NOTES: text}})

    def insert(self, name: str, ids: Sequence[Id], vectors: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        rows = check_vectors(self._field(name), ids, vectors, self.place)
        content = {self._id: list(ids), name: self._as_list(rows), **{each: list(of) for each, of in columns.items()}}
        source = pa.table(content)
        self._table.merge_insert(self._id).when_matched_update_all().when_not_matched_insert_all().execute(source)

    def close(self) -> None:
        pass


def _score(distance: float, metric: str) -> float:
    return 1 - distance if metric in (COSINE, INNER_PRODUCT) else -distance


def _of(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {each: row[each] for each in columns}


def _quoted(column: str) -> str:
    if not column or set(column) & {"`", "."}:
        raise ValueError(f"LanceDB reads a point or a backtick in the name of a column otherwise: {column!r}")
    return f"`{column}`"


def _literal(value: Id) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
