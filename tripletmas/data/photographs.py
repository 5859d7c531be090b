"""Public sets of photographs that lie in folders: each reader gives a `Source` whose images may be decoded lazily."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from tripletmas.data.downloads import fetch, missing, reason_of
from tripletmas.data.folders import Entry, read_entries
from tripletmas.data.preparation import Interpolation, Preparation, Size, height_and_width
from tripletmas.data.source import Source

logger = logging.getLogger(__name__)

_FLOWERS = {"trnid": "train", "valid": "train", "tstid": "test"}


def cub200(
    *,
    root: str = "data",
    size: Size = 224,
    interpolation: Interpolation = "bilinear",
    crop: float = 1.0,
    in_memory: bool | None = None,
    download: bool = False,
) -> Source:
    """CUB-200-2011: 11,788 photographs of 200 kinds of birds; all of them as training part, no test part.

    Args:
        root: the folder that holds `CUB_200_2011`, or `cub200/CUB_200_2011`.
        size: height and width in pixels, 224 or 224x160: the image is resized to cover it, and cut about its middle.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: the share of each side that is kept of that, in (0, 1].
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        download: fetch the set into `root/cub200` if it is missing.
    """
    folder, names, _ = _metric_learning("cub200", "CUB", "CUB_200_2011/images.txt", root, download, 11_788)
    entries = [Entry(name, Path(name).parent.name) for name in names]
    return read_entries(
        folder, entries, Preparation(height_and_width(size), 3, interpolation, crop), in_memory=in_memory
    )


def cars196(
    *,
    root: str = "data",
    size: Size = 224,
    interpolation: Interpolation = "bilinear",
    crop: float = 1.0,
    in_memory: bool | None = None,
    download: bool = False,
) -> Source:
    """Cars196: 16,185 photographs of 196 models of cars; all of them as training part, no test part.

    Args:
        root: the folder that holds `names.csv`, `anno_train.csv`, `anno_test.csv` and `car_data`, or `cars196` with
            them.
        size: height and width in pixels, 224 or 224x160: the image is resized to cover it, and cut about its middle.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: the share of each side that is kept of that, in (0, 1].
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        download: fetch the set into `root/cars196` if it is missing.
    """
    folder, names, _ = _metric_learning("cars196", "Cars196", "anno_train.csv", root, download, 16_185)
    entries = [Entry(name, Path(name).parent.name) for name in names]
    return read_entries(
        folder, entries, Preparation(height_and_width(size), 3, interpolation, crop), in_memory=in_memory
    )


def sop(
    *,
    root: str = "data",
    size: Size = 224,
    interpolation: Interpolation = "bilinear",
    crop: float = 1.0,
    min_images: int = 4,
    in_memory: bool | None = None,
    download: bool = False,
) -> Source:
    """Stanford Online Products: 120,053 photographs of 22,634 products; all of them as training part, no test part.

    A class is a product ('bicycle/1'), and its group is one of the 12 kinds of products.

    Args:
        root: the folder that holds `Stanford_Online_Products`, or `sop/Stanford_Online_Products`.
        size: height and width in pixels, 224 or 224x160: the image is resized to cover it, and cut about its middle.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: the share of each side that is kept of that, in (0, 1].
        min_images: leaves out products with fewer images; 4 is the least of which 2 can be held out as queries.
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        download: fetch the set into `root/sop` if it is missing.
    """
    marker = "Stanford_Online_Products/Ebay_train.txt"
    folder, names, products = _metric_learning("sop", "StanfordOnlineProducts", marker, root, download, 120_053)
    kinds = [Path(name).parent.name.removesuffix("_final") for name in names]
    of_image = zip(names, kinds, products, strict=True)
    entries = [Entry(name, f"{kind}/{product}", group=kind) for name, kind, product in of_image]
    counts = Counter(entry.class_name for entry in entries)
    few = sum(count < min_images for count in counts.values())
    if few:
        logger.warning("sop: left out %d products with fewer than %d images", few, min_images)
    if few == len(counts):
        raise ValueError(f"sop: no product in {folder} has min_images={min_images} images")
    entries = [entry for entry in entries if counts[entry.class_name] >= min_images]
    return read_entries(
        folder, entries, Preparation(height_and_width(size), 3, interpolation, crop), in_memory=in_memory
    )


def flowers102(
    *,
    root: str = "data",
    size: Size = 224,
    interpolation: Interpolation = "bilinear",
    crop: float = 1.0,
    in_memory: bool | None = None,
    download: bool = False,
) -> Source:
    """Oxford 102 Flowers: 8,189 photographs of 102 kinds of flowers; 2,040 to learn from, 6,149 as test part.

    The training part is the published training and validation part together, 10 + 10 images of each class. A class
    has its published number, '1' to '102'.

    Args:
        root: the folder that holds `flowers-102`.
        size: height and width in pixels, 224 or 224x160: the image is resized to cover it, and cut about its middle.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: the share of each side that is kept of that, in (0, 1].
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        download: fetch the set into `root/flowers-102` (checked by MD5 sums).
    """
    import torchvision.datasets
    from scipy.io import loadmat

    if download:
        fetch("flowers102", root, lambda: torchvision.datasets.Flowers102(root, download=True))
    home = Path(root) / "flowers-102"
    try:
        class_of = loadmat(home / "imagelabels.mat")["labels"].flatten().tolist()
        ids = loadmat(home / "setid.mat")
        parts = [(part, ids[key].flatten().tolist()) for key, part in _FLOWERS.items()]
        entries = [  # images are numbered from 1
            Entry(f"jpg/image_{number:05d}.jpg", str(class_of[number - 1]), split=part)
            for part, numbers in parts
            for number in numbers
        ]
    except Exception as error:  # SciPy reports a broken file with many types
        raise missing("flowers102", f"no complete lists in {home} ({reason_of(error)})") from None
    _check_number("flowers102", home, len(entries), 8189)
    prepared = Preparation(height_and_width(size), 3, interpolation, crop)
    return read_entries(home, entries, prepared, in_memory=in_memory)


def aircraft(
    *,
    root: str = "data",
    size: Size = 224,
    interpolation: Interpolation = "bilinear",
    crop: float = 1.0,
    in_memory: bool | None = None,
    download: bool = False,
) -> Source:
    """FGVC-Aircraft: 10,000 photographs of 100 variants of aircraft; 6,667 to learn from, 3,333 as test part.

    The training part is the published training and validation part together (`trainval`).

    Args:
        root: the folder that holds `fgvc-aircraft-2013b`.
        size: height and width in pixels, 224 or 224x160: the image is resized to cover it, and cut about its middle.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: the share of each side that is kept of that, in (0, 1].
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        download: fetch the set into `root/fgvc-aircraft-2013b` if it is missing.
    """
    import torchvision.datasets

    if download:
        fetch("aircraft", root, lambda: torchvision.datasets.FGVCAircraft(root, download=True))
    home = Path(root) / "fgvc-aircraft-2013b" / "data"
    entries = []
    for split, part in (("trainval", "train"), ("test", "test")):
        file = home / f"images_variant_{split}.txt"
        try:
            lines = [line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines()]
            entries += [Entry(f"images/{name}.jpg", variant.strip(), split=part) for name, variant in lines]
        except (OSError, ValueError) as error:
            raise missing("aircraft", f"no list of images {file} ({reason_of(error)})") from None
    _check_number("aircraft", home, len(entries), 10_000)
    prepared = Preparation(height_and_width(size), 3, interpolation, crop)
    return read_entries(home, entries, prepared, in_memory=in_memory)


def _metric_learning(
    name: str, reader: str, marker: str, root: str, download: bool, num_images: int
) -> tuple[Path, list[str], list[int]]:
    """(folder, files relative to it, their labels) of one of pytorch-metric-learning's sets, both halves together."""
    import pytorch_metric_learning.datasets

    make: Any = getattr(pytorch_metric_learning.datasets, reader)
    home = Path(root) / name
    folder = next((folder for folder in (Path(root), home) if (folder / marker).is_file()), None)
    if folder is None:
        if home.is_dir() and any(home.iterdir()):
            raise ValueError(
                f"{name}: {home} has no {marker}; complete it, or delete the folder to download the set anew"
            )
        if not download:
            raise missing(name, f"no {marker} in {root} or {home}")
        # The library takes any folder that is not empty for a complete set, so a download is moved in when it is whole.
        partial = home.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        fetch(name, root, lambda: (make(root=str(partial), download=True), partial.rename(home)))
        folder = home
    try:
        found = make(root=str(folder))
    except (OSError, ValueError, IndexError) as error:
        raise missing(name, f"the lists in {folder} cannot be read ({reason_of(error)})") from None
    _check_number(name, folder, len(found.paths), num_images)
    return folder, [Path(path).relative_to(folder).as_posix() for path in found.paths], found.labels


def _check_number(name: str, folder: Path, found: int, expected: int) -> None:
    if found != expected:
        logger.warning("%s: %s lists %d images, the whole set has %d", name, folder, found, expected)
