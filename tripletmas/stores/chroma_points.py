"""Points of a collection of Chroma: read, copied, kept like those of another collection, asked for by a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

CONTENT = ("metadatas", "documents", "uris")
DOCUMENT, URI = "document", "uri"  # as columns
_MOST = 4096  # points in one call


def batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many at once as Chroma takes."""
    for start in range(0, len(items), _MOST):
        yield items[start : start + _MOST]


def read_vectors(collection: Any, ids: Sequence[str]) -> dict[str, Any]:
    """The vectors of those of these points that there are."""
    rows: dict[str, Any] = {}
    for batch in batches(list(dict.fromkeys(ids))):
        found = collection.get(ids=list(batch), include=["embeddings"])
        rows |= dict(zip(found["ids"], found["embeddings"], strict=True))
    return rows


def read_columns(collection: Any, ids: Sequence[str], columns: Sequence[str]) -> dict[str, list[Any]]:
    """The values of these columns of those of these points that there are."""
    values: dict[str, list[Any]] = {}
    for batch in batches(list(dict.fromkeys(ids))):
        found = collection.get(ids=list(batch), include=list(CONTENT) if columns else [])
        for each, (metadata, document, uri) in _contents(found).items():
            of = {DOCUMENT: document, URI: uri, **(metadata or {})}
            values[each] = [of.get(column) for column in columns]
    return values


def _contents(found: Any) -> dict[str, list[Any]]:
    """Metadata, document and URI of each point."""
    none = [None] * len(found["ids"])
    # of a point that has a URI and nothing else, Chroma gives {}, which it does not take
    parts: Iterable[Sequence[Any]] = ([of or None for of in found[each] or none] for each in CONTENT)
    return {each: rest for each, *rest in zip(found["ids"], *parts, strict=True)}


def copy_points(base: Any, other: Any, ids: Sequence[str], vectors: Any) -> None:
    """Put points of one collection into another, with other vectors (n, dim); those that are gone are left out."""
    row_of = {each: row for row, each in enumerate(ids)}
    for batch in batches(list(row_of)):
        found = _contents(base.get(ids=list(batch), include=list(CONTENT)))
        if found:
            metadatas, documents, uris = zip(*found.values(), strict=True)
            embeddings = [vectors[row_of[each]] for each in found]
            other.upsert(
                ids=list(found),
                embeddings=embeddings,
                metadatas=list(metadatas),
                documents=list(documents),
                uris=list(uris),
            )


def bring_up_to_date(base: Any, other: Any, dim: int) -> None:
    """Let another collection have the points of this one, with their content; zeros where a vector lacks."""
    mine, theirs = (set(each.get(include=[])["ids"]) for each in (base, other))
    for batch in batches(sorted(theirs - mine)):
        other.delete(ids=list(batch))
    lacking = sorted(mine - theirs)
    copy_points(base, other, lacking, [[0.0] * dim] * len(lacking))
    for batch in batches(sorted(mine & theirs)):
        here, there = (_contents(each.get(ids=list(batch), include=list(CONTENT))) for each in (base, other))
        changed = [each for each in here if here[each] != there.get(each)]
        if changed:
            found = other.get(ids=changed, include=["embeddings"])
            other.delete(ids=changed)  # an update would leave what the user has taken away
            copy_points(base, other, found["ids"], found["embeddings"])


def condition(where: Mapping[str, str]) -> dict[str, Any]:
    """Of points that have these values, which may be numbers, true or false there."""
    each = [_any([{column: value} for value in _readings(text)]) for column, text in where.items()]
    return each[0] if len(each) == 1 else {"$and": each}


def _any(conditions: list[dict[str, Any]]) -> dict[str, Any]:
    return conditions[0] if len(conditions) == 1 else {"$or": conditions}


def _readings(text: str) -> list[Any]:
    found: list[Any] = [text]
    for kind in (int, float):
        try:
            found.append(kind(text))
        except ValueError:
            continue
        break
    return [*found, *({"true": [True], "false": [False]}.get(text.lower(), []))]
