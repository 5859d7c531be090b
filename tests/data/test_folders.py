"""A user's own images: folders of folders, archives, and CSV files."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from tripletmas.data import tables
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.folders import csv, folder, unlabelled
from tripletmas.data.preparation import Preparation
from tripletmas.data.tasks import make_stream
from tripletmas.data.text_tables import jsonl


def tree(root, names) -> None:
    """One grey image for each name, 0, 1, 2, ... bright."""
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(root / name)


def shown(dataset: LabelledDataset | None) -> dict[str, str] | None:
    """file -> class name."""
    if dataset is None:
        return None
    names = [dataset.class_names[label] for label in dataset.labels.tolist()]
    return {path.rsplit("/", 1)[1]: name for path, name in zip(dataset.paths or (), names, strict=True)}


PARTS = ["train/cat/1.png", "train/dog/2.png", "gallery/cat/3.png", "validation/dog/4.png", "val/cat/5.png"]
IN_TASKS = [name.replace("/", "/day/", 1) for name in PARTS]
SPLIT = ({"1.png": "cat", "2.png": "dog"}, {"0.png": "cat"}, {"3.png": "cat"})


@pytest.mark.parametrize("packed", [None, "", "pets/"])  # in a folder; in an archive, which may wrap it in a folder
@pytest.mark.parametrize(
    ("names", "parts", "groups"),
    [
        (["dog/1.png", "cat/2.png", "cat/3.png"], ({"1.png": "dog", "2.png": "cat", "3.png": "cat"}, None, None), None),
        # task folders are groups, and the same name in two is two classes
        (["day/cat/1.png", "night/cat/3.png"], ({"1.png": "day/cat", "3.png": "night/cat"}, None, None), "day night"),
        *(([*PARTS, f"{test}/cat/0.png"], SPLIT, None) for test in ("test", "query", "Test")),
        (
            [*IN_TASKS, "query/day/cat/0.png"],
            [{file: f"day/{name}" for file, name in part.items()} for part in SPLIT],
            "day day",
        ),
        # without train, these are classes
        (["test/1.png", "gallery/2.png"], ({"1.png": "test", "2.png": "gallery"}, None, None), None),
    ],
)
def test_layouts(names, parts, groups, packed, tmp_path, caplog):
    root = tmp_path / "in"
    tree(root, names)
    if packed is not None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name in names:
                archive.write(root / name, packed + name)
        root = tmp_path / "a.zip"
    source = folder(root=str(root), size=4, channels=1)
    assert (shown(source.train), shown(source.test), shown(source.gallery)) == tuple(parts)
    assert source.train.groups == (None if groups is None else tuple(groups.split()))
    assert ("left out 2 images of the validation part" in caplog.text) == ("0.png" in names[-1])
    assert ("no folder train, so gallery, test are read as classes or tasks" in caplog.text) == (
        names[0] == "test/1.png"
    )
    # the image and its label belong together: image i is i bright
    bright = [round(255 * float(source.train[position][0].mean())) for position in range(len(source.train))]
    assert [names[level].rsplit("/", 1)[1] for level in bright] == list(shown(source.train) or ())


def test_defaults_and_the_order_of_numbers(tmp_path):
    tree(tmp_path, ["10/1.png", "9/2.png"])
    train = folder(root=str(tmp_path)).train
    assert train.class_names == ("9", "10")
    assert train.sample_shape == (3, 64, 64)


@pytest.mark.parametrize("names", [["1.png"], ["cat/1.png", "2.png"], ["cat/1.png", "a/cat/2.png"], ["a/b/c/1.png"]])
def test_other_layouts_are_refused_with_an_example(tmp_path, names):
    tree(tmp_path, names)
    with pytest.raises(ValueError, match=rf"must hold <class>/<image> or .*{names[-1]}"):
        folder(root=str(tmp_path))


def test_unreadable_images_of_a_folder(tmp_path, caplog):
    tree(tmp_path, ["cat/1.png", "dog/2.png"])
    (tmp_path / "cat" / "0.png").write_bytes(b"")
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "3.png").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"0\.png cannot be read: the file is empty \(--data\.skip_unreadable true, or "
    ):
        folder(root=str(tmp_path))
    train = folder(root=str(tmp_path), skip_unreadable=True).train
    assert shown(train) == {"1.png": "cat", "2.png": "dog"}
    assert train.class_names == ("cat", "dog")
    assert "skipped 2 of 4 images" in caplog.text
    shutil.rmtree(tmp_path / "dog")
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(ValueError, match="no readable training image"):
        folder(root=str(tmp_path), skip_unreadable=True)


@pytest.mark.slow
def test_photographs_of_clothes(shared_data, caplog):
    source = folder(root=str(shared_data / "clothing" / "clothing-96.zip"), size=32)
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (3068, 372)
    assert source.train.samples is source.test.samples
    assert len(source.train.class_names) == 10
    stream, _ = make_stream(source, tasks=5, augment="crop-flip")
    assert sum(len(task.train) for task in stream) == 3068
    assert stream[0].train[[0, 1]][0].shape == (2, 3, 32, 32)
    assert "left out 341 images" in caplog.text
    lazy = folder(root=str(shared_data / "clothing" / "clothing-96.zip"), size=32, in_memory=False)
    batches = lazy.train.subset([0, 1000, 2000]).loader(2, num_workers=2)
    assert [float(x.sum()) for x, _ in batches] == [
        float(x.sum()) for x, _ in source.train.subset([0, 1000, 2000]).loader(2)
    ]


def table(tmp_path, text: str) -> str:
    tree(tmp_path, [f"{i}.png" for i in range(6)])
    (tmp_path / "list.csv").write_text(text, encoding="utf-8-sig")
    return str(tmp_path / "list.csv")


def test_labels_of_any_kind_name_the_classes(tmp_path):
    big = 2**24
    path = table(tmp_path, f"path,label,note\n0.png,{big + 1},x\n1.png,{big},\n2.png,9,\n")
    train = csv(path=path, size=4, channels=1).train
    assert train.class_names == ("9", str(big), str(big + 1))
    assert train.labels.tolist() == [2, 1, 0]
    assert csv(path=table(tmp_path, 'label,path\n"a, b",0.png\nü,1.png\n')).train.class_names == ("a, b", "ü")


def test_tasks_and_splits_of_a_table(tmp_path):
    rows = ["0.png,a,x,train", "1.png,a,x,test", "2.png,a,x,Query", "3.png,a,x,gallery", "4.png,b,y,train"]
    source = csv(path=table(tmp_path, "\n".join(["path,label,task,split", *rows])), size=4)
    assert source.test is not None
    assert source.gallery is not None
    assert source.train.groups == ("x", "y")
    assert shown(source.train) == {"0.png": "a", "4.png": "b"}
    assert shown(source.test) == {"1.png": "a", "2.png": "a"}
    assert shown(source.gallery) == {"3.png": "a"}


def test_paths_are_relative_to_the_table_or_to_root(tmp_path, caplog):
    tree(tmp_path / "images", ["0.png"])
    tree(tmp_path, ["1.png", "2.png"])
    (tmp_path / "list.csv").write_text(f"path,label\n0.png,a\n{tmp_path / '1.png'},b\n../2.png,b\n")
    with pytest.raises(ValueError, match=r"list\.csv, line 2: no file .*0\.png"):
        csv(path=str(tmp_path / "list.csv"))
    assert len(csv(path=str(tmp_path / "list.csv"), root=str(tmp_path / "images"), size=4).train) == 3
    assert f"2 images do not lie below {tmp_path / 'images'}: {tmp_path / '1.png'}, ../2.png" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\n0.png,a\n", r"list\.csv, line 1: no column 'label' \(there are path, class\)"),
        ("label\na\n", "line 1: no column 'path'"),
        ("", "line 1: no column 'path'.*none"),
        ("path,label\n", "lists no images"),
        ("path,label\n0.png,a\nnowhere.png,a\n", r"list\.csv, line 3: no file .*nowhere\.png"),
        ("path,label\n0.png,a\n1.png\n", "line 3: fewer cells than columns"),
        ("path,label\n0.png,a\n1.png,\n", "line 3: no label"),
        ("path,label\n0.png, \n", "line 2: no label"),
        ('path,label\n0.png,"a\n1.png,b\n2.png,c\n', "line 2: a quote is opened here, and never closed"),
        ('path,label\n0.png,"a\n1.png,b"\n2.png,c\n', "line 2: a cell of several lines.*is a quote not closed"),
        ('"path,label\n0.png,a"\n', "line 1: a cell of several lines"),
        ('path,label\n0.png,"a"b\n', "line 2: a quoted cell goes on after its quote"),
        ("path,label\n0.png,dress, red\n", "line 2: more cells than columns; quote a cell that holds a comma"),
        ("path,label,\n1.png,dress,\n0.png,dress, red\n", "line 3: a cell that no column wants"),
        (
            "path,label,note\n1.png,dress,x\n0.png,dress, red\n",
            "line 3: a cell that no column wants begins with a space",
        ),
        ("path,label\n0.png,a\n0.png,b\n", "line 3: 0.png has label 'b', but in line 2 'a'"),
        ("path,label\n0.png,a\n./0.png,b\n", "line 3: ./0.png has label 'b', but in line 2 'a'"),
        ("path,label,split\n0.png,a,train\n0.png,a,query\n", "line 3: 0.png is for test, but in line 2 for train"),
        ("path,label,split\n0.png,a,gallery\n0.png,a,test\n", "line 3: 0.png is for test, but in line 2 for gallery"),
        ("path,label\n0.png,a\0b\n", "line 2: .*a zero byte"),
        ("path,label\n0\0.png,a\n", "line 2: .*a zero byte"),
        ("path,label\n" + "0" * 5000 + ".png,a\n", "line 2: no file"),
        ("path,label\n0.png,a\n1.png," + "b" * 131_073 + "\n", r"line 3: field larger than field limit \(131072\)"),
        ("path,label,Split\n0.png,a,test\n", "line 1: the column 'Split' is not known: call it 'split'"),
        ("path,label,tasks\n0.png,a,x\n", "line 1: the column 'tasks' is not known: call it 'task'"),
        ("path,label,label\n0.png,a,b\n", "line 1: the column 'label' is there twice"),
        ("path,label,split\n0.png,a,trian\n", "line 2: split must be one of train, test, query, gallery, got 'trian'"),
        ("path,label,task\n0.png,a,x\n0.png,a,y\n", "line 3: 0.png is in task 'y', but in line 2 in task 'x'; a label"),
        ("path,label,split\n0.png,a,test\n", "no readable training image"),
    ],
)
def test_a_table_that_is_wrong_names_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        csv(path=table(tmp_path, text), size=4)


@pytest.mark.parametrize("end", ["csv", "jsonl"])
def test_a_file_without_line_ends_is_not_read_whole(end, tmp_path, monkeypatch):
    """It may be gigabytes of something else."""
    monkeypatch.setattr(tables, "_LONGEST_LINE", 100)
    content = {"csv": "path,label\n" + "\0" * 101, "jsonl": '{"text": "a", "label": "x"}\n"' + "a" * 101}
    (tmp_path / f"x.{end}").write_text(content[end])
    with pytest.raises(ValueError, match=rf"x\.{end}, line 2 has more than 100 characters: is it a text file"):
        (csv if end == "csv" else jsonl)(path=str(tmp_path / f"x.{end}"))


def test_a_file_that_is_listed_again_counts_once_but_may_also_be_in_the_gallery(tmp_path, caplog):
    rows = ["0.png,a,train,x", "0.png,a,train,y", "./0.png,a,train,z", "0.png,a,gallery,", "1.png,a,test,"]
    source = csv(path=table(tmp_path, "\n".join(["path,label,split,note", *rows])), size=4)
    assert (len(source.train), len(source.gallery or ()), len(source.test or ())) == (1, 1, 1)
    assert "2 rows repeat an earlier one and count once (line 3, 4)" in caplog.text
    assert "columns that nothing is read from: note" in caplog.text


def test_files_missing_from_a_table_can_be_skipped(tmp_path, caplog):
    path = table(tmp_path, "path,label\n0.png,a\nnowhere.png,b\n")
    assert csv(path=path, skip_unreadable=True).train.class_names == ("a",)
    assert "skipped 1 of 2 images" in caplog.text


def test_a_table_or_its_folder_may_be_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no such file: .*nowhere\.csv"):
        csv(path=str(tmp_path / "nowhere.csv"))
    with pytest.raises(ValueError, match=r"no such folder: .*nowhere"):
        csv(path=table(tmp_path, "path,label\n"), root=str(tmp_path / "nowhere"))
    (tmp_path / "latin.csv").write_bytes("path,label\n0.png,ü\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv is not UTF-8"):
        csv(path=str(tmp_path / "latin.csv"))


def test_unlabelled_images_are_all_below_a_folder_in_order_of_their_names(write_images, tmp_path):
    for number, name in enumerate(("b/x", "a")):
        write_images(tmp_path / name, count=2, seed=number)
    found = unlabelled(tmp_path, Preparation((4, 4), 3))
    assert [Path(path).relative_to(tmp_path).as_posix() for path in found.paths or ()] == [
        *("a/0.png", "a/1.png", "b/x/0.png", "b/x/1.png")
    ]
    assert found.sample_shape == (3, 4, 4)
    lazily, inverted = (
        unlabelled(tmp_path, Preparation((4, 4), 3), in_memory=False),
        unlabelled(tmp_path, Preparation((4, 4), 3), invert=True),
    )
    for position in range(4):
        assert torch.equal(lazily[position][0], found[position][0])
        assert torch.equal(inverted[position][0], 1 - found[position][0])


def test_a_class_whose_name_is_not_utf8_is_refused(tmp_path):
    tree(tmp_path, ["a/0.png"])
    (tmp_path / "a").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(ValueError, match=r"the name of the class 'caf\\udce9' is not UTF-8: rename it"):
        folder(root=str(tmp_path), size=4)


def test_folders_of_one_name_are_one_class_of_several_tasks(tmp_path, write_images):
    for month, products in {"jan": ("cup", "mug"), "feb": ("mug",), "mar": ("bowl", "cup")}.items():
        for product in products:
            write_images(tmp_path / month / product, count=4)
    source = folder(root=str(tmp_path), size=8, class_from="leaf")
    assert source.train.class_names == ("bowl", "cup", "mug")
    stream, _ = make_stream(source, groups=["jan", "feb", "mar"])
    assert [task.classes for task in stream] == [(1, 2), (2,), (0, 1)]
    assert all("/feb/mug/" in path for path in stream[1].train.paths or ())
    by_path = folder(root=str(tmp_path), size=8).train
    assert by_path.class_names == ("feb/mug", "jan/cup", "jan/mug", "mar/bowl", "mar/cup")
    assert by_path.groups == ("feb", "jan", "jan", "mar", "mar")
    with pytest.raises(ValueError, match="class_from must be path or leaf, got 'label'"):
        folder(root=str(tmp_path), class_from="label")  # pyright: ignore[reportArgumentType]


def test_tasks_that_share_no_class_are_groups_of_classes_as_ever(tmp_path, write_images):
    for branch in ("jan/cup", "feb/mug"):
        write_images(tmp_path / branch, count=4)
    train = folder(root=str(tmp_path), size=8, class_from="leaf").train
    assert (train.class_names, train.groups) == (("cup", "mug"), ("jan", "feb"))


def test_a_label_may_be_in_several_tasks_of_a_table(tmp_path, write_images):
    write_images(tmp_path / "images", count=12)
    rows = [f"images/{i}.png,{'cup' if i % 2 else 'mug'},{'jan' if i < 8 else 'feb'}" for i in range(12)]
    table = tmp_path / "shop.csv"
    table.write_text("path,label,task\n" + "\n".join(rows))
    members = csv(path=str(table), size=8).train.members
    assert members == {"jan": (0, 1), "feb": (0, 1)}
