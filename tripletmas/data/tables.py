"""A user's table: a CSV file in UTF-8 with a header, row by row; columns are parted by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import difflib
import logging
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TextIO

from tripletmas.basics.sentences import listed, not_text

logger = logging.getLogger(__name__)

_LONGEST_LINE = 2**24  # characters
_SEPARATORS = (",", ";", "\t")
_QUOTE = "quote a cell that holds a comma, or what else parts the columns"
_AFTER_QUOTE = "a quoted cell goes on after its quote; within one, a quote is written twice"
_REASONS = {  # what Python's reader says -> what a user can mend
    "unexpected end of data": "a quote is opened here, and never closed",
    **{f"'{each}' expected after '\"'": _AFTER_QUOTE for each in _SEPARATORS},
}


def read_rows(
    path: str, needed: Sequence[str], optional: Sequence[str], *, texts: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of the line, column -> cell without spaces around it) of each row, for the columns that are known.

    Args:
        needed: the columns that must be there.
        optional: those that may be. Others are left out, and the log names them.
        texts: those of the needed ones that hold texts, which may have several lines, as then may those left out.

    Raises:
        ValueError: naming the file, and the line of what is wrong: a column that is there twice, or is nearly one that
            is not; more or fewer cells than columns; a quote that is not closed; a cell of several lines.
    """
    lines = _lines(path, needed)
    _, header = next(lines, (1, []))
    columns = [name.strip() for name in header]
    try:
        _check_columns(columns, needed, optional)
    except ValueError as error:
        raise ValueError(f"{path}, line 1: {error}") from None
    known = {*needed, *optional} & {*columns}
    others = sorted({*columns} - {"", *known})
    if others:
        logger.warning("%s: columns that nothing is read from: %s", path, listed(others))
    spaced = any(name.startswith(" ") for name in header) or bool(texts)
    of_one_line = {*known} - {*texts} if texts else {*columns}
    for number, cells in lines:
        try:
            yield number, _row(cells, columns, known, of_one_line, spaced=spaced)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


def _lines(path: str, needed: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of the line that it begins in, cells) of all rows that are not blank, the header among them."""
    number = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            separator, lines = _separated(lines_of(file, path), needed)
            rows = csv.reader(lines, strict=True, delimiter=separator)
            for cells in rows:
                if cells:
                    yield number, cells
                number = rows.line_num + 1
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: name a CSV file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} {not_text(error)}") from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: {_REASONS.get(str(error), error)}") from None


def _separated(lines: Iterator[str], needed: Collection[str]) -> tuple[str, Iterator[str]]:
    """(what parts the columns, all lines): that by which the first line names the columns that are needed; where none
    does, which is an error, the most frequent in it."""
    read: list[str] = []
    for line in lines:
        read.append(line)
        if line.strip():
            break
    header = "".join(read).strip("\r\n ")
    named = {each: {name.strip() for name in next(csv.reader([header], delimiter=each), [])} for each in _SEPARATORS}
    right = (each for each in _SEPARATORS if named[each].issuperset(needed))
    return next(right, max(_SEPARATORS, key=header.count)), chain(read, lines)


def lines_of(file: TextIO, path: str) -> Iterator[str]:
    """The lines of a text file that may be no text at all, but gigabytes without a line end.

    Raises:
        ValueError: for a line that is longer than any of a table.
    """
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), ""), start=1):
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"{path}, line {number} has more than {_LONGEST_LINE:,} characters: is it a text file?")
        yield line


def _check_columns(columns: Sequence[str], needed: Sequence[str], optional: Sequence[str]) -> None:
    """Whether the header has the columns that are needed, each once, and none that was meant for another."""
    _refuse_lines(columns)
    for name in needed:
        if name not in columns:
            raise ValueError(f"no column {name!r} (there are {', '.join(columns) or 'none'})")
    for name in (*needed, *optional):
        if columns.count(name) > 1:
            raise ValueError(f"the column {name!r} is there twice")
    for name in {*columns} - {*needed, *optional}:
        near = difflib.get_close_matches(name.lower(), {*optional} - {*columns}, 1, 0.75)
        if near:
            raise ValueError(f"the column {name!r} is not known: call it {near[0]!r}, or something else")


def _refuse_lines(cells: Iterable[str]) -> None:
    if re.search(r"[\n\r\0]", "".join(cells)):
        raise ValueError("a cell of several lines, or with a zero byte: is a quote not closed?")


def _row(
    cells: Sequence[str], columns: Sequence[str], known: Iterable[str], of_one_line: Container[str], *, spaced: bool
) -> dict[str, str]:
    """known column -> cell; `spaced` says that spaces follow commas in this file."""
    if len(cells) != len(columns):
        more = "more" if len(cells) > len(columns) else "fewer"
        raise ValueError(f"{more} cells than columns; {_QUOTE}")
    _refuse_lines(cell for name, cell in zip(columns, cells, strict=True) if name in of_one_line or "\0" in cell)
    row = dict(zip(columns, cells, strict=True))
    found = {name: row.pop(name).strip() for name in known}
    _refuse_torn(row, spaced=spaced)
    return found


def _refuse_torn(others: Mapping[str, str], *, spaced: bool) -> None:
    """Whether a cell that nothing is read from, column -> cell, looks like the end of one that held a comma."""
    if others.get("") or (not spaced and any(cell.startswith(" ") for cell in others.values())):
        raise ValueError(f"a cell that no column wants begins with a space, or has no column; {_QUOTE}")
