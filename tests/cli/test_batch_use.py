"""Many queries at once, for scripts: folders, CSV files, the least score, lines of JSON; and what a log says."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from commands import failed, restored_tables
from PIL import Image

from tripletmas.basics import progress
from tripletmas.cli.main import main

TRAIN = [
    *("--data", "folder", "--data.root", "images", "--data.size", "16", "--model", "mlp", "--model.dim", "8"),
    *("--training.epochs", "2", "--strategy", "finetune", "--data.tasks", "1"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("batch")
    random = torch.Generator().manual_seed(0)
    for name, shade in (("red", 60), ("blue", 190)):
        (place / "images" / name).mkdir(parents=True)
        for number in range(6):
            noise = torch.randint(0, 60, (16, 16, 3), generator=random, dtype=torch.uint8)
            Image.fromarray((noise + shade).numpy()).save(place / "images" / name / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch, restored_tables():
        patch.chdir(place)
        assert main(["train", *TRAIN, "--out", "run", "--report", "false"]) == 0
        assert main(["index", "build", "run", "--images", "images", "--out", "shop.index"]) == 0
    return place


@pytest.fixture
def place(trained, monkeypatch, tmp_path) -> Path:
    copied = Path(shutil.copytree(trained, tmp_path / "copied"))
    monkeypatch.chdir(copied)
    return copied


def records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_folder_asks_with_all_its_images(place, call):
    status, text, _ = call("query", "shop.index", "images/red", "images/blue/0.png", "-k", "2", "--jsonl", "-")
    assert status == 0
    found = records(text)
    assert [each["query"] for each in found] == [*(f"images/red/{n}.png" for n in range(6)), "images/blue/0.png"]
    for each in found:
        assert each["neighbours"][0]["path"].endswith(each["query"])
        assert [hit["rank"] for hit in each["neighbours"]] == [1, 2]


def test_lines_are_what_the_json_file_holds(place, call):
    files = ("--json", "found.json", "--jsonl", "found.jsonl")
    status, text, _ = call("query", "shop.index", "images", "-k", "3", *files)
    assert status == 0
    assert "images/red/0.png" in text, "tables, too"
    lines = records(Path("found.jsonl").read_text())
    assert lines == json.loads(Path("found.json").read_text())["queries"]
    assert len(lines) == 12


def test_a_csv_file_asks_with_a_column(place, call):
    """Paths are relative to its folder; what is there twice is asked once."""
    Path("lists").mkdir()
    Path("lists/asked.csv").write_text("path,label\n../images/red/1.png,a\n../images/blue/2.png,b\n")
    Path("lists/other.csv").write_text("file\n../images/red/1.png\n../images/red/1.png\n")
    status, text, _ = call("query", "shop.index", "--csv", "lists/asked.csv", "--jsonl", "-")
    assert status == 0
    assert [each["query"] for each in records(text)] == ["lists/../images/red/1.png", "lists/../images/blue/2.png"]
    status, text, _ = call("query", "shop.index", "--csv", "lists/other.csv", "--column", "file", "--jsonl", "-")
    assert [each["query"] for each in records(text)] == ["lists/../images/red/1.png"]


def test_below_the_least_score_there_is_no_match(place, call):
    """The cosine of an image with itself is 1, but for rounding, and nothing is above it."""
    query = ("query", "shop.index", "images/red/0.png")
    status, text, _ = call(*query, "--min-score", "0.999999", "--jsonl", "-")
    assert status == 0
    (hit,) = records(text)[0]["neighbours"]
    assert hit["path"].endswith("images/red/0.png")
    status, text, _ = call(*query, "--min-score", "1.1", "--jsonl", "-")
    assert (status, records(text)) == (0, [{"query": "images/red/0.png", "neighbours": []}])
    status, text, _ = call(*query, "--min-score", "1.1", "--html", "page.html")
    assert "no match" in text
    assert text.splitlines()[0].rstrip() == "images/red/0.png"  # on one line, however narrow the table is
    assert "no match" in Path("page.html").read_text()


def test_unreadable_images_are_left_out_where_that_is_asked_for(place, call, caplog):
    Path("images/red/3.png").write_bytes(b"no image")
    failed(call("query", "shop.index", "images/red"), r"3\.png cannot be read: not an image \(--skip-unreadable leaves")
    status, text, _ = call("query", "shop.index", "images/red", "--skip-unreadable", "--jsonl", "-")
    assert status == 0
    assert len(records(text)) == 5
    assert "skipped 1 of 6 images" in caplog.text


BAD = {
    ("empty",): "no images in empty",
    ("images/none.png",): "none.png cannot be read: no such file",
    ("--csv", "none.csv"): "no such file: none.csv",
    ("--csv", "other.csv"): r"other.csv, line 1: no column 'path' .*\(the index holds images, and the column 'path'",
    ("--csv", "head.csv"): "head.csv has no rows below its header",
    ("--csv", "gap.csv"): "gap.csv, line 3: the column path is empty",
    ("images", "--min-score", "high"): "--min-score takes float, not 'high'",
    ("images", "--min-score", "nan"): "--min-score takes float, not 'nan'",
    ("images", "--min-score", "inf"): "--min-score takes float, not 'inf'",
    ("images", "--column", "file"): "--column is for --csv",
    ("images", "--jsonl", "images/found.jsonl"): "would lie among the images",
    ("images", "--jsonl", "other.csv"): "other.csv is there, and is no JSON",
    ("images", "--jsonl", "a.json", "--json", "a.json"): "would overwrite",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_what_cannot_be_asked_with(place, call, arguments):
    Path("empty").mkdir()
    Path("other.csv").write_text("file\nimages/red/0.png\n")
    Path("head.csv").write_text("path\n")
    Path("gap.csv").write_text("path,label\nimages/red/0.png,a\n,b\n")
    failed(call("query", "shop.index", *arguments), BAD[arguments])


@pytest.mark.slow
def test_going_on_with_a_run_that_is_done_says_so(place, call, caplog):
    with caplog.at_level(logging.INFO):
        assert call("resume", "run")[0] == 0
    assert "run: all 1 tasks are learned, there is nothing to do" in caplog.messages


@pytest.mark.slow
def test_without_a_terminal_the_log_says_how_far_it_is(place, call, monkeypatch):
    """Embedding and training; not a bar."""
    monkeypatch.setattr(progress, "SECONDS", -math.inf)
    status, _, said = call(
        "train", *TRAIN, "--training.batch_size", "4", "--training.samples_per_class", "2", "--out", "again"
    )
    assert status == 0
    assert "epoch 1/2, batch 1 of " in said
    assert "\r" not in said
    config = ("--training.eval_batch_size", "2")
    status, _, said = call("train", *TRAIN, *config, "--out", "other")
    assert "embedded batch 1 of " in said
