"""What the addresses take and give, as OpenAPI 3.1; the page at /docs shows it, and the tests try all of it."""

from __future__ import annotations

from typing import Any

from tripletmas.basics.version import __version__
from tripletmas.serve.questions import IMAGE_TYPES, MOST_K, MOST_LABEL, MOST_LETTERS, MOST_QUESTIONS, RAW
from tripletmas.serve.serving import Limits

Schema = dict[str, Any]

_ID = {"type": ["integer", "string"], "maxLength": MOST_LABEL}
_TEXT = {"type": "string", "minLength": 1, "maxLength": MOST_LETTERS, "pattern": r"\S"}
_SENTENCES = {
    400: "The body is empty, or not what its content type says.",
    401: "The token is missing, or another.",
    403: "The host, or the origin, is not allowed.",
    404: "Nothing has this id, or this label, or the file is gone.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is none that is taken.",
    422: "A parameter is out of range, or what was sent cannot be read.",
    503: "Too many are asking; `Retry-After` says when to come again.",
    504: "There was no answer in time.",
}


def document(limits: Limits, *, texts: bool) -> Schema:
    """The description of an application.

    Args:
        texts: the gallery holds texts.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tripletmas",
            "version": __version__,
            "description": "The nearest neighbours of images, or of texts, in a gallery.",
        },
        "paths": {
            "/query": {"post": _query(limits, texts=texts)},
            "/thumbnail/{id}": {"get": _thumbnail()},
            "/info": {"get": _get("info", "What is served, and by which model.", "Info")},
            "/health": {"get": _get("health", "That the server runs; asks for no token.", "Health", open=True)},
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "If one was set."}},
        },
        "security": [{}, {"token": []}],
    }


def _query(limits: Limits, *, texts: bool) -> Schema:
    one_of = [
        _object({"ids": _list(_ID)}, "ids"),
        _object({"id": _ID}, "id"),
        *([_object({"text": _TEXT}, "text"), _object({"texts": _list(_TEXT)}, "texts")] if texts else []),
    ]
    image = {"type": "string", "contentMediaType": "image/*"}
    form = {"text": _list(_TEXT)} if texts else {"image": _list({**image, "contentEncoding": "binary"})}
    kinds: Schema = {"application/json": {"schema": {"oneOf": one_of}}}
    kinds["multipart/form-data"] = {"schema": _object(form, *form)}
    if not texts:
        kinds["multipart/form-data"]["encoding"] = {"image": {"contentType": ", ".join(IMAGE_TYPES)}}
    if not texts:
        kinds |= {kind: {"schema": image} for kind in (*IMAGE_TYPES, RAW)}
    number, whole = {"type": "number"}, {"type": "integer", "minimum": 1, "maximum": MOST_K, "default": 10}
    found = {"200": _json("The neighbours, nearest first.", "Found")}
    return {
        "operationId": "query",
        "summary": "The nearest neighbours of images, texts, or of items of the gallery by their ids.",
        "description": f"At most {limits.upload_bytes:,} bytes, and {MOST_QUESTIONS} images, texts or ids. What an id "
        "names is not among its own neighbours.",
        "parameters": [
            _parameter("k", whole, "How many neighbours."),
            _parameter("min_score", number, "Leave out those with a lower score."),
            _parameter("label", {"type": "string", "minLength": 1, "maxLength": MOST_LABEL}, "Only of this label."),
        ],
        "requestBody": {"required": True, "content": kinds},
        "responses": _responses(found, 400, 404, 408, 413, 415, 422, 503, 504),
    }


def _thumbnail() -> Schema:
    picture = {"description": "The centre square.", "content": {"image/webp": {"schema": {"type": "string"}}}}
    id = {"type": "string", "minLength": 1, "maxLength": 200}
    return {
        "operationId": "thumbnail",
        "summary": "A small picture of an item of the gallery.",
        "parameters": [
            {"name": "id", "in": "path", "required": True, "schema": id},
            {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}, "description": "An ETag."},
        ],
        "responses": _responses({"200": picture, "304": {"description": "It has not changed."}}, 404, 422, 503),
    }


def _get(name: str, summary: str, schema: str, *, open: bool = False) -> Schema:
    found: Schema = {"operationId": name, "summary": summary}
    if open:
        return {**found, "security": [], "responses": _responses({"200": _json(summary, schema)})}
    return {**found, "responses": _responses({"200": _json(summary, schema)}, 422)}


def _responses(good: Schema, *bad: int) -> Schema:
    return {**good, **{str(status): _json(_SENTENCES[status], "Error") for status in sorted({*bad, 401, 403})}}


def _json(description: str, schema: str) -> Schema:
    of = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": description, "content": {"application/json": {"schema": of}}}


def _parameter(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _object(properties: Schema, *required: str, more: bool = False) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": more}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of, "minItems": 1, "maxItems": MOST_QUESTIONS}


def _schemas() -> Schema:
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    item = {"id": _ID, "label": {"type": ["string", "null"]}, "path": {"type": ["string", "null"]}, "text": text}
    neighbour = _object({"rank": {"type": "integer", "minimum": 1}, "score": number, **item}, "rank", "score", "id")
    query = {"query": text, "item": _object(item, "id"), "neighbours": {"type": "array", "items": neighbour}}
    found = {
        "queries": {"type": "array", "items": _object(query, "query", "neighbours")},
        "score": {**text, "description": "What the scores are: cosine, inner product, or negative squared distance."},
        "note": {**text, "description": "What a reader has to know of them, as that vectors are stale."},
        "edition": {**whole, "description": "Which edition of the gallery was searched."},
    }
    model = {"hash": text, "run": text, "after_task": whole, "preparation": text}
    label = _object({"label": text, "count": whole}, "label", "count")
    info = {
        "version": text,
        "gallery": text,
        "holds": {"enum": ["images", "texts"]},
        "vectors": whole,
        "dim": whole,
        "metric": text,
        "normalized": {"type": "boolean"},
        "score": text,
        "kind": text,
        "model": _object(model, *model),
        "stale": _object({"vectors": whole, "share": number}, "vectors", "share"),
        "note": text,
        "some": {"type": "array", "items": _object(item, "id")},
        "filters": {"type": "array", "items": {"enum": ["label"]}},
        "num_labels": whole,
        "labels": {"type": "array", "items": label},
        "edition": whole,
        "opened": {**text, "format": "date-time"},
        "trouble": {**text, "description": "Why a changed gallery could not be opened, so that the former is served."},
        "limits": {"type": "object"},
    }
    return {
        "Found": _object(found, *found),
        "Info": _object(info, *(name for name in info if name != "kind"), more=True),
        "Health": _object({"status": {"const": "ok"}}, "status"),
        "Error": _object({"error": text}, "error"),
    }
