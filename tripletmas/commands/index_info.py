"""The command that shows what is in an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tripletmas.commands.console import console, make_parser
from tripletmas.commands.index_models import open_run, ways_out
from tripletmas.image_index import ImageIndex
from tripletmas.run_models import weight_hashes

_SHOWN = 12  # digits of a hash


def info(arguments: Sequence[str]) -> None:
    """Show what is in an index, and which of its vectors are stale: of another model than the run's present one."""
    parser = make_parser("index info", info.__doc__)
    parser.add_argument("index", type=str, help="the index file")
    parser.add_argument("--run", type=str, default=None, help="the run directory (default: the one in the index)")
    options = parser.parse_args(arguments)
    index = ImageIndex.open(options.index)
    try:
        run = open_run(index, options.run)
        hashes, missing = weight_hashes(run), ""
    except ValueError as error:
        if options.run:
            raise
        hashes, missing = (), str(error)
    present = hashes[-1] if hashes else None
    shown = console()
    shown.print(_summary(options.index, index, options.run or index.run, hashes))
    shown.print(_parts(index, hashes))
    if missing:
        print(f"which vectors are stale cannot be told: {missing}")
    elif present and (stale := index.stale(present)):
        print(f"{len(index.of_parts(stale))} of {len(index)} vectors are stale: {ways_out(options.index)}")
    else:
        print("all vectors are current")


def _summary(path: str, index: ImageIndex, run: str, hashes: Sequence[str]) -> Table:
    settings = index.settings
    kind = settings.kind
    for name, value in (("nprobe", settings.nprobe), ("ef_search", settings.ef_search)):
        kind += "" if value is None else f", {name} {value}"
    transform = settings.transform
    rows = {
        "run": run,
        "present model": f"{hashes[-1][:_SHOWN]}, after task {len(hashes) - 1}" if hashes else "unknown",
        "vectors": str(len(index)),
        "dim": str(settings.dim),
        "metric": settings.metric,
        "normalised": "yes" if settings.normalize else "no",
        "kind": kind,
        "images": f"{transform.size} x {transform.size}, {'RGB' if transform.channels == 3 else 'grey'}"
        + (", inverted" if transform.invert else ""),
        "labels": f"{len(index.labels[index.labels >= 0].unique())} classes, {int((index.labels < 0).sum())} without",
        "roots": ", ".join(index.roots),
        "file": f"{Path(path).stat().st_size / 2**20:.2f} MiB",
    }
    table = Table(title=path, title_justify="left", box=SIMPLE_HEAD, show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _parts(index: ImageIndex, hashes: Sequence[str]) -> Table:
    table = Table(title="parts", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("vectors", justify="right")
    for column in ("embedded by", "after task", "moved to", "by the maps", "state"):
        table.add_column(column)
    for number, part in enumerate(index.parts):
        state = "unknown" if not hashes else "current" if part.moved_to == hashes[-1] else "stale"
        table.add_row(
            str(len(index.of_parts([number]))),
            part.model[:_SHOWN],
            str(part.after_task) if not hashes or part.model in hashes else f"{part.after_task} of another run",
            "" if part.moved_to == part.model else part.moved_to[:_SHOWN],
            ", ".join(part.maps),
            state,
        )
    return table
