"""The named data sets: real ones where they are at hand, else tiny copies in their layout on disk."""

from __future__ import annotations

import hashlib
import pickle
import socket
import zipfile

import numpy as np
import pytest
import torchvision.datasets
from tiny_datasets import house_numbers, omniglot_tree, write_idx

from tripletmas.data import datasets, photographs
from tripletmas.data.tasks import make_stream

DOWNLOADED = {
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
}


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_missing_set_says_which_option_fetches_it(name, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name}: no .*give download=True \(--data.download true\)") as caught:
        DOWNLOADED[name](root=str(tmp_path))
    assert f"datasets/{name}/README.md" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_download_without_network_is_one_sentence(name, tmp_path, monkeypatch):
    def offline(*_arguments, **_options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(OSError, match=rf"^{name}: the download into .* failed \(.*name resolution") as caught:
        DOWNLOADED[name](root=str(tmp_path / "data"), download=True)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_digits_are_the_bundled_ones():
    source = datasets.digits()
    assert len(source.train) == 1797
    assert source.train.sample_shape == (1, 8, 8)
    images = source.train[list(range(1797))][0]
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert [int((source.train.labels == label).sum()) for label in (0, 8)] == [178, 174]  # load_digits' own description
    assert [task.name for task in make_stream(source)[0]] == ["0,1", "2,3", "4,5", "6,7", "8,9"]


@pytest.mark.parametrize("below", ["", "images_background", "omniglot-py/images_background"])
def test_omniglot_in_each_of_its_trees(tmp_path, below, caplog):
    omniglot_tree(tmp_path / below)
    train = datasets.omniglot(root=str(tmp_path), size=10).train
    assert train.class_names == ("Greek/character01", "Greek/character02", "Latin/character01", "Latin/character02")
    assert train.groups == ("Greek", "Greek", "Latin", "Latin")
    assert "has 4 characters, the whole set has 964" in caplog.text
    assert train.sample_shape == (1, 10, 10)
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


def test_all_of_omniglot(shared_data):
    train = datasets.omniglot(root=str(shared_data / "omniglot")).train
    assert len(train) == 964 * 20
    assert len(train.class_names) == 964
    assert len(set(train.groups or ())) == 30
    assert train.labels.bincount().tolist() == [20] * 964
    ink = float(train[list(range(0, len(train), 100))][0].mean())
    assert 0.02 < ink < 0.2  # strokes are thin, and they are what is bright
    stream, _ = make_stream(datasets.Source(train), tasks=10)
    assert len(stream) == 10
    assert stream[0].name == "task00 (Alphabet_of_the_Magi, Anglo-Saxon_Futhorc, ...)"


@pytest.mark.parametrize(("read", "name"), [(datasets.mnist, "MNIST"), (datasets.fashion_mnist, "FashionMNIST")])
def test_idx_files(tmp_path, read, name):
    raw = tmp_path / name / "raw"
    for part, num in (("train", 20), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.arange(num)[:, None, None] * np.ones((1, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(num) % 10)
    source = read(root=str(tmp_path))
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (20, 10)
    assert source.train.sample_shape == (1, 28, 28)
    assert float(source.train[13][0].mean()) == pytest.approx(13 / 255)
    assert int(source.train[13][1]) == 3
    assert len(make_stream(source)[0]) == 5
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-5])
    with pytest.raises(ValueError, match="no complete copy in"):
        read(root=str(tmp_path))


def test_all_of_fashion_mnist(shared_data):
    source = datasets.fashion_mnist(root=str(shared_data))
    assert source.test is not None
    assert source.train.labels.bincount().tolist() == [6000] * 10
    assert source.test.labels.bincount().tolist() == [1000] * 10
    assert source.train.class_names[9] == "Ankle boot"
    assert make_stream(source)[0][4].name == "Bag,Ankle boot"


@pytest.mark.parametrize("read", [datasets.cifar10, datasets.cifar100])
def test_cifar_batches(tmp_path, monkeypatch, read):
    fine = read is datasets.cifar100
    reader = torchvision.datasets.CIFAR100 if fine else torchvision.datasets.CIFAR10
    folder = tmp_path / reader.base_folder
    folder.mkdir()

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    pixels = np.zeros((4, 3, 32, 32), dtype=np.uint8)
    pixels[:, 1, 0, 5] = 255  # green, row 0, column 5
    batch = {"data": pixels.reshape(4, -1), "fine_labels" if fine else "labels": [1, 0, 1, 0]}
    monkeypatch.setattr(reader, "train_list", [["a", write("a", batch)]])
    monkeypatch.setattr(reader, "test_list", [["b", write("b", batch)]])
    meta = {**reader.meta, "md5": write(reader.meta["filename"], {reader.meta["key"]: ["zebra", "ant"]})}
    monkeypatch.setattr(reader, "meta", meta)
    source = read(root=str(tmp_path))
    assert source.test is not None
    assert source.train.class_names == ("zebra", "ant")  # the publishers' order
    image, label = source.test[0]
    assert image.shape == (3, 32, 32)
    assert image.nonzero().tolist() == [[1, 0, 5]]
    assert int(label) == 1


@pytest.mark.parametrize("below", ["", "svhn"])
def test_house_numbers(tmp_path, monkeypatch, below):
    house_numbers(tmp_path / below, monkeypatch)
    source = datasets.svhn(root=str(tmp_path))
    assert source.test is not None
    assert source.train.labels.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 0, 0]
    assert source.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert source.train.class_names == tuple("0123456789")
    image, label = source.train[13]
    assert image.shape == (3, 32, 32)
    assert (image[0] * 255).unique().tolist() == pytest.approx([int(label)]) == [7]
    assert float(image[1:].max()) == 0
    file = tmp_path / below / "test_32x32.mat"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="svhn: no complete copy in"):
        datasets.svhn(root=str(tmp_path))
