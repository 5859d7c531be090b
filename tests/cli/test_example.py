"""The command example: pictures to try on, and commands that work as they are printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from tripletmas.data import shop
from tripletmas.data.folders import folder
from tripletmas.data.tasks import make_stream


def test_three_months_of_four_products_one_of_which_returns(tmp_path: Path):
    assert shop.draw_shop(tmp_path, size=32, per_product=5) == 60
    stream, _ = make_stream(folder(root=str(tmp_path), size=32, class_from="leaf"))
    assert [task.name for task in stream] == ["month1", "month2", "month3"]
    names = [{task.train.class_names[label] for label in task.classes} for task in stream]
    assert [len(each) for each in names] == [4, 4, 4]
    assert names[0] & names[1] == names[1] & names[2] == names[0] & names[2] == {"mug"}
    assert set.union(*names) == shop._PRODUCTS.keys()


def test_a_picture_is_the_same_whenever_it_is_drawn_and_no_other(tmp_path: Path):
    def drawn(*what) -> bytes:
        return shop.draw_picture(*what, 32).tobytes()

    first = drawn("month1", "mug", 0)
    assert drawn("month1", "mug", 0) == first
    others = [drawn("month1", "mug", 1), drawn("month2", "mug", 0), drawn("month1", "vase", 0)]
    assert len({first, *others}) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_is_printed_works_as_it_stands(tmp_path: Path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    status, printed, _ = call("example", "shop")
    assert status == 0
    assert printed.startswith("shop: 240 pictures")
    with Image.open("shop/month1/mug/000.jpg") as picture:
        assert picture.size == (96, 96)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    lines = [line.partition("  #")[0] for line in printed.splitlines() if line.startswith("  tripletmas ")]
    assert [line.split()[1] for line in lines] == ["train", "index", "query", "resume"]
    for line in lines:
        few = ["--training.epochs", "3"] if " train " in line else []
        assert call(*shlex.split(line)[1:], *few)[0] == 0, line
    assert Path("neighbours.html").is_file()


def test_nothing_is_drawn_over_what_is_there(tmp_path: Path, monkeypatch, call):
    monkeypatch.setattr(shop, "draw_shop", lambda root: root.mkdir() or 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own.txt").touch()
    status, _, complaint = call("example", "shop", "--out", tmp_path / "full")
    assert (status, "full is not empty: name another folder" in complaint) == (2, True)
    (tmp_path / "file").touch()
    assert "file is a file: name a folder" in call("example", "shop", "--out", tmp_path / "file")[2]
    (tmp_path / "empty").mkdir()
    assert call("example", "shop", "--out", tmp_path / "empty")[0] == 0
    assert call("example", "shop", "--out", tmp_path / "new" / "shop with spaces")[1].count("'") >= 2
    assert call("example", "shoe")[0] == 2
