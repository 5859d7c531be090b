"""The script of a few old samples: from nothing to a table and a figure, on a small stream."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import reproduce_anchors as script
from PIL import Image
from script_calls import called

call = partial(called, script)

SMALL = {
    "data": {"name": "digits", "tasks": 5, "per_class": 8},
    "model": {"name": "mlp", "hidden": [8], "dim": 4},
    "training": {"epochs": 1, "batch_size": 8},
}


def test_what_is_kept_is_the_same_number_for_all():
    assert script.strategy_of("gram", 0, "digits") == {"name": "gram"}
    assert script.strategy_of("gram", 5, "digits") == {"name": "gram+anchors", "anchors": {"per_class": 5}}
    distill = script.strategy_of("distill", 5, "clothing")
    assert distill == {"name": "distill+anchors", "anchors": {"per_class": 5}, "distill": {"strength": 3.0}}
    assert script.strategy_of("replay", 5, "digits") == {"name": "replay", "memory": 50}
    assert script.strategy_of("replay", 0, "digits") == {"name": "finetune"}
    assert script.strategy_of("replay", 1, "digits") is None


@pytest.mark.slow
def test_from_nothing_to_a_table_and_a_figure(monkeypatch, capsys, tmp_path):
    setting = replace(script.SETTINGS["digits"], config=SMALL, seeds=(0, 1))
    monkeypatch.setattr(script, "SETTINGS", {"digits": setting})
    monkeypatch.setattr(script, "KEPT", (0, 2))
    out = ["--out", str(tmp_path / "out")]
    printed = call(monkeypatch, capsys, "digits", *out, "--json", str(tmp_path), "--figure", str(tmp_path / "x.png"))
    assert "digits: 14 runs" in printed
    rows = json.loads((tmp_path / "anchors-digits.json").read_text())["rows"]
    assert [(row["strategy"], row["kept of each class"]) for row in rows] == [
        *[(name, kept) for name in script.STRATEGIES for kept in "02"],
        ("frozen", "0"),
    ]
    assert all(len(row["stale"]) == len(row["compensated"]) == 2 for row in rows)
    for none, some in zip(rows[:-1:2], rows[1::2], strict=True):
        difference = [own - bare for own, bare in zip(some["stale"], none["stale"], strict=True)]
        assert some["stale - none kept"] == pytest.approx(difference)
    with Image.open(tmp_path / "x.png") as figure:
        assert figure.width > 400
    assert "runs\n" not in call(monkeypatch, capsys, "digits", *out)
    assert "| gram | 0 | missing |" in call(monkeypatch, capsys, "--table", "--out", str(tmp_path / "other"))


def test_an_unknown_setting(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, capsys, "letters")
    assert "unknown setting 'letters': there are digits, fashion-mnist" in capsys.readouterr().err
