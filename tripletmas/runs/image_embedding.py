"""Embed image files by the model of a run: read one after the other, never all in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import PurePosixPath

import torch
from torch import Tensor

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.folders import SPLITS
from tripletmas.data.image_paths import ImagesAt
from tripletmas.data.images import ImageFiles
from tripletmas.runs.models import RunModel

logger = logging.getLogger(__name__)

_NO_CLASS = SPLITS.keys() | {"val", "valid", "validation"}


class UnreadableImage(ValueError):
    """An image that cannot be read."""


def embed_images(
    model: RunModel,
    images: ImageFiles | ImagesAt,
    *,
    invert: bool = False,
    skip_unreadable: bool = False,
    option: str | None = "--skip-unreadable",
) -> tuple[Tensor, list[int]]:
    """Raw vectors (m, dim) of the images that can be read, and their positions in `images`.

    Args:
        invert: show black as white and white as black.
        skip_unreadable: leave out images that cannot be read, and log how many; else the first one is an error.
        option: what that error says leaves them out; None: nothing.

    Raises:
        ValueError: naming the image that cannot be read, or whose embedding is not finite; if none can be read.
    """
    shown = _Shown(images, model.sample_shape, skip_unreadable=skip_unreadable)
    dataset = LabelledDataset(shown, torch.zeros(len(images)), ["unlabelled"], paths=images.paths)
    try:
        vectors = model.embed(dataset.with_transform(_inverted) if invert else dataset).vectors
    except UnreadableImage as error:
        raise ValueError(f"{error} ({option} leaves out what cannot be read)" if option else str(error)) from None
    if not shown.unreadable:
        return vectors, list(range(len(images)))
    first = next(iter(shown.unreadable.values()))
    kept = [position for position in range(len(images)) if position not in shown.unreadable]
    if not kept:
        raise ValueError(f"no image can be read; the first: {first}")
    logger.warning("skipped %d of %d images; the first: %s", len(shown.unreadable), len(images), first)
    return vectors[kept], kept


def class_names_of(names: Sequence[str]) -> list[str | None]:
    """The class of each image, given its name below a root: the folders it lies in; None at the top.

    Folders train, test and the like are no part of it where all images lie in such ones.
    """
    folders = [PurePosixPath(name).parent.parts for name in names]
    if all(parts and parts[0].lower() in _NO_CLASS for parts in folders):
        folders = [parts[1:] for parts in folders]
    return ["/".join(parts) or None for parts in folders]


class _Shown(Sequence[Tensor]):
    """The images; one that cannot be read is black and noted, or an error."""

    def __init__(self, images: Sequence[Tensor], shape: tuple[int, ...], skip_unreadable: bool):
        self._images, self._shape, self._skip = images, shape, skip_unreadable
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        try:
            return self._images[index]
        except ValueError as error:
            if not self._skip:
                raise UnreadableImage(str(error)) from None
            self.unreadable[index] = str(error)
            return torch.zeros(self._shape, dtype=torch.uint8)


def _inverted(image: Tensor) -> Tensor:
    return 1 - image
