"""An application over an index, or over a store, for a server of one's own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette

from tripletmas.serve.app import app_of
from tripletmas.serve.edition import Source, file_stamp
from tripletmas.serve.guard import LOOPBACK
from tripletmas.serve.serving import Limits
from tripletmas.stores.place import is_store


def make_app(
    gallery: str,
    *,
    run: str | None = None,
    after: int | None = None,
    device: str = "auto",
    trust_code: bool = False,
    allow_stale: bool = False,
    move_queries: str | None = None,
    force: bool = False,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    allow_origins: Sequence[str] = (),
) -> Starlette:
    """The ASGI application that `tripletmas serve` runs.

    Args:
        gallery: the file of an index, or a store: SCHEME://WHERE#COLLECTION.
        run, after, device, trust_code, allow_stale, move_queries, force: see `of_index.open_index`, and for a store
            `of_store.open_gallery`.
        limits: of requests; None: the usual ones.
        token: that a request must bring, `Authorization: Bearer TOKEN`; None: none. Give one wherever others than you
            can reach the server.
        hosts: the names that requests may call the server by; None: any.
        allow_origins: pages elsewhere that may ask, as `https://shop.example.org`.

    Raises:
        ValueError: if the gallery cannot be served as it is.
    """
    options = {"run": run, "after": after, "device": device, "trust_code": trust_code, "allow_stale": allow_stale}
    if is_store(gallery):
        if move_queries:
            raise ValueError(
                f"--move-queries is for an index file: tripletmas upgrade {gallery} moves the vectors of a store"
            )
        source = _of_store(gallery, options)
    else:
        from tripletmas.serve.of_index import open_index  # torch's networks take a while to import

        more = {**options, "move_queries": move_queries, "force": force}
        source = Source(gallery, partial(open_index, gallery, **more), partial(file_stamp, gallery))
    return app_of(source, limits=limits, token=token, hosts=hosts, allow_origins=allow_origins)


def _of_store(gallery: str, options: dict[str, Any]) -> Source:
    from tripletmas.serve.of_store import OpenStore, open_gallery

    store = OpenStore(gallery)
    return Source(gallery, partial(open_gallery, store, **options), store.stamp, store.close)
