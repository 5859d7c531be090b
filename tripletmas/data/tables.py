"""A user's table: a CSV file in UTF-8 with a header, row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence


def read_rows(path: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of the line, column -> cell without spaces around it) of each row; an absent cell is "".

    Args:
        needed: the columns that must be there; others may be.

    Raises:
        ValueError: naming the file, and the line of what is wrong.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            missing = [name for name in needed if name not in columns]
            if missing:
                raise ValueError(f"{path}, line 1: no column {missing[0]!r} (there are {', '.join(columns) or 'none'})")
            yield from _cells(rows, path)
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file ({error})") from None


def _cells(rows: csv.DictReader[str], path: str) -> Iterator[tuple[int, dict[str, str]]]:
    for row in rows:
        if any(cell.strip() for cell in row.pop(None, None) or ()):
            raise ValueError(f"{path}, line {rows.line_num}: more cells than columns; quote a cell that holds a comma")
        yield rows.line_num, {name: (cell or "").strip() for name, cell in row.items()}
