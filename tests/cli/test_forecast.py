"""The command forecast, end to end on small runs, and what the report and `index info` show of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import SMALL, failed

from tripletmas.cli import index_info
from tripletmas.cli.main import main
from tripletmas.index.images import ImageIndex
from tripletmas.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("forecast") / "run"
    assert main(["train", "--out", str(path), "--strategy", "finetune", "--report", "false", *SMALL]) == 0
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory, write_images) -> Path:
    """A folder with `images`, the run `run` that learned them in two tasks, and `old.index` by its first model."""
    folder = tmp_path_factory.mktemp("shop")
    for number, name in enumerate(("a/x", "a/y", "b/x", "b/y")):
        write_images(folder / "images" / name, seed=number)
    data = ["--data", "folder", "--data.root", str(folder / "images"), "--data.size", "8", "--data.channels", "1"]
    model = ["--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8", "--training.epochs", "3"]
    run, images = str(folder / "run"), str(folder / "images" / "a")
    assert main(["train", "--out", run, "--strategy", "finetune", "--report", "false", *data, *model]) == 0
    assert main(["index", "build", run, "--images", images, "--out", str(folder / "old.index"), "--after", "0"]) == 0
    return folder


@pytest.mark.slow
def test_the_last_update_is_told_and_kept(digits, call, tmp_path):
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    status, text, _ = call("forecast", run, "--json", tmp_path / "told.json")
    assert status == 0
    assert "expected cosine between a stored vector and its re-embedding: " in text
    assert "no old image was read" in text
    (told,) = json.loads((tmp_path / "told.json").read_text())
    assert RunDirectory(run).forecasts() == [told]
    assert told["after"] == 2
    measured = RunDirectory(run).records("task")[2]["scores"]
    for gallery, name in (("stale", "seen_stale"), ("compensated", "seen_compensated"), ("fresh", "seen")):
        low, middle, high = told["recall"][gallery]
        assert 0 <= low <= middle <= high <= 1
        mean = sum(measured[name]["recall@1"]) / 3
        row = next(line for line in text.splitlines() if line.split()[:1] == [gallery])
        assert row.split()[-5:] == [f"{low:.2f}", "to", f"{high:.2f}", f"{middle:.2f}", f"{mean:.2f}"]


@pytest.mark.slow
def test_all_updates_are_told_and_the_report_shows_them(digits, call, tmp_path, undrawn):
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    assert call("forecast", run, "--after", "2")[0] == 0
    assert call("forecast", run, "--all")[0] == 0
    assert [each["after"] for each in RunDirectory(run).forecasts()] == [1, 2]
    status, text, _ = call("forecast", run, "--all", "--json")
    assert (status, json.loads(text)) == (0, RunDirectory(run).forecasts())
    assert call("report", run)[0] == 0
    assert "What updates were expected to do to stored vectors" in (run / "report" / "report.html").read_text()


@pytest.mark.slow
def test_of_an_index(shop, call, tmp_path, monkeypatch):
    monkeypatch.chdir(shop)
    status, text, _ = call("forecast", "run", "--index", "old.index", "--json", tmp_path / "told.json")
    assert status == 0
    assert "images that were imagined for 12 stored vectors" in text
    (told,) = json.loads((tmp_path / "told.json").read_text())
    assert (told["after"], told["index"], set(told["recall"])) == (1, "old.index", {"stale", "compensated", "fresh"})
    assert not RunDirectory(shop / "run").has("forecast.json")  # of its own galleries alone


@pytest.mark.slow
def test_an_index_with_current_images_too(shop, call, tmp_path, monkeypatch):
    """Twelve of its vectors are of the present model: no image stands for them in the count."""
    monkeypatch.chdir(shop)
    shutil.copy("old.index", tmp_path / "mixed.index")
    assert call("index", "add", tmp_path / "mixed.index", "--images", "images/b")[0] == 0
    status, text, _ = call("forecast", "run", "--index", tmp_path / "mixed.index")
    assert status == 0
    assert "for 12 stored vectors" in text


@pytest.mark.slow
def test_an_index_without_classes(shop, call, tmp_path, monkeypatch):
    monkeypatch.chdir(shop)
    index = ImageIndex.open("old.index")
    flat = ImageIndex(**{**vars(index), "labels": torch.full_like(index.labels, -1)})
    flat.save(tmp_path / "flat.index")
    status, text, _ = call("forecast", "run", "--index", tmp_path / "flat.index")
    assert status == 0
    assert "what a search finds cannot be told: no class has two images" in text
    assert "expected recall@1" not in text


@pytest.mark.slow
def test_index_info_says_where_a_forecast_is(shop, call, monkeypatch):
    monkeypatch.chdir(shop)
    text = call("index", "info", "old.index")[1]
    assert "what searching them costs: tripletmas forecast" in text
    assert text.rstrip().endswith("--index old.index")
    assert "was expected to leave" not in text


@pytest.mark.slow
def test_index_info_says_what_the_last_update_was_expected_to_do(shop, call, tmp_path, monkeypatch):
    """As `forecast` told it, with torch and without; only of the update that made the present model."""
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(shop / "run", "run"))
    assert call("forecast", "run", "--json", "told.json")[0] == 0
    (told,) = json.loads(Path("told.json").read_text())
    (low, _, high), (least, _, most) = told["recall"]["stale"], told["recall"]["fresh"]
    status, text, _ = call("index", "info", shop / "old.index", "--run", "run")
    assert status == 0
    assert f"with a recall@1 of {low:.2f} to {high:.2f} as it is stored" in text
    assert f"{least:.2f} to {most:.2f} embedded again" in text
    with monkeypatch.context() as context:
        context.setattr("tripletmas.cli.index_info._glanced", index_info._opened)
        assert call("index", "info", shop / "old.index", "--run", "run")[1] == text
    found = json.loads(call("index", "info", shop / "old.index", "--run", "run", "--json")[1])
    assert found["expected_recall"] == told["recall"]
    forecast = run / "forecast.json"
    forecast.write_text(forecast.read_text().replace('"after": 1', '"after": 0'))
    failed(call("index", "info", shop / "old.index", "--run", "run"), "forecast.json")


@pytest.mark.slow
def test_what_has_no_forecast(shop, digits, call, tmp_path, monkeypatch):
    monkeypatch.chdir(shop)
    failed(call("forecast", digits, "--after", "0"), "no update has followed the first task")
    failed(call("forecast", digits, "--after", "7"), "tasks 0 to 2 are done, so there is no model after task 7")
    failed(call("forecast", digits, "--index", "old.index"), "which is none of .*run, so their drift is not known")
    failed(call("forecast", "run", "--index", "old.index", "--all"), "compared with the present model: leave --all")
    failed(call("forecast", "run", "--map", "sdc"), "--map is for --index")
    failed(call("forecast", "run", "--index", "old.index", "--map", "cubic"), "the map must be one of sdc, .*'cubic'")
    failed(call("forecast", tmp_path), "is no run directory")
    assert call("index", "build", "run", "--images", "images/a", "--out", tmp_path / "new.index")[0] == 0
    failed(call("forecast", "run", "--index", tmp_path / "new.index"), "all vectors of .*new.index are current")
    bare = Path(shutil.copytree(digits, tmp_path / "bare"))
    shutil.rmtree(bare / "gallery")
    failed(call("forecast", bare), "runs of older versions keep no galleries")
