#!/usr/bin/env python3
"""Write tables of pages from the JSON that scripts have left: no number in them is typed.

    .venv/bin/python scripts/fill_tables.py            # writes the tables of all pages in docs/ anew
    .venv/bin/python scripts/fill_tables.py --check    # tells the pages whose tables are not what their JSON says

A table stands between `<!-- table results/digits.json average forgetting : finetune mas joint -->` and
`<!-- end of table -->`: the file (as `tripletmas compare --json` writes it, beside the page), which numbers, and the
strategies whose rows are shown, all without. Numbers are means ± sample standard deviations over the seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- table (\S+) ([^:>]*?)(?: : ([^>]*?))? -->\n).*?(<!-- end of table -->)", flags=re.S)


def filled(text: str, folder: Path) -> str:
    """The text of a page in this folder, with its tables as their JSON says."""

    def table(block: re.Match[str]) -> str:
        content = json.loads((folder / block[2]).read_text(encoding="utf-8"))
        lines = table_of(content, block[3].split(), block[4].split() if block[4] else None)
        return f"{block[1]}\n{lines}\n\n{block[5]}"

    return _BLOCK.sub(table, text)


def table_of(content: dict[str, Any], columns: list[str], strategies: list[str] | None) -> str:
    """A comparison as Markdown."""
    head = ["method", "seeds", *columns]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for method in content["methods"]:
        if strategies is None or re.split("[, ]", method["method"])[0] in strategies:
            rows.append([method["method"], str(len(method["seeds"])), *(_spread(method[name]) for name in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{fmean(known):.3f}{f' ± {stdev(known):.3f}' if len(known) > 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is not as its JSON")
    options = parser.parse_args()
    stale = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (whole := filled(text, page.parent)) != text:
            stale.append(page)
            if not options.check:
                page.write_text(whole, encoding="utf-8")
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'not as its JSON says' if options.check else 'written'}")
    if stale and options.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
