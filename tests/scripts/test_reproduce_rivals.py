"""The script of the rivals: which runs it wants, what it chooses, and what its tables say."""

from __future__ import annotations

import json
import math
from typing import Any

import best_strengths as best
import pytest
import reproduce_rivals as rivals


def setting_of() -> Any:
    return rivals.Setting(
        "Digits, tiny",
        {
            "data": {"name": "digits", "tasks": [2, 2, 6], "per_class": 8},
            "model": {"name": "mlp", "hidden": [8], "dim": 4},
            "training": {"epochs": 1},
        },
        seeds=(0, 1),
    )


def write(results: Any, config: dict[str, Any], average: float | None) -> None:
    """A result as a run would leave it; None for one that failed."""
    summary = {"average": average, "forgetting": 0.1, "plasticity": 0.9}
    sizes = {"memory_bytes": 200, "images": 0, "image_bytes": 0, "weight_bytes": 100}
    content = (
        {"error": "the importance is zero: x"} if average is None else {"summary": summary, "seconds": 1.0, **sizes}
    )
    results.out.mkdir(exist_ok=True)
    results.path(config).write_text(json.dumps(content))


def judged(results: Any, scores: dict[float, float | None]) -> Any:
    """A method whose strengths have these scores on validation data."""
    method = rivals.Method({"name": "mas"}, tuple(scores)[:3])
    for strength, score in scores.items():
        for config in rivals.swept(setting_of(), method, strength):
            write(results, config, score)
    return method


def test_a_best_value_inside_is_chosen(tmp_path):
    results = rivals.Results(tmp_path, rivals.METHODS)
    method = judged(results, {0.1: 0.5, 1.0: 0.7, 10.0: 0.6})
    assert rivals.curve(results, setting_of(), method) == {0.1: [0.5], 1.0: [0.7], 10.0: [0.6]}


def test_at_an_end_more_is_tried_until_it_falls(tmp_path):
    results = rivals.Results(tmp_path, rivals.METHODS)
    method = judged(results, {0.1: 0.5, 1.0: 0.6, 10.0: 0.7})
    found = rivals.curve(results, setting_of(), method)
    assert list(found) == [0.1, 1.0, 10.0, 100.0]
    assert math.isnan(found[100.0][0])  # wanted, not there yet
    judged(results, {0.1: 0.5, 1.0: 0.6, 10.0: 0.7, 100.0: 0.8, 1000.0: 0.75})
    assert max(rivals.curve(results, setting_of(), method)) == 1000.0
    judged(results, {0.1: 0.9, 1.0: 0.6, 10.0: 0.7})
    assert min(rivals.curve(results, setting_of(), method)) == 0.01


def test_values_beyond_an_end_are_limited(tmp_path):
    results = rivals.Results(tmp_path, rivals.METHODS)
    method = judged(results, {10.0**i: 0.1 * (i + 3) for i in range(-1, 8)})
    assert max(rivals.curve(results, setting_of(), method)) == 10.0 ** (1 + best.FURTHER)


def test_a_strength_that_failed_is_not_chosen(tmp_path, monkeypatch):
    results = rivals.Results(tmp_path, rivals.METHODS)
    method = judged(results, {0.1: 0.5, 1.0: 0.6, 10.0: None})
    monkeypatch.setitem(rivals.METHODS, "mas", method)
    assert rivals.chosen_strategy(results, setting_of(), "mas") == {"name": "mas", "strength": 1.0}


def test_nothing_is_chosen_while_a_value_is_missing(tmp_path, monkeypatch):
    results = rivals.Results(tmp_path, rivals.METHODS)
    method = judged(results, {0.1: 0.5, 1.0: 0.6})
    monkeypatch.setitem(rivals.METHODS, "mas", rivals.Method(method.strategy, (0.1, 1.0, 10.0)))
    assert rivals.chosen_strategy(results, setting_of(), "mas") is None
    wanted = rivals.wanted(results, setting_of(), ["mas"])
    assert [(run["strategy"], run["data"]["validation"]) for run in wanted] == [
        ({"name": "mas", "strength": 10.0}, True)
    ]


def test_a_result_does_not_depend_on_where_data_lie(tmp_path):
    results = rivals.Results(tmp_path, rivals.METHODS)
    one = {"data": {"name": "sequence", "parts": [{"name": "folder", "root": "a"}]}, "seed": 0}
    other = {"data": {"name": "sequence", "parts": [{"name": "folder", "root": "b"}]}, "seed": 0}
    assert results.path(one) == results.path(other) != results.path({**one, "seed": 1})


@pytest.mark.slow
def test_runs_are_made_once_and_fill_the_table(tmp_path, monkeypatch):
    setting, results, names = (
        setting_of(),
        rivals.Results(tmp_path / "out", rivals.METHODS),
        ["finetune", "mas", "ewc", "replay"],
    )
    monkeypatch.setitem(rivals.METHODS, "mas", rivals.Method({"name": "mas"}, (0.1, 1.0, 10.0)))
    monkeypatch.setitem(rivals.METHODS, "ewc", rivals.Method({"name": "ewc"}, (1.0, 10.0)))
    assert not rivals.table(results, setting, names).rows
    only = best.configured(setting, {"name": "finetune"}, 0, validation=False)
    rivals.execute((only, results.path(only), {}))
    assert rivals.table(results, setting, names).text().count("| missing |") == 3
    while runs := rivals.wanted(results, setting, names):
        for run in runs:
            rivals.execute((run, results.path(run), {}))
    count = len(list((tmp_path / "out").iterdir()))
    assert not rivals.wanted(results, setting, names)
    lines = rivals.table(results, setting, names).markdown().splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert " 2 |" in rows["finetune"]  # both seeds
    assert "2.0 x weights" in rows["mas"]
    assert "160 images" in rows["replay"] or "images" in rows["replay"]
    first = rivals.chosen_strategy(results, setting, "mas")
    test = [results.get(best.configured(setting, first, seed, validation=False)) for seed in (0, 1)]
    finetune = [
        results.score(best.configured(setting, {"name": "finetune"}, seed, validation=False)) for seed in (0, 1)
    ]
    mean = sum(each["summary"]["average"] - base for each, base in zip(test, finetune, strict=True)) / 2
    assert f"{mean:+.3f}" in rows["mas"] or abs(mean) < 5e-4
    assert len(list((tmp_path / "out").iterdir())) == count


@pytest.mark.slow
def test_every_setting_is_a_configuration():
    from tripletmas.runs.configuration import resolve

    for setting in rivals.SETTINGS.values():
        for name in rivals.applicable(setting, list(rivals.METHODS)):
            method = rivals.METHODS[name]
            strategy = {**method.strategy, "strength": 1.0} if method.strengths else method.strategy
            config = best.configured(setting, strategy, 0, validation=True)
            assert resolve(best.placed(config, {"omniglot": "a", "fashion_mnist": "b", "clothing": "c"}))
