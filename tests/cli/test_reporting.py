"""Commands that show runs, of runs that are written by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from synthetic_runs import write_run


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[Path]:
    path = tmp_path_factory.mktemp("two")
    return [write_run(path / name, strategy={"name": name}) for name in ("finetune", "mas")]


def test_compare_prints_what_is_asked_for_and_writes_no_page(call, two: list[Path]):
    status, text, complaint = call("compare", *two, "--json")
    assert (status, complaint) == (0, "")
    assert [method["method"] for method in json.loads(text)["methods"]] == ["finetune", "mas"]
    assert json.loads(text)["methods"][0]["runs"] == [str(two[0])]
    rows = list(csv.DictReader(io.StringIO(call("compare", *two, "--csv")[1])))
    assert [row["method"] for row in rows] == ["finetune", "mas"]
    assert call("compare", *two, "--latex")[1].startswith(
        "% Recall@1 on the gallery of all tasks seen\n\\begin{tabular}"
    )
    assert call("compare", *two, "--markdown")[1].startswith("| method |")
    assert not (two[0].parent / "comparison").exists()


def test_compare_takes_one_form_at_a_time(call, two: list[Path], tmp_path: Path):
    for options, message in (
        (["--csv", "--json"], "give --csv or --json, not both"),
        (["--latex", "--quiet"], "give --latex or --quiet, not both"),
        (["--csv", "--out", tmp_path], "--csv writes no page: leave --out out"),
    ):
        status, text, complaint = call("compare", *two, *options)
        assert (status, text) == (2, "")
        assert message in complaint


def test_quiet_writes_the_page_and_prints_nothing(call, two: list[Path], tmp_path: Path, undrawn):
    assert call("compare", *two, "--quiet", "--out", tmp_path / "out") == (0, "", "")
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert call("report", two[0], "--quiet") == (0, "", "")
    assert (two[0] / "report" / "report.html").is_file()
