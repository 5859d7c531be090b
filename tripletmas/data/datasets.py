"""Public data sets of small images: each reader gives a `Source`. `photographs.py` reads large ones.

Classes have the order in which their publishers number them, or that of their names. Nothing is downloaded unless
`download` says so.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

# torchvision and scikit-learn take seconds to import: each reader imports only its own.
import numpy as np
import torch
from torch import Tensor

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.downloads import fetch, missing, reason_of
from tripletmas.data.folders import Entry, read_entries
from tripletmas.data.images import find_images
from tripletmas.data.preparation import Preparation
from tripletmas.data.source import Source

logger = logging.getLogger(__name__)

_DIGIT_NAMES = tuple("0123456789")


def digits() -> Source:
    """The 1,797 handwritten digits bundled with scikit-learn, 1 x 8 x 8; no download, no test part."""
    rows = _bundled_digits()
    samples = rows[:, :-1].float().reshape(-1, 1, 8, 8) / 16  # grey levels 0..16
    return Source(LabelledDataset(samples, rows[:, -1].long(), _DIGIT_NAMES))


def _bundled_digits() -> Tensor:
    """(1797, 65) float64: 64 grey levels and the digit.

    They are read from the file that scikit-learn keeps them in; by itself, where that is no longer at this place.
    """
    library = find_spec("sklearn")  # which looks for it and does not import it
    for folder in (library and library.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return torch.from_numpy(np.loadtxt(file, delimiter=","))
    from sklearn.datasets import load_digits

    bundled: Any = load_digits()
    return torch.from_numpy(np.column_stack([bundled.data, bundled.target]))


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

        fetch("omniglot", root, lambda: Omniglot(root, background=True, download=True))
        tree = _omniglot_tree(Path(root))
    if tree is None:
        raise missing("omniglot", f"no <alphabet>/character<nn>/*.png in {root}")
    files = [name for name in find_images(tree) if _OMNIGLOT_NAME.search(name)]
    parts = [PurePosixPath(name).parts[-3:] for name in files]
    entries = [Entry(name, "/".join(part[:2]), group=part[0]) for name, part in zip(files, parts, strict=True)]
    train = read_entries(tree, entries, Preparation((size, size), 1), in_memory=True).train
    if len(train.class_names) != 964:
        logger.warning("omniglot: %s has %d characters, the whole set has 964", tree, len(train.class_names))
    assert isinstance(train.samples, Tensor)
    strokes = 255 - train.samples
    return Source(LabelledDataset(strokes, train.labels, train.class_names, groups=train.groups, paths=train.paths))


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


def svhn(*, root: str = "data", download: bool = False) -> Source:
    """SVHN: 73,257 training and 26,032 test photographs of house numbers, cut out by digit, 3 x 32 x 32.

    The 531,131 `extra` images are left out. The digit 0, which the publishers number 10, is class '0'.

    Args:
        root: the folder that holds `train_32x32.mat` and `test_32x32.mat`, or `svhn` with them.
        download: fetch what is missing into `root/svhn` (checked by MD5 sums).
    """
    from torchvision.datasets import SVHN

    home = Path(root) if (Path(root) / "train_32x32.mat").is_file() else Path(root) / "svhn"

    def read(*, train: bool, download: bool) -> Any:
        part: Any = SVHN(home, "train" if train else "test", download=download)
        part.targets = part.labels
        return part

    return _read("svhn", read, (root, home), download, _DIGIT_NAMES)


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
    import torchvision.datasets

    return _read(name, partial(getattr(torchvision.datasets, reader), root), (root,), download, class_names)


def _read(
    name: str,
    read: Callable[..., Any],
    places: Sequence[str | Path],
    download: bool,
    class_names: Sequence[str] | None = None,
) -> Source:
    """The train and test part of one of torchvision's sets that lie in memory; a download goes to the last place."""
    if download:
        fetch(name, places[-1], lambda: [read(train=train, download=True) for train in (True, False)])
    parts = []
    for train in (True, False):
        try:
            part = read(train=train, download=False)
        except Exception as error:  # each format fails in its own way when a file is cut short
            where = " or ".join(map(str, places))
            problem = f"no complete copy in {where} ({reason_of(error)}; delete files that are cut short)"
            raise missing(name, problem) from None
        images = torch.as_tensor(part.data)
        if images.ndim == 3:
            images = images.unsqueeze(1)
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        labels = torch.as_tensor(part.targets)
        parts.append(LabelledDataset(images.contiguous(), labels, class_names or part.classes))
    return Source(*parts)
