"""Image files, in folders and zip archives: finding them, and decoding them to tensors of one size.

Shapes: an image is uint8 (channels, height, width), values 0..255.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from tripletmas.basics.sentences import listed, one_line
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.decoding import MAX_PIXELS, decode, open_image, reason_of
from tripletmas.data.preparation import CHANNELS, Preparation

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_UNPACKED = 2**29  # bytes that one image in an archive may unpack to
IN_MEMORY_BYTES = 2**30  # what `in_memory=None` decodes at once: 87,000 images of 64 x 64 in colour
_THUMBNAIL, _OUT = 64, {"/", "//", ".."}  # pixels; parts of a name that lead out of an archive


class ImageFiles(Sequence[Tensor]):
    """Images on disk, decoded when asked for: `images[i]` is uint8 (channels, height, width).

    What an image becomes, `decode` says. One of more than MAX_PIXELS, or in an archive one that unpacks to more than
    MAX_UNPACKED bytes, is not read.

    Args:
        root: a folder or a zip archive; `at` takes images wherever they lie.
        names: the files, relative to `root`.
        prepared: what an image becomes.
    """

    def __init__(self, root: str | Path, names: Iterable[str], prepared: Preparation):
        root = Path(root)
        self.prepared = prepared
        self._places = [(root, name) for name in names]  # the folder or archive of each, and its name there
        self._archives: dict[tuple[int, Path], zipfile.ZipFile] = {}

    @classmethod
    def at(cls, paths: Iterable[str], prepared: Preparation) -> ImageFiles:
        """Images by their whole paths: in folders, or in zip archives as `archive.zip/name`."""
        images = cls("", (), prepared)
        images._places = [_split(path) for path in paths]
        return images

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        with self._opened(index) as image:
            return decode(image, self.prepared)

    def check(self, index: int) -> None:
        """Raises ValueError if file `index` is missing, empty or no image; reads its header, decodes nothing."""
        with self._opened(index):
            pass

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image in file `index`, as its header says; raises as `check`."""
        with self._opened(index) as image:
            return image.height, image.width

    def stamp(self, index: int) -> tuple[int, int]:
        """(when it was changed, in nanoseconds, bytes) of file `index`, or of the archive that it lies in.

        Raises:
            ValueError: if it is not there.
        """
        root, name = self._places[index]
        try:
            status = os.stat(root if root.is_file() else root / name)
        except (OSError, ValueError):
            raise ValueError(f"{one_line(root / name)} cannot be read: no such file") from None
        return status.st_mtime_ns, status.st_size

    def checksum(self, index: int) -> str:
        """Twelve digits of the SHA-256 of file `index` as it lies there: copies have the same, wherever they lie.

        Raises:
            ValueError: if it cannot be read.
        """
        root, name = self._places[index]
        try:
            with self._content(root, name) as content:
                return hashlib.sha256(content.read()).hexdigest()[:12]
        except Exception as error:  # zipfile reports a broken file with many types
            raise ValueError(f"{one_line(root / name)} cannot be read: {error}") from None

    def subset(self, positions: Iterable[int]) -> ImageFiles:
        """The images at these positions."""
        images = ImageFiles("", (), self.prepared)
        images._places = [self._places[position] for position in positions]
        return images

    @property
    def paths(self) -> tuple[str, ...]:
        """Where each image lies; in an archive, `archive.zip/name`."""
        return tuple(str(root / name) for root, name in self._places)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archives": {}}

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        """Image `index`, its header read; all that goes wrong with it is one ValueError that names the file."""
        root, name = self._places[index]
        try:
            with self._content(root, name) as content, open_image(content, most=MAX_PIXELS) as image:
                yield image
        except Exception as error:  # Pillow reports a broken file with many types, SyntaxError and struct.error too
            reason = "no such file" if isinstance(error, (FileNotFoundError, KeyError)) else reason_of(error)
            raise ValueError(f"{one_line(root / name)} cannot be read: {reason}") from None

    def _content(self, root: Path, name: str) -> BinaryIO:
        if not root.is_dir():
            archive = self._archive(root)
            unpacked = archive.getinfo(name).file_size  # of a header that lies, zipfile unpacks no more than it says
            if unpacked > MAX_UNPACKED:
                raise ValueError(f"it takes {unpacked:,} bytes unpacked, more than {MAX_UNPACKED:,}")
            return io.BytesIO(archive.read(name))
        if not stat.S_ISREG((root / name).stat().st_mode):
            raise ValueError("it is no regular file")  # a pipe would be waited for
        return open(root / name, "rb")

    def _archive(self, root: Path) -> zipfile.ZipFile:
        """A process that was forked (a DataLoader worker) must not share its parent's position in the file."""
        key = (os.getpid(), root)
        if key not in self._archives:
            self._archives[key] = zipfile.ZipFile(root)
        return self._archives[key]


def read_images(
    images: ImageFiles,
    *,
    in_memory: bool | None = None,
    skip_unreadable: bool = False,
    option: str | None = "skip_unreadable",
) -> tuple[Tensor | ImageFiles, list[int]]:
    """The images that can be read, and their positions in `images`.

    Decoded at once, an image is proven whole. Otherwise its header is checked now, and one that turns out cut short
    later is an error that names it.

    Args:
        in_memory: decode all now into one uint8 tensor; None does so up to 1 GiB.
        skip_unreadable: leave out images that cannot be read, and log how many; else the first one is an error.
        option: what that error says leaves them out; None: nothing.
    """
    if in_memory is None:
        in_memory = len(images) * math.prod(images.prepared.shape) <= IN_MEMORY_BYTES
    room = len(images) if in_memory else 0
    pixels = torch.empty((room, *images.prepared.shape), dtype=torch.uint8)
    kept, unreadable = [], []
    for index in tqdm(range(len(images)), desc="reading images", unit="image", disable=None, leave=False):
        try:
            if in_memory:
                pixels[len(kept)] = images[index]
            else:
                images.check(index)
            kept.append(index)
        except ValueError as error:
            if not skip_unreadable:
                hint = f" ({option} leaves such images out)" if option else ""
                raise ValueError(f"{error}{hint}") from None
            unreadable.append(str(error))
    if unreadable:
        logger.warning("skipped %d of %d images; the first: %s", len(unreadable), len(images), unreadable[0])
    return pixels[: len(kept)] if in_memory else images.subset(kept), kept


def find_images(root: str | Path) -> list[str]:
    """The image files below a folder, or in a zip archive, as sorted names relative to it with `/` between parts.

    Hidden files are passed over; other files that are no images by their ending are left out, and their number is
    logged.

    Raises:
        ValueError: if there is no such folder or archive, or no image in it.
    """
    return find_files(root, IMAGE_SUFFIXES, "images")


def find_files(root: str | Path, suffixes: frozenset[str], what: str) -> list[str]:
    """As `find_images`, for files with other endings.

    Args:
        what: they are called.
    """
    names = [name for name in _files_in(Path(root)) if not any(map(_is_hidden, name.split("/")))]
    found = sorted(name for name in names if _suffix(name) in suffixes)
    if not found:
        packed = next(
            (f"; its archive {name} can be read if you name it" for name in names if name.endswith(".zip")), ""
        )
        raise ValueError(f"no {what} in {root} (looked for {', '.join(sorted(suffixes))}){packed}")
    if len(found) < len(names):
        others, left_out = " ".join(sorted({*map(_suffix, names)} - suffixes - {""})), len(names) - len(found)
        logger.warning("%s: left out %d files that are no %s (%s)", root, left_out, what, others)
    return found


def missing_images(paths: Sequence[str]) -> list[int]:
    """The positions of paths where no file lies any more, in folders and in zip archives; nothing is decoded.

    Raises:
        ValueError: naming an archive that is damaged: whether its images are there cannot be told.
    """
    inside: dict[Path, set[str]] = {}
    missing = []
    for position, (root, name) in enumerate(map(_split, paths)):
        if root.is_file() and root not in inside:
            inside[root] = set(_names_in(root))
        if not (name in inside[root] if root in inside else (root / name).is_file()):
            missing.append(position)
    return missing


def preparation_of(dataset: LabelledDataset) -> Preparation:
    """How another image becomes such a sample as these.

    Raises:
        ValueError: where samples are no images.
    """
    if dataset.prepared is not None:
        return dataset.prepared
    if dataset.texts is not None:
        raise ValueError("the model reads texts, and can be shown no images")
    shape = dataset.sample_shape
    if len(shape) != 3 or shape[0] not in CHANNELS:
        raise ValueError(f"the model takes samples of shape {shape}, which are no images, grey or RGB")
    return Preparation((shape[1], shape[2]), shape[0])


def thumbnail(sample: Tensor) -> Tensor:
    """A picture of a sample (channels, height, width) in [0, 1]: uint8, at most 64 pixels high and wide."""
    largest = max(sample.shape[1:])
    if largest > _THUMBNAIL:
        size = [max(1, round(side * _THUMBNAIL / largest)) for side in sample.shape[1:]]
        sample = functional.interpolate(sample[None], size=size, mode="bilinear", antialias=True)[0]
    return (sample * 255).round().clamp(0, 255).byte()


def _files_in(root: Path) -> list[str]:
    """All files below a folder or in an archive, each once, relative to it."""
    if root.is_dir():
        return _files_below(root)
    if root.is_file() and zipfile.is_zipfile(root):  # of a pipe, is_zipfile would wait
        names = [name for name in _names_in(root) if not name.endswith("/")]
        inside = list(dict.fromkeys(each for each in names if _OUT.isdisjoint(PurePosixPath(each).parts)))
        if len(inside) < len(names):
            logger.warning("%s: left out %d entries whose names come again or lead out", root, len(names) - len(inside))
        return inside
    raise ValueError(
        f"{root} is neither a folder nor a zip archive" if root.exists() else f"no such folder or zip archive: {root}"
    )


def _names_in(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.namelist()
    except Exception as error:  # zipfile reports a broken header with many types
        raise ValueError(f"{archive} is no zip archive, or was cut short ({error}): restore it") from None


def _files_below(root: Path) -> list[str]:
    """All files below a folder, links followed, each folder and each file once: under its own name if it has one there.

    Raises:
        ValueError: naming a folder that may not be read.
    """
    paths, again = _walked(str(root))
    links = sorted(filter(os.path.islink, paths))
    if links:
        seen = {identity_of(Path(path)) for path in paths - set(links)} - {None}
        for path, target in [(path, identity_of(Path(path))) for path in links]:
            if target in seen:
                again.append(path)
            elif target is not None:
                seen.add(target)
    if again:
        shown = listed(again, 3)
        logger.warning("%s: left out %d links to what is there under another name (%s)", root, len(again), shown)
    return [Path(path).relative_to(root).as_posix() for path in paths - set(again)]


def _walked(root: str) -> tuple[set[str], list[str]]:
    """The files below a folder, first what lies there itself, then what links lead to; and links to what was seen."""
    seen: set[tuple[int, int]] = set()
    tops, found, again = [root], set(), []
    for top in tops:
        for folder, subfolders, files in os.walk(top, onerror=_refuse):
            try:
                here = os.stat(os.path.join(folder, "."))  # needs the permission to go in
            except OSError as error:
                _refuse(error)
            if (here.st_dev, here.st_ino) in seen:
                again.append(folder)
                subfolders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            tops += filter(os.path.islink, (os.path.join(folder, name) for name in sorted(subfolders)))
            found.update(os.path.join(folder, name) for name in files)
    return found, again


def identity_of(file: Path) -> tuple[int, int] | None:
    """What is the same for all names of one file, links followed; None where there is no such file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # the latter of a zero byte
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename} cannot be read: {error.strerror}; allow it, or move it elsewhere") from None


def _split(path: str) -> tuple[Path, str]:
    """The archive that an image lies in and its name there; for an image in a folder, that folder and its name."""
    root = next((parent for parent in Path(path).parents if parent.is_file()), Path(path).parent)
    return root, Path(path).relative_to(root).as_posix()


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN"))  # what systems keep for themselves


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
