"""Tables of pages come from the JSON beside them: nobody has typed a number."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import fill_tables
import pytest
from tables import Table, keep, mean_of, table_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "<!-- table " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_what_their_json_says(path: Path):
    text = path.read_text(encoding="utf-8")
    assert fill_tables.filled(text, path.parent) == text, "run scripts/fill_tables.py"


def test_the_page_of_results_says_how_many_of_its_tables_are_filled():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    tables, filled, printed = map(int, re.findall(r"(?:Of the|page|The other) (\d+)", text[: text.index("## ")]))
    assert tables == len(re.findall(r"^\| *-+:? *\|", text, flags=re.M))
    assert (filled, printed) == (text.count("<!-- table "), tables - filled)


RIVALS = {  # a column of docs/expect.md -> its file, where there is one
    "digits": "rivals-digits",
    "Omniglot, 5 tasks": "rivals-omniglot-5",
    "Fashion-MNIST": "rivals-fashion-mnist",
    "split Omniglot, recognition": "rivals-split-omniglot",
}


def rivals(column: str) -> dict[str, str]:
    """Method -> its average as a page tells it; {} where its numbers are not kept."""
    file = ROOT / "docs" / "results" / f"{RIVALS[column]}.json"
    if not file.exists():
        return {}
    table = table_of(json.loads(file.read_text(encoding="utf-8")))
    rows = [line.strip("| ").split(" | ") for line in table.markdown(["method", "average"]).splitlines()[2:]]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_readme_has_the_same_numbers():
    """Of rivals, and galleries on Fashion-MNIST."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [rivals(column) for column in ("digits", "Omniglot, 5 tasks", "Fashion-MNIST")]
    of_rows = [("replay", "finetune"), *((name, name) for name in ("replay", "joint", "distill", "mas", "frozen"))]
    for row_of, strategy in of_rows:
        (row,) = [line for line in readme.splitlines() if line.startswith("|") and f"`{row_of}` | " in line]
        for means in filter(None, found):
            assert means[strategy].partition(" ")[0] in row, strategy
    content = json.loads((ROOT / "docs" / "results" / "galleries-fashion-mnist.json").read_text(encoding="utf-8"))
    moved = {row["strategy"]: f"{mean_of(row['linear']):.3f}" for row in content["rows"]}
    (row,) = [line for line in readme.splitlines() if line.startswith("|") and "`no-reindex`" in line]
    assert f"moved index {moved['no-reindex']}" in row
    assert row.endswith(f"| {moved['finetune']}, 0.229 |")


def test_what_to_expect_has_the_same_rivals():
    page = (ROOT / "docs" / "expect.md").read_text(encoding="utf-8").partition("\n| strategy | digits")
    head, _, *lines = (page[1] + page[2]).strip().split("\n\n")[0].splitlines()
    columns = head.strip("| ").split(" | ")
    assert columns == ["strategy", *RIVALS]
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for column, cell in zip(RIVALS, cells, strict=True):
            means = rivals(column)
            if means and re.match(r"\d", cell):
                assert cell == means[name.removesuffix(" (LwF)")], (name, column)


def test_what_to_expect_has_the_same_facts():
    """Of NLVR, whose four columns are the last."""
    content = json.loads((ROOT / "docs" / "results" / "facts-nlvr-semantic.json").read_text(encoding="utf-8"))
    lines = table_of(content).markdown(["strategy", "old", "B4", "mean mAP", "compensated"]).splitlines()[2:]
    page = (ROOT / "docs" / "expect.md").read_text(encoding="utf-8").partition("| strategy | drawn: old batches")[2]
    for line, row in zip(lines, page.splitlines()[2:], strict=False):
        name, *cells = line.strip("| ").split(" | ")
        assert row.startswith(f"| {name} |")
        assert row.endswith(f"| {' | '.join(cells)} |"), row


def test_what_to_expect_has_the_same_numbers():
    """Digits, in the table beside Omniglot."""
    content = json.loads((ROOT / "docs" / "results" / "digits.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "expect.md").read_text(encoding="utf-8").partition("\n| method | digits: average")[2]
    lines = table_of(content).markdown(["method", "average", "forgetting"]).splitlines()[2:]
    for line in (line for line in lines if not line.startswith("| local_mas")):
        method, *numbers = line.strip("| ").split(" | ")
        start = f"| {method.removesuffix('.0').replace('=', ' ')}"
        (row,) = [each for each in page.splitlines()[:12] if re.match(rf"{re.escape(start)} (\(default\) )?\|", each)]
        assert " | ".join(numbers) in row, row


def test_a_table_is_made_of_means_and_deviations(tmp_path: Path):
    """0.5 and 0.7: mean 0.6, deviation sqrt(2 * 0.1 ** 2) = 0.141; what was not measured is a dash."""
    methods = [
        {"method": "mas, strength 1", "seeds": [0, 1], "average": [0.5, 0.7], "forgetting": [None, None]},
        {"method": "joint", "seeds": [0], "average": [0.9], "forgetting": [0.0]},
        {"method": "si", "seeds": [0], "average": [0.8], "forgetting": [0.0]},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"methods": methods}))
    block = "<!-- table a.json | method; seeds; average; forgetting | mas; joint -->"
    page = f"before\n{block}\nold\n<!-- end of table -->\nafter"
    assert fill_tables.filled(page, tmp_path).splitlines() == [
        "before",
        block,
        "",
        "| method | seeds | average | forgetting |",
        "| --- | ---: | ---: | ---: |",
        "| mas, strength 1 | 2 | 0.600 ± 0.141 | – |",
        "| joint | 1 | 0.900 | 0.000 |",
        "",
        "<!-- end of table -->",
        "after",
    ]


def test_what_a_script_keeps_fills_a_page(tmp_path: Path):
    """0.5 and 0.7 again; of -0.2 and 0 the mean -0.1, the same deviation; two of four is a half; a row may be short."""
    forms = {"a": "name", "strength": "text", "b": "spread", "c": "change", "d": "mean", "e": "share"}
    row = {"a": "mas", "strength": "3", "b": [0.5, 0.7], "c": [-0.2, 0.0], "d": [0.5, 0.7], "e": [0.0, 1.0, 1.0, 0.0]}
    table = Table(forms, [row, {"a": "si", "strength": "missing"}, {"a": "ewc", "b": [math.nan, 0.5]}], "Tried")
    keep(table, tmp_path / "new", "tried", versions={"torch": "2"})
    assert json.loads((tmp_path / "new" / "tried.json").read_text())["versions"] == {"torch": "2"}
    page = "<!-- table new/tried.json -->\n<!-- end of table -->"
    lines = fill_tables.filled(page, tmp_path).splitlines()[2:-2]
    assert lines == [
        "| a | strength | b | c | d | e |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| mas | 3 | 0.600 ± 0.141 | -0.100 ± 0.141 | 0.600 | 50% |",
        "| si | missing |  |  |  |  |",
        "| ewc |  | – |  |  |  |",
    ]
    assert table.text().splitlines() == ["Tried.", "", *lines]
    assert table.markdown(["a", "d"], ["mas"]).splitlines()[2:] == ["| mas | 0.600 |"]


def test_nothing_is_kept_where_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    keep(Table({"a": "name"}), None, "tried")
    assert not list(tmp_path.iterdir())
