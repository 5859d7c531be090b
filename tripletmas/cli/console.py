"""What the commands share: parsing of single values, printing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
from rich.console import Console

from tripletmas import report as reports


def make_parser(command: str, description: str | None) -> jsonargparse.ArgumentParser:
    return jsonargparse.ArgumentParser(prog=f"tripletmas {command}", description=description, exit_on_error=False)


def console() -> Console:
    """The terminal; where output goes to a file or a pipe, wide enough for any table. Text is shown as it is."""
    return Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)


def print_comparison(
    directories: Sequence[Path], *, markdown: bool = False, seeds: Sequence[int] | None = None
) -> None:
    found = reports.comparison(directories, seeds=seeds)
    if markdown:
        print(reports.comparison_markdown(found))
    else:
        console().print(reports.comparison_table(found))


def numbers(text: str, option: str) -> list[int]:
    try:
        return [int(number) for number in text.strip("[]").split(",")]
    except ValueError:
        raise ValueError(
            f"{option} must be whole numbers with commas between them, such as 0,1,2; got {text!r}"
        ) from None


def name_and_options(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return part["name"], {key: value for key, value in part.items() if key != "name"}
