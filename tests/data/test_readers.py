"""The readers of public data sets: one contract over the table, on tiny copies in their layouts; real sets besides."""

from __future__ import annotations

import inspect
import shutil
import socket
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pytorch_metric_learning.datasets import CUB
from tiny_datasets import cars, cifar, clothes, cub, flowers, house_numbers, omniglot_tree, planes, products
from torchvision.datasets import FashionMNIST

import tripletmas.data
from tripletmas.data import datasets, photographs
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.sequences import READERS
from tripletmas.data.tasks import make_stream

CARDS = Path(__file__).resolve().parents[2] / "datasets"
DIGITS = tuple("0123456789")
CHARACTERS = tuple(f"{alphabet}/character{number:02d}" for alphabet in ("Greek", "Latin") for number in (1, 2))
CLOTHES = tuple(FashionMNIST.classes)
OF_TEN = [label for label in range(10) for _ in range(4)]  # four images of each of ten classes
LEVELS = [10 * label + number % 4 for number, label in enumerate(OF_TEN)]
NUMBERS = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 0, 0]
UNCOUNTED = "the lists in .* cannot be read"


class Tiny(NamedTuple):
    """A tiny copy of a data set, and what is read from it."""

    write: Callable[..., None]
    classes: tuple[str, ...]
    train: list[int]  # labels
    test: list[int] | None
    levels: list[int]  # the largest value of each training image, of 255
    shape: tuple[int, ...] = (3, 4, 4)
    also_below: str = ""  # the folder of the root where the copy may lie, too
    warning: str = ""
    damaged: tuple[str, bytes | None] | None = None  # a file, and what is in it then; None: it is gone
    problem: str = "no complete copy in"


# fmt: off
TINY = {
    "omniglot": Tiny(omniglot_tree, CHARACTERS, [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4, None, [255] * 16, (1, 4, 4),
        also_below="omniglot-py/images_background", warning="has 4 characters, the whole set has 964"),
    "mnist": Tiny(partial(clothes, name="MNIST"), DIGITS, OF_TEN, OF_TEN[::2], LEVELS, (1, 28, 28),
        damaged=("MNIST/raw/train-labels-idx1-ubyte", b"\0\0\10\1")),
    "fashion-mnist": Tiny(clothes, CLOTHES, OF_TEN, OF_TEN[::2], LEVELS, (1, 28, 28),
        damaged=("FashionMNIST/raw/t10k-images-idx3-ubyte", b"\0\0\10\3")),
    "cifar10": Tiny(cifar, ("zebra", "ant"), [1, 0, 1, 0], [1, 0, 1, 0], [0, 10, 20, 30], (3, 32, 32),
        damaged=("cifar-10-batches-py/a", b"x")),  # classes in the publishers' order
    "cifar100": Tiny(partial(cifar, fine=True), ("zebra", "ant"), [1, 0, 1, 0], [1, 0, 1, 0], [0, 10, 20, 30],
        (3, 32, 32), damaged=("cifar-100-python/b", b"x")),
    "svhn": Tiny(house_numbers, DIGITS, NUMBERS, NUMBERS[::2], NUMBERS, (3, 32, 32), also_below="svhn",
        damaged=("test_32x32.mat", b"x")),
    "cub200": Tiny(cub, ("001.Albatross", "150.Wren"), [0] * 4 + [1] * 4, None, list(range(8)), also_below="cub200",
        warning="lists 8 images, the whole set has 11788", damaged=("CUB_200_2011/image_class_labels.txt", None),
        problem=UNCOUNTED),
    "cars196": Tiny(cars, ("Audi A-B 2012", "BMW X5 2007"), [0, 0, 1, 1] * 2, None, [0] * 8, also_below="cars196",
        warning="lists 8 images, the whole set has 16185", damaged=("anno_test.csv", None), problem=UNCOUNTED),
    "sop": Tiny(products, ("bicycle/1", "chair/3"), [0] * 4 + [1] * 5, None, [0] * 9, also_below="sop",
        warning="left out 1 products with fewer than 4 images", problem=UNCOUNTED,
        damaged=("Stanford_Online_Products/Ebay_test.txt", None)),
    "flowers102": Tiny(flowers, ("1", "2", "3"), [1, 2, 0] * 2, [1, 2, 0], [10, 20, 30, 40, 50, 60],
        warning="flowers-102 lists 9 images, the whole set has 8189", problem="no complete lists in",
        damaged=("flowers-102/setid.mat", b"no matrix")),  # image 1 shows class 2, label 1; two parts are learned
    "aircraft": Tiny(planes, ("707-320", "F/A-18"), [0, 1, 0, 1], [0, 1], [0, 10, 20, 30],
        warning="data lists 6 images, the whole set has 10000", problem=r"no list of images .*images_variant_test\.txt",
        damaged=("fgvc-aircraft-2013b/data/images_variant_test.txt", b"0000004\n")),
}
# fmt: on
PHOTOGRAPHS = ["cub200", "cars196", "sop", "flowers102", "aircraft"]


def read(name: str, root: Path, **options: Any) -> Any:
    takes_size = "size" in inspect.signature(READERS[name]).parameters
    return READERS[name](root=str(root), **({"size": 4} if takes_size else {}), **options)


def everything(dataset: LabelledDataset) -> torch.Tensor:
    return dataset[list(range(len(dataset)))][0]


@pytest.mark.parametrize("name", READERS)
def test_every_reader_has_a_card_a_public_name_and_named_options(name):
    assert getattr(tripletmas.data, READERS[name].__name__) is READERS[name]
    assert (CARDS / name / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    parameters = inspect.signature(READERS[name]).parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert ("download" in parameters) == (name in TINY)
    if name in TINY:  # a public set: sequences give it the folder that all share
        assert parameters["root"].default == "data"
        assert parameters["download"].default is False


@pytest.mark.parametrize("name", TINY)
def test_a_copy_on_disk_is_read(name, tmp_path, monkeypatch, caplog):
    tiny = TINY[name]
    tiny.write(tmp_path, monkeypatch)
    source = read(name, tmp_path)
    assert source.train.class_names == tiny.classes
    assert source.train.labels.tolist() == tiny.train
    assert (None if source.test is None else source.test.labels.tolist()) == tiny.test
    assert source.train.sample_shape == tiny.shape
    levels = (255 * everything(source.train)).flatten(1).amax(dim=1).tolist()
    assert levels == pytest.approx(tiny.levels, abs=3 if name in ("flowers102", "aircraft") else 1e-4)  # JPEG
    assert tiny.warning in caplog.text
    if name in PHOTOGRAPHS:
        assert torch.equal(everything(read(name, tmp_path, in_memory=False).train), everything(source.train))
    if tiny.also_below:
        tiny.write(tmp_path / "x" / tiny.also_below, monkeypatch)
        assert torch.equal(everything(read(name, tmp_path / "x").train), everything(source.train))
    if tiny.damaged:
        file, content = tiny.damaged
        (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
        with pytest.raises(ValueError, match=f"^{name}: {tiny.problem}") as caught:
            read(name, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_that_a_list_names_must_exist(name, in_memory, tmp_path, monkeypatch):
    TINY[name].write(tmp_path, monkeypatch)
    file = Path(read(name, tmp_path).train.paths[-1])
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file.parent.name}/{file.name} cannot be read: no such file"):
        read(name, tmp_path, in_memory=in_memory)


# --- downloads


@pytest.mark.parametrize("name", TINY)
def test_a_missing_set_says_which_option_fetches_it(name, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name}: no .*give download=True \(--data.download true\)") as caught:
        READERS[name](root=str(tmp_path))
    assert f"datasets/{name}/README.md" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TINY)
def test_a_download_without_network_is_one_sentence(name, tmp_path, monkeypatch):
    def offline(*_arguments, **_options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(OSError, match=rf"^{name}: the download into .* failed \(.*name resolution") as caught:
        READERS[name](root=str(tmp_path / "data"), download=True)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_download_counts_only_when_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(CUB, "download_and_remove", lambda self: (_ for _ in ()).throw(EOFError("cut short")))
    (tmp_path / "cub200.partial").mkdir()  # left by a download that was killed
    (tmp_path / "cub200.partial" / "junk").touch()
    with pytest.raises(OSError, match=r"^cub200: the download into .* failed \(cut short\)"):
        read("cub200", tmp_path, download=True)
    assert not (tmp_path / "cub200").exists()

    def fetch(self):
        assert not (tmp_path / "cub200.partial" / "junk").exists()
        cub(tmp_path / "cub200.partial")

    monkeypatch.setattr(CUB, "download_and_remove", fetch)
    assert len(read("cub200", tmp_path, download=True).train) == 8
    assert not (tmp_path / "cub200.partial").exists()
    monkeypatch.setattr(CUB, "download_and_remove", lambda self: pytest.fail("fetched what is there"))
    assert len(read("cub200", tmp_path, download=True).train) == 8
    shutil.rmtree(tmp_path / "cub200")
    (tmp_path / "cub200").mkdir()
    (tmp_path / "cub200" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"cub200 has no CUB_200_2011/images\.txt; complete it, or delete"):
        read("cub200", tmp_path, download=True)


# --- what is their own


def test_digits_are_the_bundled_ones():
    source = datasets.digits()
    assert source.train.sample_shape == (1, 8, 8)
    images = everything(source.train)
    assert (len(images), float(images.min()), float(images.max())) == (1797, 0.0, 1.0)
    assert [int((source.train.labels == label).sum()) for label in (0, 8)] == [178, 174]  # load_digits' own description
    assert [task.name for task in make_stream(source)[0]] == ["0,1", "2,3", "4,5", "6,7", "8,9"]


def test_omniglot_is_strokes_on_nothing_grouped_by_alphabet(tmp_path):
    omniglot_tree(tmp_path / "images_background")
    train = datasets.omniglot(root=str(tmp_path), size=10).train
    assert train.groups == ("Greek", "Greek", "Latin", "Latin")
    image = train[0][0][0]
    assert image[5, 0] == 1.0
    assert image[5, 9] == 0.0
    assert 0 < image[5, 4] < 1 or 0 < image[5, 5] < 1  # antialiased
    assert train.paths is not None
    assert train.paths[0].endswith("Greek/character01/0.png")


@pytest.mark.parametrize("wrapped", ["", "images_background/"])
def test_omniglot_in_an_archive_or_beside_one(tmp_path, wrapped):
    omniglot_tree(tmp_path / "tree")
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "any.zip", "w") as archive:
        for path in sorted((tmp_path / "tree").rglob("*.png")):
            archive.write(path, wrapped + path.relative_to(tmp_path / "tree").as_posix())
    for root in (tmp_path / "data", tmp_path / "data" / "any.zip"):
        train = datasets.omniglot(root=str(root)).train
        assert len(train) == 16
        assert train.class_names[0] == "Greek/character01"


def test_pixels_keep_their_place(tmp_path, monkeypatch):
    cifar(tmp_path, monkeypatch)
    house_numbers(tmp_path, monkeypatch)
    clothes, numbers = read("cifar10", tmp_path).test, read("svhn", tmp_path).test
    assert clothes[1][0].nonzero().tolist() == [[1, 0, 5]]  # green, row 0, column 5
    assert (255 * numbers[6][0][0]).unique().tolist() == pytest.approx([7])  # red is the digit
    assert float(numbers[6][0][1:].max()) == 0


def test_products_are_grouped_by_kind_and_small_ones_left_out(tmp_path):
    products(tmp_path)
    assert read("sop", tmp_path).train.groups == ("bicycle", "chair")
    assert len(read("sop", tmp_path, min_images=2).train) == 12
    with pytest.raises(ValueError, match="min_images=9"):
        photographs.sop(root=str(tmp_path), min_images=9)


@pytest.mark.slow
def test_all_of_omniglot(shared_data):
    train = datasets.omniglot(root=str(shared_data / "omniglot")).train
    assert len(set(train.groups or ())) == 30
    assert train.labels.bincount().tolist() == [20] * 964
    ink = float(train[list(range(0, len(train), 100))][0].mean())
    assert 0.02 < ink < 0.2  # strokes are thin, and they are what is bright
    stream, _ = make_stream(datasets.Source(train), tasks=10)
    assert len(stream) == 10
    assert stream[0].name == "task00 (Alphabet_of_the_Magi, Anglo-Saxon_Futhorc, ...)"


def test_all_of_fashion_mnist(shared_data):
    source = datasets.fashion_mnist(root=str(shared_data))
    assert source.test is not None
    assert source.train.labels.bincount().tolist() == [6000] * 10
    assert source.test.labels.bincount().tolist() == [1000] * 10
    assert make_stream(source)[0][4].name == "Bag,Ankle boot"
