#!/usr/bin/env python3
"""Write tables of pages from the JSON that scripts have left: no number in them is typed.

    .venv/bin/python scripts/fill_tables.py            # writes the tables of all pages in docs/ anew
    .venv/bin/python scripts/fill_tables.py --check    # tells the pages whose tables are not what their JSON says

A table stands between `<!-- table results/digits.json | average; forgetting | finetune; mas -->` and
`<!-- end of table -->`: a file beside the page, as scripts write it with --json (`tables.py`), or `tripletmas compare
--json`; then, where not all are shown, which columns, and the first words of which rows. Numbers are means ± sample
standard deviations over the seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from tables import table_of

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- table ([^>]*?) -->\n).*?(<!-- end of table -->)", flags=re.S)


def filled(text: str, folder: Path) -> str:
    """The text of a page in this folder, with its tables as their JSON says."""

    def table(block: re.Match[str]) -> str:
        file, columns, rows, *_ = [*(each.strip() for each in block[2].split("|")), "", ""]
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        lines = table_of(content).markdown(_listed(columns), _listed(rows))
        return f"{block[1]}\n{lines}\n\n{block[3]}"

    return _BLOCK.sub(table, text)


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(";") if each.strip()]


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
