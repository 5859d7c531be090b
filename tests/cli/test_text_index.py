"""An index of texts: built from a CSV file, asked with texts, refreshed without the file."""

from __future__ import annotations

import json

import pytest
import torch
from commands import failed
from tiny_texts import rows_of, write_csv, write_encoder

from tripletmas.cli import main as cli
from tripletmas.index.images import ImageIndex, Reading


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_encoder):
    """A run on texts, two tasks."""
    folder = tmp_path_factory.mktemp("texts")
    write_csv(folder / "faq.csv", rows_of(12))
    options = ["--data", "csv", "--data.path", folder / "faq.csv", "--data.text", "question", "--data.label", "topic"]
    options += ["--data.tasks", 2, "--model", f"sentence-transformers:{tiny_encoder}", "--training.epochs", 1]
    options += ["--training.lr", 1e-3, "--report", "false", "--device", "cpu", "--strategy", "finetune"]
    assert cli.main([str(each) for each in ["train", *options, "--out", folder / "run"]]) == 0
    return folder / "run"


@pytest.fixture
def answers(tmp_path):
    rows = [{"answer": row["question"], "topic": row["topic"]} for row in rows_of(4)]
    rows[0]["answer"] = "the card,\nthat is lost"  # of two lines
    return write_csv(tmp_path / "answers.csv", rows)


@pytest.fixture
def index(run, answers, call, tmp_path):
    out = tmp_path / "faq.index"
    status, printed, complaint = call(
        *("index", "build", run, "--csv", answers, "--text", "answer", "--label", "topic", "--out", out)
    )
    assert status == 0, complaint
    assert "16 vectors of dim 16" in printed
    return out


@pytest.mark.slow
def test_it_keeps_texts_lines_and_labels(index, answers):
    found = ImageIndex.open(index)
    assert found.texts[:2] == ("the card,\nthat is lost", rows_of(4)[1]["question"].strip())
    assert found.paths[:2] == (f"{answers}/2", f"{answers}/4")
    assert [found.label_of(row) for row in (0, 15)] == ["card", "login"]
    assert isinstance(found.settings.transform, Reading)
    assert found.settings.transform.max_length == 12


@pytest.mark.slow
def test_a_text_finds_itself_first(index, call, tmp_path):
    text = ImageIndex.open(index).texts[5]
    status, printed, complaint = call("query", index, text, "-k", 3, "--json", tmp_path / "a", "--html", tmp_path / "b")
    assert status == 0, complaint
    first = json.loads((tmp_path / "a").read_text())["queries"][0]["neighbours"][0]
    assert first["text"] == text
    assert first["label"] == "parcel"
    assert first["score"] == pytest.approx(1, abs=1e-5)
    assert text in printed
    assert f"<q>{text}</q>" in (tmp_path / "b").read_text()


@pytest.mark.slow
def test_what_is_in_it_stays_and_new_texts_come(index, answers, call):
    status, printed, _ = call("index", "add", index, "--csv", answers, "--text", "answer")
    assert status == 0
    assert "16 of 16 texts are in it already and stay" in printed
    with open(answers, "a") as file:
        file.write("where is my pin,card\n")
    status, printed, _ = call("index", "add", index, "--csv", answers, "--text", "answer")
    assert "1 vector added" in printed
    assert ImageIndex.open(index).texts[-1] == "where is my pin"
    answers.write_text(answers.read_text().replace("that is lost", "that is stolen"))
    other = call("index", "add", index, "--csv", answers, "--text", "answer")
    failed(other, "has changed: in line 2 it has another text than .* remove the old ones first")
    status, printed, _ = call("index", "remove", index, answers)
    assert status == 0
    assert "17 of 17 vectors removed" in printed


@pytest.mark.slow
def test_it_is_refreshed_without_its_file(run, answers, call, tmp_path):
    old = tmp_path / "old.index"
    given = ["--csv", answers, "--text", "answer", "--out", old]
    assert call("index", "build", run, *given, "--after", 0)[0] == 0
    answers.unlink()
    failed(call("query", old, "card"), "16 of 16 vectors are stale")
    for ways in (["--allow-stale"], ["--move-queries"]):
        assert call("query", old, "card", *ways)[0] == 0
    status, printed, complaint = call("index", "refresh", old, "--reembed")
    assert status == 0, complaint
    status, printed, _ = call("index", "info", old)
    assert "all vectors are current" in printed
    assert "at most 12 tokens, by the tokenizer" in printed
    assert call("doctor", old)[0] == 0


def test_compensation_moves_it(run, answers, call, tmp_path):
    old = tmp_path / "old.index"
    assert call("index", "build", run, "--csv", answers, "--text", "answer", "--out", old, "--after", 0)[0] == 0
    before = ImageIndex.open(old)
    status, _, complaint = call("index", "refresh", old, "--compensate", "linear")
    assert status == 0, complaint
    after = ImageIndex.open(old)
    assert after.texts == before.texts
    assert not torch.equal(after.vectors, before.vectors)


def test_an_index_of_another_tokenizer_is_refused(index, call, tmp_path, run):
    encoder = write_encoder(tmp_path / "short", max_length=8)
    rows = write_csv(tmp_path / "other.csv", rows_of(12))
    options = ["--data", "csv", "--data.path", rows, "--data.text", "question", "--data.label", "topic"]
    options += ["--data.tasks", 1, "--model", f"sentence-transformers:{encoder}", "--training.epochs", 1]
    options += ["--report", "false", "--device", "cpu", "--strategy", "pretrained", "--out", tmp_path / "run"]
    assert call("train", *options)[0] == 0
    failed(
        call("query", index, "card", "--run", tmp_path / "run"), "12 tokens of each, the model of .* reads by .*, 8;"
    )


def test_images_and_texts_are_kept_apart(run, index, answers, call, tmp_path, write_images):
    images = write_images(tmp_path / "images")
    out = tmp_path / "new.index"
    failed(call("index", "build", run, "--images", images, "--out", out), "reads texts, and can be shown no images")
    failed(call("index", "add", index, "--images", images), "is an index of texts, and images do not go into it")
    failed(call("index", "build", run, "--out", out), "give --images FOLDER, or for texts --csv FILE --text COLUMN")
    both = ("--images", images, "--csv", answers, "--text", "answer", "--out", out)
    failed(call("index", "build", run, *both), "one of them")
    failed(call("index", "build", run, "--csv", answers, "--out", out), "--csv needs --text")
    failed(call("index", "remove", index, "--missing"), "keeps its texts itself")
    failed(call("index", "refresh", index, "--reembed", "--images", images), "keeps its texts itself")
    failed(call("query", index, " "), "a text to search with is empty")
    (tmp_path / "empty.csv").write_text("answer\n\n,\n")
    failed(call("index", "build", run, "--csv", tmp_path / "empty.csv", "--text", "answer", "--out", out), "line 3")


def test_what_is_a_file_is_asked_for_as_a_text_and_that_is_said(index, call, answers, caplog):
    assert call("query", index, answers)[0] == 0
    assert f"the index holds texts: what is searched for is '{answers}' itself, not what is in that file" in caplog.text


def test_an_answer_to_several_questions_is_one_item(run, call, tmp_path):
    """Of four rows two have one text; with another label it is another item."""
    rows = [("a card", "card"), ("a parcel", "parcel"), ("a card", "card"), ("a card", "login")]
    path = write_csv(tmp_path / "faq.csv", [{"answer": text, "topic": label} for text, label in rows])
    plain, labelled = ("index", "build", run, "--csv", path, "--text", "answer", "--force"), ("--label", "topic")
    status, printed, complaint = call(*plain, "--out", tmp_path / "a.index")
    assert status == 0, complaint
    assert "2 of 4 rows repeat a text and count once" in " ".join(printed.split())
    assert ImageIndex.open(tmp_path / "a.index").texts == ("a card", "a parcel")
    assert call(*plain, *labelled, "--out", tmp_path / "b.index")[0] == 0
    assert ImageIndex.open(tmp_path / "b.index").texts == ("a card", "a parcel", "a card")
