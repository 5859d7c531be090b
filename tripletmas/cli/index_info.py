"""The command that shows what is in an index, and what of it is stale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from tripletmas.cli.console import console, make_parser, make_table
from tripletmas.index.images import ImageIndex, Reading, Transform
from tripletmas.runs.indexed import how_far, run_of, ways_out
from tripletmas.runs.models import prepared_by, weight_hashes

_SHOWN = 12  # digits of a hash


def info(arguments: Sequence[str]) -> None:
    """Show what is in an index, and which of its vectors are stale: of another model than the run's present one."""
    options = make_parser("index info", info.__doc__, "index", "--run").parse_args(arguments)
    index = ImageIndex.open(options.index)
    try:
        run = run_of(index, options.run)
        hashes, missing, far = weight_hashes(run), "", how_far(run, run.task_done(None))
    except ValueError as error:
        if options.run:
            raise
        hashes, missing, far = (), str(error), ""
    present = hashes[-1] if hashes else None
    shown = console()
    shown.print(_summary(options.index, index, options.run or index.run, hashes))
    shown.print(_parts(index, hashes))
    if missing:
        print(f"which vectors are stale cannot be told: {missing}")
    elif present and (stale := index.stale(present)):
        print(f"{len(index.of_parts(stale))} of {len(index)} vectors are stale{far}: {ways_out(options.index)}")
        of = options.run or index.run
        print(f"how far they moved, and what searching them costs: tripletmas forecast {of} --index {options.index}")
    else:
        print("all vectors are current")


def _summary(path: str, index: ImageIndex, run: str, hashes: Sequence[str]) -> Table:
    settings = index.settings
    kind = settings.kind
    for name, value in (("nprobe", settings.nprobe), ("ef_search", settings.ef_search)):
        kind += "" if value is None else f", {name} {value}"
    kind += ", its lists on the disk" if settings.on_disk else ""
    rows = {
        "run": run,
        "present model": f"{hashes[-1][:_SHOWN]}, after task {len(hashes) - 1}" if hashes else "unknown",
        "vectors": str(len(index)),
        "dim": str(settings.dim),
        "metric": settings.metric,
        "normalised": "yes" if settings.normalize else "no",
        "kind": kind,
        "texts" if index.texts else "images": _shown(settings.transform),
        "labels": f"{len(index.labels[index.labels >= 0].unique())} classes, {int((index.labels < 0).sum())} without",
        "roots": ", ".join(index.roots),
        "file": f"{Path(path).stat().st_size / 2**20:.2f} MiB",
    }
    table = make_table(path, show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _shown(transform: Transform | Reading) -> str:
    """How an image or a text becomes what the model is shown, in words."""
    if isinstance(transform, Reading):
        return f"at most {transform.max_length} tokens, by the tokenizer {transform.tokenizer[:_SHOWN]}"
    words = [str(prepared_by(transform))]
    if transform.mean is not None and transform.deviation is not None:
        pairs = zip(transform.mean, transform.deviation, strict=True)
        words.append("normalised by " + " ".join(f"{mean:.3g}/{deviation:.3g}" for mean, deviation in pairs))
    return ", ".join([*words, *(["inverted"] if transform.invert else [])])


def _parts(index: ImageIndex, hashes: Sequence[str]) -> Table:
    table = make_table("parts", ">vectors", "embedded by", "after task", "moved to", "by the maps", "state")
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
