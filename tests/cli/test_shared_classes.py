"""A shop whose next month has mostly known products, on the command line: train, resume with a month more, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tripletmas.index.images import ImageIndex

PRODUCTS = {"bowl": 1, "cup": 2, "mug": 3, "vase": 4}  # the seed of what it looks like


@pytest.fixture
def shop(tmp_path: Path, write_images) -> Path:
    for month, products in {"1": ("bowl", "cup"), "2": ("cup", "mug")}.items():
        for product in products:
            write_images(tmp_path / "shop" / month / product, count=8, seed=PRODUCTS[product])
    return tmp_path / "shop"


def arguments(shop: Path, run: Path) -> list[str]:
    data = ["--data", "folder", "--data.root", str(shop), "--data.size", "8", "--data.class_from", "leaf"]
    return ["train", *data, "--model", "mlp", "--training.epochs", "2", "--strategy", "replay", "--out", str(run)]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_month_more_with_known_products(shop: Path, tmp_path: Path, write_images, call):
    run = tmp_path / "run"
    assert call(*arguments(shop, run))[0] == 0
    for product in ("bowl", "cup", "mug", "vase"):
        write_images(shop / "3" / product, count=8, seed=PRODUCTS[product])
    assert call("resume", run)[0] == 0
    assert call("report", run)[0] == 0
    page = (run / "report" / "report.html").read_text()
    assert "4 of 6 were, over all tasks after the first" in page
    assert all(f"<td>{cell}</td>" in page for cell in ("0 of 2", "1 of 2", "3 of 4"))
    classes = json.loads((run / "index" / "final.json").read_text())
    content = classes.get("content", classes)
    assert (content["class_names"], content["tasks"]) == (
        ["bowl", "cup", "mug", "vase"],
        [[0, 1], [1, 2], [0, 1, 2, 3]],
    )
    assert call("evaluate", run, "--gallery", "fresh,stale,compensated")[0] == 0
    assert call("forecast", run)[0] == 0
    file = tmp_path / "shop.index"
    assert call("index", "build", run, "--images", shop, "--out", file)[0] == 0
    assert set(ImageIndex.open(file).class_names) == PRODUCTS.keys()


@pytest.mark.slow
def test_what_is_changed_in_a_month_that_was_learned_is_refused(shop: Path, tmp_path: Path, write_images, call):
    run = tmp_path / "run"
    assert call(*arguments(shop, run))[0] == 0
    write_images(shop / "1" / "mug", count=8, seed=PRODUCTS["mug"])
    status, _, complaints = call("resume", run)
    assert status == 2
    assert "the data of task '1' have changed" in complaints


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_task_whose_name_is_the_number_of_another_is_shown_by_its_name(shop: Path, tmp_path: Path, call):
    """Months are numbered from 1, tasks from 0; tables show names."""
    run = tmp_path / "run"
    assert call(*arguments(shop, run))[0] == 0
    for task, note in (("1", "'1' is taken as the name of a task, whose number is 0; number 1 is '2'"), ("2", "")):
        file = tmp_path / f"{task}.json"
        status, shown, said = call("evaluate", run, "--task", task, "--json", file)
        assert (status, json.loads(file.read_text())["tasks"]) == (0, [task])
        assert (note in said) if note else ("note:" not in said)
        assert f" {task} " in shown
    status, _, said = call("evaluate", run, "--task", "0", "--json", file)
    assert (status, json.loads(file.read_text())["tasks"]) == (0, ["1"]), "no name"
    assert "note:" not in said
