"""Image files: finding them in a folder or a zip archive, and decoding them to tensors of one size.

Shapes: an image is uint8 (channels, size, size), values 0..255.
"""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IN_MEMORY_BYTES = 2**30  # what `in_memory=None` decodes at once: 87,000 images of 64 x 64 in colour
_PIL_MODES = {1: "L", 3: "RGB"}


class ImageFiles(Sequence[Tensor]):
    """Images on disk, decoded when asked for: `images[i]` is uint8 (channels, size, size).

    An image is turned as its EXIF orientation says, converted to grey or RGB (transparent parts become white), its
    short side resized to `size` with antialiasing, and the centre square cut out.

    Args:
        root: a folder or a zip archive.
        names: the files, relative to `root`.
        size: height and width in pixels.
        channels: 1 for grey, 3 for RGB.
    """

    def __init__(self, root: str | Path, names: Sequence[str], *, size: int, channels: int):
        if channels not in _PIL_MODES:
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
        if size < 1:
            raise ValueError(f"size must be >= 1 pixel, got {size}")
        self.root = Path(root)
        self.names = tuple(names)
        self.size = size
        self.channels = channels
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        try:
            return self._decode(self._open(self.names[index]))
        except Exception as error:  # Pillow reports a broken file with many types, SyntaxError and struct.error too
            raise self._unreadable(index, error) from None

    def check(self, index: int) -> None:
        """Raises ValueError if file `index` is missing, empty or no image; reads its header, decodes nothing."""
        path = self.root / self.names[index]
        try:
            if self.root.is_dir() and path.stat().st_size:
                Image.open(path).close()
            else:
                Image.open(self._open(self.names[index])).close()
        except Exception as error:
            raise self._unreadable(index, error) from None

    @property
    def paths(self) -> tuple[str, ...]:
        """Where each image lies; in an archive, `archive.zip/name`."""
        return tuple(str(self.root / name) for name in self.names)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archive": None}

    def _open(self, name: str) -> io.BytesIO:
        if self.root.is_dir():
            content = (self.root / name).read_bytes()
        else:
            # A process that was forked (a DataLoader worker) must not share its parent's position in the file.
            if self._archive is None or self._archive[0] != os.getpid():
                self._archive = (os.getpid(), zipfile.ZipFile(self.root))
            content = self._archive[1].read(name)
        if not content:
            raise ValueError("the file is empty")
        return io.BytesIO(content)

    def _decode(self, content: io.BytesIO) -> Tensor:
        with Image.open(content) as opened:
            opened.draft(None, (2 * self.size, 2 * self.size))  # a large JPEG is decoded at half, quarter, ... scale
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
                image = Image.fromarray((np.asarray(image, dtype=np.int64) // 257).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert(_PIL_MODES[self.channels])
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image))
        return pixels.reshape(self.size, self.size, self.channels).permute(2, 0, 1).contiguous()

    def _unreadable(self, index: int, error: Exception) -> ValueError:
        reason = "no such file" if isinstance(error, (FileNotFoundError, KeyError)) else error
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image"
        return ValueError(f"{self.root / self.names[index]} cannot be read: {reason}")


def read_images(
    images: ImageFiles, *, in_memory: bool | None = None, skip_unreadable: bool = False
) -> tuple[Tensor | ImageFiles, list[int]]:
    """The images that can be read, and their positions in `images`.

    Decoded at once, an image is proven whole. Otherwise its header is checked now, and one that turns out cut short
    later is an error that names it.

    Args:
        in_memory: decode all now into one uint8 tensor; None does so up to 1 GiB.
        skip_unreadable: leave out images that cannot be read, and log how many; else the first one is an error.
    """
    num_bytes = len(images) * images.channels * images.size**2
    decode = num_bytes <= IN_MEMORY_BYTES if in_memory is None else in_memory
    pixels = torch.empty((len(images) if decode else 0, images.channels, images.size, images.size), dtype=torch.uint8)
    kept, unreadable = [], []
    for index in tqdm(range(len(images)), desc="reading images", unit="image", disable=None, leave=False):
        try:
            if decode:
                pixels[len(kept)] = images[index]
            else:
                images.check(index)
        except ValueError as error:
            if not skip_unreadable:
                raise ValueError(f"{error} (skip_unreadable leaves such images out)") from None
            unreadable.append(str(error))
        else:
            kept.append(index)
    if unreadable:
        logger.warning("skipped %d of %d images; the first: %s", len(unreadable), len(images), unreadable[0])
    if decode:
        return pixels[: len(kept)], kept
    names = [images.names[index] for index in kept]
    return ImageFiles(images.root, names, size=images.size, channels=images.channels), kept


def find_images(root: str | Path) -> list[str]:
    """The image files below a folder, or in a zip archive, as sorted names relative to it with `/` between parts.

    Hidden files are passed over; other files that are no images by their ending are left out, and their number is
    logged.

    Raises:
        ValueError: if there is no such folder or archive, or no image in it.
    """
    root = Path(root)
    if root.is_dir():
        names = [
            (Path(folder) / file).relative_to(root).as_posix()
            for folder, _, files in os.walk(root, followlinks=True)
            for file in files
        ]
    elif zipfile.is_zipfile(root):
        with zipfile.ZipFile(root) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    elif root.exists():
        raise ValueError(f"{root} is neither a folder nor a zip archive")
    else:
        raise ValueError(f"no such folder or zip archive: {root}")
    shown = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]
    found = sorted(name for name in shown if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"no images in {root} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    if len(found) < len(shown):
        others = sorted({PurePosixPath(name).suffix.lower() for name in shown} - IMAGE_SUFFIXES - {""})
        logger.warning("%s: left out %d files that are no images (%s)", root, len(shown) - len(found), " ".join(others))
    return found
