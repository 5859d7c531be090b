"""The commands on a vector store: index push and pull, query; in LanceDB."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tripletmas.cli.main import main
from tripletmas.index.changes import remove_images
from tripletmas.index.images import ImageIndex
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.models import weight_hashes
from tripletmas.stores.identity import Notes, read_notes, write_notes
from tripletmas.stores.opening import opened

STORE = "lancedb://data#products"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_images) -> Path:
    """A folder with `images` of two classes, a task each, the run `run` that learned them, and `shop.index`."""
    folder = tmp_path_factory.mktemp("stores")
    for number, name in enumerate(("a/x", "a/y", "b/x", "b/y")):
        write_images(folder / "images" / name, seed=number)
    data = ["--data", "folder", "--data.root", str(folder / "images"), "--data.size", "8", "--data.channels", "1"]
    model = ["--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8", "--training.epochs", "3"]
    run = str(folder / "run")
    assert main(["train", "--out", run, "--strategy", "finetune", "--report", "false", *data, *model]) == 0
    assert main(["index", "build", run, "--images", str(folder / "images"), "--out", str(folder / "shop.index")]) == 0
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch, call):
    """A working directory of the test's own, in which the index is in the store already."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "run", "shop.index"):
        (tmp_path / name).symlink_to(trained / name)
    status, out, _ = call("index", "push", "shop.index", STORE)
    assert (status, out.strip()) == (0, f"{STORE}: 24 points of shop.index are in it")
    return tmp_path


def refused(result: tuple[int, str, str]) -> str:
    """The sentence of a command that was refused."""
    status, _, error = result
    assert status == 2
    assert error.count("tripletmas: error: ") == 1
    return error


@pytest.mark.slow
def test_as_json_each_is_one_document(place, call):
    told = [
        json.loads(call("index", "push", "shop.index", STORE, "--json")[1]),
        json.loads(call("index", "pull", STORE, "own.index", "--json")[1]),
    ]
    assert told == [
        {"store": STORE, "index": "shop.index", "points": 24, "others": 0},
        {"store": STORE, "index": "own.index", "vectors": 24, "without": 0},
    ]


def forget():
    with opened(STORE) as store:
        write_notes(store, Notes({}))


@pytest.mark.slow
def test_an_index_goes_into_a_store_and_comes_back(place, call):
    status, out, _ = call("index", "pull", STORE, "back.index")
    assert (status, out.strip()) == (0, f"back.index: 24 points of {STORE}")
    before, after = ImageIndex.open("shop.index"), ImageIndex.open("back.index")
    assert torch.equal(before.vectors, after.vectors)
    assert (before.paths, before.parts, before.settings) == (after.paths, after.parts, after.settings)
    assert "back.index exists" in refused(call("index", "pull", STORE, "back.index"))
    assert call("query", "back.index", "images/a/x/0.png")[0] == 0


@pytest.mark.slow
def test_a_store_is_searched_as_the_index_is(place, call):
    answers = []
    for gallery in ("shop.index", STORE):
        status, out, error = call("query", gallery, "images/a/x/0.png", "images/b/y", "-k", "3", "--jsonl", "-")
        assert (status, error) == (0, "")
        answers.append([json.loads(line) for line in out.splitlines()])
    of_index, of_store = ([each["neighbours"] for each in answer] for answer in answers)
    assert len(of_store) == 7
    for one, other in zip(of_index, of_store, strict=True):
        assert [hit["path"] for hit in one] == [hit["path"] for hit in other]
        assert [hit["score"] for hit in one] == pytest.approx([hit["score"] for hit in other], abs=1e-5)
        assert [hit["label"] for hit in one] == [hit["label"] for hit in other]
    status, out, _ = call("query", STORE, "images/a/x/0.png", "-k", "3", "--html", "page.html", "--min-score", "2")
    assert "no match" in out
    assert Path("page.html").stat().st_size > 1000


@pytest.mark.slow
def test_the_model_that_made_the_vectors_is_asked_although_the_run_has_a_later_one(place, call):
    hashes = weight_hashes(RunDirectory.open("run"))
    assert call("index", "build", "run", "--images", "images/a", "--out", "old.index", "--after", "0")[0] == 0
    assert call("index", "push", "old.index", "lancedb://data#old")[0] == 0
    with opened("lancedb://data#old") as store:
        assert read_notes(store).identities["vector"].model == hashes[0] != hashes[1]
    status, out, _ = call("query", "lancedb://data#old", "images/a/x/0.png", "-k", "1", "--jsonl", "-")
    assert status == 0
    best = json.loads(out)["neighbours"][0]
    assert best["score"] == pytest.approx(1, abs=1e-5)
    assert best["path"].endswith("a/x/0.png")


@pytest.mark.slow
def test_a_store_that_does_not_know_is_told_after_a_look(place, call):
    forget()
    told = refused(call("query", STORE, "images/a/x/0.png"))
    assert "does not say what made its vectors" in told
    assert "--assume" in told
    assert call("train", "--out", "other", "--strategy", "finetune", "--report", "false", *_like("run"))[0] == 0
    assert "other did not make the vectors 'vector'" in refused(
        call("query", STORE, "images/a/x/0.png", "--assume", "other")
    )
    status, out, _ = call("query", STORE, "images/a/x/0.png", "-k", "1", "--assume", "run")
    assert (status, "run made its vectors" in out) == (0, True)
    assert call("query", STORE, "images/a/x/0.png", "-k", "1")[0] == 0
    assert "leave --assume out" in refused(call("query", STORE, "images/a/x/0.png", "--assume", "run"))
    with opened(STORE) as store:
        store.set_notes({"format": 1, "fields": {"vector": {"model": 3}}})
    assert "are damaged" in refused(call("query", STORE, "images/a/x/0.png"))
    assert call("query", STORE, "images/a/x/0.png", "-k", "1", "--assume", "run")[0] == 0
    other = refused(call("query", STORE, "images/a/x/0.png", "--run", "other"))
    assert "are of the model" in other


def _like(run: str) -> list[str]:
    """Options for another run of the same kind, with other weights."""
    data = ["--data", "folder", "--data.root", "images", "--data.size", "8", "--data.channels", "1", "--seed", "7"]
    return [*data, "--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8", "--training.epochs", "1"]


@pytest.mark.slow
def test_bad_input_is_a_sentence(place, call):
    assert "unknown kind of store 'lancd'" in refused(call("query", "lancd://data#products", "images/a/x/0.png"))
    assert "did you mean 'products'" in refused(call("query", "lancedb://data#product", "images/a/x/0.png"))
    assert "is no store" in refused(call("index", "push", "shop.index", "data"))
    assert "no such folder" in refused(call("index", "pull", "lancedb://nowhere#products", "x.index"))
    assert not Path("nowhere").exists()
    assert "--move-queries is not for a store" in refused(call("query", STORE, "images/a/x/0.png", "--move-queries"))
    assert "--assume is for a store" in refused(call("query", "shop.index", "images/a/x/0.png", "--assume", "run"))
    assert "no such file" in refused(call("query", STORE, "nothing.png"))
    assert "-k must be" in refused(call("query", STORE, "images/a/x/0.png", "-k", "0"))
    with opened(STORE) as store:
        notes = read_notes(store)
        write_notes(store, notes.with_identity("vector", replace(notes.identities["vector"], source="/gone")))
    told = refused(call("query", STORE, "images/a/x/0.png"))
    assert "so lancedb://data#products says of its vectors; --run says where that model is now" in told
    assert call("query", STORE, "images/a/x/0.png", "--run", "run")[0] == 0


@pytest.mark.slow
def test_one_vector_tells_nothing_of_what_made_it(place, call):
    one = ImageIndex.open("shop.index")
    first = torch.arange(len(one)) > 0
    remove_images(one, first.nonzero().flatten()).save("one.index")
    assert call("index", "push", "one.index", "lancedb://data#one")[0] == 0
    with opened("lancedb://data#one") as store:
        write_notes(store, Notes({}))
    told = refused(call("query", "lancedb://data#one", "images/a/x/0.png", "--assume", "run"))
    assert "at least two that differ are needed" in told
