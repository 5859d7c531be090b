"""The ASGI application: which address is answered by what, as JSON, with one sentence where something is wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from anyio import fail_after
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tripletmas.basics.version import __version__
from tripletmas.serve.edition import Edition, Editions, Source
from tripletmas.serve.gallery import Facts, Item, Neighbour, Refusal
from tripletmas.serve.guard import LOOPBACK, Guard, check_origin
from tripletmas.serve.openapi import document
from tripletmas.serve.questions import check_parameters, questions_of, wanted_of
from tripletmas.serve.serving import Answer, Limits, Serving

logger = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_MOST_LABELS = 2000  # that /info lists


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()  # names of files may be no Unicode


def app_of(
    source: Source,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    allow_origins: Sequence[str] = (),
) -> Starlette:
    """An application that serves a gallery, which is opened now.

    Args:
        limits, token, hosts, allow_origins: see `make_app`.

    Raises:
        ValueError: if the gallery cannot be opened; for an origin that is none.
    """
    serving = Serving(Editions(source), limits or Limits())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(serving.watch())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        serving.stop()
        serving.editions.close()

    at = _Addresses(serving)
    routes = [
        Route("/", _file("index.html")),
        Route("/docs", _file("docs.html")),
        *(Route(f"/page/{name.name}", _file(name.name)) for name in sorted(_PAGE.iterdir()) if name.suffix != ".html"),
        Route("/health", _answered(at.health)),
        Route("/info", _answered(at.info)),
        Route("/openapi.json", _answered(at.openapi)),
        Route("/query", _answered(at.query), methods=["POST"]),
        Route("/thumbnail/{id:path}", _answered(at.thumbnail)),
    ]
    guard = Middleware(Guard, token, hosts=hosts, allow_origins=[check_origin(each) for each in allow_origins])
    app = Starlette(
        routes=routes, middleware=[guard], lifespan=lifespan, exception_handlers={HTTPException: _of_routing}
    )
    app.state.editions = serving.editions
    return app


class _Addresses:
    """What is answered at each address."""

    def __init__(self, serving: Serving):
        self._serving = serving

    async def health(self, request: Request) -> Response:
        """That it runs; nothing of the gallery, so that whoever watches it needs no token."""
        return _Json({"status": "ok"})

    async def info(self, request: Request) -> Response:
        """What is served, and by which model."""
        check_parameters(request.query_params, ())
        facts = await self._serving.facts()
        return _Json(info_of(self._serving.editions, facts, self._serving.limits))

    async def openapi(self, request: Request) -> Response:
        """The description of these addresses."""
        return _Json(document(self._serving.limits, texts=self._serving.editions.now.encoder.of_texts))

    async def query(self, request: Request) -> Response:
        """The neighbours of what the body holds."""
        begun, limit = time.monotonic(), self._serving.limits.seconds
        wanted, edition = wanted_of(request.query_params), self._serving.editions.now
        with self._serving.room() as take:
            take(1)
            try:
                with fail_after(limit):
                    questions = await questions_of(request, self._serving.limits.upload_bytes)
            except TimeoutError:
                raise Refusal(408, f"the request did not arrive within {limit:g} seconds") from None
            take(len(questions) - 1)
            try:
                with fail_after(limit - (time.monotonic() - begun)):
                    found = await self._serving.answers(edition, questions, wanted)
            except TimeoutError:
                raise Refusal(
                    504, f"there was no answer within {limit:g} seconds: ask with less at once, or come again"
                ) from None
        return _Json(_plain(edition, found))

    async def thumbnail(self, request: Request) -> Response:
        """A small picture of what has an id."""
        check_parameters(request.query_params, ())
        edition, id = self._serving.editions.now, request.path_params["id"]
        tag, content = await self._serving.thumbnail(edition, id, request.headers.get("if-none-match"))
        headers = {"etag": tag, "cache-control": "private, max-age=60"}
        if content is None:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="image/webp", headers=headers)


def info_of(editions: Editions, facts: Facts, limits: Limits) -> dict[str, Any]:
    """What `/info` answers."""
    now, model = editions.now, editions.now.encoder.model
    return {
        "version": __version__,
        "gallery": facts.name,
        "holds": "texts" if now.encoder.of_texts else "images",
        "vectors": facts.size,
        "dim": facts.dim,
        "metric": facts.metric,
        "normalized": facts.normalize,
        "score": facts.measure,
        **facts.more,
        "model": {
            "hash": model.hash,
            "run": model.run,
            "after_task": model.after_task,
            "preparation": now.encoder.shown(),
        },
        "stale": {"vectors": facts.stale, "share": facts.stale / max(facts.size, 1)},
        "note": facts.note,
        "some": [_of_item(item) for item in facts.some],
        "filters": ["label"] if facts.filters else [],
        "num_labels": len(facts.labels),
        "labels": [{"label": label, "count": facts.labels[label]} for label in sorted(facts.labels)[:_MOST_LABELS]],
        "edition": now.number,
        "opened": datetime.fromtimestamp(now.opened, timezone.utc).isoformat(timespec="seconds"),
        "trouble": editions.trouble,
        "limits": {"upload_bytes": limits.upload_bytes, "seconds": limits.seconds, "queue": limits.queue},
    }


def _plain(edition: Edition, answers: Sequence[Answer]) -> dict[str, Any]:
    """Answers as JSON, as `tripletmas query --json` writes them."""
    found = []
    for answer in answers:
        own = {} if answer.item is None else {"item": _of_item(answer.item)}
        near = [_of_neighbour(rank, each) for rank, each in enumerate(answer.neighbours, start=1)]
        found.append({"query": answer.question.name, **own, "neighbours": near})
    facts = edition.facts
    return {"queries": found, "score": facts.measure, "note": facts.note, "edition": edition.number}


def _of_item(item: Item) -> dict[str, Any]:
    text = {} if item.text is None else {"text": item.text}
    return {"id": item.id, "label": item.label, "path": item.path, **text}


def _of_neighbour(rank: int, found: Neighbour) -> dict[str, Any]:
    return {"rank": rank, "score": found.score, **_of_item(found.item)}


_Endpoint = Callable[[Request], Awaitable[Response]]


def _answered(endpoint: _Endpoint) -> _Endpoint:
    """The endpoint, whose refusals and failures become JSON of one sentence."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refusal as refusal:
            return _Json({"error": refusal.sentence}, refusal.status, refusal.headers)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            logger.error("%s failed", request.url.path, exc_info=error)
            return _Json({"error": "something failed here that should not; the log of the server says what"}, 500)

    return answered


async def _of_routing(request: Request, error: Exception) -> Response:
    """What the router refuses: an address that is none, a method that an address does not have."""
    assert isinstance(error, HTTPException)
    headers: Mapping[str, str] = error.headers or {}
    if error.status_code == 405:
        return _Json({"error": f"{request.method} is not answered here, but {headers.get('Allow')}"}, 405, headers)
    return _Json({"error": "there is nothing at this address: / is the page, /docs says what there is"}, 404)


def _file(name: str) -> _Endpoint:
    """A file of the page."""
    content, kind = (_PAGE / name).read_bytes(), _TYPES[Path(name).suffix]

    async def file(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return file
