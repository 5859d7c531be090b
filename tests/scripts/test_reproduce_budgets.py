"""The script of the score over the budget: from nothing to a table and a figure, on a small stream."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import reproduce_budgets as script
from PIL import Image
from script_calls import called

from tripletmas.protection.structured.budget import default_budget

call = partial(called, script)

SMALL = {
    "data": {"name": "digits", "tasks": 2, "per_class": 8},
    "model": {"name": "mlp", "hidden": [8, 8], "dim": 4},
    "training": {"epochs": 1, "batch_size": 32},
}


@pytest.mark.slow
def test_from_nothing_to_a_table_and_a_figure(monkeypatch, capsys, tmp_path):
    setting = replace(script.SETTINGS["digits"], config=SMALL, validation_seeds=(0, 1))
    monkeypatch.setattr(script, "SETTINGS", {"digits": setting})
    monkeypatch.setattr(script, "TIMES", (0.5, 1.0))
    monkeypatch.setattr(script, "STRENGTHS", (10.0,))
    out = ["--out", str(tmp_path / "out")]
    printed = call(monkeypatch, capsys, "digits", *out, "--figure", str(tmp_path / "budget.png"))
    assert "digits: 8 runs" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| frozen", "| budget x 0.5", "| budget x 1", "| strength 10"]
    assert all("±" in row[1] for row in rows[2:])
    assert f"digits ({default_budget(num_maps=3):.2g})" in rows[0][1]  # three linear layers
    with Image.open(tmp_path / "budget.png") as figure:
        assert figure.width > 400
    assert "digits: 0 runs" in call(monkeypatch, capsys, "digits", *out)
    assert "| frozen |  |" in call(monkeypatch, capsys, "--table", "--out", str(tmp_path / "other"))


def test_an_unknown_setting(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, capsys, "letters")
    assert "unknown setting 'letters': there are digits; omniglot-5" in capsys.readouterr().err
