"""Augmentation: what is drawn for a sample, and what it does to images of every shape."""

from __future__ import annotations

import zlib

import pytest
import torch
from torchvision.transforms.v2 import functional

from tripletmas.data.augmentation import AUGMENTS, crop_of, make_augmentation
from tripletmas.data.dataset import Augmentation, LabelledDataset

NAMES = [name for name in AUGMENTS if name != "none"]


def images(*shape: int, count: int = 6, dtype: torch.dtype = torch.uint8) -> LabelledDataset:
    """Smooth random images of bytes, or of floats."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, shape[0], 3, 3, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    samples = (fine * 255).to(torch.uint8) if dtype == torch.uint8 else fine
    return LabelledDataset(samples, torch.zeros(count, dtype=torch.int64), ["a"])


def augmented(data: LabelledDataset, name: str, *, seed: int | None = None) -> LabelledDataset:
    return data.with_transform(make_augmentation(name, data.sample_shape), seed=seed)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_is_a_function_of_the_seed_and_the_place(name: str):
    data = augmented(images(3, 12, 12), name, seed=5)
    together, _ = data[[0, 1, 2, 3, 4, 5]]
    torch.manual_seed(99)
    assert torch.equal(data[[4, 1]][0], together[[4, 1]])
    assert torch.equal(data[3][0], together[3])
    for num_workers in (0, 1):
        batches = augmented(images(3, 12, 12), name).loader(batches=[[2, 5], [0]], num_workers=num_workers, seed=5)
        assert torch.equal(torch.cat([batch for batch, _ in batches]), together[[2, 5, 0]])
    assert not torch.equal(augmented(images(3, 12, 12), name, seed=6)[[0, 1, 2, 3, 4, 5]][0], together)
    assert not torch.equal(together, data.plain()[[0, 1, 2, 3, 4, 5]][0])


def test_a_flip_is_decided_by_the_seed_of_its_place():
    data = augmented(images(1, 4, 6), "flip", seed=7)
    plain = data.plain()
    flipped = []
    for place in range(6):
        own = torch.Generator().manual_seed(zlib.crc32(f"7 {place}".encode()))
        flipped.append(bool(torch.rand(1, generator=own) < 0.5))
        expected = plain[place][0].flip(-1) if flipped[-1] else plain[place][0]
        assert torch.equal(data[place][0], expected)
    assert len(set(flipped)) == 2


def test_the_default_generator_goes_on_as_if_nothing_had_been_drawn():
    data = augmented(images(3, 8, 8), "photo")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(data.loader(2, seed=3))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 10, 16), (1, 16, 9)])
@pytest.mark.parametrize("name", NAMES)
def test_images_of_every_shape_stay_images(name: str, shape: tuple[int, ...], dtype: torch.dtype):
    data = images(*shape, dtype=dtype)
    before = data.samples.clone()  # pyright: ignore[reportAttributeAccessIssue]
    for seed in range(8):
        found, _ = augmented(data, name, seed=seed)[list(range(6))]
        assert (found.shape[1:], found.dtype) == (shape, torch.float32)
        assert 0 <= found.min() <= found.max() <= 1
    assert torch.equal(data.samples, before)  # pyright: ignore[reportArgumentType]


def test_bytes_are_changed_as_bytes_and_other_transforms_have_floats():
    seen = []

    def change(image: torch.Tensor) -> torch.Tensor:
        seen.append(image.dtype)
        return image

    data = images(3, 8, 8)
    for transform in (Augmentation(change), change):
        assert torch.equal(data.with_transform(transform)[[0, 1]][0], data[[0, 1]][0])
    assert seen == [torch.uint8] * 2 + [torch.float32] * 2


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 24, 36)])
def test_a_photograph_is_changed_as_by_the_transforms_of_torchvision(shape: tuple[int, ...]):
    """Their functions, one after the other on bytes and then on floats, with what the seed draws."""
    image = images(*shape, count=1).samples[0]
    for seed in range(12):
        drawn = torch.rand(8, generator=torch.Generator().manual_seed(seed)).tolist()
        expected = functional.resized_crop(image, *crop_of(*shape[1:], drawn[:4]), list(shape[1:]), antialias=True)
        expected = functional.horizontal_flip(expected) if drawn[4] < 0.5 else expected
        expected = functional.to_dtype(expected, torch.float32, scale=True)
        brightness, contrast, saturation = (0.8 + 0.4 * share for share in drawn[5:])
        expected = functional.adjust_contrast(functional.adjust_brightness(expected, brightness), contrast)
        expected = functional.adjust_saturation(expected, saturation)
        torch.manual_seed(seed)
        found = make_augmentation("photo", shape)(image)
        torch.testing.assert_close(found, expected, atol=1.01 / 255, rtol=0)  # bytes are rounded another way there


def test_a_crop_has_the_area_and_the_shape_that_are_drawn():
    assert crop_of(100, 100, [0.9999999, 0.5, 0.0, 0.0]) == (0, 0, 100, 100)
    # 35 % of the area: 10000 * 0.35 = 3500, square: 59.16
    assert crop_of(100, 100, [0.0, 0.5, 0.0, 0.999]) == (0, 41, 59, 59)
    # as wide as 4/3 of its height: sqrt(3500 * 3 / 4) and sqrt(3500 * 4 / 3)
    assert crop_of(100, 100, [0.0, 0.9999999, 0.999, 0.0]) == (49, 0, 51, 68)  # the last of 50 places
    assert crop_of(50, 200, [0.9999999, 0.0, 0.0, 0.0])[2] == 50  # no more than there is


def test_what_is_no_image_or_unknown():
    with pytest.raises(ValueError, match=r"unknown augmentation 'rotate' \(there are none, flip, crop-flip, photo"):
        make_augmentation("rotate", (3, 8, 8))
    with pytest.raises(ValueError, match=r"augment='photo' needs images \(channels, height, width\)"):
        make_augmentation("photo", (4,))
