"""What is served now, and how what has changed takes its place without a restart."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock

from tripletmas.serve.encoder import Encoder
from tripletmas.serve.gallery import Facts, Gallery

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a gallery comes from.

    Attributes:
        name: what the user calls it.
        open: the gallery, and the model that embeds what it is asked with; a ValueError says what is wrong with it.
        stamp: something else whenever the gallery has changed; an OSError or a ValueError where it is not there.
        close: lets go of what stays open.
    """

    name: str
    open: Callable[[], tuple[Gallery, Encoder]]
    stamp: Callable[[], Hashable]
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, eq=False)
class Edition:
    """A gallery and its model, as they were opened together.

    Attributes:
        number: 1 for the first that this server has opened.
        opened: when, in seconds since 1970.
    """

    number: int
    gallery: Gallery
    encoder: Encoder
    facts: Facts
    opened: float


class Editions:
    """The present edition of a source. Requests keep the one that they began with.

    Attributes:
        now: the edition that is served.
        trouble: why a newer one could not be opened, so that this one stays; "" if that is not so.

    Raises:
        ValueError: as `Source.open` does.
    """

    def __init__(self, source: Source):
        self._source, self._lock = source, Lock()
        self._stamp = self._stamped()
        try:
            gallery, encoder = source.open()
            _ = encoder.together  # is tried before the first request comes
            self.now = Edition(1, gallery, encoder, gallery.facts(), time.time())
        except BaseException:
            source.close()
            raise
        self.trouble = ""

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()

    def renew(self) -> bool:
        """Whether the source had changed since it was last looked at, and was opened anew or found to be broken."""
        with self._lock:
            stamp = self._stamped()
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            try:
                gallery, encoder = self._source.open()
                facts = gallery.facts()
            except (ValueError, OSError) as error:
                self.trouble = " ".join(str(error).split())
                logger.warning(
                    "%s has changed and cannot be served, so what was opened before is: %s",
                    self._source.name,
                    self.trouble,
                )
                return True
            if _same_model(encoder, self.now.encoder):
                encoder = self.now.encoder  # and the memory of the other is free again
            _ = encoder.together
            self.now = Edition(self.now.number + 1, gallery, encoder, facts, time.time())
            self.trouble = ""
            logger.info("%s has changed: %d vectors are served now", self._source.name, facts.size)
            return True

    def _stamped(self) -> Hashable:
        try:
            return self._source.stamp()
        except (ValueError, OSError):
            return None


def file_stamp(path: str) -> Hashable:
    """Which file lies at a path, and when it was changed."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _same_model(one: Encoder, other: Encoder) -> bool:
    a, b = one.model, other.model
    same_tokens = getattr(a.shown, "identity", a.shown) == getattr(b.shown, "identity", b.shown)
    return (a.hash, a.mean, a.deviation, one.invert) == (b.hash, b.mean, b.deviation, other.invert) and same_tokens
