"""What a query found: tables on the terminal, a page, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tripletmas.basics.files import atomic_write
from tripletmas.cli.console import console
from tripletmas.objectives.grid import Grid, Hit, Row


def tell(options: Namespace, found: Grid, notes: Sequence[str], *, about: str, measure: str) -> dict[str, Any]:
    """Print what was found, and write it where the options say; as JSON it is what this returns."""
    for row in found.rows if options.jsonl != "-" else ():
        console().print(_table(row, found.texts))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if options.jsonl:
        _write_lines(options.jsonl, found)
    content = {"index": options.index, "queries": [_plain(row, found.texts) for row in found.rows]}
    if options.json:
        _write(options.json, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if options.html:
        from tripletmas.report.grid import QUERY_PIXELS, query_page  # it takes a while, and few want a page

        _write(options.html, query_page(found.with_files(QUERY_PIXELS), about=about, notes=notes, measure=measure))
        say(options, f"page: {options.html}")
    return content


def _write_lines(path: str, found: Grid) -> None:
    """A line of JSON for each query; - is the standard output."""
    lines = [json.dumps(_plain(row, found.texts), allow_nan=False) for row in found.rows]
    if path == "-":
        print("\n".join(lines))
    else:
        _write(path, "".join(f"{line}\n" for line in lines))


def say(options: Namespace, text: str) -> None:
    """Print what is no result, unless the result alone is asked for."""
    if not options.quiet:
        print(text, file=sys.stderr if options.jsonl == "-" else sys.stdout)


def _plain(row: Row, texts: Mapping[str, str]) -> dict[str, Any]:
    """A row as JSON: ranks from 1; of an index each neighbour with its id."""
    found = []
    for rank, hit in enumerate(row.found[0], start=1):
        number = {} if hit.id is None else {"id": hit.id}
        text = {"text": texts[hit.name]} if hit.name in texts else {}
        found.append({"rank": rank, "score": hit.score, "label": _label(hit), "path": hit.name, **number, **text})
    return {"query": row.name, "neighbours": found}


def _label(hit: Hit) -> str | None:
    return hit.label if hit.right is None else f"{'✓' if hit.right else '✗'} {hit.label}"


def _table(row: Row, texts: Mapping[str, str]) -> Table:
    table = Table(title=row.name, title_justify="left", box=SIMPLE_HEAD)
    if not row.found[0]:
        # The title wraps at the table's width: a column as wide as the name keeps it on one line.
        table.add_column("no match", min_width=min(len(row.name), 88))
        return table
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("label")
    if texts:
        table.add_column("text", overflow="fold")
    table.add_column("path", overflow="fold")
    for rank, hit in enumerate(row.found[0], start=1):
        text = [" ".join(texts[hit.name].split())] if texts else []
        table.add_row(str(rank), f"{hit.score:.6f}", _label(hit) or "", *text, hit.name)
    return table


def _write(path: str, text: str) -> None:
    with atomic_write(path) as aside:
        Path(aside).write_text(text, encoding="utf-8", errors="backslashreplace")
