"""Random changes of training images, of bytes where these are bytes; what is drawn, `LabelledDataset.seed` says."""

from __future__ import annotations

from typing import Literal, get_args

from tripletmas.data.dataset import Augmentation

Augment = Literal["none", "flip", "crop-flip", "photo", "randaugment"]
AUGMENTS = get_args(Augment)
_SCALE = (0.35, 1.0)  # of photo: the share of the image's area that is shown; what is small in it stays in sight
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
    crop = v2.RandomResizedCrop((height, width), scale=_SCALE, antialias=True)
    jitter = v2.ColorJitter(brightness=_JITTER, contrast=_JITTER, saturation=_JITTER)
    return Augmentation(v2.Compose([crop, flip, jitter]))
