"""How an image file becomes what a model is shown: its size and shape, what is cut off, how it is resized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tripletmas.data.images import ImageFiles
from tripletmas.data.preparation import Preparation, height_and_width, written


@pytest.mark.parametrize(
    ("size", "pair"),
    [(224, (224, 224)), ("224", (224, 224)), ("224x160", (224, 160)), ([3, 4], (3, 4)), ((5, 6), (5, 6))],
)
def test_a_size_is_a_number_or_two(size, pair):
    assert height_and_width(size) == pair
    assert height_and_width(written(pair)) == pair


@pytest.mark.parametrize("size", ["", "x", "12x", "1x2x3", "a", [], [1, 2, 3], 0, "3x0", -2, 4097, "64x99999"])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match="size must be"):
        height_and_width(size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, "channels must be 1"),
        ({"size": (0, 1)}, "size must be >= 1 pixel"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, bilinear, bicubic, lanczos, got 'cubic'"),
        ({"crop": 0.0}, "crop must be a share > 0"),
        ({"crop": 1.1}, "crop must be a share > 0"),
        ({"crop": float("nan")}, "crop must be a share > 0"),
    ],
)
def test_impossible_preparations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preparation(**{"size": (8, 8), **options})


@pytest.fixture
def ramp(tmp_path):
    """60 x 100 pixels whose grey level is their column, and in red their row."""
    rows, columns = np.mgrid[0:60, 0:100]
    Image.fromarray(np.stack([rows, columns, columns], axis=2).astype(np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def test_height_and_width_may_differ(ramp):
    """The largest part of 60 x 100 of the shape of 30 x 20 is 60 x 40, columns 30 to 69; halved, two are one."""
    pixels = ImageFiles(ramp, ["a.png"], Preparation((30, 20)))[0]
    assert pixels.shape == (3, 30, 20)
    # column c of the result lies over columns 30 + 2 c and 31 + 2 c; antialiasing takes neighbours in equal measure
    torch.testing.assert_close(pixels[1, 15].float()[1:-1], torch.arange(20)[1:-1] * 2 + 30.5, atol=0.6, rtol=0)
    torch.testing.assert_close(pixels[0, :, 9].float()[1:-1], torch.arange(30)[1:-1] * 2 + 0.5, atol=0.6, rtol=0)


def test_of_a_crop_the_middle_share_is_kept(ramp):
    """Of the centre square, 60 x 60, half of each side is kept: rows 15 to 44, columns 35 to 64."""
    pixels = ImageFiles(ramp, ["a.png"], Preparation((30, 30), crop=0.5))[0]
    assert pixels[0, :, 0].tolist() == list(range(15, 45))
    assert pixels[1, 0].tolist() == list(range(35, 65))


def test_a_crop_is_timms(ramp):
    """Resize to size / crop and cut out the centre, as timm's evaluation does; a level of 255 is left to rounding."""
    timm_data = pytest.importorskip("timm.data")
    given = {"input_size": (3, 28, 28), "interpolation": "bicubic", "crop_pct": 0.875, "mean": 0.0, "std": 1.0}
    transform = timm_data.create_transform(**given, is_training=False)
    expected = transform(Image.open(ramp / "a.png"))
    pixels = ImageFiles(ramp, ["a.png"], Preparation((28, 28), interpolation="bicubic", crop=0.875))[0]
    # 60 / 28 levels a pixel, and timm rounds its window to whole pixels of the resized image
    assert (pixels / 255 - expected).abs().max() < 60 / 28 / 2 / 255 + 1 / 255


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_each_interpolation_is_pillows(ramp, interpolation):
    pixels = ImageFiles(ramp, ["a.png"], Preparation((60, 100), interpolation=interpolation))[0]
    assert torch.equal(pixels, torch.from_numpy(np.array(Image.open(ramp / "a.png"))).permute(2, 0, 1))
    small = ImageFiles(ramp, ["a.png"], Preparation((15, 25), interpolation=interpolation))[0]
    resized = Image.open(ramp / "a.png").resize((25, 15), Image.Resampling[interpolation.upper()])
    assert torch.equal(small, torch.from_numpy(np.array(resized)).permute(2, 0, 1))
