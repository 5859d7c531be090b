"""reproduce_forecast.py: a run is told once, constants are the narrowest that hold, and what the table says."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import reproduce_forecast as script
from best_strengths import Setting


def step(stale: float, *, change: float = -0.1) -> dict:
    """One update of two tasks, after which the first one's stale recall is so much: before it 0.8; of the new 0.7."""
    now = {gallery: [0.9 + change, 0.5] for gallery in script.GALLERIES}
    return {
        "after": 1,
        "now": now,
        "was": {gallery: [0.9] for gallery in script.GALLERIES},
        "before": {gallery: [0.8] for gallery in script.GALLERIES},
        "new": {"stale": 0.7, "compensated": 0.7},
        "measured": {"stale": [stale, 0.7], "compensated": [0.7, 0.7], "fresh": [0.7, 0.7]},
        "cosine": [0.9, 0.8],
    }


def write(options: argparse.Namespace, data: str, seed: int, steps: list[dict]) -> None:
    path = script.folder(options, data, "gram", seed).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(steps))


def test_a_run_is_trained_and_told_once(tmp_path, monkeypatch):
    training = {"data": {"name": "digits", "tasks": [2, 2, 6]}, "model": {"name": "mlp", "hidden": [16]}}
    small = Setting("Small", {**training, "training": {"epochs": 1}})
    monkeypatch.setitem(script.SETTINGS, "small", small)
    out = tmp_path / "runs" / "seed0"
    job = ("small", "gram", 0, {}, out)
    line = script.run_one(job)
    first, last = json.loads(out.with_suffix(".json").read_text())
    assert (first["after"], last["after"]) == (1, 2)
    matrices = json.loads((out / "scores.json").read_text())["matrices"]
    for gallery, name in (("stale", "seen_stale"), ("compensated", "seen_compensated"), ("fresh", "seen")):
        assert last["measured"][gallery] == matrices[name]["recall@1"][2]
        assert last["before"][gallery] == matrices[name]["recall@1"][1][:2]
    out.joinpath("config.yaml").unlink()  # would be an error if it were trained again
    assert script.run_one(job) == line


def test_a_line_is_fitted_to_changes():
    """Measured is half of the change that imagined images show, and 0.02 less: of the newest part, the only one."""
    steps = [step(0.8 + 0.5 * change - 0.02, change=change) for change in (-0.4, -0.2, 0.0)]
    assert script.fitted(steps, "stale", newest=True) == pytest.approx((0.5, -0.02))
    assert script.fitted(steps, "stale", newest=False) == (1.0, 0.0)  # there is none


def test_constants_are_the_narrowest_that_hold():
    """Steps on a line, and a few that are 0.08 off it, 0.04 of the mean of two tasks: of 50 two are left out, and the
    others need no margin; of 26 six are not."""
    on = [step(0.8 + change, change=change) for change in (-0.4, -0.2) for _ in range(24)]
    off = [step(0.7 + 0.08), step(0.7 - 0.08)]
    few = script.chosen([*on, *off], "stale")
    assert (few.newest, few.margin) == ((1.0, 0.0), pytest.approx(0.0, abs=1e-3))
    steps = [*on[12:32], *off * 3]
    found = script.chosen(steps, "stale")
    told = [script.interval(each, "stale", found) for each in steps]
    inside = [low <= sum(of["measured"]["stale"]) / 2 <= high for of, (low, _, high) in zip(steps, told, strict=True)]
    assert sum(inside) >= 0.9 * len(inside)
    assert sum(high - low for low, _, high in told) / len(told) == pytest.approx(0.08, abs=0.01)


def test_the_table(tmp_path, monkeypatch):
    """Two steps, each told 0.7 on the mean of its tasks: of one 0.72 was measured, of the other 0.6; margin 0.05."""
    from tripletmas.runs import forecast

    as_it_is = forecast.Change((1.0, 0.0), (1.0, 0.0), 0.05, 0.0)
    for gallery in script.GALLERIES:
        monkeypatch.setitem(forecast.CHANGES, gallery, as_it_is)
    options = argparse.Namespace(out=tmp_path)
    write(options, "digits", 1, [step(0.74), step(0.5)])
    text = script.table(options, 1, ["digits", "clothing"], ["gram", "distill"])
    assert "| digits | stale | 2 | 50% | 0.100 | 0.060 | 0.100 |" in text
    assert "| all | compensated | 2 | 100% | 0.100 | 0.000 |  |" in text
    assert "| clothing | missing |" in text
    script.figure(options, ["digits"], ["gram"], Path(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").exists()


def test_unknown_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce_forecast.py", "digitz"])
    with pytest.raises(SystemExit):
        script.main()
    assert "unknown data 'digitz'" in capsys.readouterr().err
