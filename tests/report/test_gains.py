"""What learning brought, of runs that are written by hand: said where it is known, and told where it is hardly any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_runs import write_run

from tripletmas.report.compare import comparison
from tripletmas.report.gains import gain_of, note, sentence
from tripletmas.report.read import read_run
from tripletmas.report.summary import said
from tripletmas.report.summary_of_seeds import said_of_seeds

MATRIX = [[0.5], [0.4, 0.5], [0.4, 0.4, 0.6]]  # on their own galleries 1.01 times as much: 0.505 and 0.606 when learned


def _run(path: Path, *, ahead: float | None, **given):
    return read_run(write_run(path, matrix=MATRIX, ahead=ahead, **given))


def test_the_mean_over_tasks_after_the_first_is_said(tmp_path: Path):
    run = _run(tmp_path / "run", ahead=0.3)
    gain = gain_of(run)
    assert gain is not None
    assert gain == pytest.approx((0.3, (0.505 + 0.606) / 2))
    assert not gain.is_hardly_any
    told = " On its own gallery a later task had recall@1 0.300 before it was learned, and 0.555 after."
    assert said(run)[0].text.endswith(told)
    assert not note([run])


@pytest.mark.parametrize(
    ("ahead", "hardly"),
    [(0.53, False), (0.54, True), (0.7, True)],  # 0.0555 - 0.53 = 0.0255 of 0.47 missing: more than a twentieth
)
def test_a_gain_below_a_twentieth_of_what_was_missing_is_hardly_any(tmp_path: Path, ahead: float, hardly: bool):
    run = _run(tmp_path / "run", ahead=ahead)
    gain = gain_of(run)
    assert gain is not None
    assert gain.is_hardly_any == hardly
    assert ("hardly a gain: a protection that holds less" in sentence(run)) == hardly
    assert bool(note([run])) == hardly


def test_who_knew_nearly_all_had_little_to_gain(tmp_path: Path):
    run = read_run(write_run(tmp_path / "run", matrix=[[0.9], [0.9, 0.92], [0.9, 0.9, 0.9]], ahead=0.93))
    gain = gain_of(run)
    assert gain is not None
    assert gain.after < gain.before
    assert not gain.is_hardly_any


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path):
    """A run of an earlier version; one task; one that did not train after its first task, as frozen does."""
    assert gain_of(_run(tmp_path / "before", ahead=None)) is None
    assert gain_of(_run(tmp_path / "first", ahead=0.5, done=1)) is None
    _run(tmp_path / "frozen", ahead=0.6)
    records = tmp_path / "frozen" / "metrics.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    kept = [line for line in lines if line["kind"] != "epoch" or not line["task"]]
    records.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    run = read_run(tmp_path / "frozen")
    assert gain_of(run) is None
    assert (sentence(run), note([run])) == ("", "")


def test_a_task_that_was_not_scored_ahead_is_left_out(tmp_path: Path):
    path = tmp_path / "run"
    _run(path, ahead=0.3)
    content = json.loads((path / "scores.json").read_text())
    content["matrices"]["task"]["recall@1"][0][1] = None
    (path / "scores.json").write_text(json.dumps(content))
    assert gain_of(read_run(path)) == pytest.approx((0.3, 0.606))


def test_a_method_of_several_seeds_says_how_many(tmp_path: Path):
    for seed, ahead in enumerate((0.55, 0.3, 0.57)):
        _run(tmp_path / "seeds" / f"seed{seed}", ahead=ahead, seed=seed)
    method = comparison([tmp_path / "seeds"]).methods[0]
    told = "2 of 3 runs hardly learned the later tasks (recall@1 on their own galleries 0.560 before, 0.555 after)"
    assert method.note == f"{told}: what holds less learns more"
    assert said_of_seeds(method)[0].text.endswith(f"{told}: what holds less learns more.")
    _run(tmp_path / "one", ahead=0.56)
    assert comparison([tmp_path / "one"]).methods[0].note.startswith("hardly learned the later tasks (recall@1")
