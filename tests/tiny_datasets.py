"""Tiny copies of public data sets, each in its layout on disk; some change what torchvision expects of its files."""

from __future__ import annotations

import hashlib
import pickle
import struct

import numpy as np
import torchvision.datasets
from PIL import Image
from scipy.io import savemat


def picture(path, value: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).convert(mode).save(path)


def omniglot_tree(root, _=None) -> None:
    for alphabet in ("Greek", "Latin"):
        for character in (1, 2):
            for drawing in range(4):
                path = root / alphabet / f"character{character:02d}" / f"{drawing}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.new("1", (105, 105), 1)
                image.paste(0, (0, 0, 52, 105))  # the left half is ink
                image.save(path)


def write_idx(path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)  # 8: unsigned bytes
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def clothes(root, _=None, *, name: str = "FashionMNIST") -> None:
    """4 images of each class to learn from and 2 to ask for, of grey level 10 * class + i."""
    for part, per_class in (("train", 4), ("t10k", 2)):
        labels = np.arange(10).repeat(per_class)
        levels = 10 * labels + np.tile(np.arange(per_class), 10)
        write_idx(root / name / "raw" / f"{part}-images-idx3-ubyte", levels[:, None, None] * np.ones((1, 28, 28)))
        write_idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", labels)


def cifar(root, monkeypatch, *, fine: bool = False) -> None:
    """Images 0 to 3 of each part show an ant, a zebra, and so on by turns; their green is 10 times their number."""
    reader = torchvision.datasets.CIFAR100 if fine else torchvision.datasets.CIFAR10
    folder = root / reader.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    pixels = np.zeros((4, 3, 32, 32), dtype=np.uint8)
    pixels[:, 1, 0, 5] = 10 * np.arange(4)  # row 0, column 5
    batch = {"data": pixels.reshape(4, -1), "fine_labels" if fine else "labels": [1, 0, 1, 0]}
    monkeypatch.setattr(reader, "train_list", [["a", write("a", batch)]])
    monkeypatch.setattr(reader, "test_list", [["b", write("b", batch)]])
    meta = {**reader.meta, "md5": write(reader.meta["filename"], {reader.meta["key"]: ["zebra", "ant"]})}
    monkeypatch.setattr(reader, "meta", meta)


def cub(root, _=None) -> None:
    folders = ["001.Albatross"] * 4 + ["150.Wren"] * 4  # one class of each half
    names = [f"{folder}/{i}.png" for i, folder in enumerate(folders)]
    for i, name in enumerate(names):
        picture(root / "CUB_200_2011" / "images" / name, i, mode="L" if i % 2 else "RGB")
    lists = root / "CUB_200_2011"
    (lists / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (lists / "image_class_labels.txt").write_text("".join(f"{i} {int(n[:3])}\n" for i, n in enumerate(names, 1)))


def cars(root, _=None) -> None:
    names = ["Audi A/B 2012", "BMW X5 2007"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "names.csv").write_text("\n".join(names))
    for split in ("train", "test"):
        rows = [(f"{number}{split}{i}.png", number) for number in (1, 2) for i in range(2)]
        (root / f"anno_{split}.csv").write_text("".join(f"{file},1,2,3,4,{number}\n" for file, number in rows))
        for file, number in rows:
            picture(root / "car_data" / "car_data" / split / names[number - 1].replace("/", "-") / file)


def products(root, _=None) -> None:
    """Product 1 of the bicycles has 4 images, product 2 has 3; product 3, a chair, has 5."""
    rows = {"train": [(1, "bicycle")] * 4 + [(2, "bicycle")] * 3, "test": [(3, "chair")] * 5}
    for split, entries in rows.items():
        lines = ["image_id class_id super_class_id path"]
        for i, (product, kind) in enumerate(entries):
            picture(root / "Stanford_Online_Products" / f"{kind}_final" / f"{product}_{i}.png")
            lines.append(f"{i} {product} 1 {kind}_final/{product}_{i}.png")
        (root / "Stanford_Online_Products" / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n")


def flowers(root, _=None) -> None:
    """Image i of 9 shows class 1 + i % 3, in grey level 10 i; 1 and 2 of each three train, the last is for testing."""
    home = root / "flowers-102"
    for number in range(1, 10):
        picture(home / "jpg" / f"image_{number:05d}.jpg", 10 * number)
    savemat(home / "imagelabels.mat", {"labels": [[1 + number % 3 for number in range(1, 10)]]})
    savemat(home / "setid.mat", {"trnid": [[1, 2, 3]], "valid": [[4, 5, 6]], "tstid": [[7, 8, 9]]})


def planes(root, _=None) -> None:
    """Images 0 to 3 of trainval show a 707-320, an F/A-18, and so on by turns; 4 and 5 are for testing."""
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ("707-320", "F/A-18")
    for number in range(6):
        picture(data / "images" / f"{number:07d}.jpg", 10 * number)
    for part, numbers in {"trainval": range(4), "test": range(4, 6)}.items():
        lines = [f"{number:07d} {variants[number % 2]}" for number in numbers]
        (data / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")


def house_numbers(root, monkeypatch) -> None:
    """Two of each digit to learn from, one to ask for; digit 0 is numbered 10; the red of an image is its digit."""
    root.mkdir(parents=True, exist_ok=True)
    split_list = {}
    for split, repeats in (("train", 2), ("test", 1)):
        digits = np.repeat(np.arange(1, 11), repeats)
        pixels = np.zeros((32, 32, 3, len(digits)), dtype=np.uint8)
        pixels[:, :, 0] = digits % 10
        file = root / f"{split}_32x32.mat"
        savemat(file, {"X": pixels, "y": digits[:, None].astype(np.uint8)})
        split_list[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
