"""Augmentation: what is drawn for a sample, and what it does to images of every shape."""

from __future__ import annotations

import zlib

import pytest
import torch

from tripletmas.data.augmentation import AUGMENTS, make_augmentation
from tripletmas.data.dataset import Augmentation, LabelledDataset

NAMES = [name for name in AUGMENTS if name != "none"]


def images(*shape: int, count: int = 6, dtype: torch.dtype = torch.uint8) -> LabelledDataset:
    """Smooth random images of bytes, or of floats."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, shape[0], 3, 3, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    samples = (fine * 255).to(torch.uint8) if dtype == torch.uint8 else fine
    return LabelledDataset(samples, torch.zeros(count, dtype=torch.int64), ["a"])


def augmented(data: LabelledDataset, name: str) -> LabelledDataset:
    return data.with_transform(make_augmentation(name, data.sample_shape))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_is_a_function_of_the_seed_and_the_place(name: str):
    data = augmented(images(3, 12, 12), name).with_seed(5)
    together, _ = data[[0, 1, 2, 3, 4, 5]]
    torch.manual_seed(99)
    assert torch.equal(data[[4, 1]][0], together[[4, 1]])
    assert torch.equal(data[3][0], together[3])
    for num_workers in (0, 1):
        batches = augmented(images(3, 12, 12), name).loader(batches=[[2, 5], [0]], num_workers=num_workers, seed=5)
        assert torch.equal(torch.cat([batch for batch, _ in batches]), together[[2, 5, 0]])
    assert not torch.equal(data.with_seed(6)[[0, 1, 2, 3, 4, 5]][0], together)
    assert not torch.equal(together, data.plain()[[0, 1, 2, 3, 4, 5]][0])


def test_a_flip_is_decided_by_the_seed_of_its_place():
    data = augmented(images(1, 4, 6), "flip").with_seed(7)
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
    data = augmented(images(*shape, dtype=dtype), name)
    before = data.samples.clone()  # pyright: ignore[reportAttributeAccessIssue]
    for seed in range(8):
        found, _ = data.with_seed(seed)[list(range(6))]
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


def test_a_crop_of_a_photograph_shows_a_part_of_it():
    """Of an image whose red says the row and whose green the column: neighbours stay so, the rest is off the edge."""
    row, column = torch.meshgrid(torch.arange(0, 240, 5), torch.arange(0, 240, 5), indexing="ij")
    image = torch.stack([row, column, torch.zeros_like(row)]).to(torch.uint8)
    change = make_augmentation("photo", (3, 48, 48)).change
    crop = change.transforms[0]  # pyright: ignore[reportFunctionMemberAccess]
    heights = []
    for seed in range(20):
        torch.manual_seed(seed)
        found = crop(image)
        height, width = (float(found[i].max()) - float(found[i].min()) for i in (0, 1))
        heights.append(height)
        assert 0.3 < height * width / 235**2 <= 1.01
    assert max(heights) - min(heights) > 30


def test_what_is_no_image_or_unknown():
    with pytest.raises(ValueError, match=r"unknown augmentation 'rotate' \(there are none, flip, crop-flip, photo"):
        make_augmentation("rotate", (3, 8, 8))
    with pytest.raises(ValueError, match=r"augment='photo' needs images \(channels, height, width\)"):
        make_augmentation("photo", (4,))
