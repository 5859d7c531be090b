"""The script of the fact experiment: one run, its table, and the adaptation."""

from __future__ import annotations

import argparse
import json
import re
import sys
from statistics import fmean

import pytest
import reproduce_facts as script

from tripletmas.runs import experiment


@pytest.fixture(autouse=True)
def small_runs(monkeypatch):
    real = experiment.build

    def small(config, **options):
        size = {} if config["data"]["name"] == "facts" else {"images": 120, "test_images": 60, "unseen_images": 0}
        data = {**config["data"], **size, "size": 32, "word_dim": 16}
        return real({**config, "data": data, "model": {"name": "mlp", "hidden": [8]}}, **options)

    monkeypatch.setattr(experiment, "build", small)
    monkeypatch.setattr(script, "TRAINING", {"epochs": 1})


@pytest.mark.slow
def test_a_run_is_trained_once_and_its_table_has_the_last_row(tmp_path):
    out = tmp_path / "test" / "shapes-random" / "finetune" / "seed0"
    job = ("shapes-random", {"name": "finetune"}, 0, False, "", out)
    line = script.run_one(job)
    matrix = json.loads(out.with_suffix(".json").read_text())["matrices"]["seen"]["map"]
    assert script.run_one(job) == line
    options = argparse.Namespace(out=tmp_path)
    text = script.table(options, "shapes-random", ["finetune", "joint"], [0, 1], validation=False).text()
    row = next(line for line in text.splitlines() if line.startswith("| finetune"))
    assert [float(cell) for cell in re.findall(r"\d\.\d{3}", row)[:4]] == [round(value, 3) for value in matrix[-1]]
    assert "| joint |  | missing |" in text
    (found, *_) = script.table(options, "shapes-random", ["finetune"], [0], validation=False).rows
    scores = json.loads(out.with_suffix(".json").read_text())["matrices"]
    assert found["stale"] == [pytest.approx(fmean(scores["seen_stale"]["map"][-1]))]
    assert found["compensated"] == [pytest.approx(fmean(scores["seen_compensated"]["map"][-1]))]
    assert found["old"] == [pytest.approx(fmean(matrix[-1][:-1]))]


@pytest.mark.slow
def test_real_facts_are_read_from_their_archive(tmp_path, shared_data):
    out = tmp_path / "test" / "nlvr-semantic" / "frozen" / "seed0"
    script.run_one(("nlvr-semantic", {"name": "frozen"}, 0, False, str(shared_data / "nlvr-facts"), out))
    assert len(json.loads(out.with_suffix(".json").read_text())["matrices"]["seen"]["map"]) == 4


@pytest.mark.slow
def test_the_adaptation(tmp_path):
    path = tmp_path / "adaptation" / "seed0.json"
    assert "facts of" in script.adapt((0, path))
    rows = json.loads(path.read_text())["rows"]
    assert [(row["measured"], row["strength"]) for row in rows] == [
        ("finetune", 0.0),
        *((name, strength) for strength in script.STRENGTHS for name in ("all", "as many of all", "the part")),
    ]
    assert all(row["before"][:2] == rows[0]["before"][:2] for row in rows)  # from the same weights
    table = script.adaptation_table(tmp_path, [0, 1]).text()
    assert "adaptation, 1 seeds" in table
    assert f"| {rows[1]['after'][0]:.3f} |" in table


def test_methods_have_their_strengths_and_an_unknown_one_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["reproduce_facts.py", "shapes-random", "--methods", "mass"])
    with pytest.raises(SystemExit):
        script.main()
    assert "unknown method 'mass': there are finetune, frozen, mas" in capsys.readouterr().err
    started = []
    monkeypatch.setattr(script, "run_side_by_side", lambda run, jobs, at_once: started.extend(jobs))
    arguments = ["shapes-random", "--methods", "mas,distill,distill 3", "--seeds", "0", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["reproduce_facts.py", *arguments])
    script.main()
    assert [job[1] for job in started] == [
        {"name": "mas", "strength": script.CHOSEN["mas"]["shapes-random"]},
        {"name": "distill", "strength": script.CHOSEN["distill"]["shapes-random"]},
        {"name": "distill", "strength": 3.0},
    ]
