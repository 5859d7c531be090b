"""The comparison with Avalanche's own plugins, small."""

from __future__ import annotations

import importlib
import warnings

import pytest


@pytest.mark.slow
def test_a_row_a_method(monkeypatch, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = importlib.import_module("compare_avalanche")
        monkeypatch.setattr(script, "STRENGTHS", (1.0,))
        monkeypatch.setattr(script, "METHODS", {name: script.METHODS[name] for name in ("none", "MAS")})
        script.main(["--seeds", "0", "--epochs", "1"])
    head, none, mas = capsys.readouterr().out.splitlines()
    assert head.split() == ["method", "strength", "accuracy", "forgetting", "seconds"]
    assert (none.split()[0], mas.split()[0], mas.split()[1]) == ("none", "MAS", "1.0")
    assert 0.5 < float(mas.split()[2]) <= 1
