"""Commands that show runs: compare, report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tripletmas.cli.console import console, know_kinds, make_parser, numbers
from tripletmas.cli.outputs import check_place
from tripletmas.runs.directory import is_run, seed_directories

_FORMATS = {
    "markdown": "print the tables as Markdown, write no page",
    "latex": "print the tables for LaTeX (booktabs), write no page",
    "csv": "print a row for each method, numbers as they are, write no page",
    "json": "each number of each seed, and no page",
}
_SVG = "write the plots as SVG, too, beside the page: for print"


def compare(arguments: Sequence[str]) -> dict[str, Any]:
    """Put runs, folders of seeds, or all runs of a folder side by side: those that learned the same stream."""
    parser = make_parser("compare", compare.__doc__, "--trust-code")
    parser.add_argument("runs", nargs="+", help="run directories, or folders of runs, such as a sweep wrote")
    parser.add_argument("--seeds", type=str, default=None, help="such as 0,1,2: only these seeds")
    parser.add_argument("--out", type=str, default=None, help="folder of the page (default: beside the first run)")
    for name, text in _FORMATS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--svg", action="store_true", help=_SVG)
    options = parser.parse_args(arguments)
    form = _form([name for name in _FORMATS if options[name]], options.out)
    seeds = None if options.seeds is None else numbers(options.seeds, "--seeds")
    beside, directories = _asked(options.runs)
    know_kinds(directories, trust_code=options.trust_code)
    if form:
        return _print_as(form, directories, seeds)
    out = Path(options.out) if options.out else beside / "comparison"
    check_place("--out", str(out))
    from tripletmas.report.page import write_comparison  # it draws, and that takes a while to import

    content = _print_as("", directories, seeds)
    page = write_comparison(directories, out, seeds=seeds, svg=options.svg)
    print(f"page: {page}")
    return content


def _asked(words: Sequence[str]) -> tuple[Path, list[Path]]:
    """(the folder in which a page over them lies, the runs and folders of seeds)."""
    given = _without_pages([Path(each) for each in words])
    directories = [each for path in given for each in _inside(path)]
    return given[0].parent if given[0] in directories else given[0], directories


def _without_pages(paths: list[Path]) -> list[Path]:
    """Without folders that hold a page over runs, and no run: `runs/*` names those, too."""

    def is_page(path: Path) -> bool:
        pages = any((path / name).is_file() for name in ("report.html", "comparison.html"))
        return pages and not is_run(path) and not seed_directories(path)

    return [path for path in paths if not is_page(path)] or paths


def _inside(path: Path) -> list[Path]:
    """A run, or a folder of seeds; of a folder of runs those that lie in it."""
    if is_run(path) or seed_directories(path):
        return [path]
    from tripletmas.report.folder import runs_in  # it draws, and that takes a while to import

    return runs_in(path) or [path]


def _form(asked: Sequence[str], out: str | None) -> str:
    """What is printed in place of a page; "" for none."""
    if len(asked) > 1:
        raise ValueError(f"give --{asked[0]} or --{asked[1]}, not both: one prints what the other does not")
    form = "".join(asked)
    if out and form:
        raise ValueError(f"--{form} writes no page: leave --out out")
    return form


def _print_as(form: str, directories: Sequence[Path], seeds: Sequence[int] | None) -> dict[str, Any]:
    """Print a comparison; as JSON it is what this returns."""
    from tripletmas.report import formats, tables  # a report draws, and that takes a while to import
    from tripletmas.report.compare import comparison

    found = comparison(directories, seeds=seeds)
    if not form:
        console().print(tables.comparison_table(found))
    elif form != "json":
        written = {
            "markdown": tables.comparison_markdown,
            "latex": formats.comparison_latex,
            "csv": formats.comparison_csv,
        }[form]
        print(written(found), end="" if form == "csv" else "\n")
    return formats.comparison_json(found)


def report(arguments: Sequence[str]) -> dict[str, Any]:
    """Write the report of a run again, from its directory alone; of a folder of runs a page over all of them."""
    parser = make_parser("report", report.__doc__, "--trust-code")
    parser.add_argument("run", type=str, help="the run directory, or a folder of runs")
    parser.add_argument("--svg", action="store_true", help=_SVG)
    options = parser.parse_args(arguments)
    page = _report(Path(options.run), trust_code=options.trust_code, svg=options.svg)
    print(f"report: {page}")
    return {"report": str(page)}


def _report(path: Path, *, trust_code: bool, svg: bool) -> Path:
    from tripletmas.report import folder, page  # they draw, and that takes a while to import

    several = [] if is_run(path) or seed_directories(path) else folder.runs_in(path)
    if not several:
        know_kinds([path], trust_code=trust_code)
        return page.write_report(path, svg=svg)
    for each in several:
        with suppress(ValueError):  # the page tells which run cannot be read
            know_kinds([each], trust_code=trust_code)
    return folder.write_folder_report(path, svg=svg)
