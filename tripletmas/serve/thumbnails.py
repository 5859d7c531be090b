"""Small pictures of what a gallery holds, made of files that it names itself, by no path that comes in a request."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from threading import Lock

from PIL import Image

from tripletmas.data.images import ImageFiles
from tripletmas.data.preparation import Preparation
from tripletmas.serve.gallery import Refusal

SIDE = 320  # pixels at most: the centre square, which is what a model is shown
_KEPT = 2000  # of about 10 kB each


class Thumbnails:
    """Makes them, and keeps the last ones. Several threads may ask at once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def tag(self, path: str) -> str:
        """What changes when the file changes (an ETag, in its quotes).

        Raises:
            Refusal: if the file is gone.
        """
        try:
            changed, size = ImageFiles.at([path], Preparation((1, 1))).stamp(0)
        except ValueError:
            raise _gone() from None
        known = f"{SIDE} {changed} {size} {path}".encode(errors="surrogateescape")
        return f'"{hashlib.sha256(known).hexdigest()[:24]}"'

    def picture(self, path: str, tag: str) -> bytes:
        """The centre square of an image file as WebP, SIDE pixels wide, or as many as it has.

        Args:
            tag: of the file, as `tag` gives it.

        Raises:
            Refusal: if the file is gone, or is no image any more.
        """
        with self._lock:
            if tag in self._kept:
                self._kept.move_to_end(tag)
                return self._kept[tag]
        try:
            side = min(SIDE, *ImageFiles.at([path], Preparation((1, 1))).size(0))
            pixels = ImageFiles.at([path], Preparation((side, side)))[0]
        except ValueError:
            raise _gone() from None
        content = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(content, "webp", quality=82, method=2)
        with self._lock:
            self._kept[tag] = content.getvalue()
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return content.getvalue()


def _gone() -> Refusal:
    return Refusal(404, "the file of this id is not there any more, or is no image")
