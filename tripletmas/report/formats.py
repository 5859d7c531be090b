"""A comparison for other programs: LaTeX, CSV, and what JSON holds. Markdown and the terminal are in `tables`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tripletmas.report.best import BEST, BEYOND, RESULTS, Column, gallery_column, task_column
from tripletmas.report.compare import Comparison, Method, Paired
from tripletmas.report.numbers import begun
from tripletmas.report.streams import of_stream
from tripletmas.report.tables import Block, more, notes, with_tasks

_TEX = {
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "≥": r"$\geq$",
    "–": "--",
    "\u2026": r"\ldots{}",
    "\n": " ",
}


def comparison_latex(comparison: Comparison) -> str:
    """The comparison as tables for LaTeX with the package booktabs, the best in bold; notes are comments."""
    blocks = (with_tasks(comparison), *more(comparison))
    tables = [_latex(block) for block in blocks]
    return "\n\n".join([*tables, *(f"% {note}" for note in notes(comparison))]) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """The comparison as CSV, a row for each method, numbers as they are; what was not measured is empty.

    Of each number the mean and, in a column `..., deviation`, the sample standard deviation over the seeds.
    """
    columns = _columns(comparison)
    pairs = {pair.label: pair for pair in comparison.paired}
    rows = []
    for method in comparison.methods:
        row: dict[str, Any] = {"method": method.label, "seeds": " ".join(map(str, method.seeds))}
        for column in columns:
            spread = column.of(method)
            row |= {column.name: spread.mean, f"{column.name}, deviation": spread.deviation}
        rows.append(row | _differences(pairs.get(method.label), bool(pairs)))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value, "") for key, value in row.items()} for row in rows)
    return out.getvalue()


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison for `json.dump`: of each method each number of each seed; None where it was not measured."""
    return {
        "metric": comparison.kind.primary.title,
        "stream": of_stream(comparison.methods[0].runs[0]),
        "tasks": list(comparison.task_names),
        "methods": [_method(method, _columns(comparison)) for method in comparison.methods],
        "paired_with": comparison.methods[0].label if comparison.paired else None,
        "paired": [
            {
                "method": pair.label,
                "average": _test(pair.average.mean, pair.average_test),
                "forgetting": _test(pair.forgetting.mean, pair.forgetting_test),
            }
            for pair in comparison.paired
        ],
    }


def _columns(comparison: Comparison) -> list[Column]:
    tasks = [task_column(f"task {i + 1}: {name}", i) for i, name in enumerate(comparison.task_names)]
    beyond = [column for column in BEYOND if any(column.of(method).measured for method in comparison.methods)]
    return [*RESULTS, *beyond, *(gallery_column(kind) for kind in comparison.galleries), *tasks]


def _method(method: Method, columns: Sequence[Column]) -> dict[str, Any]:
    numbers = {column.name: column.of(method) for column in columns}
    return {
        "method": method.label,
        "runs": [str(run.path) for run in method.runs],
        "seeds": list(method.seeds),
        **{name: [_plain(value) for value in spread.values] for name, spread in numbers.items()},
        "mean": {name: _plain(spread.mean) for name, spread in numbers.items()},
        "note": method.note,
    }


def _test(mean: float, test: Any) -> dict[str, Any]:
    return {"difference": _plain(mean), **{key: _plain(value) for key, value in asdict(test).items()}}


def _differences(pair: Paired | None, shown: bool) -> dict[str, Any]:
    """The columns that say how a method differs from the first; empty ones of the first itself."""
    if not shown:
        return {}
    found: dict[str, Any] = {}
    for name in ("average", "forgetting"):
        difference, test = (getattr(pair, f"{name}{end}") if pair else None for end in ("", "_test"))
        found[f"{name}, difference"] = difference.mean if difference else None
        for key in ("low", "high", "effect", "p"):
            found[f"{name}, difference, {key}"] = getattr(test, key) if test else None
    return found


def _plain(value: Any, absent: Any = None) -> Any:
    """A number that JSON and CSV can hold: nan and None are absent, and so is what is infinite."""
    return absent if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _latex(block: Block) -> str:
    cells = [[_tex(cell) for cell in row] for row in block.rows]
    for (row, column), mark in block.marks.items():
        if mark == BEST:
            cells[row][column] = rf"\textbf{{{cells[row][column]}}}"
    lines = [" & ".join(row) + r" \\" for row in ([_tex(name) for name in block.head], *cells)]
    body = "\n".join(["\\toprule", lines[0], "\\midrule", *lines[1:], "\\bottomrule"])
    title = _tex(begun(block.title))
    return f"% {title}\n\\begin{{tabular}}{{l{'r' * (len(block.head) - 1)}}}\n{body}\n\\end{{tabular}}"


def _tex(text: str) -> str:
    return "".join(_TEX.get(each, each) for each in text)
