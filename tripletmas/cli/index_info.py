"""The command that shows what is in an index, and what of it is stale. It reads both without torch where it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tripletmas.basics.arrays import Unclear
from tripletmas.cli.console import SEARCHED, console, make_parser, make_table
from tripletmas.data.preparation import Preparation
from tripletmas.index.glance import Glance, read_glance
from tripletmas.index.settings import Reading, Transform
from tripletmas.runs.glance import read_run_glance
from tripletmas.runs.moves import how_far, ways_out

_SHOWN = 12  # digits of a hash


@dataclass(frozen=True)
class _Told:
    """What there is to show.

    Attributes:
        hashes: of the model of the run after each task; () where they are not known.
        missing: why they are not.
        far: how far stale vectors have moved at most, a part of a sentence.
        forecasts: what `forecast` told of updates of the run.
    """

    index: Glance
    hashes: Sequence[str]
    missing: str = ""
    far: str = ""
    forecasts: Sequence[Mapping[str, Any]] = ()

    def expected(self) -> dict[str, Any] | None:
        """gallery -> (low, most likely, high) of recall@1 in the run's own galleries, of the last update; None if that
        was not asked for."""
        last = len(self.hashes) - 1
        return next((each["recall"] for each in self.forecasts if each["after"] == last), None)


def info(arguments: Sequence[str]) -> dict[str, Any]:
    """Show what is in an index, and which of its vectors are stale: of another model than the run's present one."""
    options = make_parser("index info", info.__doc__, "index", "--run").parse_args(arguments)
    try:
        told = _glanced(options.index, options.run)
    except Unclear:
        told = _opened(options.index, options.run)
    index, hashes = told.index, told.hashes
    shown = console()
    shown.print(_summary(options.index, index, options.run or index.run, hashes))
    shown.print(_parts(index, hashes))
    if told.missing:
        print(f"which vectors are stale cannot be told: {told.missing}")
    elif hashes and (stale := index.num_stale(hashes[-1])):
        print(f"{stale} of {index.count} vectors are stale{told.far}: {ways_out(options.index)}")
        of = options.run or index.run
        if expected := told.expected():
            print(f"the last update was expected to leave the run's own galleries {_in_words(expected)}")
        print(f"how far they moved, and what searching them costs: tripletmas forecast {of} --index {options.index}")
    else:
        print("all vectors are current")
    return _content(options.index, index, options.run or index.run, told)


def _content(path: str, index: Glance, run: str, told: _Told) -> dict[str, Any]:
    """What `_summary` and `_parts` show, as JSON has it; what is stale is null where that cannot be told."""
    hashes, settings = told.hashes, index.settings
    return {
        "index": path,
        "run": run,
        "model": hashes[-1] if hashes else None,
        "vectors": index.count,
        "stale": index.num_stale(hashes[-1]) if hashes else None,
        "expected_recall": told.expected(),
        "dim": settings.dim,
        "metric": settings.metric,
        "normalised": settings.normalize,
        "kind": settings.kind,
        "holds": "texts" if index.holds_texts else "images",
        "classes": index.num_classes,
        "unlabelled": index.num_unlabelled,
        "roots": list(index.roots),
        "bytes": Path(path).stat().st_size,
        "parts": [
            {"vectors": count, "model": part.model, "after": part.after_task, "moved_to": part.moved_to}
            for count, part in zip(index.of_parts, index.parts, strict=True)
        ],
    }


def _glanced(path: str, given: str | None) -> _Told:
    """Without torch; what is not as this version writes it is `Unclear`."""
    index = read_glance(path)
    run = read_run_glance(given or index.run)
    return _Told(index, run.hashes, far=how_far(run, len(run.hashes) - 1), forecasts=run.forecasts)


def _opened(path: str, given: str | None) -> _Told:
    """The same of any index and run, or a ValueError that says what is wrong with the index, or with a run given."""
    from tripletmas.index.images import ImageIndex
    from tripletmas.runs.indexed import run_of
    from tripletmas.runs.models import weight_hashes

    opened = ImageIndex.open(path)
    try:
        run = run_of(opened, given)
        far = how_far(run, run.task_done(None))
        return _Told(opened.glance(), weight_hashes(run), far=far, forecasts=run.forecasts())
    except ValueError as error:
        if given:
            raise
        return _Told(opened.glance(), (), missing=str(error))


def _in_words(expected: Mapping[str, Sequence[float | None]]) -> str:
    """Between what recall@1 is expected to lie, as the galleries are stored, moved, embedded again."""
    told = [
        f"{low:.2f} to {high:.2f} {words}"
        for gallery, words in SEARCHED.items()
        if gallery in expected and None not in (low := expected[gallery][0], high := expected[gallery][2])
    ]
    return f"with a recall@1 of {', '.join(told)}" if told else "as nothing at hand tells"


def _summary(path: str, index: Glance, run: str, hashes: Sequence[str]) -> Table:
    settings = index.settings
    kind = settings.kind
    for name, value in (("nprobe", settings.nprobe), ("ef_search", settings.ef_search)):
        kind += "" if value is None else f", {name} {value}"
    kind += ", its lists on the disk" if settings.on_disk else ""
    rows = {
        "run": run,
        "present model": f"{hashes[-1][:_SHOWN]}, after task {len(hashes) - 1}" if hashes else "unknown",
        "vectors": str(index.count),
        "dim": str(settings.dim),
        "metric": settings.metric,
        "normalised": "yes" if settings.normalize else "no",
        "kind": kind,
        "texts" if index.holds_texts else "images": _shown(settings.transform),
        "labels": f"{index.num_classes} classes, {index.num_unlabelled} without",
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
    words = [str(Preparation(transform.size, transform.channels, transform.interpolation, transform.crop))]  # pyright: ignore[reportArgumentType] - checked when it was built
    if transform.mean is not None and transform.deviation is not None:
        pairs = zip(transform.mean, transform.deviation, strict=True)
        words.append("normalised by " + " ".join(f"{mean:.3g}/{deviation:.3g}" for mean, deviation in pairs))
    return ", ".join([*words, *(["inverted"] if transform.invert else [])])


def _parts(index: Glance, hashes: Sequence[str]) -> Table:
    table = make_table("parts", ">vectors", "embedded by", "after task", "moved to", "by the maps", "state")
    for count, part in zip(index.of_parts, index.parts, strict=True):
        state = "unknown" if not hashes else "current" if part.moved_to == hashes[-1] else "stale"
        table.add_row(
            str(count),
            part.model[:_SHOWN],
            str(part.after_task) if not hashes or part.model in hashes else f"{part.after_task} of another run",
            "" if part.moved_to == part.model else part.moved_to[:_SHOWN],
            ", ".join(part.maps),
            state,
        )
    return table
