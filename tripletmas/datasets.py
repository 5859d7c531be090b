"""Named data sets: each reader gives a `Source`. `folders.py` reads a user's own images.

Classes have the order in which their publishers number them, or that of their names. Nothing is downloaded unless
`download` says so.
"""

from __future__ import annotations

import logging
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

# torchvision, scikit-learn and pytorch-metric-learning take seconds to import: each reader imports only its own.
import torch
from torch import Tensor

from tripletmas.data import LabelledDataset, Source, encode_labels
from tripletmas.images import ImageFiles, find_images, read_images

logger = logging.getLogger(__name__)

_DIGIT_NAMES = tuple("0123456789")


def digits() -> Source:
    """The 1,797 handwritten digits bundled with scikit-learn, 1 x 8 x 8; no download, no test part."""
    from sklearn.datasets import load_digits

    bundled: Any = load_digits()
    samples = torch.from_numpy(bundled.images).float().unsqueeze(1) / 16  # grey levels 0..16
    return Source(LabelledDataset(samples, torch.from_numpy(bundled.target), _DIGIT_NAMES))


def omniglot(*, root: str = "data", size: int = 28, download: bool = False) -> Source:
    """Omniglot's background set: handwritten characters of 30 alphabets, strokes 1 on background 0; no test part.

    A class is a character ('Greek/character01'), and its group is its alphabet.

    Args:
        root: torchvision's folder (that of `omniglot-py`), a tree `<alphabet>/character<nn>/*.png`, a zip archive of
            such a tree, or a folder with one.
        size: height and width in pixels; the originals have 105.
        download: fetch what is missing into `root` (torchvision's copy, checked by its MD5 sum).
    """
    tree = _omniglot_tree(Path(root))
    if tree is None and download:
        from torchvision.datasets import Omniglot

        _download("omniglot", root, lambda: Omniglot(root, background=True, download=True))
        tree = _omniglot_tree(Path(root))
    if tree is None:
        raise _missing("omniglot", f"no <alphabet>/character<nn>/*.png in {root}")
    files = [name for name in find_images(tree) if _OMNIGLOT_NAME.search(name)]
    parts = [PurePosixPath(name).parts[-3:] for name in files]
    samples, _ = read_images(ImageFiles(tree, files, size=size, channels=1), in_memory=True)
    assert isinstance(samples, Tensor)
    labels, class_names = encode_labels([f"{alphabet}/{character}" for alphabet, character, _ in parts])
    if len(class_names) != 964:
        logger.warning("omniglot: %s has %d characters, the whole set has 964", tree, len(class_names))
    groups = [name.split("/")[0] for name in class_names]
    paths = [str(tree / name) for name in files]
    return Source(LabelledDataset(255 - samples, labels, class_names, groups=groups, paths=paths))


def mnist(*, root: str = "data", download: bool = False) -> Source:
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, 1 x 28 x 28.

    Args:
        root: the folder that holds `MNIST/raw`.
        download: fetch what is missing into `root` (checked by MD5 sums).
    """
    return _torchvision("mnist", "MNIST", root, download, _DIGIT_NAMES)


def fashion_mnist(*, root: str = "data", download: bool = False) -> Source:
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes in 10 classes, 1 x 28 x 28.

    Args:
        root: the folder that holds `FashionMNIST/raw`.
        download: fetch what is missing into `root` (checked by MD5 sums).
    """
    return _torchvision("fashion-mnist", "FashionMNIST", root, download)


def cifar10(*, root: str = "data", download: bool = False) -> Source:
    """CIFAR-10: 50,000 training and 10,000 test photographs in 10 classes, 3 x 32 x 32.

    Args:
        root: the folder that holds `cifar-10-batches-py`.
        download: fetch what is missing into `root` (checked by MD5 sums).
    """
    return _torchvision("cifar10", "CIFAR10", root, download)


def cifar100(*, root: str = "data", download: bool = False) -> Source:
    """CIFAR-100: 50,000 training and 10,000 test photographs in 100 classes, 3 x 32 x 32.

    Args:
        root: the folder that holds `cifar-100-python`.
        download: fetch what is missing into `root` (checked by MD5 sums).
    """
    return _torchvision("cifar100", "CIFAR100", root, download)


def cub200(*, root: str = "data", size: int = 224, in_memory: bool | None = None, download: bool = False) -> Source:
    """CUB-200-2011: 11,788 photographs of 200 kinds of birds; all of them as training part, no test part.

    Args:
        root: the folder that holds `CUB_200_2011`, or `cub200/CUB_200_2011`.
        size: height and width in pixels: the short side is resized, the centre square cut out.
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        download: fetch the set into `root/cub200` if it is missing.
    """
    folder, names, _ = _metric_learning("cub200", "CUB", "CUB_200_2011/images.txt", root, download, 11_788)
    return _photographs(folder, names, [Path(name).parent.name for name in names], size=size, in_memory=in_memory)


def cars196(*, root: str = "data", size: int = 224, in_memory: bool | None = None, download: bool = False) -> Source:
    """Cars196: 16,185 photographs of 196 models of cars; all of them as training part, no test part.

    Args:
        root: the folder that holds `names.csv`, `anno_train.csv`, `anno_test.csv` and `car_data`, or `cars196` with
            them.
        size: height and width in pixels: the short side is resized, the centre square cut out.
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        download: fetch the set into `root/cars196` if it is missing.
    """
    folder, names, _ = _metric_learning("cars196", "Cars196", "anno_train.csv", root, download, 16_185)
    return _photographs(folder, names, [Path(name).parent.name for name in names], size=size, in_memory=in_memory)


def sop(
    *,
    root: str = "data",
    size: int = 224,
    min_images: int = 4,
    in_memory: bool | None = None,
    download: bool = False,
) -> Source:
    """Stanford Online Products: 120,053 photographs of 22,634 products; all of them as training part, no test part.

    A class is a product ('bicycle/1'), and its group is one of the 12 kinds of products.

    Args:
        root: the folder that holds `Stanford_Online_Products`, or `sop/Stanford_Online_Products`.
        size: height and width in pixels: the short side is resized, the centre square cut out.
        min_images: leaves out products with fewer images; 4 is the least of which 2 can be held out as queries.
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        download: fetch the set into `root/sop` if it is missing.
    """
    marker = "Stanford_Online_Products/Ebay_train.txt"
    folder, names, products = _metric_learning("sop", "StanfordOnlineProducts", marker, root, download, 120_053)
    kinds = [Path(name).parent.name.removesuffix("_final") for name in names]
    classes = [f"{kind}/{product}" for kind, product in zip(kinds, products, strict=True)]
    counts = Counter(classes)
    kept = [i for i, name in enumerate(classes) if counts[name] >= min_images]
    few = sum(count < min_images for count in counts.values())
    if few:
        logger.warning("sop: left out %d products with fewer than %d images", few, min_images)
    if not kept:
        raise ValueError(f"sop: no product in {folder} has min_images={min_images} images")
    chosen = [classes[i] for i in kept]
    return _photographs(folder, [names[i] for i in kept], chosen, size=size, in_memory=in_memory, grouped=True)


_OMNIGLOT_NAME = re.compile(r"(^|/)[^/]+/character\d+/[^/]+\.png$")


def _omniglot_tree(root: Path) -> Path | None:
    """The folder or archive at or below `root` that has Omniglot's tree."""
    folders = [root / "omniglot-py" / "images_background", root / "images_background", root]
    for folder in folders:
        if folder.is_dir() and any(folder.glob("*/character[0-9]*/*.png")):
            return folder
    archives = [root, *sorted(root.glob("*.zip")), root / "omniglot-py" / "images_background.zip"]
    for archive in archives:
        if archive.is_file() and zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                if any(_OMNIGLOT_NAME.search(name) for name in opened.namelist()):
                    return archive
    return None


def _torchvision(name: str, reader: str, root: str, download: bool, class_names: Sequence[str] | None = None) -> Source:
    """The train and test part of one of torchvision's sets that lie in memory."""
    import torchvision.datasets

    make: Any = getattr(torchvision.datasets, reader)
    if download:
        _download(name, root, lambda: make(root, download=True))
    parts = []
    for train in (True, False):
        try:
            part = make(root, train=train)
        except Exception as error:  # each format fails in its own way when a file is cut short
            raise _missing(
                name, f"no complete copy in {root} ({_reason(error)}; delete files that are cut short)"
            ) from None
        images = torch.as_tensor(part.data)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        parts.append(LabelledDataset(images, torch.as_tensor(part.targets), class_names or part.classes))
    return Source(*parts)


def _metric_learning(
    name: str, reader: str, marker: str, root: str, download: bool, num_images: int
) -> tuple[Path, list[str], list[int]]:
    """(folder, files relative to it, their labels) of one of pytorch-metric-learning's sets, both halves together."""
    import pytorch_metric_learning.datasets

    make: Any = getattr(pytorch_metric_learning.datasets, reader)
    home = Path(root) / name
    folder = next((folder for folder in (Path(root), home) if (folder / marker).is_file()), None)
    if folder is None and home.is_dir() and any(home.iterdir()):
        raise ValueError(f"{name}: {home} has no {marker}; complete it, or delete the folder to download the set anew")
    if folder is None and download:
        # The library takes any folder that is not empty for a complete set, so a download is moved in when it is whole.
        partial = home.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _download(name, root, lambda: (make(root=str(partial), download=True), partial.rename(home)))
        folder = home
    if folder is None:
        raise _missing(name, f"no {marker} in {root} or {home}")
    try:
        found = make(root=str(folder))
    except (OSError, ValueError, IndexError) as error:
        raise _missing(name, f"the lists in {folder} cannot be read ({_reason(error)})") from None
    if len(found.paths) != num_images:
        logger.warning("%s: %s lists %d images, the whole set has %d", name, folder, len(found.paths), num_images)
    return folder, [Path(path).relative_to(folder).as_posix() for path in found.paths], found.labels


def _photographs(
    folder: Path, names: list[str], classes: list[str], *, size: int, in_memory: bool | None, grouped: bool = False
) -> Source:
    images = ImageFiles(folder, names, size=size, channels=3)
    samples, _ = read_images(images, in_memory=in_memory)
    labels, class_names = encode_labels(classes)
    groups = [name.split("/")[0] for name in class_names] if grouped else None
    return Source(LabelledDataset(samples, labels, class_names, groups=groups, paths=images.paths))


def _download(name: str, root: str, fetch: Callable[[], object]) -> None:
    try:
        fetch()
    except (OSError, RuntimeError, EOFError, HTTPException, zipfile.BadZipFile, tarfile.TarError) as error:
        raise OSError(
            f"{name}: the download into {root} failed ({_reason(error)}); try again when the network answers, "
            f"or put the files there by hand as datasets/{name}/README.md says"
        ) from None


def _missing(name: str, problem: str) -> ValueError:
    return ValueError(
        f"{name}: {problem}; give download=True (--data.download true) to fetch it, "
        f"or root= (--data.root) where it lies, laid out as datasets/{name}/README.md says"
    )


def _reason(error: Exception) -> str:
    """The last line of an error's message: torchvision puts what it tried before it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
