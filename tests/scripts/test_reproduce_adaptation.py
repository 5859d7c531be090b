"""scripts/reproduce_adaptation.py in its smallest form: what is compared starts alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import reproduce_adaptation as script
import torch

import tripletmas as tm
from tripletmas.basics.weights import snapshot, state_of
from tripletmas.data.datasets import digits

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce_adaptation.py"
ROWS = ["all", "all, half as many", "first", "second"]


@pytest.mark.slow
def test_the_command_and_that_it_goes_on(tmp_path: Path):
    found = tmp_path / "some" / "digits.json"
    command = [sys.executable, SCRIPT, "digits", "--epochs", "1", "--strengths", "0.5,2", "--out", found.parent]
    command += ["--json", tmp_path]

    def run(seeds: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, "--seeds", seeds, *more], capture_output=True, text=True, check=False)

    ran = run("0")
    assert ran.returncode == 0, ran.stderr
    results = json.loads(found.read_text())
    assert results["settings"]["strengths"] == [0.5, 2]
    rows = results["seeds"]["0"]
    expected = [("frozen", None), ("finetune", None), *((name, s) for s in (0.5, 2) for name in ROWS)]
    assert [(row["measured"], row["strength"]) for row in rows] == expected
    assert all(0 < row["recall"][part] <= 1 for row in rows for part in ("first", "second", "new"))
    assert sum(line.startswith("|") for line in ran.stdout.splitlines()) == 2 + 2  # a heading, a row for each strength
    kept = json.loads((tmp_path / "adaptation-digits.json").read_text())
    assert [(row["part"], row["strength"], len(row["before"])) for row in kept["rows"]] == [
        ("each half", "0.5", 1),
        ("each half", "2", 1),
    ]

    again = run("0,1")
    assert again.returncode == 0, again.stderr
    assert "seed 1," in again.stdout
    assert "seed 0," not in again.stdout
    assert json.loads(found.read_text())["seeds"]["0"] == rows

    other = run("0", "--strengths", "3")
    assert other.returncode == 2
    assert "has other settings" in other.stderr


@pytest.mark.slow
def test_all_start_from_the_same_weights_and_no_query_is_used(monkeypatch):
    trained, measured = [], []
    train_stream, mas_importance = tm.train_stream, tm.mas_importance

    def training(model, stream, strategy, loss, config):
        start = snapshot(state_of(model))
        scores = train_stream(model, stream, strategy, loss, config)
        data = [strategy.training_data(task, stream[:i]) for i, task in enumerate(stream)]
        trained.append((start, snapshot(state_of(model)), strategy, config, [d for d in data if d is not None]))
        return scores

    def measuring(model, batches, **options):
        measured.append((snapshot(state_of(model)), batches.dataset))
        return mas_importance(model, batches, **options)

    monkeypatch.setattr(tm, "train_stream", training)
    monkeypatch.setattr(tm, "mas_importance", measuring)
    setting = script.Setting("digits", "mlp", [3, 3, 4], old_epochs=1, new_epochs=1, batch_size=32)
    rows = script.run_seed(digits(), setting, [3.0], 1)
    (_, learned, *_), *new = trained
    assert [row["measured"] for row in rows] == ["frozen", "finetune", *ROWS]
    assert len(new) == 1 + len(ROWS)
    for start, end, strategy, config, data in new:
        assert all(torch.equal(start[name], learned[name]) for name in learned)
        assert any(not torch.equal(start[name], end[name]) for name in learned)
        assert config == new[0][3]
        assert len(data) == 1
        held = strategy.protections[0].reference  # finetune holds nothing
        assert all(torch.equal(held[name], learned[name]) for name in held)
    assert [bool(strategy.protections[0].importance) for _, _, strategy, *_ in new] == [False, True, True, True, True]
    assert len({tuple(end["embedding.weight"].flatten().tolist()) for _, end, *_ in new}) == len(new)

    stream = script.make_tasks(digits(), setting, 1)
    queries = {int(i) for task in stream for i in task.query.indices}
    first, second, last = ({int(i) for i in task.train.indices} for task in stream)
    whole, few, *halves = ({int(i) for i in data.indices} for _, data in measured)
    assert halves == [first, second]
    assert whole == first | second
    assert few < whole
    assert len(few) == len(whole) // 2
    assert all(set(data[0].indices.tolist()) == last for *_, data in new)
    assert not queries & (first | second | last)
    assert [row["samples"] for row in rows] == [0, 0, len(whole), len(few), len(first), len(second)]
    for weights, _ in measured:
        assert all(torch.equal(weights[name], learned[name]) for name in learned)


@pytest.mark.slow
def test_in_its_own_gallery_a_part_is_found_at_least_as_often():
    setting = script.Setting("digits", "mlp", [3, 3, 4], old_epochs=1, new_epochs=1, batch_size=32)
    among_all, among_own = (script.run_seed(digits(), setting, [], 1, gallery) for gallery in ("seen", "task"))
    # the same model and the same items of the query's class, with fewer others between them
    for seen, own in zip(among_all, among_own, strict=True):
        assert all(own["recall"][part] >= seen["recall"][part] for part in seen["recall"])
    assert among_all != among_own


def test_table():
    def rows(*recalls: tuple[float, float, float]) -> list[dict]:
        names = [("frozen", None), ("finetune", None), *((name, 1.0) for name in ROWS)]
        return [
            {
                "measured": name,
                "strength": strength,
                "recall": dict(zip(("first", "second", "new"), recall, strict=True)),
            }
            for (name, strength), recall in zip(names, recalls, strict=True)
        ]

    start = [(0.9, 0.9, 0.1), (0.2, 0.2, 0.9)]
    one = rows(*start, (0.6, 0.8, 0.5), (0.5, 0.7, 0.5), (0.7, 0.4, 0.6), (0.3, 0.8, 0.8))
    two = rows(*start, (0.4, 0.6, 0.5), (0.5, 0.5, 0.5), (0.8, 0.4, 0.4), (0.5, 0.8, 0.8))
    (row,) = script.table([one, two], [1.0], {"each half": [0, 1]}, "digits").rows
    assert (row["part"], row["strength"]) == ("each half", "1")
    expected = {
        "before": [0.9, 0.9],
        "finetune": [0.2, 0.2],
        "from all": [0.7, 0.5],  # (0.6 + 0.8) / 2 and (0.4 + 0.6) / 2
        "from half as many of all": [0.6, 0.5],
        "from the part": [0.75, 0.8],  # (0.7 + 0.8) / 2, (0.8 + 0.8) / 2
        "from the other part": [0.35, 0.45],  # the first half under the second's importance 0.3 and 0.5, the second 0.4
        "part - all": [0.05, 0.3],
        "part - other part": [0.4, 0.35],
        "other classes, part - all": [-0.35, -0.05],  # (0.4 + 0.3) / 2 - 0.7, (0.4 + 0.5) / 2 - 0.5
        "new task, all": [0.5, 0.5],
        "new task, part": [0.7, 0.6],
    }
    assert {name: row[name] for name in expected} == {name: pytest.approx(of) for name, of in expected.items()}
    assert row["better, same, worse"] == "3, 1, 0"  # of four halves one is as good as under all

    rows_of = script.table([one], [1.0], {"round": [0], "straight": [1]}, "digits").rows
    assert [row["from the part"] for row in rows_of] == [pytest.approx([0.7]), pytest.approx([0.8])]


def test_kinds_instead_of_drawn_halves():
    kinds = {"round": ["0", "6", "8"], "straight": ["1", "4", "7"], "others": ["2", "3", "5", "9"]}
    setting = script.Setting("digits", "mlp", [3, 3, 4], 1, 1, batch_size=32, per_class=[20, 10], kinds=kinds)
    data = digits().train
    streams = [script.make_tasks(tm.Source(data, data), setting, seed) for seed in (0, 1)]
    for stream in streams:
        assert [task.name for task in stream] == list(kinds)
        assert [[data.class_names[label] for label in task.classes] for task in stream] == list(kinds.values())
        assert all(len(task.train) == 20 * len(task.classes) for task in stream)
    assert script.part_names(setting) == {"round": [0], "straight": [1]}
