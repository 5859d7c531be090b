"""An application run by uvicorn, in this process, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

_PATIENCE = 5  # seconds that requests under way may still take at the end


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is one that is free.

    Raises:
        ValueError: if the port is in use or not allowed, or there is no such host.
    """
    place = f"--host {host} --port {port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"{place}: there is no such address here ({error.strerror})") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"{place}: another program listens there already; choose another --port") from None
        raise ValueError(f"{place}: {error.strerror}; choose another --host, or a --port above 1023") from None
    return made


def run(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; then requests under way are finished, for a few seconds at most."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_PATIENCE,
    )
    with _heard():
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _heard() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it is done, and here that is no error."""
    before: list[tuple[int, Any]] = []
    ignore: Callable[[int, FrameType | None], None] = lambda number, frame: None  # noqa: E731
    for number in (signal.SIGINT, signal.SIGTERM):
        before.append((number, signal.signal(number, ignore)))
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
