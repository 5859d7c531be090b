"""Tables of pages come from the JSON beside them: nobody has typed a number."""

from __future__ import annotations

import json
from pathlib import Path

import fill_tables
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "<!-- table " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_what_their_json_says(path: Path):
    text = path.read_text(encoding="utf-8")
    assert fill_tables.filled(text, path.parent) == text, "run scripts/fill_tables.py"


def test_readme_has_the_same_numbers():
    """Digits, rounded."""
    content = json.loads((ROOT / "docs" / "results" / "digits.json").read_text(encoding="utf-8"))
    means = {method["method"]: method["mean"]["average"] for method in content["methods"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row_of, strategy in (("replay", "finetune"), ("frozen", "frozen"), ("joint", "joint")):
        (row,) = [line for line in readme.splitlines() if line.startswith("|") and f"`{row_of}`" in line]
        assert f"{means[strategy]:.3f}" in row, strategy


def test_a_table_is_made_of_means_and_deviations(tmp_path: Path):
    """0.5 and 0.7: mean 0.6, deviation sqrt(2 * 0.1 ** 2) = 0.141; what was not measured is a dash."""
    methods = [
        {"method": "mas, strength 1", "seeds": [0, 1], "average": [0.5, 0.7], "forgetting": [None, None]},
        {"method": "joint", "seeds": [0], "average": [0.9], "forgetting": [0.0]},
        {"method": "si", "seeds": [0], "average": [0.8], "forgetting": [0.0]},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"methods": methods}))
    page = "before\n<!-- table a.json average forgetting : mas joint -->\nold\n<!-- end of table -->\nafter"
    assert fill_tables.filled(page, tmp_path).splitlines() == [
        "before",
        "<!-- table a.json average forgetting : mas joint -->",
        "",
        "| method | seeds | average | forgetting |",
        "| --- | ---: | ---: | ---: |",
        "| mas, strength 1 | 2 | 0.600 ± 0.141 | – |",
        "| joint | 1 | 0.900 | 0.000 |",
        "",
        "<!-- end of table -->",
        "after",
    ]
