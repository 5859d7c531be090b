"""A page over the runs of a folder: what each is, and those side by side that learned the same stream."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from tripletmas.basics.files import save_text
from tripletmas.report import collapse, gains, tables
from tripletmas.report.compare import Comparison, comparison
from tripletmas.report.comparison_plots import draw_average
from tripletmas.report.html import Plot, make_plot, only_writer, render, write_svg
from tripletmas.report.numbers import begun
from tripletmas.report.page import write_report
from tripletmas.report.read import Run, read_group
from tripletmas.report.streams import check_comparable, of_stream
from tripletmas.runs.directory import is_run, seed_directories

logger = logging.getLogger(__name__)

_DEEP = 3  # folders below one another: sweeps lie in folders, too
_PAGE = Path("report") / "report.html"


@dataclass(frozen=True)
class Row:
    """A run, or a folder of seeds; `href` leads to its report, "" where there is none."""

    name: str
    href: str
    strategy: str
    data: str
    done: str
    said: str


@dataclass(frozen=True)
class Stream:
    """The runs of one stream, side by side."""

    title: str
    compared: Comparison
    fingerprint: str
    several: bool
    plots: Sequence[Plot]


def runs_in(folder: Path, deep: int = _DEEP) -> list[Path]:
    """The runs and the folders of seeds in a folder, and in the folders below it, by name; [] where there is none."""
    return list(_runs_in(folder, deep)) if folder.is_dir() else []


def _runs_in(folder: Path, deep: int) -> Iterator[Path]:
    """Links are not followed: what they lead to is told where it lies."""
    inside = (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    for each in sorted(path for path in inside if not path.name.startswith(".")):
        if is_run(each) or seed_directories(each):
            yield each
        elif deep > 1:
            yield from _runs_in(each, deep - 1)


def write_folder_report(folder: Path | str, *, svg: bool = False) -> Path:
    """Write `<folder>/report/report.html`, and the reports of its runs that have none or an older one.

    A run that cannot be read is told, and left out. Where a run of the folder is called report, the page stands in
    `report-of-all`.

    Args:
        svg: write the plots of the page as SVG, too, and those of each run.

    Raises:
        ValueError: if there is no run in the folder.
    """
    folder = Path(folder)
    found = runs_in(folder)
    if not found:
        raise ValueError(f"{folder} holds no run; give the folder that `tripletmas train --out` wrote, or one above it")
    groups, rows, out = [], [], folder / ("report-of-all" if folder / "report" in found else "report")
    for path in found:
        try:
            runs = _written(path, svg=svg)
        except ValueError as error:
            logger.warning("left out of the page: %s", error)
            rows.append(Row(path.relative_to(folder).as_posix(), "", "–", "–", "–", f"Left out: {error}."))
            continue
        groups.append((path, runs))
        rows.append(_row(path, runs, folder))
    with only_writer(out):
        streams = [_stream(together, out, number) for number, together in enumerate(_by_stream(groups))]
        if svg:
            write_svg(plot for stream in streams for plot in stream.plots)
        values = {
            "title": f"Runs in {folder.resolve().name}",
            "about": [_counted(found)],
            "rows": rows,
            "streams": streams,
            "tables": tables,
            "versions": next((runs[0].section("version") for _, runs in groups), {}),
        }
        page = out / "report.html"
        save_text(page, render("folder.html.j2", values))
    return page


def _counted(found: Sequence[Path]) -> str:
    return f"{len(found)} runs, or folders of seeds" if len(found) > 1 else "one run, or folder of seeds"


def _written(path: Path, *, svg: bool) -> tuple[Run, ...]:
    """The runs at a path, once there is a report of them."""
    runs = read_group(path)
    if svg or _is_older(path, runs):
        write_report(path, svg=svg)
    return runs


def _is_older(path: Path, runs: Sequence[Run]) -> bool:
    """Whether the report of a run, or of its seeds, is absent or older than their records."""
    pages = [each / _PAGE for each in {path, *(run.path for run in runs)}]
    if not all(page.is_file() for page in pages):
        return True
    records = (run.path / "metrics.jsonl" for run in runs)
    newest = max((each.stat().st_mtime for each in records if each.is_file()), default=0.0)
    return min(page.stat().st_mtime for page in pages) < newest


def _row(path: Path, runs: Sequence[Run], folder: Path) -> Row:
    run = runs[0]
    done = [f"{each.num_done} of {len(each.task_names)}" for each in runs]
    unfinished = "" if all(each.finished for each in runs) else "not finished: the numbers are so far"
    said = [collapse.note(runs), gains.note(runs), unfinished]
    return Row(
        name=path.relative_to(folder).as_posix(),
        href=quote(f"../{path.relative_to(folder).as_posix()}/{_PAGE.as_posix()}"),
        strategy=run.strategy + (f", {len(runs)} seeds" if len(runs) > 1 else ""),
        data=f"{run.called('data')}, {run.called('model')}",
        done=", ".join(dict.fromkeys(done)),
        said=begun("; ".join(filter(None, said))),
    )


def _by_stream(groups: Sequence[tuple[Path, Sequence[Run]]]) -> list[list[tuple[Path, Run]]]:
    """Those together that can be compared, in the order in which they come."""
    together: list[list[tuple[Path, Run]]] = []
    for path, runs in groups:
        fitting = (others for others in together if all(_is_comparable(other, runs[0]) for _, other in others))
        others = next(fitting, None)
        if others is None:
            together.append([(path, runs[0])])
        else:
            others.append((path, runs[0]))
    return together


def _is_comparable(one: Run, other: Run) -> bool:
    try:
        check_comparable(one, other)
    except ValueError:
        return False
    return True


def _stream(together: Sequence[tuple[Path, Run]], out: Path, number: int) -> Stream:
    compared, first = comparison([path for path, _ in together]), together[0][1]
    size = max((len(run.task_names) for _, run in together), default=0)
    title = f"{first.called('data')}, {size} task{'' if size == 1 else 's'}".replace("?", "data of a program's own")
    plots, label = [], compared.kind.primary.label
    if any(len(method.curves) for method in compared.methods) and size > 1:
        draw = partial(draw_average, comparison=compared)
        text = compared.kind.wording.averages
        plots.append(make_plot(out / f"average{number}.png", f"Average {label} over tasks, {title}", text, draw))
    several = max(len(method.runs) for method in compared.methods) > 1
    return Stream(title, compared, of_stream(first), several, plots)
