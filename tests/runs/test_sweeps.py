"""Sweeps: which runs they make, and what is refused."""

from __future__ import annotations

import pytest

from tripletmas.runs.sweeps import combinations, folder_of, guided, ranges


def test_every_combination():
    found = combinations(["strategy.strength=0.1,1", "--training.lr=0.01, 0.02"])
    assert found == [
        {"strategy.strength": "0.1", "training.lr": "0.01"},
        {"strategy.strength": "0.1", "training.lr": "0.02"},
        {"strategy.strength": "1", "training.lr": "0.01"},
        {"strategy.strength": "1", "training.lr": "0.02"},
    ]


def test_a_comma_in_brackets_belongs_to_a_value():
    assert [each["model.hidden"] for each in combinations(["model.hidden=[64,64],[128]"])] == ["[64,64]", "[128]"]


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["strategy.strength"], "a sweep is written option=value,value"),
        (["=1,2"], "a sweep is written option=value,value"),
        (["a=1,,2"], "a sweep is written option=value,value"),
        (["a=1", "a=2"], "a is swept twice"),
        (["a=1,1"], "a value of the sweep of a is given twice: 1,1"),
    ],
)
def test_sweeps_that_are_refused(sweeps, message):
    with pytest.raises(ValueError, match=message):
        combinations(sweeps)


def test_folders_are_named_by_what_differs():
    assert folder_of({"strategy.strength": "0.1", "training.lr": "0.01"}) == "strength=0.1,lr=0.01"
    assert folder_of({"strategy.mas.strength": "1", "strategy.distill.strength": "2"}) == (
        "strategy.mas.strength=1,strategy.distill.strength=2"
    )
    assert folder_of({"data.root": "a/b c"}) == "root=a_b_c"


@pytest.mark.parametrize("sweep", ["a=1,2", "a=1", "a=0..1", "a=2..1", "a=x..y", "a=-1..1"])
def test_ranges_that_are_refused(sweep):
    with pytest.raises(ValueError, match=r"with --trials a sweep is written option=low\.\.high"):
        ranges([sweep])


def test_optuna_goes_to_the_better_values():
    pytest.importorskip("optuna")
    seen = []

    def run(values, number):
        assert number == len(seen)
        seen.append(float(values["x"]))
        return -abs(seen[-1] - 1)

    best, score = guided(["x=0.01..100"], 12, run)
    assert len(seen) == 12
    assert all(0.01 <= value <= 100 for value in seen)
    assert score == max(-abs(value - 1) for value in seen)
    assert abs(float(best["x"]) - 1) == -score
    again = []
    guided(["x=0.01..100"], 3, lambda values, _: again.append(float(values["x"])) or -abs(again[-1] - 1))
    assert again == seen[:3]  # the same scores give the same choices


def test_without_optuna_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ValueError, match=r'--trials needs optuna: pip install "tripletmas\[optuna\]"'):
        guided(["x=1..2"], 2, lambda *_: 0.0)
