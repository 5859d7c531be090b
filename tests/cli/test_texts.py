"""A run on texts, from the command line: what works for images works for it, and what does not is one sentence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from commands import failed, interrupt_after
from tiny_texts import rows_of, write_csv
from torch import nn

from tripletmas.objectives.grid import read_grid
from tripletmas.runs import catalog
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.models import embed_texts, load_model

STRATEGIES = [name for name in catalog.STRATEGIES if name != "local_mas"]  # which knows no attention


def options_of(folder, encoder):
    """Of a small run on four classes in two tasks."""
    path = folder / "faq.csv"
    if not path.exists():
        write_csv(path, rows_of(12))
    data = ["--data", "csv", "--data.path", path, "--data.text", "question", "--data.label", "topic"]
    model = ["--model", f"sentence-transformers:{encoder}", "--device", "cpu"]
    training = ["--training.epochs", 1, "--training.batch_size", 16, "--training.lr", 1e-3, "--report", "false"]
    return [*data, "--data.tasks", 2, *model, *training]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_encoder):
    """A run on texts by gram, which needs no slow importance."""
    from tripletmas.cli import main as cli

    folder = tmp_path_factory.mktemp("texts")
    arguments = ["train", *options_of(folder, tiny_encoder), "--strategy", "gram", "--out", folder / "run"]
    assert cli.main([str(each) for each in arguments]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_run_says_which_model_it_began_with(trained, tiny_encoder):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["name"] == f"sentence-transformers:{tiny_encoder}"
    assert len(config["model"]["sha256"]) == 64


@pytest.mark.slow
def test_a_report_shows_texts(trained, call, undrawn):
    grid = read_grid(RunDirectory(trained))
    assert grid is not None
    assert not grid.pictures
    assert {row.name for row in grid.rows} <= grid.texts.keys()
    status, printed, _ = call("report", trained)
    assert status == 0, printed
    page = (trained / "report" / "report.html").read_text()
    assert f"<q>{grid.texts[grid.rows[0].name].replace('?', '?')}</q>" in page
    assert "of-texts" in page


@pytest.mark.slow
def test_evaluate(trained, call, tmp_path):
    status, _, complaint = call("evaluate", trained, "--gallery", "stale,linear,query", "--json", tmp_path / "a")
    assert status == 0, complaint
    scores = json.loads((tmp_path / "a").read_text())
    kept = RunDirectory(trained).scores()["matrices"]["seen"]["recall@1"][-1]
    assert scores["seen"]["recall@1"] == kept


@pytest.mark.slow
def test_evaluate_on_other_texts(trained, call, tmp_path):
    path = write_csv(tmp_path / "other.csv", rows_of(8))
    data = ["--data", "csv", "--data.path", path, "--data.text", "question", "--data.label", "topic"]
    status, printed, complaint = call("evaluate", trained, *data, "--data.tasks", 1)
    assert status == 0, complaint
    assert "recall@1" in printed
    failed(
        call("evaluate", trained, "--data", "digits"), r"reads texts, and the data have samples of shape \(1, 8, 8\)"
    )


@pytest.mark.slow
def test_what_images_alone_can_be_is_told(trained, call, write_images):
    failed(call("forecast", trained), "a forecast imagines images, and texts cannot be imagined")
    images = write_images(trained.parent / "images")
    failed(call("importance", trained, "--images", images), "the model reads texts, and can be shown no images")


@pytest.mark.slow
def test_a_resumed_run_is_the_same_bit_for_bit(trained, tiny_encoder, call, monkeypatch):
    options = [*options_of(trained.parent, tiny_encoder), "--strategy", "gram", "--out", trained.parent / "resumed"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert call("train", *options)[0] == 130
    status, _, complaint = call("resume", trained.parent / "resumed")
    assert status == 0, complaint
    first, second = (RunDirectory(trained.parent / name).weights.read(1) for name in ("run", "resumed"))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.slow
def test_another_tokenizer_is_refused(tmp_path, tiny_encoder, call, trained):
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    options = [*options_of(tmp_path, folder), "--strategy", "finetune", "--out", tmp_path / "run"]
    assert call("train", *options)[0] == 0
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("parcel", "letter"))
    failed(call("evaluate", tmp_path / "run"), "its configuration or its tokenizer has changed; put the old files back")
    shutil.rmtree(folder)
    failed(call("evaluate", tmp_path / "run"), "no such folder")


@pytest.mark.parametrize("model", ["mlp", "conv4", "resnet18"])
def test_a_model_of_images_is_refused(tmp_path, tiny_encoder, call, model):
    options = options_of(tmp_path, tiny_encoder)
    other = [*options[: options.index("--model")], "--model", model, "--out", tmp_path / "run"]
    failed(call("train", *other), f"the data are texts, and model '{model}' reads none: choose --model sentence-")
    assert not (tmp_path / "run").exists()


def test_images_are_refused_by_a_model_of_texts(tmp_path, tiny_encoder, call):
    options = ["--model", f"sentence-transformers:{tiny_encoder}", "--out", tmp_path / "run"]
    failed(call("train", "--data", "digits", *options), r"reads texts, and the data have samples of shape \(1, 8, 8\)")


def test_it_learns_slowly_unless_told_otherwise(tmp_path, tiny_encoder, call):
    options = options_of(tmp_path, tiny_encoder)
    place = options.index("--training.lr")
    status, printed, _ = call("train", *options[:place], *options[place + 2 :], "--print_config")
    assert status == 0
    assert yaml.safe_load(printed)["training"]["lr"] == 5e-5
    status, printed, _ = call("train", *options, "--print_config")
    assert yaml.safe_load(printed)["training"]["lr"] == 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*STRATEGIES, "gram+anchors", "mas+distill"])
def test_every_strategy_learns_texts(tmp_path, tiny_encoder, call, strategy):
    options = options_of(tmp_path, tiny_encoder)
    status, _, complaint = call("train", *options, "--strategy", strategy, "--out", tmp_path / "run")
    assert status == 0, complaint
    assert RunDirectory(tmp_path / "run").num_done == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["gram", pytest.param("replay", marks=pytest.mark.slow)])
def test_pairs_are_learned_over_the_batch(tmp_path, tiny_encoder, call, undrawn, strategy):
    """A question finds its answer, of a pair that was never learned, among all answers of everything seen."""
    answers = {"card": "we block the card", "parcel": "it is sent", "refund": "money is back", "login": "open account"}
    rows = [
        {"question": row["question"], "answer": f"{answers[str(row['topic'])]} {'. ' * (number + 1)}"}
        for number, row in enumerate(rows_of(12))
    ]
    path = write_csv(tmp_path / "pairs.csv", rows)
    data = ["--data", "csv", "--data.path", path, "--data.text", "question", "--data.positive", "answer"]
    model = ["--data.tasks", 2, "--model", f"sentence-transformers:{tiny_encoder}", "--device", "cpu"]
    training = ["--loss", "ntxent", "--training.epochs", 1, "--training.samples_per_class", 2]
    out = ["--strategy", strategy, "--out", tmp_path / "run"]
    status, _, complaint = call("train", *data, *model, *training, *out)
    assert status == 0, complaint
    run = RunDirectory(tmp_path / "run")
    assert run.num_done == 2
    seen = run.scores()["matrices"]["seen"]
    assert {"recall@1", "mrr@10", "ndcg@10"} <= seen.keys()
    grid = read_grid(run)
    assert grid is not None
    assert all(grid.texts[hit.name].startswith(tuple(answers.values())) for row in grid.rows for hit in row.found[-1])
    assert call("evaluate", tmp_path / "run", "--gallery", "stale")[0] == 0
    other = call("train", *data, *model, "--objective", "recognition", "--out", tmp_path / "other")
    failed(other, "pairs are no classes to recognise")


@pytest.mark.slow
@pytest.mark.parametrize("dim", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_an_exported_folder_is_a_sentence_encoder(tmp_path, tiny_encoder, call, dim):
    """Its library embeds as the run does, and a run goes on from it."""
    from sentence_transformers import SentenceTransformer

    options = [*options_of(tmp_path, tiny_encoder), "--strategy", "finetune", "--out", tmp_path / "run"]
    assert call("train", *options, *([] if dim is None else ["--model.dim", dim]))[0] == 0
    folder = tmp_path / "exported"
    status, printed, complaint = call("export", tmp_path / "run", "--pretrained", folder)
    assert status == 0, complaint
    assert f"go on from it: tripletmas train --model sentence-transformers:{folder}" in printed
    assert "sentence-transformers" in (folder / "README.md").read_text()
    texts = ["where is my parcel?", "the card is lost"]
    model = load_model(RunDirectory(tmp_path / "run"))
    ours = nn.functional.normalize(embed_texts(model, texts))
    theirs = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(texts))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    again = [
        each if str(each) != f"sentence-transformers:{tiny_encoder}" else f"sentence-transformers:{folder}"
        for each in options
    ]
    status, _, complaint = call("train", *again[:-1], tmp_path / "second", "--strategy", "pretrained")
    assert status == 0, complaint
    second = embed_texts(load_model(RunDirectory(tmp_path / "second")), texts)
    torch.testing.assert_close(nn.functional.normalize(second), theirs, rtol=0, atol=1e-5)
    failed(call("export", tmp_path / "run", "--pretrained", folder), "is not empty: name another folder")


@pytest.mark.slow
def test_onnx_reads_ids_and_mask_of_any_length(trained, call, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    status, printed, complaint = call("export", trained, "--onnx", tmp_path / "faq.onnx")
    assert status == 0, complaint
    assert "texts (n, length) to embeddings (n, " in " ".join(printed.split())
    session = onnxruntime.InferenceSession(tmp_path / "faq.onnx")
    model = load_model(RunDirectory(trained))
    for texts in (["where is my parcel?", "the card is lost"], ["lost"]):
        ids = model.tokenizer.encode(texts, True)
        given = np.zeros((2, len(texts), max(map(len, ids))), dtype=np.int64)
        for row, each in enumerate(ids):
            given[0, row, : len(each)], given[1, row, : len(each)] = each, 1
        found = session.run(["embeddings"], {"input_ids": given[0], "attention_mask": given[1]})[0]
        torch.testing.assert_close(torch.from_numpy(found), embed_texts(model, texts), rtol=1e-4, atol=1e-5)
    about = json.loads(session.get_modelmeta().custom_metadata_map["preparation"])
    assert about == {"tokenizer": model.tokenizer.identity, "max_length": model.tokenizer.max_length}
