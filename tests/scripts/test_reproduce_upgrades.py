"""The script of upgrades: what is expected and measured on vectors that lie on the disk, once, and the tables of it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import reproduce_upgrades as script
import torch

from tripletmas.basics.files import save_tensors


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """Texts in 8 classes, and their vectors by two models."""
    folder, random = tmp_path / "banking77", torch.Generator().manual_seed(0)
    folder.mkdir()
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *((f"text {row}", f"c{row % 8}") for row in range(200))])
    inner = torch.randn(8, 6, generator=random)[torch.arange(200) % 8] + torch.randn(200, 6, generator=random)
    for name, vectors in (("MiniLM", inner), ("finetune@2", torch.relu(inner @ torch.randn(6, 6, generator=random)))):
        save_tensors(tmp_path / "out" / "embeddings" / "banking77" / f"{name}.safetensors", {"vectors": vectors})
    return tmp_path


@pytest.mark.slow
def test_what_is_there_is_measured_once(embedded: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    place = ["--data", str(embedded), "--out", str(embedded / "out"), "--sample", "80", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["reproduce_upgrades.py", "banking77", "birds", *place])
    script.main()
    printed = capsys.readouterr().out
    assert "birds, Lite0 -> Lite1: missing, --embed makes it" in printed
    assert "| banking77 | MiniLM, finetune |" in printed
    folder = embedded / "out" / "measured" / "banking77" / "MiniLM,finetune-80"
    found = json.loads((folder / "0.json").read_text())
    assert found["measured"]["1.0"][1] == 1
    assert found["chance"]["0.0"] == found["measured"]["0.0"]
    assert set(json.loads((folder / "kinds.json").read_text())) >= {"new", "old", "none", "ridge", "mlp"}
    low, _, high = found["expected"]["0.0"][0]
    assert script.is_inside(found, "0.0", 0) == (low <= found["measured"]["0.0"][0] <= high)
    (folder / "0.json").write_text(json.dumps({**found, "map": "of the disk"}))
    script.main()
    assert "| of the disk |" in capsys.readouterr().out


def test_an_unknown_set(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce_upgrades.py", "bird"])
    with pytest.raises(SystemExit):
        script.main()
    assert "unknown set 'bird': there are birds, clothing, omniglot, banking77" in capsys.readouterr().err
