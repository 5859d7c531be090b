"""The script of the galleries' tables: one run from training to scores, and the table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import reproduce_galleries as script
import torch
from PIL import Image

from tripletmas.runs.arguments import read_yaml


@pytest.fixture
def images(tmp_path) -> Path:
    """Two classes of eight images of 16 x 16 in each of two task folders."""
    random = torch.Generator().manual_seed(0)
    for task in "ab":
        for name in "xy":
            folder = tmp_path / "images" / task / name
            folder.mkdir(parents=True)
            for number in range(8):
                pixels = (torch.rand(16, 16, generator=random) * 255).byte().numpy()
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_a_run_is_trained_and_scored_once(images, tmp_path, monkeypatch):
    monkeypatch.setitem(script.SETTINGS, "small", ("Small", {"name": "folder", "size": 16, "channels": 1}))
    monkeypatch.setattr(script, "MODEL", {"name": "conv4", "width": 4})
    monkeypatch.setattr(script, "TRAINING", {"epochs": 1, "batch_size": 8})
    out = tmp_path / "runs" / "mas" / "seed0"
    job = ("small", {"name": "mas"}, 0, False, str(images), out)
    line = script.run_one(job)
    found = json.loads(out.with_suffix(".json").read_text())
    matrices = json.loads((out / "scores.json").read_text())["matrices"]
    for gallery, recorded in (("fresh", "seen"), ("stale", "seen_stale"), ("linear", "seen_compensated")):
        row = matrices[recorded]["recall@1"][-1]
        assert found["seen"][gallery] == pytest.approx(sum(row) / len(row))
    assert set(found["task"]) == set(script.GALLERIES)
    out.joinpath("config.yaml").unlink()  # would be an error if it were trained again
    assert script.run_one(job) == line


def test_the_table(tmp_path):
    """Means and sample deviations of two seeds; the share is that of the best map's mean."""
    options = argparse.Namespace(out=tmp_path)
    for seed, fresh in ((0, 0.5), (1, 0.7)):
        path = script.folder(options, "omniglot", "mas", seed, validation=False).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        seen = {"fresh": fresh, "stale": 0.1, "sdc": 0.2, "linear": fresh - 0.06, "mlp": 0.3}
        path.write_text(json.dumps({"seen": seen}))
    text = script.table(options, "omniglot", ["mas", "joint"], [0, 1, 2], validation=False).text()
    row = next(line for line in text.splitlines() if line.startswith("| mas"))
    # (0.44 + 0.64) / 2 = 0.54 of 0.6; deviation of 0.5 and 0.7: sqrt(2 * 0.1^2)
    assert row.split(" | ")[1:3] == ["2", "0.600 ± 0.141"]
    assert row.endswith("| 90.0% |")
    assert "| joint | missing |" in text


def test_the_preset_is_what_the_table_calls_by_its_name():
    for data, (distill, (mas, with_mas)) in script.CHOSEN.items():
        found = script.strategy_of("no-reindex", data)
        assert found["name"] == read_yaml("no-reindex")["strategy"]["name"]
        assert (found["mas"]["strength"], found["distill"]["strength"]) == (mas, with_mas)
        assert script.strategy_of("distill", data) == {"name": "distill", "strength": distill}


def test_unknown_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce_galleries.py", "omniglott"])
    with pytest.raises(SystemExit):
        script.main()
    assert "unknown data 'omniglott'" in capsys.readouterr().err
