"""Image files: what is found, what an image becomes, and what happens to one that cannot be read."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import tripletmas.data.images as image_files
from tripletmas.data.images import ImageFiles, find_images, missing_images, read_images, thumbnail
from tripletmas.data.preparation import Preparation


def grey(rows: list[list[int]], dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=dtype))


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


WIDE = [[0] * 4 + [200] * 4 + [0] * 4] * 4


@pytest.mark.parametrize(
    ("image", "saving", "size", "channels", "expected"),
    [
        (Image.new("RGB", (2, 2), (255, 0, 10)), {}, 2, 3, [[[255] * 2] * 2, [[0] * 2] * 2, [[10] * 2] * 2]),
        # ITU-R 601: 0.299 * 255 + 0.114 * 10 = 77.4
        (Image.new("RGB", (2, 2), (255, 0, 10)), {}, 2, 1, [[[77] * 2] * 2]),
        (Image.new("L", (2, 2), 7), {}, 2, 3, [[[7] * 2] * 2] * 3),
        # transparent parts become white; 16 bits are scaled, not clipped
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), {}, 2, 3, [[[255] * 2] * 2] * 3),
        (grey([[0, 257], [25700, 65535]], np.uint16), {}, 2, 1, [[[0, 1], [100, 255]]]),
        # the camera was turned: the picture is shown turned 90 degrees clockwise
        (grey([[1, 2], [3, 4]]), {"exif": exif(6)}, 2, 1, [[[3, 1], [4, 2]]]),
        # the short side is resized and the centre cut out
        (grey(WIDE), {}, 4, 1, [[[200] * 4] * 4]),
        (grey(np.transpose(WIDE).tolist()), {}, 4, 1, [[[200] * 4] * 4]),
        # At half size a pixel is a mean of four with weights 1, 3, 3, 1, of which the outer one is black: 200 * 7 / 8.
        # Without antialiasing it would be 200.
        (grey(WIDE), {}, 2, 1, [[[175] * 2] * 2]),
    ],
)
def test_what_an_image_becomes(image, saving, size, channels, expected, tmp_path):
    image.save(tmp_path / "a.png", **saving)
    pixels = ImageFiles(tmp_path, ["a.png"], Preparation((size, size), channels))[0]
    assert pixels.dtype == torch.uint8
    assert pixels.tolist() == expected


def png(depth: int, rows: list[bytes], key: tuple[int, ...], *, kind: int = 0) -> bytes:
    """A PNG of two rows of 8 pixels with a transparent colour; of kind 0 it is grey, of kind 2 RGB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 2, depth, kind, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "below"),
    [
        (png(1, [b"\x00", b"\x00"], (0,)), 255),
        # of 2 bits, levels 1 and 2 of 3: 2 * 255 / 3 = 170; of 4 bits, levels 1 and 8 of 15: 8 * 17 = 136
        (png(2, [b"\x55\x55", b"\xaa\xaa"], (1,)), 170),
        (png(4, [b"\x11" * 4, b"\x88" * 4], (1,)), 136),
        (png(8, [b"\x01" * 8, b"\x88" * 8], (1,)), 136),
        (png(16, [b"\x00\x00" * 8, b"\x75\x30" * 8], (0,)), 116),  # 30000 // 257
        (png(16, [b"\x03\xe8\x07\xd0\x0b\xb8" * 8, b"\x75\x30" * 24], (1000, 2000, 3000), kind=2), 0x75),
    ],
)
def test_a_transparent_colour_is_white_at_every_depth(content, below, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    pixels = ImageFiles(tmp_path, ["a.png"], Preparation((2, 2), 1))[0]
    assert pixels.tolist() == [[[255, 255], [below, below]]]


LEVELS = [[203, 51], [51, 255]]


@pytest.mark.parametrize(
    "image",
    [
        grey(LEVELS),
        Image.fromarray(np.array(LEVELS, np.uint16) * 257),
        Image.fromarray(np.array(LEVELS, np.int32) * 257),
        grey(LEVELS, np.int32),  # 8 bits in 32
        grey(LEVELS, np.float32),
        Image.fromarray((np.array(LEVELS) / 255).astype(np.float32)),
    ],
    ids=["8", "16", "16 in 32", "8 in 32", "floats to 255", "floats to 1"],
)
def test_one_picture_in_types_of_other_ranges_is_one_picture(image, tmp_path):
    image.save(tmp_path / "a.tif")
    assert ImageFiles(tmp_path, ["a.tif"], Preparation((2, 2), 1))[0].tolist() == [LEVELS]


def test_where_zero_is_white(tmp_path):
    Image.fromarray(np.array(LEVELS, np.uint16) * 257).save(tmp_path / "a.tif", tiffinfo={262: 0})
    inverted = [[255 - level for level in row] for row in LEVELS]
    assert ImageFiles(tmp_path, ["a.tif"], Preparation((2, 2), 1))[0].tolist() == [inverted]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array(LEVELS, np.uint16), "its values end at 255 of 65535"),  # black, at 255 // 257
        (np.array(LEVELS, np.uint16) * 16, "its values end at 4080 of 65535.* convert it to 8 bits"),  # 12 bits
        (np.array(LEVELS, np.uint16) * 64, "its values end at 16320"),  # 14 bits
        (np.array(LEVELS, np.int32) * 16, "its values end at 4080"),
        (np.array(LEVELS, np.int32) * 1000, "its values go from 51000 to 255000"),
        (np.array(LEVELS, np.int32) - 60, "its values go from -9 to 195"),
        (np.array(LEVELS, np.float32) * 257, "its values go from 13107 to 65535"),
        (np.array([[np.nan, 0.5]], np.float32), "its values go from nan"),
    ],
)
def test_values_that_do_not_fill_their_type_are_refused(values, message, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif cannot be read: {message}"):
        ImageFiles(tmp_path, ["a.tif"], Preparation((2, 2), 1))[0]


def test_what_says_itself_how_many_bits_it_has_is_read_so(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 4095\n" + np.array([[0, 4095], [1000, 1000]], ">u2").tobytes())
    # 1000 of 4095, in 16 bits 16003.7, divided by 257: 62.3
    assert ImageFiles(tmp_path, ["a.pgm"], Preparation((2, 2), 1))[0].tolist() == [[[0, 255], [62, 62]]]


def test_images_of_too_many_pixels_or_bytes_are_not_read(tmp_path, monkeypatch):
    Image.new("L", (8, 4)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(10_000))
        archive.write(tmp_path / "a.png", "a.png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 31)
    with pytest.raises(ValueError, match=r"a\.png cannot be read: 8 x 4 pixels are more than 31"):
        ImageFiles(tmp_path, ["a.png"], Preparation((2, 2), 1)).check(0)
    monkeypatch.setattr(image_files, "MAX_UNPACKED", 9_999)
    with pytest.raises(ValueError, match=r"zeros\.png cannot be read: it takes 10,000 bytes unpacked, more than 9,999"):
        ImageFiles(tmp_path / "all.zip", ["zeros.png"], Preparation((2, 2), 1))[0]


@pytest.fixture
def some_bad(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(b"no picture at all")
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "e.png")
    names = ["a.png", "b.png", "c.png", "d.png", "e.png"]  # d.png does not exist
    return ImageFiles(tmp_path, names, Preparation((2, 2), 3))


def test_a_name_of_two_lines_is_told_in_one(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"")
    files = ImageFiles(tmp_path, ["a\nb.png"], Preparation((2, 2), 3))
    with pytest.raises(ValueError, match=r"^[^\n]*a\\nb\.png cannot be read: the file is empty[^\n]*$"):
        read_images(files, in_memory=True)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_that_cannot_be_read_are_errors_or_are_counted(some_bad, in_memory, caplog):
    with pytest.raises(ValueError, match=r"b\.png cannot be read: the file is empty \(skip_unreadable"):
        read_images(some_bad, in_memory=in_memory)
    with caplog.at_level(logging.WARNING):
        images, kept = read_images(some_bad, in_memory=in_memory, skip_unreadable=True)
    assert kept == [0, 4]
    assert [image[:, 0, 0].tolist() for image in images] == [[255, 0, 0], [0, 0, 255]]
    assert "skipped 3 of 5 images; the first: " in caplog.text


@pytest.mark.parametrize(("name", "reason"), [("c.png", "not an image"), ("d.png", "no such file")])
def test_a_file_that_is_no_image_is_named(some_bad, name, reason):
    index = [path.rsplit("/", 1)[1] for path in some_bad.paths].index(name)
    for read in (some_bad.__getitem__, some_bad.check):
        with pytest.raises(ValueError, match=rf"{name} cannot be read: {reason}$"):
            read(index)


def test_an_image_cut_short_is_found_when_it_is_decoded(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    images = ImageFiles(tmp_path, ["a.jpg"], Preparation((8, 8), 3))
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read: .*truncated"):
        read_images(images, in_memory=True)
    lazy, _ = read_images(images, in_memory=False)
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read: .*truncated"):
        lazy[0]


def test_small_sets_are_decoded_at_once_and_large_ones_when_asked_for(tmp_path, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    images = ImageFiles(tmp_path, ["a.png"], Preparation((4, 4), 1))
    assert isinstance(read_images(images)[0], torch.Tensor)
    monkeypatch.setattr(image_files, "IN_MEMORY_BYTES", 15)  # one less than 4 x 4
    assert isinstance(read_images(images)[0], ImageFiles)


def test_an_archive_is_read_like_a_folder_also_from_a_copy(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "x/a.png")
        for kept_by_a_system in ("__MACOSX/x/._a.png", "@eaDir/a.png/small.png", "#recycle/b.png"):
            archive.writestr(kept_by_a_system, b"")
    assert find_images(tmp_path / "all.zip") == ["x/a.png"]
    images = ImageFiles(tmp_path / "all.zip", ["x/a.png", "x/b.png"], Preparation((2, 2), 1))
    assert images[0].unique().tolist() == [9]
    assert pickle.loads(pickle.dumps(images))[0].unique().tolist() == [9]
    assert images.paths[0].endswith("all.zip/x/a.png")
    for read in (images.__getitem__, images.check):
        with pytest.raises(ValueError, match=r"b\.png cannot be read: no such file"):
            read(1)


def test_a_forked_process_opens_the_archive_itself(tmp_path, monkeypatch):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    opened = []
    monkeypatch.setattr(zipfile, "ZipFile", lambda path, make=zipfile.ZipFile: opened.append(make(path)) or opened[-1])
    images = ImageFiles(tmp_path / "all.zip", ["a.png", "a.png"], Preparation((2, 2), 1))
    assert torch.equal(images[0], images[1])
    assert len(opened) == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert images[0].unique().tolist() == [9]
    assert len(opened) == 2


def test_what_is_found_is_sorted_and_what_is_left_out_is_said(tmp_path, caplog):
    for name in ("b/2.PNG", "b/1.jpeg", "a/3.webp", "a/.hidden.png", ".cache/4.png", "notes.txt", "a/5.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["a/3.webp", "b/1.jpeg", "b/2.PNG"]
    assert "left out 2 files that are no images (.heic .txt)" in caplog.text


def test_a_folder_is_walked_once_whatever_links_to_it(tmp_path, caplog):
    photos = tmp_path / "photos"
    for name in ("0/a.png", "1/b.png"):
        (photos / name).parent.mkdir(parents=True)
        Image.new("L", (2, 2)).save(photos / name)
    shutil.copytree(photos / "0", tmp_path / "elsewhere")
    for link, target in {"0/up": "..", "1/up": "..", "2": "0", "0/c.png": "a.png", "3": "../elsewhere"}.items():
        (photos / link).symlink_to(target)
    assert find_images(photos) == ["0/a.png", "1/b.png", "3/a.png"]
    assert "left out 4 links to what is there under another name" in caplog.text
    (tmp_path / "linked").symlink_to("photos")
    assert find_images(tmp_path / "linked") == ["0/a.png", "1/b.png", "3/a.png"]


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):  # who runs this may be allowed everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match="closed cannot be read: Permission denied; allow it"):
        find_images(tmp_path)


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert find_images(tmp_path) == ["a.png"]
    with pytest.raises(ValueError, match=r"a\.png cannot be read: it is no regular file"):
        ImageFiles(tmp_path, ["a.png"], Preparation((2, 2), 1))[0]
    with pytest.raises(ValueError, match="neither a folder nor a zip archive"):
        find_images(tmp_path / "a.png")


def test_what_leads_out_of_an_archive_is_not_in_it(tmp_path, caplog):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("a.png", "/a.png", "//b.png", "../c.png", "d/../../e.png", "d/f..png"):
            archive.writestr(zipfile.ZipInfo(name), (tmp_path / "a.png").read_bytes())
    assert find_images(tmp_path / "all.zip") == ["a.png", "d/f..png"]
    assert "left out 4 entries whose names come again or lead out" in caplog.text


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_holds_a_name_twice_has_it_once(tmp_path, caplog):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
        archive.write(tmp_path / "a.png", "a.png")
    assert find_images(tmp_path / "all.zip") == ["a.png"]
    assert "left out 1 entries whose names come again" in caplog.text


def test_places_without_images_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no images in .*\)$"):
        find_images(tmp_path)
    (tmp_path / "birds.zip").touch()
    with pytest.raises(ValueError, match=r"no images in .*; its archive birds\.zip can be read if you name it$"):
        find_images(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt is neither a folder nor a zip archive"):
        find_images(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"no such folder or zip archive: .*nowhere"):
        find_images(tmp_path / "nowhere")


# --- by whole paths, wherever they lie


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
    images = ImageFiles.at(paths, Preparation((2, 2), 1))
    assert [int(image.unique()) for image in images] == [2, 3, 1, 3, 1]
    assert images[0].shape == (1, 2, 2)
    assert images[0].dtype == torch.uint8


@pytest.mark.parametrize("name", ["a/9.png", "gone/1.png", "all.zip/9.png", "gone.zip/1.png"])
def test_what_has_vanished_is_named(name, place):
    paths = [str(place / "a" / "1.png"), str(place / name), str(place / "all.zip" / "1.png")]
    assert missing_images(paths) == [1]
    images = ImageFiles.at(paths, Preparation((2, 2), 1))
    with pytest.raises(ValueError, match=f"{name} cannot be read: no such file"):
        images[1]
    assert images[2].unique().tolist() == [1]


def test_a_damaged_archive_is_named_and_not_taken_for_missing_images(place):
    path = place / "all.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"all\.zip is no zip archive, or was cut short"):
        missing_images([str(path / "1.png")])


def test_a_thumbnail_keeps_the_shape_and_has_64_pixels_at_most():
    small = torch.linspace(-0.1, 1.1, 12).view(1, 3, 4)
    assert thumbnail(small).flatten().tolist() == [min(max(round(255 * x), 0), 255) for x in small.flatten().tolist()]
    wide = torch.zeros(3, 50, 200)
    wide[:, :, ::2] = 1.0
    assert thumbnail(wide).shape == (3, 16, 64)
    assert thumbnail(wide)[:, 4:-4, 4:-4].float().std() < 8  # antialiased: stripes of one pixel become grey
    assert thumbnail(torch.zeros(1, 1, 900)).shape == (1, 1, 64)


def test_no_other_program_is_executed_for_an_image(tmp_path):
    """Pillow hands a file of EPS to Ghostscript, whatever the file is called."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png", "EPS")
    with pytest.raises(ValueError, match="not an image"):
        ImageFiles(tmp_path, ["0.png"], Preparation((8, 8), 3))[0]
