"""The script of the table of a trainer: from nothing to a table, on tiny texts, with a tiny model."""

from __future__ import annotations

import sys

import pytest
import reproduce_trainer as script
from tiny_texts import rows_of, write_csv


@pytest.mark.slow
def test_from_nothing_to_a_table(tmp_path, tiny_encoder, monkeypatch, capsys):
    for name, first in (("train", 0), ("test", 12)):
        rows = [{"text": each["question"], "category": each["topic"]} for each in rows_of(first + 6)]
        write_csv(tmp_path / f"{name}.csv", [row for number, row in enumerate(rows) if number % (first + 6) >= first])
    arguments = ["--data", str(tmp_path), "--model", str(tiny_encoder), "--out", str(tmp_path / "out"), "--seeds", "0"]
    some = ["--methods", "before;no protection;the new questions, 1000", "--measured", "4", "--epochs", "1"]

    def call(*more: str) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", ["reproduce_trainer.py", *arguments, *some, *more])
        script.main()
        return [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]

    assert all("missing" in line[1] for line in call("--table"))
    lines = call()
    assert [line[0].removeprefix("| ") for line in lines] == ["before", "no protection", "the new questions, 1000"]
    for line in lines:
        assert all(0 <= float(cell) <= 1 for cell in line[2:6])
    before = sorted((tmp_path / "out").iterdir())
    assert call() == lines
    assert sorted((tmp_path / "out").iterdir()) == before  # what is done is not repeated


def test_other_topics_are_others():
    asked = set(script.paragraphs()[0])
    found = script.other_topics()
    assert len(found) > 100
    assert not asked & set(found)
