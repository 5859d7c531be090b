"""A second vector in Milvus: a copy of the collection, with that vector in the field of the first one.

Milvus Lite cannot add a vector to the points of a collection. So there is a collection NAME__FIELD beside NAME, whose
points have the same keys and all that the user keeps of them; for a switch both are renamed, and a user's queries stay
as they are. Milvus renames one collection at a time: what is under way is noted in the copy, and finished when the
store is opened again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tripletmas.stores.milvus_client import METRIC_NAMES, DataType, MilvusClient, Table, aliases, collections, told
from tripletmas.stores.place import Place
from tripletmas.stores.store import COSINE, VectorField

COPY, NOTES = "tripletmas.copy", "tripletmas.notes"  # properties of a collection
_COPIED = {
    *(DataType.BOOL, DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64, DataType.FLOAT, DataType.DOUBLE),
    *(DataType.VARCHAR, DataType.JSON, DataType.ARRAY, DataType.GEOMETRY, DataType.TIMESTAMPTZ),
    *(DataType.FLOAT_VECTOR, DataType.SPARSE_FLOAT_VECTOR),
}


@dataclass(frozen=True)
class Copy:
    """What a copy says of itself.

    Attributes:
        of: the collection that it stands beside.
        field: what its vector is called among those of the points.
        base: the field that holds it, in the copy as in the collection.
        made: by us; not the user's own collection, kept after a switch.
        switching: what the former vectors will be called, while a switch is under way.
    """

    of: str
    field: str
    base: str
    made: bool = True
    switching: str = ""


def copy_of(table: Table) -> Copy | None:
    """What a collection says of itself, where it is a copy."""
    text = table.properties.get(COPY)
    return Copy(**json.loads(text)) if text else None


def copies(place: Place, client: MilvusClient, name: str) -> dict[str, tuple[Table, Copy]]:
    """Field -> the copy that has it, of all that stand beside a collection."""
    found = {}
    for each in beside(place, client, name):
        table = Table(place, client, each)
        about = copy_of(table)
        if about is not None and about.of == name:
            found[about.field] = (table, about)
    return found


def beside(place: Place, client: MilvusClient, name: str) -> list[str]:
    """The collections whose names say that they may be copies."""
    with told(place):
        return [each for each in collections(client) if each.startswith(f"{name}__")]


def make_copy(place: Place, client: MilvusClient, table: Table, base: str, new: VectorField) -> None:
    """A copy without points; goes on where that has begun."""
    name = f"{table.name}__{new.name}"
    with told(place):
        there = client.has_collection(name)
    if not there:
        _refuse(place, client, table)
        schema = table.schema()
        for each in schema.fields:
            if each.name == base:
                each.params["dim"] = new.dim
            if each.is_primary:
                each.auto_id = False  # points have the ids of the user's
        about = Copy(table.name, new.name, base)
        with told(place):
            client.create_collection(name, schema=schema, properties={COPY: json.dumps(asdict(about))})
    _index_like(place, client, table, Table(place, client, name), base, METRIC_NAMES[new.metric or COSINE])


def _index_like(place: Place, client: MilvusClient, table: Table, copy: Table, base: str, metric: str) -> None:
    """Give a copy the indexes that it lacks, of the kinds that the collection has, and `metric` over its vector."""
    have, wanted = copy.indexes(), table.indexes()
    wanted[base] = {"index_type": "AUTOINDEX", **wanted.get(base, {}), "field_name": base, "metric_type": metric}
    params = client.prepare_index_params()
    for field in sorted(wanted.keys() - have.keys()):
        params.add_index(**{key: value for key, value in wanted[field].items() if value != "NONE"})
    with told(place):
        if len(params):
            client.create_index(copy.name, params, sync=False)
        client.load_collection(copy.name)


def _refuse(place: Place, client: MilvusClient, table: Table) -> None:
    """Raises ValueError for a collection of which no true copy can be made."""
    for name, kind in table.types.items():
        if kind not in _COPIED:
            raise ValueError(
                f"{place}: the field {name!r} has the type {DataType(kind).name}, of which no copy can be made"
            )
    if table.about.get("functions"):
        raise ValueError(f"{place} computes fields by functions, of which no copy can be made")
    with told(place):
        partitions = client.list_partitions(table.name)
    if len(partitions) > 1 and not any(each.get("is_partition_key") for each in table.about["fields"]):
        raise ValueError(f"{place} has partitions {', '.join(sorted(partitions))}, and a copy would not have them")


def follow(table: Table, copy: Table, base: str) -> None:
    """Bring all of a copy but its vectors to what the collection holds now: points that came, went or were changed.

    A point without a vector in the copy gets zeros, for Milvus has no point without one.
    """
    zeros = [0.0] * copy.vectors[base]
    for rows in table.pages(table.all_but(base)):
        have = copy.of([row[table.key] for row in rows], ["*"])
        changed = []
        for row in rows:
            there = have.get(row[table.key], {})
            now = {**row, base: there.get(base, zeros)}
            if now != there:
                changed.append(now)
        copy.upsert(changed)
    for rows in copy.pages([copy.key]):
        keys = [row[copy.key] for row in rows]
        there = table.of(keys, [table.key])
        copy.delete([each for each in keys if each not in there])


def switch_to(place: Place, client: MilvusClient, table: Table, copy: Table, about: Copy, kept: str) -> None:
    """Let the copy have the collection's name, and the collection stand beside it, as the copy that has `kept`."""
    notes = table.properties.get(NOTES)
    mark = {COPY: json.dumps(asdict(replace(about, switching=kept)))}
    with told(place):
        client.alter_collection_properties(copy.name, mark | ({NOTES: notes} if notes else {}))
    finish(place, client, copy.name)


def finish(place: Place, client: MilvusClient, incoming: str) -> None:
    """Do what is left of a switch, of which the collection `incoming` says that it is under way."""
    about = copy_of(Table(place, client, incoming))
    assert about is not None
    name, outgoing = about.of, f"{about.of}__{about.switching}"
    with told(place):
        names = collections(client)
        if outgoing not in names:
            client.rename_collection(name, outgoing)
        if incoming != name:
            client.rename_collection(incoming, name)
    former = Table(place, client, outgoing)
    was = copy_of(former)
    with told(place):
        for alias in aliases(client, outgoing):  # they would stay with the former vectors
            client.alter_alias(name, alias)
        kept = Copy(name, about.switching, about.base, made=was is not None and was.made)
        client.alter_collection_properties(outgoing, {COPY: json.dumps(asdict(kept))})
        if NOTES in former.properties:
            client.drop_collection_properties(outgoing, [NOTES])
        if about.made:
            now = Copy(name, about.base, about.base)
            client.alter_collection_properties(name, {COPY: json.dumps(asdict(now))})
        else:
            client.drop_collection_properties(name, [COPY])
        for each in (name, outgoing):
            client.load_collection(each)


def recover(place: Place, client: MilvusClient, name: str) -> None:
    """Finish a switch that was killed after the first of the two was renamed; forget one that was killed before."""
    with told(place):
        names = collections(client)
    for each in [*beside(place, client, name), *({name} & set(names))]:
        about = copy_of(Table(place, client, each))
        if about is None or about.of != name or not about.switching:
            continue
        if each == name or f"{name}__{about.switching}" in names:
            finish(place, client, each)
        else:
            with told(place):
                client.alter_collection_properties(each, {COPY: json.dumps(asdict(replace(about, switching="")))})


def row_of(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Some columns of a row; None for one that it does not have."""
    return {name: row.get(name) for name in names}
