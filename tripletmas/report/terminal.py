"""A table on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tripletmas.report.best import BEST

_UNMARKED: Mapping[tuple[int, int], str] = MappingProxyType({})


def terminal_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], marks: Mapping[tuple[int, int], str] = _UNMARKED
) -> Table:
    """A table in the project's terminal style: the first column to the left, numbers to the right, the best bold."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(head):
        # The label of a method breaks only where it is very long.
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=i == 0 and _are_short(rows))
    for place, row in enumerate(rows):
        # Without the space a narrow column breaks "0.912 ±0.004" before the sign only.
        cells = [Text(cell.replace("± ", "±").replace(" ≈", "≈")) for cell in row]
        for i, cell in enumerate(cells):
            cell.stylize("bold" if marks.get((place, i)) == BEST else "")
        table.add_row(*cells)
    return table


def _are_short(rows: Sequence[Sequence[str]]) -> bool:
    return all(len(row[0]) <= 24 for row in rows)
