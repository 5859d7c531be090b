"""Facts of images in a CSV file: what is read, the rules that are stated, and every wrong row."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from tripletmas.objectives.facts.listed import facts


@pytest.fixture
def write(tmp_path):
    """Writes pictures a.png, b.png, c.png and a CSV file of these lines; gives the file."""

    def make(*lines: str, header: str = "image,subject,predicate,object,split") -> str:
        for number, name in enumerate("abc"):
            Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tmp_path / f"{name}.png")
        (tmp_path / "facts.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return str(tmp_path / "facts.csv")

    return make


def test_images_and_facts(write, tmp_path):
    csv = write(
        "a.png,circle,,,train", "a.png,Circle, Left  Of ,square,train", "b.png,circle,red,,Train", "c.png,circle,,,test"
    )
    source = facts(csv=csv, size=8)
    assert source.train.class_names == ("circle", "circle, red", "circle, left of, square")  # by order, then by name
    assert source.train.truth.tolist() == [[True, False, True], [False, True, False]]
    assert source.test is not None
    assert source.test.truth.tolist() == [[True, False, False]]
    assert source.train.paths == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    samples, labels = source.train[[1]]
    assert samples.shape == (1, 3, 8, 8)
    assert samples[0, 0, 0, 0] == pytest.approx(80 / 255)
    assert torch.equal(labels, source.train.truth[[1]])
    assert source.train.groups is None


def test_a_repeated_row_counts_once_and_unlisted_images_are_told(write, caplog):
    csv = write("a.png,circle,,,train", "a.png,CIRCLE,,,train", "b.png,circle,,,train")
    assert facts(csv=csv).train.truth.tolist() == [[True], [True]]
    assert "1 rows repeat an earlier one and count once (line 3)" in caplog.text
    assert "1 images in" in caplog.text
    assert "have no fact and are left out" in caplog.text


def test_without_a_split_all_is_for_training_and_tasks_become_groups(write):
    csv = write("a.png,circle,,,two", "b.png,square,,,one", header="image,subject,predicate,object,task")
    source = facts(csv=csv)
    assert source.test is None
    assert dict(zip(source.train.class_names, source.train.groups or (), strict=True)) == {
        "circle": "two",
        "square": "one",
    }


def test_images_in_an_archive(write, tmp_path):
    csv = write("in/a.png,circle,,,train")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "in/a.png")
    assert facts(csv=csv, images=str(tmp_path / "images.zip")).train[0][0].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png,circle,,square,train"], "line 2: a fact with an object needs a predicate, got <circle, , square>"),
        (["a.png,circle,,,train", "a.png,,red,,train"], "line 3: a fact needs a subject"),
        (["a.png,,,,train"], "line 2: a fact needs a subject"),
        ([",circle,,,train"], "line 2: no image"),
        (
            ["a.png,person,walking, slowly,dog,train"],
            "line 2: more cells than columns; quote a cell that holds a comma",
        ),
        (["d.png,circle,,,train"], "line 2: no image 'd.png' in"),
        (['a.png,"circle, red",,,train'], "line 2: a part of a fact can hold neither a comma"),
        (["a.png,*,,,train"], "line 2: a part of a fact can hold neither"),
        (["a.png,circle,,,val"], "line 2: split must be one of train, test, got 'val'"),
        (
            ["a.png,circle,,,train", "a.png,square,,,test"],
            "line 3: image 'a.png' is in split 'test', but was in 'train'",
        ),
        (["a.png,circle,,,test"], "lists no image to learn from"),
        ([], "lists no image to learn from"),
    ],
)
def test_a_wrong_row_is_named(write, lines, message):
    csv = write(*lines)
    with pytest.raises(ValueError) as caught:
        facts(csv=csv)
    assert message in str(caught.value)
    assert str(caught.value).startswith(csv)


def test_a_fact_in_two_tasks(write):
    csv = write("a.png,circle,,,one", "b.png,Circle,,,two", header="image,subject,predicate,object,task")
    with pytest.raises(ValueError, match="line 3: the fact <circle> is in task 'two', but was in 'one' before"):
        facts(csv=csv)
    csv = write("a.png,circle,,,", header="image,subject,predicate,object,task")
    with pytest.raises(ValueError, match="line 2: no task"):
        facts(csv=csv)


def test_files_that_are_no_table(write, tmp_path):
    with pytest.raises(ValueError, match=r"no column 'object' \(there are image, subject, predicate\)"):
        facts(csv=write("a.png,circle,red", header="image,subject,predicate"))
    with pytest.raises(ValueError, match="no such folder or archive"):
        facts(csv=write(), images=str(tmp_path / "none"))
    Path(tmp_path / "facts.csv").write_bytes(b"image,subject,predicate,object\na.png,\xff,,\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        facts(csv=str(tmp_path / "facts.csv"))
    with pytest.raises(ValueError, match="no such file"):
        facts(csv=str(tmp_path / "other.csv"))


def test_an_image_that_cannot_be_read(write, tmp_path):
    csv = write("a.png,circle,,,train")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        facts(csv=csv)
