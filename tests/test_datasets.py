"""The named data sets: real ones where they are at hand, else tiny copies in their layout on disk."""

from __future__ import annotations

import hashlib
import pickle
import socket
import struct
import zipfile

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from pytorch_metric_learning.datasets import CUB

from tripletmas import datasets
from tripletmas.tasks import make_stream

DOWNLOADED = {
    "omniglot": datasets.omniglot,
    "mnist": datasets.mnist,
    "fashion-mnist": datasets.fashion_mnist,
    "cifar10": datasets.cifar10,
    "cifar100": datasets.cifar100,
    "cub200": datasets.cub200,
    "cars196": datasets.cars196,
    "sop": datasets.sop,
}


def picture(path, value: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).convert(mode).save(path)


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
    assert float(source.train.samples[:].min()) == 0.0
    assert float(source.train.samples[:].max()) == 1.0
    assert [int((source.train.labels == label).sum()) for label in (0, 8)] == [178, 174]  # load_digits' own description
    assert [task.name for task in make_stream(source)] == ["0,1", "2,3", "4,5", "6,7", "8,9"]


def omniglot_tree(root) -> None:
    for alphabet in ("Greek", "Latin"):
        for character in (1, 2):
            for drawing in range(4):
                path = root / alphabet / f"character{character:02d}" / f"{drawing}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.new("1", (105, 105), 1)
                image.paste(0, (0, 0, 52, 105))  # the left half is ink
                image.save(path)


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
    stream = make_stream(datasets.Source(train), tasks=10)
    assert len(stream) == 10
    assert stream[0].name == "task00 (Alphabet_of_the_Magi, Anglo-Saxon_Futhorc, ...)"


def write_idx(path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)  # 8: unsigned bytes
    path.write_bytes(header + array.astype(np.uint8).tobytes())


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
    assert len(make_stream(source)) == 5
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
    assert make_stream(source)[4].name == "Bag,Ankle boot"


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


def cub(root) -> None:
    folders = ["001.Albatross"] * 4 + ["150.Wren"] * 4  # one class of each half
    names = [f"{folder}/{i}.png" for i, folder in enumerate(folders)]
    for i, name in enumerate(names):
        picture(root / "CUB_200_2011" / "images" / name, i, mode="L" if i % 2 else "RGB")
    lists = root / "CUB_200_2011"
    (lists / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (lists / "image_class_labels.txt").write_text("".join(f"{i} {int(n[:3])}\n" for i, n in enumerate(names, 1)))


@pytest.mark.parametrize("below", ["", "cub200"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_cub_with_both_halves_of_its_classes(tmp_path, caplog, below, in_memory):
    cub(tmp_path / below)
    train = datasets.cub200(root=str(tmp_path), size=4, in_memory=in_memory).train
    assert train.class_names == ("001.Albatross", "150.Wren")
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert train[[0, 5]][0].shape == (2, 3, 4, 4)  # grey photographs become RGB
    assert float(train[5][0].mean()) * 255 == pytest.approx(5)
    assert "lists 8 images, the whole set has 11788" in caplog.text


def test_a_photograph_that_a_list_names_must_exist(tmp_path):
    cub(tmp_path)
    (tmp_path / "CUB_200_2011" / "images" / "150.Wren" / "5.png").unlink()
    for in_memory in (True, False):
        with pytest.raises(ValueError, match=r"150\.Wren/5\.png cannot be read: no such file"):
            datasets.cub200(root=str(tmp_path), in_memory=in_memory)
    (tmp_path / "CUB_200_2011" / "image_class_labels.txt").unlink()
    with pytest.raises(ValueError, match=r"the lists in .* cannot be read"):
        datasets.cub200(root=str(tmp_path))


def test_a_download_counts_only_when_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(CUB, "download_and_remove", lambda self: (_ for _ in ()).throw(EOFError("cut short")))
    (tmp_path / "cub200.partial").mkdir()  # left by a download that was killed
    (tmp_path / "cub200.partial" / "junk").touch()
    with pytest.raises(OSError, match=r"^cub200: the download into .* failed \(cut short\)"):
        datasets.cub200(root=str(tmp_path), download=True)
    assert not (tmp_path / "cub200").exists()

    def fetch(self):
        assert not (tmp_path / "cub200.partial" / "junk").exists()
        cub(tmp_path / "cub200.partial")

    monkeypatch.setattr(CUB, "download_and_remove", fetch)
    assert len(datasets.cub200(root=str(tmp_path), download=True, size=4).train) == 8
    assert not (tmp_path / "cub200.partial").exists()
    monkeypatch.setattr(CUB, "download_and_remove", lambda self: pytest.fail("fetched what is there"))
    assert len(datasets.cub200(root=str(tmp_path), download=True, size=4).train) == 8


def test_a_folder_with_something_else_is_not_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.setattr(CUB, "download_and_remove", lambda self: pytest.fail("fetched for nothing"))
    (tmp_path / "cub200").mkdir()
    (tmp_path / "cub200" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"cub200 has no CUB_200_2011/images\.txt; complete it, or delete"):
        datasets.cub200(root=str(tmp_path), download=True)


def test_cars(tmp_path):
    names = ["Audi A/B 2012", "BMW X5 2007"]
    (tmp_path / "names.csv").write_text("\n".join(names))
    for split in ("train", "test"):
        (tmp_path / f"anno_{split}.csv").write_text("".join(f"{n}{split}.png,1,2,3,4,{n}\n" for n in (1, 2)))
        for n, name in enumerate(names, 1):
            picture(tmp_path / "car_data" / "car_data" / split / name.replace("/", "-") / f"{n}{split}.png")
    train = datasets.cars196(root=str(tmp_path), size=4).train
    assert train.class_names == ("Audi A-B 2012", "BMW X5 2007")
    assert train.labels.tolist() == [0, 1, 0, 1]


def test_products_are_grouped_by_kind_and_small_ones_left_out(tmp_path, caplog):
    root = tmp_path / "Stanford_Online_Products"
    rows = {"train": [(1, "bicycle")] * 4 + [(2, "bicycle")] * 3, "test": [(3, "chair")] * 5}
    for split, products in rows.items():
        lines = ["image_id class_id super_class_id path"]
        for i, (product, kind) in enumerate(products):
            picture(root / f"{kind}_final" / f"{product}_{i}.png")
            lines.append(f"{i} {product} 1 {kind}_final/{product}_{i}.png")
        (root / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n")
    train = datasets.sop(root=str(tmp_path), size=4).train
    assert train.class_names == ("bicycle/1", "chair/3")
    assert train.groups == ("bicycle", "chair")
    assert train.labels.bincount().tolist() == [4, 5]
    assert "left out 1 products with fewer than 4 images" in caplog.text
    assert len(datasets.sop(root=str(tmp_path), size=4, min_images=2).train) == 12
    with pytest.raises(ValueError, match="min_images=9"):
        datasets.sop(root=str(tmp_path), min_images=9)
