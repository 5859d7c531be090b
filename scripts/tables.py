"""A table that a script has measured: told as Markdown, and kept as JSON, from which fill_tables.py fills a page.

    {"about": "...", "columns": {"strategy": "name", "fresh": "spread"},
     "rows": [{"strategy": "mas", "fresh": [0.9, 0.8]}, ...]}

A cell is a text, told as it is, or the numbers of all seeds, or of all rounds of a timing, told as its column says
(`FORMS`); what a row lacks is empty.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tripletmas.report.numbers import Spread, number

Cell = str | Sequence[float]
FORMS: dict[str, Callable[[Spread], str]] = {
    "name": Spread.text,  # a text, on the left
    "text": Spread.text,  # a text, on the right as numbers are
    "spread": Spread.text,  # 0.912 ± 0.004
    "change": lambda of: of.text(signed=True),
    "mean": lambda of: number(of.mean),
    "share": lambda of: f"{of.mean:.0%}",
    "median": lambda of: number(median(of.values), 2),  # of rounds
    "whole": lambda of: number(median(of.values), 0),
}


@dataclass(frozen=True)
class Table:
    """Columns with how their numbers are told, in order, and rows.

    Attributes:
        about: a sentence that says what was measured.
    """

    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Cell]] = field(default_factory=list)
    about: str = ""

    def markdown(self, columns: Sequence[str] = (), first: Sequence[str] = ()) -> str:
        """The table; some of its columns, where they are named, and the rows that begin with one of these words."""
        names = list(columns or self.columns)
        lines = [names, ["---" if self.columns[name] == "name" else "---:" for name in names]]
        opening = next(iter(self.columns))
        for row in self.rows:
            if not first or str(row[opening]).replace(",", " ").split()[0] in first:
                lines.append([self._told(row, name) for name in names])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def text(self) -> str:
        """The sentence and the table."""
        return f"{self.about}.\n\n{self.markdown()}\n"

    def _told(self, row: Mapping[str, Cell], name: str) -> str:
        cell = row.get(name, "")
        return cell if isinstance(cell, str) else FORMS[self.columns[name]](Spread(tuple(cell)))


def table_of(content: Mapping[str, Any]) -> Table:
    """The table that a file of JSON holds: one of a script, or a comparison by `tripletmas compare --json`."""
    if "methods" not in content:
        rows = [{name: _numbers(cell) for name, cell in row.items()} for row in content["rows"]]
        return Table(content["columns"], rows, content["about"])
    forms, rows = {"method": "name", "seeds": "text"}, []
    for method in content["methods"]:
        numbers = {name: _numbers(cell) for name, cell in method.items() if name not in _NO_NUMBERS}
        forms |= dict.fromkeys(numbers, "spread")
        rows.append({"method": method["method"], "seeds": str(len(method["seeds"])), **numbers})
    return Table(forms, rows)


def keep(
    table: Table,
    folder: Path | None,
    name: str,
    *,
    versions: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write FOLDER/NAME.json, where a folder is named.

    Args:
        versions: of what the runs were made with.
        settings: how it was measured, such as the options of the script.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {"script": Path(sys.argv[0]).name}
    made |= {key: dict(of) for key, of in (("versions", versions), ("settings", settings)) if of}
    head = json.dumps({"about": table.about, **made, "columns": dict(table.columns)}, indent=1)
    rows = [json.dumps({name: _plain(row[name]) for name in table.columns if name in row}) for row in table.rows]
    lines = [head.removesuffix("\n}") + ",", ' "rows": [', ",\n".join(rows), " ]", "}\n"]
    (folder / f"{name}.json").write_text("\n".join(lines), encoding="utf-8")


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a script that times something, and what it ran on."""
    import torch

    given = {name: value for name, value in vars(options).items() if name != "json"}
    ran = {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "machine": platform.machine()}
    return {name: str(value) if isinstance(value, Path) else value for name, value in {**given, **ran}.items()}


def mean_of(cell: Cell) -> float:
    """The mean over the seeds; nan of a text."""
    return math.nan if isinstance(cell, str) else fmean(cell)


_NO_NUMBERS = ("method", "seeds", "runs", "mean", "note")


def _numbers(cell: Any) -> Cell:
    return cell if isinstance(cell, str) else [math.nan if value is None else value for value in cell]


def _plain(cell: Cell) -> Any:
    return cell if isinstance(cell, str) else [None if math.isnan(value) else value for value in cell]
