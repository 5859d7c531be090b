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
        run, device, trust_code: see `of_index.open_index`, and for a store `of_store.open_gallery`.
        after, allow_stale, move_queries, force: for an index alone.
        limits: of requests; None: the usual ones.
        token: that a request must bring, `Authorization: Bearer TOKEN`; None: none. Give one wherever others than you
            can reach the server.
        hosts: the names that requests may call the server by; None: any.
        allow_origins: pages elsewhere that may ask, as `https://shop.example.org`.

    Raises:
        ValueError: if the gallery cannot be served as it is.
    """
    options = {"run": run, "device": device, "trust_code": trust_code}
    of_index = {"after": after, "allow_stale": allow_stale, "move_queries": move_queries, "force": force}
    if is_store(gallery):
        for name, value in of_index.items():
            if value is not None and value is not False:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for an index file: a store is searched by the model that it notes"
                )
        source = _of_store(gallery, options)
    else:
        from tripletmas.serve.of_index import open_index  # torch's networks take a while to import

        source = Source(gallery, partial(open_index, gallery, **options, **of_index), partial(file_stamp, gallery))
    return app_of(source, limits=limits, token=token, hosts=hosts, allow_origins=allow_origins)


def _of_store(gallery: str, options: dict[str, Any]) -> Source:
    from tripletmas.serve.of_store import OpenStore, open_gallery

    store = OpenStore(gallery)
    return Source(gallery, partial(open_gallery, store, **options), store.stamp, store.close)
