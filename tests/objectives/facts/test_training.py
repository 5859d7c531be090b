"""Facts through the same stream, loop, strategies, galleries, commands and report as classes."""

from __future__ import annotations

import json
import math
import re
import zipfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from commands import failed, interrupt_after
from PIL import Image

from tripletmas.cli.main import main
from tripletmas.models.embedding import embed
from tripletmas.objectives.embedded import EmbeddedTasks
from tripletmas.objectives.facts.fact import parse_fact
from tripletmas.objectives.facts.kind import FactsKind
from tripletmas.objectives.facts.objective import Facts
from tripletmas.objectives.facts.shown import images_once
from tripletmas.objectives.grid import read_found
from tripletmas.objectives.kind import Data
from tripletmas.objectives.metrics import chance_map
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.runs import catalog, configuration
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import build, load_trained
from tripletmas.runs.loop import train_stream

DATA = {"name": "shapes-facts", "images": 80, "test_images": 40, "unseen_images": 12, "size": 32, "word_dim": 16}
SMALL: dict[str, Any] = {
    "data": {**DATA, "tasks": 2},
    "model": {"name": "mlp", "hidden": [16]},
    "training": {"epochs": 2},
}
OPTIONS = [f"--data.{key}={value}" for key, value in SMALL["data"].items()]
OPTIONS += ["--model=mlp", "--model.hidden=[16]", "--training.epochs=2", "--strategy=mas", "--report=false"]


@pytest.fixture(scope="module")
def data() -> Data:
    options = configuration.resolve(SMALL)["data"]
    return catalog.build_data(options.pop("name"), options)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("facts") / "mas"
    assert main(["train", "--out", str(out), *OPTIONS]) == 0
    return out


@pytest.fixture(scope="module")
def names(run) -> tuple[str, ...]:
    """All facts of the run."""
    return load_trained(RunDirectory.open(run))[0].stream[0].query.class_names


# --- training


def test_data_of_facts_choose_the_objective_the_loss_and_the_defaults():
    config = configuration.resolve({"data": "shapes-facts"})
    assert (config["objective"], config["loss"]["name"]) == ("facts", "fact_contrastive")
    assert (config["model"]["name"], config["model"]["width"]) == ("conv4", 32)
    assert config["training"]["sampler"] == "shuffled"
    assert "dim" not in config["model"]  # the language view decides
    assert configuration.resolve(config) == config
    assert configuration.resolve({"data": "digits"})["objective"] == "metric"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": "shapes-facts", "objective": "metric"}, "data 'shapes-facts' do not fit objective 'metric'"),
        ({"data": "digits", "objective": "facts"}, "data 'digits' do not fit objective 'facts'"),
        ({"data": "shapes-facts", "loss": "triplet"}, "loss 'triplet' does not fit objective 'facts'"),
        ({"data": "digits", "loss": "fact_distance"}, "loss 'fact_distance' does not fit objective 'metric'"),
        ({"data": {"name": "shapes-facts", "split": "alphabetic"}}, "split"),
        ({"data": {"name": "shapes-facts", "imags": 3}}, "no option 'imags'"),
        ({"data": "shapes-facts", "model": {"name": "conv4", "dim": 3}}, "no option 'dim'"),
    ],
)
def test_what_does_not_go_together(config, message):
    with pytest.raises(ValueError, match=message):
        configuration.resolve(config)


@pytest.mark.parametrize(
    ("strategy", "loss"),
    [
        *((name, FactsKind.losses[0]) for name in catalog.STRATEGIES if name not in ("replay", "anchors")),
        *(("mas+distill", loss) for loss in FactsKind.losses[1:]),
    ],
)
def test_every_strategy_learns_facts(strategy, loss, data):
    made = build({**SMALL, "strategy": strategy, "loss": loss}, data=data)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    scores = train_stream(made.model, made.stream, made.strategy, made.objective, made.training)
    assert ("seen_compensated" in scores.matrices) == (made.gallery.compensate is not None) == (strategy != "gram")
    changed = any(not torch.equal(before[name], value) for name, value in made.model.state_dict().items())
    assert changed == (strategy != "pretrained")
    for gallery in scores.matrices:
        matrix = scores.matrix("map", gallery)
        assert matrix.tril().isfinite().all()
        assert ((matrix.tril() >= 0) & (matrix.tril() <= 1)).all()
        assert matrix[0, 1].isnan() == (gallery != "task")  # there it was scored before it was learned
    assert scores.matrix("top@5", "seen").tril().isfinite().all()


@pytest.mark.parametrize("name", ["replay", "anchors"])
def test_what_keeps_samples_class_by_class_says_that_it_takes_no_facts(name, data):
    made = build({**SMALL, "strategy": name}, data=data)
    with pytest.raises(ValueError, match=f"{name} keeps samples class by class, and an image of facts has several"):
        train_stream(made.model, made.stream, made.strategy, made.objective, made.training)


@pytest.mark.slow
def test_facts_can_be_learned(data):
    """A network that is large enough finds the facts of the images that it was trained on."""
    model = {"name": "mlp", "hidden": [256]}
    training = {"epochs": 40, "lr": 0.001, "schedule": "constant"}
    made = build({**SMALL, "model": model, "strategy": "finetune", "training": training}, data=data)
    task = made.stream[0]
    train_stream(made.model, (task,), made.strategy, made.objective, made.training)
    found = made.objective.score_one(made.model, replace(task, query=task.train.plain()))
    by_chance = float(chance_map(task.train.truth)[list(task.classes)].nanmean())
    assert found["map"] > 0.6
    assert by_chance < 0.3


def test_importance_of_the_parts_that_facts_have(data):
    """The masked variant: of images whose facts are all of first order, only the subject's third counts."""
    made = build({**SMALL, "strategy": {"name": "mas", "output": "parts"}}, data=data)
    made.strategy.prepare(made.model, made.objective, made.stream)
    first = [label for label, name in enumerate(made.stream[0].train.class_names) if parse_fact(name).order == 1]
    images = made.stream[0].train.of_classes(first).plain()
    protection = made.strategy.protections[0]
    importance = protection.estimate(made.model, images.loader(7))
    assert all((value == 0).all() for name, value in importance.items() if name.startswith("predicate_object"))
    assert any((value > 0).any() for name, value in importance.items() if name.startswith("subject"))

    def subjects(model, batch):
        return model(batch[0])[:, :16]

    expected = mas_importance(made.model, images.loader(16), relative=True, forward=subjects)
    for name, value in importance.items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-7), name
    with pytest.raises(ValueError, match="depends on batches, or on the facts of images: use mas with its defaults"):
        made.strategy.add_unlabelled(images.loader(7))


def test_output_parts_needs_facts():
    made = build({"strategy": {"name": "mas", "output": "parts"}})
    with pytest.raises(ValueError, match="output 'parts' is nothing that this objective measures: it has embedding;"):
        made.strategy.prepare(made.model, made.objective, made.stream)


def test_a_search_for_a_strength_asks_images_that_were_held_out(data):
    strategy = {"name": "mas", "strength": "auto"}
    made = build({**SMALL, "strategy": strategy, "search": {"start": 1, "most": 2}}, data=data)
    task, chance = made.objective.held_out(data.stream[0], 0.25, 0)
    size = len(data.stream[0].train)
    assert len(task.query) == round(size / 4)
    assert len(task.query) + len(task.train) == size
    assert set(task.query.indices.tolist()).isdisjoint(task.train.indices.tolist())
    assert 0 < chance < 1
    with pytest.raises(ValueError, match=r"finetune reaches 0.* it does not learn the task"):  # two epochs are too few
        train_stream(made.model, made.stream, made.strategy, made.objective, made.training, search=made.search)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(run, tmp_path, call, monkeypatch):
    monkeypatch.setattr("tripletmas.report.page.write_report", lambda path: path)
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=3)  # two of the first task, one of the second
        assert call("train", "--out", tmp_path / "mas", *OPTIONS)[0] == 130
    assert call("resume", tmp_path / "mas")[0] == 0
    for name in ("weights/task01.safetensors", "importance/task01.safetensors", "scores.json"):
        assert (tmp_path / "mas" / name).read_bytes() == (run / name).read_bytes()


# --- scores


def test_scores_of_tasks_are_those_of_a_literal_loop(data):
    """Images of all tasks once each; a fact of another task that holds is no error."""
    torch.manual_seed(0)
    made = build({**SMALL, "strategy": "finetune"}, data=data)
    assert isinstance(made.objective, Facts)
    seen, loss = made.stream, made.objective.loss
    vectors = [embed(made.model, task.query) for task in seen]
    own = [torch.arange(len(each)) for each in vectors]
    found = made.objective.score(seen, EmbeddedTasks(vectors, vectors, own, 0.0))
    images: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for task, embedded in zip(seen, vectors, strict=True):
        for index, *row in zip(task.query.indices.tolist(), embedded.vectors, task.query.truth, strict=True):
            images.setdefault(index, tuple(row))
    raw, truth = (torch.stack(each) for each in zip(*images.values(), strict=True))
    assert len(images_once(seen)) == len(images)
    facts = list(zip(loss.vectors.tolist(), loss.mask.tolist(), strict=True))
    scores = [[oracles.fact_score(image, parts, mask) for parts, mask in facts] for image in raw.tolist()]
    known = {label for task in seen for label in task.classes}
    for number, task in enumerate(seen):
        expected = oracles.score_facts(
            scores,
            truth.tolist(),
            loss.mask.sum(dim=1).tolist(),
            asked=[label in task.classes for label in range(len(facts))],
            candidates=[label in known for label in range(len(facts))],
            of_images=[index in task.query.indices.tolist() for index in images],
        )
        for metric in ("map", "map@10", "top@5", "mrr"):
            assert found.values["seen"][metric][number] == pytest.approx(expected[metric], abs=1e-9), metric


def test_unseen_combinations_are_scored_after_each_task(run):
    records = [record for record in RunDirectory.open(run).records() if record["kind"] == "task"]
    assert all("unseen" not in record or 0 <= record["unseen"]["map"] <= 1 for record in records)


@pytest.fixture
def learned(tmp_path, call):
    """Trains on pictures and facts of tasks, or changes them if a run is there; each fact has 4 + 2 pictures."""

    def make(tasks: dict[str, list[str]], *options: object) -> Path:
        lines = ["image,subject,predicate,object,split,task"]
        for name, facts in tasks.items():
            for fact, number in product(facts, range(6)):
                seed = sum(map(ord, fact)) * 10 + number
                pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"{fact}{number}.png")
                lines.append(f"{fact}{number}.png,{fact},,,{'train' if number < 4 else 'test'},{name}")
        (tmp_path / "facts.csv").write_text("\n".join(lines) + "\n")
        given = ["--data=facts", f"--data.csv={tmp_path / 'facts.csv'}", "--data.size=8", *options]
        small = ["--model=mlp", "--model.hidden=[8]", "--training.epochs=1", "--report=false"]
        if not (tmp_path / "run").exists():
            assert call("train", *given, *small, "--out", tmp_path / "run")[0] == 0
        return tmp_path / "run"

    return make


@pytest.mark.slow
def test_a_new_task_whose_facts_come_first_by_name_is_learned_by_resume(learned, call, undrawn):
    """The first task has two test images, fewer than the report shows; the second one's facts move all columns."""
    out = learned({"1": ["moon"]}, "--data.word_dim=8")
    learned({"1": ["moon"], "2": ["arrow", "ball"]})
    status, _, complaint = call("resume", out)
    assert status == 0, complaint
    then, now = (read_found(RunDirectory.open(out), number) for number in (0, 1))
    assert list(then) == ["moon"]
    assert len(then["moon"].found[0]) == 2
    assert set(now) == {"arrow", "ball", "moon"}
    assert "Facts and what they find" in (out / "report" / "report.html").read_text()


@pytest.mark.slow
def test_other_word_vectors_than_those_of_training_are_refused(learned, tmp_path, call):
    words = tmp_path / "words.txt"
    lines = ["moon 1 0 0 0", "star 0 1 0 0", "ball 0 0 1 0"]
    words.write_text("\n".join(lines))
    out = learned({"1": ["moon", "star"]}, f"--data.words={words}")
    words.write_text("\n".join([*lines[:2], "ball 0 0 0 1", "cube 0 0 0 1"]))  # no word of these facts
    assert call("query", out, "--fact", "moon")[0] == 0
    changed = r"the vectors of words \(words.txt, 3 words, dim 4\) are not those with which .* put the former file back"
    for star in ("star 0.6 0.8 0 0", "star 0 0 0 1"):
        words.write_text("\n".join([lines[0], star, lines[2]]))
        for command in (("query", out, "--fact", "moon"), ("resume", out), ("evaluate", out)):
            failed(call(*command), changed)


@pytest.mark.slow
def test_data_that_have_changed_since_training_are_told(learned, tmp_path, call, caplog):
    """A run is asked again with the data as they were, with an image less, and with another fact in its task."""
    out = learned({"1": ["moon", "star"]}, "--data.word_dim=8")
    caplog.clear()
    assert call("query", out, "--fact", "moon")[0] == 0
    assert not caplog.text
    file = tmp_path / "facts.csv"
    content = file.read_text()
    file.write_text(content.rsplit("\n", 2)[0] + "\n")
    assert call("query", out, "--fact", "moon")[0] == 0
    assert f"the data of task '1' have changed since the run in {out} learned them" in caplog.text
    file.write_text(content.replace(",star,", ",heart,", 1))
    message = "the facts of task '1' are not those that the run .* only then or only now it has <heart>"
    failed(call("query", out, "--fact", "moon"), message)


# --- commands


@pytest.mark.slow
def test_the_run_and_its_report(run, call, undrawn):
    assert call("report", run)[0] == 0
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    for text in ("Facts and what they find", "By order", "By word", "first: subject", "final average mAP", "chance"):
        assert text in page
    assert "hashed" in page
    assert page.count('class="frame"') >= 10


@pytest.mark.slow
def test_evaluate(run, call, tmp_path):
    status, text, _ = call("evaluate", run, "--gallery", "fresh,stale", "--json", tmp_path / "scores.json")
    assert status == 0
    assert "map_3" in text
    content = json.loads((tmp_path / "scores.json").read_text())
    kept = json.loads((run / "scores.json").read_text())["matrices"]
    assert content["seen"]["map"] == pytest.approx(kept["seen"]["map"][-1])
    assert content["galleries"]["stale"]["seen map"] == pytest.approx(np.mean(kept["seen_stale"]["map"][-1]))
    failed(call("evaluate", run, "--compatibility"), "--compatibility is for images that search images")
    failed(call("evaluate", run, "--gallery", "query"), "--gallery query moves back images that search images")


@pytest.fixture
def ask(run, call, tmp_path):
    """Asks the run; gives what one query found, and what was printed."""

    def query(*arguments: object) -> tuple[list[dict[str, Any]], str]:
        status, text, complaint = call("query", run, *arguments, "--json", tmp_path / "q.json")
        assert status == 0, complaint
        (found,) = json.loads((tmp_path / "q.json").read_text())["queries"]
        return found["neighbours"], text + complaint

    return query


def test_query_finds_the_images_of_a_fact(ask, names, tmp_path):
    found, text = ask("--fact", names[0].upper(), "-k", "3", "--html", tmp_path / "q.html")
    assert "test image" in text
    scores = [each["score"] for each in found]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    page = (tmp_path / "q.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "missing</div>" not in page


def test_a_wildcard_stands_for_any_part(run, ask, names):
    stream = load_trained(RunDirectory.open(run))[0].stream
    facts = [parse_fact(name) for name in names]
    predicate = next(fact.predicate for fact in facts if fact.order > 1)
    found, _ = ask("--fact", f"*, {predicate}", "-k", "40")
    columns = [label for label, fact in enumerate(facts) if fact.predicate == predicate]
    shows = {}
    for task in stream:
        rows = zip(task.query.indices.tolist(), task.query.truth[:, columns].any(dim=1).tolist(), strict=True)
        shows |= {f"test image {index}": shown for index, shown in rows}
    assert [each["label"] == "✓ shows it" for each in found] == [shows[each["path"]] for each in found]
    assert 0 < sum(shows[each["path"]] for each in found) < len(found)


def test_query_finds_the_facts_of_an_image_and_images_of_a_folder(ask, write_images, tmp_path):
    photos = write_images(tmp_path / "photos", count=3, side=40)
    _, text = ask(photos / "0.png", "-k", "4", "--html", tmp_path / "q.html")
    assert len(re.findall(r"order \d", text)) == 4
    found, _ = ask("--fact", "circle", "--gallery", photos)
    assert {Path(each["path"]).name for each in found} == {"0.png", "1.png", "2.png"}
    assert all(each["label"] is None for each in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fact", "cirlce"], r"no fact has the subject 'cirlce' \(did you mean 'circle'\?\)"),
        (["--fact", "circle, rde"], "no fact has the predicate 'rde'"),
        (["--fact", "*, *"], "a query must name a subject, a predicate or an object"),
        (["--fact", "a, b, c, d"], "a fact has at most a subject, a predicate and an object, got 4 parts"),
        (["photo.png", "--fact", "circle"], "ask with image files, or with --fact, one of the two"),
        (["nowhere.png"], "nowhere.png"),
        (["--fact", "circle", "--gallery", "nowhere"], "nowhere"),
        (["--fact", "circle", "-k", "0"], "-k must be >= 1"),
        (["--fact", "circle", "--allow-stale"], "--allow-stale is for an index; here the run is asked"),
    ],
)
def test_questions_that_are_none(run, call, arguments, message):
    failed(call("query", run, *arguments), message)


def test_a_combination_that_no_fact_has_is_told(ask, names):
    facts = [parse_fact(name) for name in names]
    subjects, predicates = {f.subject for f in facts}, {f.predicate for f in facts if f.order == 2}
    new = next((s, p) for s in sorted(subjects) for p in sorted(predicates) if f"{s}, {p}" not in names)
    assert "is a combination that no fact of the run has" in ask("--fact", ", ".join(new), "-k", "1")[1]


@pytest.mark.slow
def test_export_and_index_of_a_run_on_facts(run, call, write_images, tmp_path):
    assert call("export", run, "--embeddings", tmp_path / "all.npz", "--part", "query")[0] == 0
    table = np.load(tmp_path / "all.npz")
    assert table["vector"].shape[1] == 48
    assert any("; " in label for label in table["label"])
    photos = write_images(tmp_path / "photos", count=1)
    assert call("index", "build", run, "--images", photos, "--out", tmp_path / "i.index")[0] == 0
    assert call("query", tmp_path / "i.index", photos / "0.png")[0] == 0


@pytest.mark.slow
def test_a_run_on_classes_answers_no_fact(call, tmp_path):
    small = ["--training.epochs=1", "--report=false", "--model.hidden=[8]", "--data.per_class=8", "--strategy=finetune"]
    assert call("train", "--data=digits", "--out", tmp_path / "digits", *small)[0] == 0
    failed(call("query", tmp_path / "digits", "--fact", "circle"), "this run did not learn facts")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["random", "semantic", "order"])
def test_real_facts(shared_data, tmp_path, split):
    """nlvr-facts: 39 facts, read from its archive."""
    archive = shared_data / "nlvr-facts" / "nlvr-facts.zip"
    with zipfile.ZipFile(archive) as packed:
        (tmp_path / "facts.csv").write_bytes(packed.read("facts.csv"))
    named = {"name": "facts", "csv": str(tmp_path / "facts.csv"), "images": str(archive), "size": 32, "word_dim": 16}
    config = {**SMALL, "data": {**named, "split": split}, "strategy": "mas", "training": {"epochs": 1}}
    made = build(config)
    assert sum(len(task.classes) for task in made.stream) == 39
    assert len(made.stream) == (3 if split == "order" else 4)
    scores = train_stream(made.model, made.stream, made.strategy, made.objective, made.training)
    assert not math.isnan(scores.matrix("map", "seen")[-1, 0])
