"""Images by their whole paths, in folders and archives."""

from __future__ import annotations

import zipfile

import pytest
import torch
from PIL import Image

from tripletmas.data.image_paths import ImagesAt, missing_images


@pytest.fixture
def place(tmp_path):
    for number, name in enumerate(("a/1.png", "a/2.png", "b/c/3.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number + 1).save(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "b" / "c" / "3.png", "in/3.png")
        archive.write(tmp_path / "a" / "1.png", "1.png")
    return tmp_path


def test_images_are_read_wherever_they_lie(place, monkeypatch):
    monkeypatch.chdir(place)
    paths = ["a/2.png", "all.zip/in/3.png", str(place / "a" / "1.png"), "b/c/3.png", "all.zip/1.png"]
    images = ImagesAt(paths, size=2, channels=1)
    assert [int(image.unique()) for image in images] == [2, 3, 1, 3, 1]
    assert images[0].shape == (1, 2, 2)
    assert images[0].dtype == torch.uint8


@pytest.mark.parametrize("name", ["a/9.png", "gone/1.png", "all.zip/9.png", "gone.zip/1.png"])
def test_what_has_vanished_is_named(name, place):
    paths = [str(place / "a" / "1.png"), str(place / name), str(place / "all.zip" / "1.png")]
    assert missing_images(paths) == [1]
    images = ImagesAt(paths, size=2, channels=1)
    with pytest.raises(ValueError, match=f"{name} cannot be read: no such file"):
        images[1]
    assert images[2].unique().tolist() == [1]


def test_a_damaged_archive_is_named_and_not_taken_for_missing_images(place):
    path = place / "all.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"all\.zip is no zip archive, or was cut short"):
        missing_images([str(path / "1.png")])
