"""The script of what collapses: from nothing to a table, on a small stream."""

from __future__ import annotations

import logging
import re
import sys

import pytest
import reproduce_collapse as script

from tripletmas.objectives.objective import Objective
from tripletmas.objectives.retrieval.objective import Retrieval

SMALL = {
    "data": {"name": "digits", "tasks": 2, "per_class": 8},
    "model": {"name": "mlp", "hidden": [8], "dim": 4},
    "training": {"epochs": 1},
}


@pytest.mark.slow
def test_from_nothing_to_a_table(monkeypatch, capsys):
    monkeypatch.setattr(script, "settings", lambda options: {"small": SMALL, "other": SMALL})
    monkeypatch.setattr(logging.root.manager, "disable", 0)  # the script sets it, and later tests read the log
    monkeypatch.setattr(sys, "argv", ["reproduce_collapse.py", "--seeds", "0,1", "--only", "small"])
    script.main()
    told = capsys.readouterr().out.splitlines()
    head, _, *rows = [line for line in told if line.startswith("|")]
    assert head == "| network and data | seed | hardest | default | all |"
    assert len(rows) == 2
    assert told[0].replace(", ", " | ") in rows[0]  # when it was measured
    assert re.fullmatch(r"\| small \| 0 \|( [01]\.\d{3} \(0 of 2\) \|){3}", rows[0])
    assert Retrieval.soften is not Objective.soften
