"""From an opened image file to pixels of one size, whatever its depth, its orientation and its transparency.

Shapes: pixels are uint8 (channels, height, width), values 0..255.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tripletmas.data.preparation import Preparation

PIL_MODES = {1: "L", 3: "RGB"}  # channels -> mode
MAX_PIXELS = 120_000_000  # decoding takes up to 12 bytes a pixel
_FULL = 65535  # white, of 16 bits
_DIM = 2**14  # a set whose values never reach it fills 14 bits or fewer: which of them is white?
_REMEDY = "convert it to 8 bits, all images of a set alike"
_PHOTOMETRIC = 262  # the tag of a TIFF that is 0 where 0 is white
_SPREAD = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey levels of 2 and 4 bits by


@contextmanager
def open_image(
    content: BinaryIO, *, most: int = MAX_PIXELS, formats: Sequence[str] | None = None
) -> Iterator[Image.Image]:
    """The image in a file, its header read.

    Args:
        most: pixels; decoding more is refused, however small the file is.
        formats: as Pillow calls them; None: all that it decodes itself. For EPS it would execute another program.

    Raises:
        ValueError: for an empty file, and more pixels; as Pillow does for all else, by many types of errors.
    """
    if not content.read(1):
        raise ValueError("the file is empty")
    content.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
        opened = Image.open(content, formats=_decoded_here() if formats is None else tuple(formats))
    with opened as image:
        if image.width * image.height > most:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {most:,}")
        yield image


@cache
def _decoded_here() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, in words: Pillow reports a broken file with many types of errors."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__


def decode(opened: Image.Image, prepared: Preparation) -> Tensor:
    """The pixels of an image: turned as its EXIF orientation says, and then as the preparation says.

    Transparent parts become white. Values of 8 bits are taken as
    they are; of 16, 65535 is white; floats reach to 1, or else to 255.

    Raises:
        ValueError: for values that do not fill their type, of which nothing says what is white.
    """
    height, width = prepared.size
    least = math.ceil(2 * max(height, width) / prepared.crop)
    opened.draft(None, (least, least))  # a large JPEG is decoded at half, quarter, ... scale
    tiles = getattr(opened, "tile", None)
    raw = tiles[0][3] if tiles else None  # how the file holds a pixel; known until it is loaded
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        image = _of_eight_bits(image, declared=opened.format == "PPM")
        if getattr(opened, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            image = ImageOps.invert(image)  # of 8 bits Pillow does it
    elif image.has_transparency_data:
        _mend_colour_key(image, raw)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(PIL_MODES[prepared.channels])
    resampling = Image.Resampling[prepared.interpolation.upper()]
    image = ImageOps.fit(image, (width, height), resampling, bleed=(1 - prepared.crop) / 2)
    pixels = torch.from_numpy(np.array(image))
    return pixels.reshape(height, width, prepared.channels).permute(2, 0, 1).contiguous()


def _of_eight_bits(image: Image.Image, *, declared: bool) -> Image.Image:
    """A grey image of more bits, or of floats, in 8 bits: Pillow's own conversion would clip at 255.

    Args:
        declared: the file says which value is white, and Pillow has made 65535 of it.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= (255 if image.mode == "F" else _FULL):  # nan is neither
        raise ValueError(f"its values go from {low:g} to {high:g}; {_REMEDY}")
    if image.mode == "F":
        scaled = np.rint(values * 255) if high <= 1 else values
    else:
        scaled = values // _grey_step(high, wide=image.mode == "I", declared=declared)
    grey = scaled.astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _grey_step(high: float, *, wide: bool, declared: bool) -> int:
    """How many of a file's whole numbers, which end at `high`, make one of 255 grey levels; wide: they have 32 bits."""
    if declared or high >= _DIM or high == 0:
        return 257
    if wide and high <= 255:  # what is meant cannot be the range of the type
        return 1
    raise ValueError(f"its values end at {high:.0f} of {_FULL}, so it would be read as nearly black; {_REMEDY}")


def _mend_colour_key(image: Image.Image, raw: object) -> None:
    """Have the colour that a PNG names transparent in the depth of the pixels, in which Pillow does not bring it."""
    key = image.info.get("transparency")
    if isinstance(raw, str) and raw in _SPREAD and isinstance(key, int):
        image.info["transparency"] = key * _SPREAD[raw]
    elif raw == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
