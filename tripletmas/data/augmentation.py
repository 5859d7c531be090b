"""Random changes of training images, of bytes where these are bytes; what is drawn, `LabelledDataset.seed` says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from tripletmas.data.dataset import Augmentation

Augment = Literal["none", "flip", "crop-flip", "photo", "randaugment"]
AUGMENTS = get_args(Augment)
_SCALE = (0.35, 1.0)  # of photo: the share of the image's area that is shown; what is small in it stays in sight
_SHAPE = 4 / 3  # of photo: a square becomes at most so much wider, or narrower
_JITTER = 0.2  # of photo: brightness, contrast and saturation change by up to so much


def make_augmentation(name: str, shape: tuple[int, ...]) -> Augmentation:
    """The augmentation of this name, any but "none", for images of one shape.

    Source: RandAugment is that of Cubuk et al., Practical automated data augmentation, 2020, two changes of magnitude
        9 of 30, here after a flip.

    Raises:
        ValueError: for an unknown name, and for samples that are no images.
    """
    if name not in AUGMENTS or name == "none":
        raise ValueError(f"unknown augmentation {name!r} (there are {', '.join(AUGMENTS)})")
    if len(shape) != 3:
        raise ValueError(f"augment={name!r} needs images (channels, height, width), got samples {shape}")
    from torchvision.transforms import v2  # here, because it takes a second that other streams need not wait

    height, width = shape[1:]
    flip = v2.RandomHorizontalFlip()
    if name == "flip":
        return Augmentation(flip)
    if name == "crop-flip":
        return Augmentation(v2.Compose([v2.RandomCrop((height, width), padding=[width // 8, height // 8]), flip]))
    if name == "randaugment":
        return Augmentation(v2.Compose([flip, v2.RandAugment()]))
    return Augmentation(partial(_photograph, size=(height, width)))


def _photograph(image: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Floats in [0, 1]: a crop, resized to (height, width), perhaps flipped, in other light; all that it draws at once.

    As RandomResizedCrop, RandomHorizontalFlip and ColorJitter of torchvision, by their functions on tensors, in half
    their time: the rest is what they do around these. Colours change as floats, in this order.
    """
    from torchvision.transforms.v2 import functional

    drawn = torch.rand(8).tolist()
    top, left, height, width = crop_of(image.shape[1], image.shape[2], drawn[:4])
    crop = functional.resize_image(image[:, top : top + height, left : left + width], list(size), antialias=True)
    crop = crop.flip(-1) if drawn[4] < 0.5 else crop
    crop = functional.to_dtype_image(crop, torch.float32, scale=True)
    brightness, contrast, saturation = (1 + _JITTER * (2 * share - 1) for share in drawn[5:])
    crop = functional.adjust_contrast_image(functional.adjust_brightness_image(crop, brightness), contrast)
    return functional.adjust_saturation_image(crop, saturation) if len(crop) == 3 else crop


def crop_of(height: int, width: int, drawn: Sequence[float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a part of an image, given four numbers in [0, 1): of its area, shape and place."""
    area = height * width * (_SCALE[0] + drawn[0] * (_SCALE[1] - _SCALE[0]))
    ratio = _SHAPE ** (2 * drawn[1] - 1)
    part = min(height, round(math.sqrt(area / ratio))), min(width, round(math.sqrt(area * ratio)))
    return int(drawn[2] * (height - part[0] + 1)), int(drawn[3] * (width - part[1] + 1)), *part
