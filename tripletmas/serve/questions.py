"""What a request asks: its parameters, and the images, texts or ids in its body."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, Headers, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from tripletmas.basics.sentences import suggestion
from tripletmas.serve.gallery import Id, Refusal, Wanted

MOST_K = 1000
MOST_QUESTIONS = 64  # of one request
MOST_LETTERS = 20_000  # of a text
MOST_LABEL = 1000
PARAMETERS = ("k", "min_score", "label")
_KEYS = ("text", "texts", "id", "ids")  # of JSON
IMAGE_TYPES = (
    "image/bmp",
    "image/gif",
    "image/jpeg",
    "image/png",
    "image/tiff",
    "image/webp",
    "image/x-portable-pixmap",
)
RAW = "application/octet-stream"


@dataclass(frozen=True)
class Question:
    """One image (its bytes), text or id that neighbours are asked of."""

    name: str
    content: bytes | None = None
    text: str | None = None
    id: Id | None = None


def wanted_of(parameters: QueryParams) -> Wanted:
    """The parameters k, min_score and label of an address.

    Raises:
        Refusal: for others, for one that is given twice, for values out of range.
    """
    check_parameters(parameters, PARAMETERS)
    k, min_score = 10, None
    if "k" in parameters:
        k = _whole(parameters["k"])
    if "min_score" in parameters:
        min_score = _number(parameters["min_score"])
    label = parameters.get("label")
    if label is not None and not 0 < len(label) <= MOST_LABEL:
        raise Refusal(422, f"label must have between 1 and {MOST_LABEL} letters, got {len(label)}")
    return Wanted(k, min_score, label)


def check_parameters(parameters: QueryParams, known: Sequence[str]) -> None:
    """Raises a Refusal for a parameter that is not known, or is given twice."""
    names = [name for name, _ in parameters.multi_items()]
    for name in names:
        if name not in known:
            raise Refusal(422, f"there is no parameter {name[:60]!r}{suggestion(name[:60], known)}")
        if names.count(name) > 1:
            raise Refusal(422, f"the parameter {name} is given {names.count(name)} times; give it once")


async def questions_of(request: Request, most_bytes: int) -> list[Question]:
    """The images, texts or ids in the body of a request.

    Args:
        most_bytes: of the body.

    Raises:
        Refusal: for a body that is too large, of another type, or holds nothing to ask with.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data", RAW) and not kind.startswith("image/"):
        raise Refusal(
            415,
            f"the content type {kind[:60]!r} is none of application/json, multipart/form-data, image/... and {RAW}",
            headers={"accept-post": ", ".join(["application/json", "multipart/form-data", RAW, *IMAGE_TYPES])},
        )
    body = await _body(request, most_bytes)
    if not body:
        raise Refusal(400, 'the body is empty: send an image, or JSON such as {"text": "a red mug"}')
    if kind == "application/json":
        return _of_json(body)
    if kind == "multipart/form-data":
        return await _of_form(request.headers, body)
    return [Question("image", content=body)]


async def _body(request: Request, most: int) -> bytes:
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and int(said[:20]) > most:
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the request has more than {most:,} bytes: send smaller images, or fewer of them")


def _of_json(body: bytes) -> list[Question]:
    content = _object_in(body)
    if len(content) != 1:
        raise Refusal(422, f"the body must have one of {', '.join(_KEYS)}, got {len(content)}")
    key, value = next(iter(content.items()))
    values = value if key in ("texts", "ids") else [value]
    if not isinstance(values, list):
        raise Refusal(422, f"{key} must be a list")
    _check_count(len(values))
    return [_text(each) if key.startswith("text") else _id(each) for each in values]


def _object_in(body: bytes) -> dict[str, Any]:
    """An object of the keys that are known, of JSON."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON, although its content type says so") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise Refusal(422, 'the body must be an object such as {"text": "a red mug"} or {"ids": [17, 18]}')
    for key in content:
        if key not in _KEYS:
            raise Refusal(422, f"the body has no key {key[:60]!r}{suggestion(key[:60], _KEYS)}")
    return content


def _text(value: object) -> Question:
    if not isinstance(value, str) or not value.strip():
        raise Refusal(422, "a text must be a string that is not empty")
    if len(value) > MOST_LETTERS:
        raise Refusal(422, f"a text has {len(value):,} letters, more than {MOST_LETTERS:,}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(422, "a text holds half a character (a lone surrogate), which is no Unicode") from None
    return Question(value[:200], text=value)


def _id(value: object) -> Question:
    if isinstance(value, bool) or not isinstance(value, int | str) or len(str(value)) > MOST_LABEL:
        raise Refusal(422, "an id must be a whole number or a string, as the neighbours have it")
    if isinstance(value, str) and not value.isprintable():
        raise Refusal(404, "nothing has an id with control characters")
    return Question(f"id {value}", id=value)


async def _of_form(headers: Headers, body: bytes) -> list[Question]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        headers,
        stream(),
        max_files=MOST_QUESTIONS,
        max_fields=MOST_QUESTIONS,
        max_part_size=4 * MOST_LETTERS,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, f"the form cannot be read: {error.message.rstrip('.')}") from None
    try:
        return await _of_fields(form)
    finally:
        await form.close()


async def _of_fields(form: FormData) -> list[Question]:
    found = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and name in ("image", "images"):
            found.append(Question((value.filename or "image")[:200], content=await value.read()))
        elif isinstance(value, str) and name in ("text", "texts"):
            found.append(_text(value))
        elif name in ("image", "images"):
            raise Refusal(422, "an image in a form comes as a file: its part must have a filename")
        else:
            raise Refusal(422, f"the form has a field {name[:60]!r}; files go into image, and texts into text")
    if not found:
        raise Refusal(422, "the form has no field: files go into image, and texts into text")
    _check_count(len(found))
    return found


def _check_count(count: int) -> None:
    if not 1 <= count <= MOST_QUESTIONS:
        raise Refusal(422, f"a request asks with 1 to {MOST_QUESTIONS} things, got {count}")


def _whole(value: str) -> int:
    if value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= MOST_K:
        return int(value)
    raise Refusal(422, f"k must be a whole number from 1 to {MOST_K}, got {value[:60]!r}")


def _number(value: str) -> float:
    try:
        number = float(value) if value.isascii() and "_" not in value else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refusal(422, f"min_score must be a number, got {value[:60]!r}")
    return number
