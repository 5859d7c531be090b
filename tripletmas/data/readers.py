"""Names -> readers of single data sets."""

from __future__ import annotations

from collections.abc import Callable

from tripletmas.data import datasets, folders, photographs
from tripletmas.data.dataset import Source

READERS: dict[str, Callable[..., Source]] = {
    "digits": datasets.digits,
    "omniglot": datasets.omniglot,
    "mnist": datasets.mnist,
    "fashion-mnist": datasets.fashion_mnist,
    "cifar10": datasets.cifar10,
    "cifar100": datasets.cifar100,
    "svhn": datasets.svhn,
    "cub200": photographs.cub200,
    "cars196": photographs.cars196,
    "sop": photographs.sop,
    "flowers102": photographs.flowers102,
    "aircraft": photographs.aircraft,
    "folder": folders.folder,
    "csv": folders.csv,
}
