"""Who may ask: names of hosts, origins of pages, a token; and the headers that every answer has."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/", "/health", "/openapi.json", "/docs")  # and what lies below /page/: they tell nothing of a gallery
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_METHODS = "GET, HEAD, POST, OPTIONS"


class Guard:
    """Lets those requests through to an application that may come.

    Args:
        token: that every request has to bring, as `Authorization: Bearer TOKEN`, but for the page itself; None: none.
        hosts: names that a request may call this server by, so that no page elsewhere can pretend to be it by a name of
            its own that leads here (DNS rebinding); None: any.
        allow_origins: pages elsewhere that may ask, as `https://shop.example.org`.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None = None,
        *,
        hosts: Collection[str] | None = LOOPBACK,
        allow_origins: Sequence[str] = (),
    ):
        self._app, self._hosts, self._allowed = app, hosts, frozenset(allow_origins)
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._complete(MutableHeaders(scope=message), origin)
            await send(message)

        refused = self._refused(scope, headers, origin)
        await (refused or self._app)(scope, receive, answer)

    def _refused(self, scope: Scope, headers: Headers, origin: str | None) -> Response | None:
        """The answer to a request that may not come, or that only asks whether it may."""
        if why := self._strange(headers.get("host", ""), origin):
            return _sentence(403, why)
        if scope["method"] == "OPTIONS" and origin in self._allowed:
            return Response(status_code=204, headers=_PREFLIGHT)
        if self._token is not None and not _is_open(scope["path"]) and not self._knows(headers):
            return _sentence(
                401, "this server asks for its token: Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"}
            )
        return None

    def _strange(self, host: str, origin: str | None) -> str:
        """What is wrong with the host that a request names, or with the page that asks; "" for nothing."""
        if self._hosts is not None and _name(host) not in self._hosts:
            return f"this server is not called {host[:80]!r}: use one of {', '.join(self._hosts)}, or --allow-host"
        if origin is not None and origin not in self._allowed and _netloc(origin) != host:
            return f"pages of {origin[:80]} may not ask this server: --allow-origin lets them"
        return ""

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        assert self._token is not None
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
        return same and scheme.lower() == "bearer"

    def _complete(self, headers: MutableHeaders, origin: str | None) -> None:
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", "no-store")
        if self._allowed:
            headers.add_vary_header("Origin")
        if origin in self._allowed and origin is not None:
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = "Retry-After"
            headers["cross-origin-resource-policy"] = "cross-origin"


_PREFLIGHT = {
    "access-control-allow-methods": _METHODS,
    "access-control-allow-headers": "Authorization, Content-Type",
    "access-control-max-age": "600",
}


def check_origin(origin: str) -> str:
    """An origin as browsers send it.

    Raises:
        ValueError: for what is none, such as * or an address with a path.
    """
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
        raise ValueError(f"an origin is a scheme and a host, such as https://shop.example.org, got {origin!r}")
    return origin


def _netloc(origin: str) -> str:
    """The host and port of an origin; "" for what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # as of http://[
        return ""


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith("/page/")


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _sentence(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)
