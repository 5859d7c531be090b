"""How far long work is, where no terminal can show a bar: a line in the log every so often."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)

SECONDS = 10.0  # between two lines
_Item = TypeVar("_Item")


def told(
    items: Iterable[_Item], what: str, total: int, *, size: Callable[[_Item], int] = lambda _: 1
) -> Iterator[_Item]:
    """The items; while they are worked on, the log says which of `total` is done, at most every ten seconds.

    Args:
        what: the items are, as "embedded batch".
        size: how many of the total an item is.
    """
    last, done = time.monotonic(), 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= SECONDS and done < total and not sys.stderr.isatty():
            last = now
            logger.info("%s %d of %d", what, done, total)
