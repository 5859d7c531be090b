"""Images by their whole paths, wherever they lie: in folders, or in zip archives as `archive.zip/name`."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tripletmas.data.images import ImageFiles


class ImagesAt(Sequence[Tensor]):
    """Images decoded when asked for: `images[i]` is uint8 (channels, size, size), as `ImageFiles` gives it."""

    def __init__(self, paths: Sequence[str], *, size: int, channels: int):
        self.paths = tuple(paths)
        names: dict[Path, list[str]] = {}
        self._places = []
        for root, name in map(_split, paths):
            names.setdefault(root, []).append(name)
            self._places.append((root, len(names[root]) - 1))
        self._files = {root: ImageFiles(root, inside, size=size, channels=channels) for root, inside in names.items()}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        root, position = self._places[index]
        return self._files[root][position]


def missing_images(paths: Sequence[str]) -> list[int]:
    """The positions of paths where no file lies any more, in folders and in zip archives; nothing is decoded.

    Raises:
        ValueError: naming an archive that is damaged: whether its images are there cannot be told.
    """
    inside: dict[Path, set[str]] = {}
    missing = []
    for position, (root, name) in enumerate(map(_split, paths)):
        if root.is_file() and root not in inside:
            try:
                with zipfile.ZipFile(root) as archive:
                    inside[root] = set(archive.namelist())
            except zipfile.BadZipFile as error:
                raise ValueError(f"{root} is no zip archive, or was cut short ({error}): restore it") from None
        if not (name in inside[root] if root in inside else (root / name).is_file()):
            missing.append(position)
    return missing


def _split(path: str) -> tuple[Path, str]:
    """The archive that an image lies in and its name there; for an image in a folder, that folder and its name."""
    root = next((parent for parent in Path(path).parents if parent.is_file()), Path(path).parent)
    return root, Path(path).relative_to(root).as_posix()
