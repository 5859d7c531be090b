"""The script of the tables of digits and Omniglot: from nothing to a page's table, on a small stream."""

from __future__ import annotations

import json
import sys

import fill_tables
import pytest
import reproduce_table as script


@pytest.mark.slow
def test_from_nothing_to_a_table_that_fills_a_page(tmp_path, monkeypatch, capsys):
    small = ["--data.tasks=2", "--data.per_class=8", "--training.epochs=1", "--model.hidden=[8]"]
    monkeypatch.setattr(script, "METHODS", {name: [f"--strategy={name}"] for name in ("finetune", "frozen")})
    monkeypatch.setitem(script.VARIANTS, "digits", {"tiny": small})
    out = tmp_path / "out"
    jobs = [("digits", None, out / "tiny" / name / "seed0", "tiny", name, "0") for name in script.METHODS]
    assert [script.train(job) for job in jobs] == [f"{job[2]}: done" for job in jobs]
    assert script.train(jobs[0]) == f"{jobs[0][2]}: done before"
    wrong = ("digits", None, out / "other", "tiny", "finetune", "zero")
    assert script.train(wrong).startswith(f"{out / 'other'}: failed\n")
    monkeypatch.setattr(sys, "argv", ["reproduce_table.py", "digits", "--table", "--out", str(out)])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--json", str(tmp_path / "kept")])
    script.main()
    printed = capsys.readouterr().out
    rows = {row["method"]: row for row in json.loads((tmp_path / "kept" / "tiny.json").read_text())["rows"]}
    page = "<!-- table kept/tiny.json | method; average -->\n<!-- end of table -->"
    for line in fill_tables.filled(page, tmp_path).splitlines()[4:6]:
        method, average = line.strip("| ").split(" | ")
        assert f"{rows[method]['average'][0]:.3f}" == average
        assert f"| {method} |" in printed
    assert str(tmp_path) not in (tmp_path / "kept" / "tiny.json").read_text()  # of no machine's folders
