"""The HTML pages: which plot and which number stands where."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tripletmas.basics.files import save_text
from tripletmas.objectives.grid import Grid, read_grid
from tripletmas.report import collapse, kept, rows, search, tables, texts
from tripletmas.report.best import verdict
from tripletmas.report.compare import Comparison, comparison
from tripletmas.report.comparison_plots import draw_average, draw_embeddings, draw_forgetting, draw_per_task
from tripletmas.report.embedding_map import read_map
from tripletmas.report.embedding_plot import final_picture
from tripletmas.report.forecast import forecast_rows
from tripletmas.report.galleries import best_stored, choice_rows, gallery_rows
from tripletmas.report.grid import GRID_TOOLS, groups
from tripletmas.report.html import Plot, make_plot, only_writer, render, write_svg
from tripletmas.report.made import made_by
from tripletmas.report.read import Run, read_run
from tripletmas.report.run_plots import run_plots
from tripletmas.report.summary import said
from tripletmas.report.summary_of_seeds import said_of_seeds
from tripletmas.runs.directory import is_run, seed_directories

_NO_GRID = Grid((), ())


def write_report(run_directory: Path | str, *, brief: bool = False, svg: bool = False) -> Path:
    """Write `<run>/report/report.html` and its plots, and return the page's path; an earlier report is replaced.

    While another process writes it, this one waits.

    Of a directory with seed0, seed1, ... each seed gets its report, and `<directory>/report/report.html` shows the
    mean and spread over the seeds and links to them.

    Args:
        brief: of a run that is still learning the numbers and the curves so far, which takes little time.
        svg: write the plots as SVG, too, for print.

    Raises:
        ValueError: as `read_run`.
    """
    directory = Path(run_directory)
    if not is_run(directory) and (seeds := seed_directories(directory)):
        for seed in seeds:
            write_report(seed, svg=svg)
        links = [(seed.name, f"../{seed.name}/report/report.html") for seed in seeds]
        with only_writer(directory / "report"):
            return _write_methods(comparison([directory]), directory / "report" / "report.html", links, svg=svg)
    read_run(directory)  # what is no run gets no folder
    with only_writer(directory / "report"):
        return _write_run(read_run(directory), brief=brief, svg=svg)


def _write_run(run: Run, *, brief: bool, svg: bool) -> Path:
    """The page of one run."""
    out = run.path / "report"
    _clear(out)
    plots = run_plots(run, out, brief=brief)
    if svg:
        write_svg([*plots.learning, *plots.galleries, *plots.drift])
    grid = None if brief else read_grid(run.directory)
    values = {
        "title": run.name,
        "about": rows.about(run),
        "run": run,
        "primary": run.primary,
        "wording": run.kind.wording,
        "rows": rows,
        "collapse": collapse,
        "nothing_learned": collapse.learned_nothing(run),
        "brief": brief,
        "plots": plots,
        "grid": grid or _NO_GRID,
        "groups": groups(grid or _NO_GRID, run),
        **GRID_TOOLS,
        "map": None if brief else read_map(run),
        "said": said(run),
        "made": made_by(run),
        "galleries": gallery_rows(run),
        "best_stored": best_stored(gallery_rows(run)),
        "choices": choice_rows(run),
        "forecasts": forecast_rows(run),
        "search_head": search.HEAD,
        "searches": search.search_rows(run.searches, limit=60),
        "versions": run.section("version"),
    }
    page = _write(out / "report.html", "run.html.j2", values)
    kept.note(run.path, is_whole=not brief)
    return page


def _clear(out: Path) -> None:
    """Take away the plots of an earlier report: one that this has no data for must not stay."""
    for old in (*out.glob("*.png"), *out.glob("*.svg")):
        old.unlink()


def write_comparison(
    directories: Sequence[Path | str], out: Path | str, *, seeds: Sequence[int] | None = None, svg: bool = False
) -> Path:
    """Write `comparison.html` and its plots into the directory `out`, made if absent, and return the page's path.

    While another process writes there, this one waits.

    Args:
        seeds: compare the runs of these seeds only; None for all.
        svg: write the plots as SVG, too, for print.

    Raises:
        ValueError: as `comparison`.
    """
    compared = comparison(directories, seeds=seeds)
    with only_writer(Path(out)):
        return _write_methods(compared, Path(out) / "comparison.html", [], svg=svg)


def _write_methods(compared: Comparison, page: Path, links: Sequence[tuple[str, str]], *, svg: bool) -> Path:
    """The page of several methods; of one, when it links to the reports of its seeds."""
    first, plots = compared.methods[0].runs[0], _comparison_plots(compared, page.parent)
    if svg:
        write_svg(plots)
    values = {
        "title": first.path.resolve().parent.name if links else "Methods side by side",
        "about": rows.about(first)[:-1] if links else _in_common([method.runs[0] for method in compared.methods]),
        "primary": compared.kind.primary,
        "wording": compared.kind.wording,
        "compared": compared,
        "methods": compared.methods,
        "several": max(len(method.runs) for method in compared.methods) > 1,
        "tables": tables,
        "plots": plots,
        "verdict": verdict(compared),
        "links": links,
        "said": said_of_seeds(compared.methods[0]) if links else [],
        "versions": first.section("version"),
    }
    return _write(page, "comparison.html.j2", values)


def _in_common(runs: Sequence[Run]) -> list[str]:
    """What is said of each of these runs but its strategy and seed, as far as it is the same of all."""
    said = [rows.about(run)[1:-1] for run in runs]
    return [each for each in said[0] if all(each in other for other in said)]


def _comparison_plots(compared: Comparison, out: Path) -> list[Plot]:
    shown, averages = [], compared.kind.wording.averages
    if any(len(method.curves) for method in compared.methods):
        for name, title, text, draw in (
            ("average", f"Average {compared.kind.primary.label} over tasks", averages, draw_average),
            ("forgetting", "Forgetting", texts.BARS, draw_forgetting),
            ("per_task", "Each task at the end", texts.PER_TASK, draw_per_task),
        ):
            plot = partial(draw, comparison=compared)
            shown.append(make_plot(out / f"{name}.png", title, text, plot, wide=name == "per_task"))
    found = {method.label: final_picture(method.runs[0]) for method in compared.methods}
    if pictures := [(label, picture) for label, picture in found.items() if picture]:
        text = f"{pictures[0][1].text} One run of each method (its first seed)."
        plot = partial(draw_embeddings, pictures=pictures)
        shown.append(make_plot(out / "embeddings.png", "The final embeddings", text, plot, wide=True))
    return shown


def _write(path: Path, template: str, values: dict[str, object]) -> Path:
    save_text(path, render(template, values))
    return path
