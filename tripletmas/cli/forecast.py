"""The command that tells what an update did to stored vectors, without any old image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from tripletmas.basics.files import save_json
from tripletmas.cli.console import SEARCHED, console, make_parser, make_table, open_run
from tripletmas.cli.outputs import check_output
from tripletmas.index.images import ImageIndex
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import load_trained
from tripletmas.runs.forecast import Forecast, forecast_of, measured_of
from tripletmas.runs.imagined import parts_of_index, parts_of_run
from tripletmas.runs.indexed import map_for, task_of_part
from tripletmas.runs.models import weight_hashes
from tripletmas.runs.moves import shares_of
from tripletmas.runs.simulated import GALLERIES


def forecast(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Tell how far an update moved stored vectors and what searching them will cost, without any old image; what is
    told of a run's own galleries is kept for its report."""
    parser = make_parser("forecast", forecast.__doc__, "run", "--after", "--device", "--trust-code")
    parser.add_argument("--index", type=str, default=None, metavar="FILE", help="of the stale vectors of this index")
    parser.add_argument("--all", action="store_true", help="of all updates of the run, not only the last")
    parser.add_argument(
        "--map", type=str, default=None, help="that would move the index (default: that of index refresh)"
    )
    parser.add_argument(
        "--json",
        type=str,
        default=None,
        metavar="FILE",
        help="also write what is expected there; without FILE that alone is printed",
    )
    options = parser.parse_args(arguments)
    if options.index and (options.all or options.after is not None):
        raise ValueError("an index is compared with the present model: leave --all and --after out")
    if options.map and not options.index:
        raise ValueError("--map is for --index: what moves a run's own galleries is in its configuration")
    check_output("--json", options.json, "JSON", read=[options.index] if options.index else [])
    run = open_run(options.run, trust_code=options.trust_code)
    last = run.task_done(options.after)
    device = None if options.device == "auto" else options.device
    if options.index:
        records = [_of_index(run, ImageIndex.open(options.index), options.index, options.map, device)]
    else:
        records = [_of_run(run, after, device) for after in (range(1, last + 1) if options.all and last else [last])]
    if options.json:
        save_json(options.json, records)
    return records


def _of_run(run: RunDirectory, after: int, device: str | None) -> dict[str, Any]:
    """What was expected of the galleries of a run after a task, printed beside what was measured, and kept."""
    experiment, _ = load_trained(run, after, device=device)
    parts = parts_of_run(run, experiment, after)
    found = forecast_of(parts, shares=shares_of(run, after), measured=measured_of(run, after))
    record = {"after": after, **found.to_json()}
    with run.locked():
        run.keep_forecast(record)
    _print(found, f"{run.path}, the update by task {after} ({experiment.stream[after].name})", _measured(run, after))
    return record


def _of_index(run: RunDirectory, index: ImageIndex, path: str, kind: str | None, device: str | None) -> dict[str, Any]:
    hashes = weight_hashes(run)
    tasks = {number: task_of_part(index, number, hashes, run) for number in range(len(index.parts))}
    after = len(hashes) - 1
    if not index.stale(hashes[-1]):
        raise ValueError(f"all vectors of {path} are current: no update has moved any")
    kind = map_for(index, run, kind)
    experiment, _ = load_trained(run, device=device)
    found = forecast_of(parts_of_index(run, experiment, after, index, tasks, kind), shares=shares_of(run, after))
    _print(found, f"{path}, for the model of {run.path} after task {after}; the map is {kind}", {})
    return {"after": after, "index": path, **found.to_json()}


def _measured(run: RunDirectory, after: int) -> dict[str, float]:
    """gallery -> recall@1 after a task, the mean over tasks, as the run measured it with the old images."""
    scores = next(each["scores"] for each in run.records("task") if each["task"] == after)
    names = {gallery: "seen" if gallery == "fresh" else f"seen_{gallery}" for gallery in GALLERIES}
    return {
        gallery: fmean(math.nan if each is None else each for each in scores[name]["recall@1"])
        for gallery, name in names.items()
        if name in scores
    }


def _print(found: Forecast, title: str, measured: dict[str, float]) -> None:
    for sentence in found.sentences():
        print(sentence)
    if any(math.isnan(each.middle) for each in found.recall.values()):
        print("what a search finds cannot be told: no class has two images")
    else:
        console().print(_table(found, title, measured))


def _table(found: Forecast, title: str, measured: dict[str, float]) -> Table:
    heads = ("gallery", "", ">expected recall@1", ">most likely", *([">measured"] if measured else []))
    table = make_table(title, *heads)
    for gallery, expected in found.recall.items():
        cells = [f"{expected.low:.2f} to {expected.high:.2f}", f"{expected.middle:.2f}"]
        cells += [f"{measured[gallery]:.2f}"] if gallery in measured else []
        table.add_row(gallery, SEARCHED[gallery], *cells)
    return table
