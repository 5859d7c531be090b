"""How an image becomes what a model is shown: its size, its channels, and the way from the one to the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Size = int | str | list[int] | tuple[int, int]  # 224; "224x160" or [224, 160], height and width
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
INTERPOLATIONS = get_args(Interpolation)
CHANNELS = (1, 3)  # grey, RGB
MOST = 4096  # pixels a side: more is a slip of the pen, and a batch of it fits no memory


@dataclass(frozen=True)
class Preparation:
    """What is done to every image, before augmentation: uint8 (channels, height, width) comes out.

    The largest part about the middle that has the shape asked for is cut out, of it the share `crop` of each side is
    kept, and that is resized, with antialiasing: for a square, the short side is resized to size / crop and the centre
    square of `size` cut out, as timm and torchvision do it in evaluation.

    Args:
        size: (height, width) in pixels; one number is both.
        channels: 1 for grey, 3 for RGB.
        interpolation: one of INTERPOLATIONS.
        crop: in (0, 1].

    Raises:
        ValueError: for values that are none of these.
    """

    size: tuple[int, int]
    channels: int = 3
    interpolation: Interpolation = "bilinear"
    crop: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "size", height_and_width(self.size))
        if self.channels not in CHANNELS:
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be a share > 0 and at most 1, got {self.crop}")

    def __str__(self) -> str:
        height, width = self.size
        words = [f"{height} x {width}", "RGB" if self.channels == 3 else "grey", self.interpolation]
        return ", ".join([*words, *([f"crop {self.crop:g}"] if self.crop < 1 else [])])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, *self.size


def height_and_width(size: Size | Sequence[int]) -> tuple[int, int]:
    """A size in pixels as a pair.

    >>> height_and_width("224x160")
    (224, 160)

    Raises:
        ValueError: if it is no number >= 1, nor two of them.
    """
    parts = re.split("x", size) if isinstance(size, str) else [size] if isinstance(size, int) else list(size)
    try:
        sides = [int(part) for part in parts]
    except (TypeError, ValueError):
        sides = []
    if not 1 <= len(sides) <= 2:
        raise ValueError(f"size must be a number of pixels, or HEIGHTxWIDTH such as 224x160, got {size!r}")
    if not 1 <= min(sides) <= max(sides) <= MOST:
        raise ValueError(f"size must be >= 1 pixel and at most {MOST}, got {size}")
    return sides[0], sides[-1]


def written(size: tuple[int, int]) -> int | str:
    """A pair as an option is written: one number for a square."""
    height, width = size
    return height if height == width else f"{height}x{width}"
