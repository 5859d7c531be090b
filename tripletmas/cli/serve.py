"""The command that serves an index: JSON, and a page to search it by photo or text."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from ipaddress import ip_address
from pathlib import Path

from jsonargparse import Namespace

from tripletmas.cli.console import make_parser
from tripletmas.index.choice import COMPENSATE

_LEAST = 16  # characters of a token


def serve(arguments: Sequence[str]) -> None:
    """Serve an index, or a store: a page on which a photo, or a text, finds its neighbours, and the same as JSON.

    Ctrl-C ends it. A changed index is served without a restart.
    """
    options = _options(arguments)
    token = _token(options.token_file)
    if not _is_loopback(options.host) and token is None:
        raise ValueError(
            f"--host {options.host} can be reached by others, so a token is needed: "
            "openssl rand -hex 32 > token, and --token-file token"
        )
    try:
        from tripletmas.serve.guard import LOOPBACK
        from tripletmas.serve.making import make_app
        from tripletmas.serve.running import listening, run
        from tripletmas.serve.serving import Limits
    except ImportError as error:
        raise ValueError(f'serving needs {error.name}: pip install "tripletmas[serve]"') from None
    hosts = None if not _is_loopback(options.host) and not options.allow_host else [*LOOPBACK, *options.allow_host]
    limits = Limits(round(options.max_upload * 2**20), options.timeout, options.queue, options.together)
    listener = None if options.check else listening(options.host, options.port)
    with closing(listener) if listener else nullcontext():  # before the model: whether the port is free is soon told
        app = make_app(
            options.gallery,
            run=options.run,
            after=options.after,
            device=options.device,
            trust_code=options.trust_code,
            allow_stale=options.allow_stale,
            move_queries=options.move_queries,
            force=options.force,
            limits=limits,
            token=token,
            hosts=hosts,
            allow_origins=options.allow_origin,
        )
        if listener is None:
            print(f"{options.gallery} can be served")
            return
        name = f"[{options.host}]" if ":" in options.host else options.host
        print(f"{options.gallery} is served at http://{name}:{listener.getsockname()[1]} - Ctrl-C ends it", flush=True)
        with _log():
            run(app, listener)


@contextmanager
def _log() -> Iterator[None]:
    """Inside, what the server notes, as that a changed index is served, is shown, a line each with its time."""
    logger, handler = logging.getLogger("tripletmas.serve"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    level, logger.propagate = logger.level, False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


def _options(arguments: Sequence[str]) -> Namespace:
    parser = make_parser("serve", serve.__doc__, "--run", "--after", "--device", "--trust-code", "--force")
    parser.add_argument("gallery", type=str, help="the index file, or a store: SCHEME://WHERE#COLLECTION")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="the address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: 8000)")
    parser.add_argument(
        "--token-file",
        type=str,
        default=None,
        metavar="FILE",
        help="its first line is what requests have to bring, as Authorization: Bearer TOKEN; needed unless --host is "
        "this machine alone",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that requests may call this server by, such as that of a proxy before it; may come several times",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages there may ask, as https://shop.example.org (CORS); may come several times",
    )
    parser.add_argument("--allow-stale", action="store_true", help="search although vectors are of another model")
    parser.add_argument(
        "--move-queries",
        type=str,
        nargs="?",
        const="run",
        metavar="MAP",
        help=f"move the queries back to the model of each stale vector: {', '.join(COMPENSATE)} (default: the run's "
        "own map)",
    )
    parser.add_argument("--max-upload", type=float, default=20.0, metavar="MIB", help="of a request (default: 20)")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="of a request (default: 30)")
    parser.add_argument("--queue", type=int, default=64, help="questions at once; others come again (default: 64)")
    parser.add_argument(
        "--together",
        type=int,
        default=None,
        help="samples of several callers that are embedded at once (default: tried at the start)",
    )
    parser.add_argument("--check", action="store_true", help="open it, say whether it can be served, and end")
    options = parser.parse_args(arguments)
    if not 0 <= options.port < 65536:
        raise ValueError(f"--port must be from 0 to 65535, got {options.port}")
    if options.move_queries not in (None, "run", *COMPENSATE):
        raise ValueError(f"the map must be one of {', '.join(COMPENSATE)}, got {options.move_queries!r}")
    return options


def _token(path: str | None) -> str | None:
    """The first line of a file; None without a file.

    Raises:
        ValueError: if it is short, or the file is not there.
    """
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--token-file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(token) < _LEAST or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"--token-file {path}: the first line must be a token of at least {_LEAST} letters and digits: openssl "
            f"rand -hex 32 > {path}"
        )
    if os.name == "posix" and Path(path).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"note: others on this machine can read {path}: chmod 600 {path}", file=sys.stderr)
    return token


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
