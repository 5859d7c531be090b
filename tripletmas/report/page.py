"""The HTML pages: which plot and which number stands where."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tripletmas.objectives.grid import Grid, read_grid
from tripletmas.report import comparison_plots, rows, tables, texts
from tripletmas.report.classes import read_classes
from tripletmas.report.compare import Comparison, comparison
from tripletmas.report.configs import flatten, section
from tripletmas.report.embedding_map import group_shape, map_colours, map_json, read_map
from tripletmas.report.embedding_plot import project
from tripletmas.report.figures import Plot, make_plot
from tripletmas.report.galleries import gallery_rows
from tripletmas.report.grid import groups
from tripletmas.report.html import render
from tripletmas.report.layers import read_embedding
from tripletmas.report.read import read_run, seed_directories
from tripletmas.report.run_plots import map_plot, run_plots
from tripletmas.report.search import search_head, search_rows
from tripletmas.report.style import THEMES
from tripletmas.report.wording import wording
from tripletmas.runs.directory import RunDirectory


def write_report(run_directory: Path | str) -> Path:
    """Write `<run>/report/report.html` and its plots, and return the page's path; an earlier report is replaced.

    Of a directory with seed0, seed1, ... each seed gets its report, and `<directory>/report/report.html` shows the
    mean and spread over the seeds and links to them.

    Raises:
        ValueError: as `read_run`.
    """
    directory = Path(run_directory)
    if not (directory / "config.yaml").is_file() and (seeds := seed_directories(directory)):
        for seed in seeds:
            write_report(seed)
        links = [(seed.name, f"../{seed.name}/report/report.html") for seed in seeds]
        return _write_methods(comparison([directory]), directory / "report" / "report.html", links)
    run = read_run(directory)
    out = directory / "report"
    out.mkdir(exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()  # a plot that this report has no data for must not stay from an earlier one
    classes = read_classes(run.path)
    shown, found = run_plots(run, classes, out), read_map(run, classes)
    grid = read_grid(RunDirectory(directory)) or Grid((), ())
    values = {
        "title": run.name,
        "about": rows.about(run),
        "primary": run.primary,
        "wording": wording(run.primary),
        "headline": rows.headline(run),
        "metrics": rows.metric_rows(run),
        "tasks": rows.task_rows(run),
        "plots": shown,
        "missing": run.missing,
        "shown": texts.SHOWN.get(run.primary.objective, texts.SHOWN["metric learning"]),
        "groups": groups(grid, run.task_names),
        "tables": grid.tables,
        "note": grid.note,
        "map": found,
        "map_plot": None if found is None else map_plot(found, out),
        "map_json": "" if found is None else map_json(found),
        "map_colours": [] if found is None else [map_colours(found, theme) for theme in THEMES],
        "map_shapes": [] if found is None else [group_shape(found, i) for i in range(len(found.names))],
        "map_text": "" if found is None else texts.map_text(found),
        "galleries": gallery_rows(run),
        "layers": rows.layer_rows(run),
        "searches": (search_head(run.searches), search_rows(run.searches, limit=60)),
        "coverage": rows.coverage_lines(run),
        "config": flatten({key: value for key, value in run.config.items() if key != "version"}),
        "versions": section(run.config, "version"),
        "duration": rows.duration(run.seconds),
    }
    return _write(out / "report.html", "run.html.j2", values)


def write_comparison(directories: Sequence[Path | str], out: Path | str, *, seeds: Sequence[int] | None = None) -> Path:
    """Write `comparison.html` and its plots into the directory `out`, made if absent, and return the page's path.

    Args:
        seeds: compare the runs of these seeds only; None for all.

    Raises:
        ValueError: as `comparison`.
    """
    return _write_methods(comparison(directories, seeds=seeds), Path(out) / "comparison.html", [])


def _write_methods(compared: Comparison, page: Path, links: Sequence[tuple[str, str]]) -> Path:
    """The page of several methods; of one, when it links to the reports of its seeds."""
    page.parent.mkdir(parents=True, exist_ok=True)
    first = compared.methods[0].runs[0]
    values = {
        "title": first.path.resolve().parent.name if links else "Methods side by side",
        "about": rows.about(first)[:-1] if links else rows.about(first)[1:-1],
        "primary": compared.primary,
        "wording": wording(compared.primary),
        "methods": compared.methods,
        "forward": any(method.forward_transfer.measured for method in compared.methods),
        "unseen": any(method.unseen.measured for method in compared.methods),
        "joint": compared.joint if len(compared.methods) > 1 else None,
        "galleries": compared.galleries,
        "paired": compared.paired,
        "left_out": tables.left_out(compared),
        "tables": tables,
        "task_names": compared.task_names,
        "seeds": max(len(method.runs) for method in compared.methods),
        "plots": _comparison_plots(compared, page.parent),
        "links": links,
        "versions": section(first.config, "version"),
    }
    return _write(page, "comparison.html.j2", values)


def _comparison_plots(compared: Comparison, out: Path) -> list[Plot]:
    shown = []
    label, averages = compared.primary.label, wording(compared.primary).averages
    if any(len(method.curves) for method in compared.methods):
        draw = comparison_plots
        for file, title, text, function in (
            ("average.png", f"Average {label} over tasks", averages, draw.draw_average),
            ("forgetting.png", "Forgetting", texts.BARS, draw.draw_forgetting),
            ("per_task.png", "Each task at the end", texts.PER_TASK, draw.draw_per_task),
        ):
            draw_it = partial(function, comparison=compared)
            shown.append(make_plot(out / file, title, text, draw_it, wide=file == "per_task.png"))
    pictures = []
    for method in compared.methods:
        embedding = read_embedding(method.runs[0])
        if embedding is not None and len(embedding.vectors):
            pictures.append((method.label, project(embedding, compared.task_names)))
    if pictures:
        text = f"{texts.embedding_text(pictures[0][1])} One run of each method (its first seed)."
        path = out / "embeddings.png"
        draw_all = partial(comparison_plots.draw_embeddings, pictures=pictures)
        shown.append(make_plot(path, "The final embeddings", text, draw_all, wide=True))
    return shown


def _write(path: Path, template: str, values: dict[str, object]) -> Path:
    path.write_text(render(template, values), encoding="utf-8")
    return path
