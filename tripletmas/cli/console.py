"""What the commands share: options, parsing of single values, printing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table

from tripletmas.cli.telling import ALSO
from tripletmas.cli.terminal import visible

if TYPE_CHECKING:  # torch comes with runs: what asks for none need not wait for it
    from tripletmas.runs.directory import RunDirectory

SEARCHED = {"stale": "as it is stored", "compensated": "moved by the map", "fresh": "embedded again"}  # of a forecast
# options that mean the same wherever they are
_SHARED: dict[str, dict[str, Any]] = {
    "run": {"type": str, "help": "the run directory"},
    "index": {"type": str, "help": "the index file"},
    "--run": {"type": str, "default": None, "help": "the run directory (default: the one in the index)"},
    "--trust-code": {
        "action": "store_true",
        "help": "execute the run's parts of one's own, as they were recorded, though no training by you named them",
    },
    "--after": {"type": int, "default": None, "help": "the model after this task, from 0 (default: the last)"},
    "--device": {"type": str, "default": "auto", "help": "auto, cpu, cuda or cuda:NUMBER"},
    "--images": {"type": str, "required": True, "help": "a folder or zip archive of images, in any sub-folders"},
    "--skip-unreadable": {"action": "store_true", "help": "leave out images that cannot be read"},
    "--force": {"action": "store_true", "help": "go on although the model gives all images one and the same vector"},
    "--invert": {
        "action": "store_true",
        "help": "read black on white as white on black, which digits and omniglot are",
    },
}


def make_parser(command: str, description: str | None, *shared: str) -> jsonargparse.ArgumentParser:
    """A parser of a command's options, with those of the `shared` ones that it names."""
    parser = jsonargparse.ArgumentParser(
        prog=f"tripletmas {command}", description=description, exit_on_error=False, epilog=ALSO
    )
    for name in shared:
        parser.add_argument(name, **_SHARED[name])
    return parser


def open_run(path: str | Path, *, trust_code: bool) -> RunDirectory:
    """The run in a directory; its code, where it has any, is trusted from now on if that is asked for."""
    from tripletmas.runs import trust
    from tripletmas.runs.directory import RunDirectory

    run = RunDirectory.open(path)
    if trust_code:
        trust.accept(run.config().get("code"), unseen=True)
    return run


def know_kinds(directories: Iterable[Path], *, trust_code: bool) -> None:
    """Have the kinds of task of these runs, or folders of seeds, known to reports, also those of one's own."""
    from tripletmas.runs import configuration
    from tripletmas.runs.directory import is_run, seed_directories

    for directory in directories:
        for each in filter(is_run, seed_directories(directory) or [directory]):
            configuration.admit_objective(open_run(each, trust_code=trust_code).config())


def console() -> Console:
    """The terminal; where output goes to a file or a pipe, wide enough for any table. Text is shown as it is."""
    stream = getattr(
        sys.stdout, "stream", sys.stdout
    )  # without a `Terminal` in between: colours are control characters
    found = Console(file=stream, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)
    found.push_render_hook(_Visible())
    return found


class _Visible(RenderHook):
    """Writes control characters out, as `visible` does, and what the encoding lacks; styles stay."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Written(each) for each in renderables]


@dataclass(frozen=True)
class _Written:
    content: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.content, options):
            known = text.encode(console.encoding, "backslashreplace").decode(console.encoding)
            yield Segment(known if control else visible(known), style, control)


def make_table(title: str, *columns: str, show_header: bool = True) -> Table:
    """An empty table; a column whose name begins with `>` is of numbers, which end at its right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_header=show_header)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def print_comparison(directories: Sequence[Path]) -> dict[str, Any]:
    """Print a table of runs; its numbers as JSON has them."""
    from tripletmas.report.compare import comparison  # a report draws, and that takes a while to import
    from tripletmas.report.formats import comparison_json
    from tripletmas.report.tables import comparison_table

    found = comparison(directories)
    console().print(comparison_table(found))
    return comparison_json(found)


def numbers(text: str, option: str) -> list[int]:
    try:
        return [int(number) for number in text.strip("[]").split(",")]
    except ValueError:
        raise ValueError(
            f"{option} must be whole numbers with commas between them, such as 0,1,2; got {text!r}"
        ) from None


def name_and_options(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return part["name"], {key: value for key, value in part.items() if key != "name"}
