"""The options that scripts which make many runs have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

PLACES = {
    "omniglot": ("data", "where Omniglot lies"),
    "fashion-mnist": ("data", "where Fashion-MNIST lies"),
    "clothing": ("data/clothing", "the folder or archive of clothing-dataset-small"),
    "birds": ("data/birds", "the folder or archive of photographs of birds"),
}


def make_parser(about: str | None, out: str, places: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A parser with where data lie, where runs are written, and what is done with their tables.

    Args:
        about: the docstring of the script.
        out: where the runs are written, if nothing else is said.
        places: of `PLACES`, the data that it reads.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in places:
        place, says = PLACES[name]
        parser.add_argument(f"--{name}", default=place, help=says)
    parser.add_argument("--out", type=Path, default=Path(out), help=f"where the runs are written (default: {out})")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--table", action="store_true", help="only print the tables of the runs that are there")
    parser.add_argument("--json", type=Path, help="a folder: the tables as JSON, for fill_tables.py")
    return parser
