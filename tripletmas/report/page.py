"""The HTML pages: which plot and which number stands where."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from tripletmas.report import comparison_plots, plots, rows, tables, texts
from tripletmas.report.compare import Comparison, comparison
from tripletmas.report.configs import flatten, section
from tripletmas.report.embedding_plot import draw_embedding, project
from tripletmas.report.layers import importance_by_layer, movement_by_layer, read_embedding
from tripletmas.report.read import Run, read_run, seed_directories
from tripletmas.report.search import draw_search, search_head, search_rows, search_text
from tripletmas.report.style import series_style
from tripletmas.report.wording import wording


@dataclass(frozen=True)
class Plot:
    """A picture on a page.

    Attributes:
        text: what it shows, for a reader who knows none of the terms.
        image: the PNG as a data URI.
        width: in CSS pixels, half as many as the PNG has, so that it is sharp on every screen.
        wide: whether it takes the whole width of the page.
    """

    title: str
    text: str
    image: str
    width: int
    wide: bool


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
    shown, absent = _run_plots(run, out)
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
        "absent": absent,
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
        "forward": any(not math.isnan(method.forward_transfer.mean) for method in compared.methods),
        "joint": compared.joint if len(compared.methods) > 1 else None,
        "paired": compared.paired,
        "left_out": tables.left_out(compared),
        "tables": tables,
        "colours": [series_style(i)[0] for i in range(len(compared.methods))],
        "task_names": compared.task_names,
        "seeds": max(len(method.runs) for method in compared.methods),
        "plots": _comparison_plots(compared, page.parent),
        "links": links,
        "versions": section(first.config, "version"),
    }
    return _write(page, "comparison.html.j2", values)


def _run_plots(run: Run, out: Path) -> tuple[list[Plot], list[str]]:
    """The plots that the run has data for, and a sentence for each that it lacks and `run.missing` does not say."""
    shown, absent = [], []
    scores, names, words = run.matrix(), run.task_names, wording(run.primary)
    label = run.primary.label
    if scores is not None:
        path, title = out / "over_tasks.png", f"{label.capitalize()} over tasks"
        shown.append(_plot(path, title, words.curves, lambda p: plots.draw_over_tasks(p, scores, names, label)))
    if run.epochs:
        path = out / "loss.png"
        shown.append(_plot(path, "Loss", texts.LOSS, lambda p: plots.draw_loss(p, run.epochs, names, words.loss)))
    maps = [(each, m) for each in words.maps if (m := run.matrix(each.metric, each.gallery)) is not None]
    low = plots.lower_end([matrix for _, matrix in maps])
    for each, matrix in maps:
        path = out / f"scores_{each.gallery}.png"
        draw = partial(plots.draw_score_matrix, matrix=matrix, task_names=names, low=low)
        shown.append(_plot(path, each.title, each.text, draw))
    if run.searches:
        path, title, text = out / "search.png", "Strength, chosen without old data", search_text(run.searches)
        shown.append(_plot(path, title, text, lambda p: draw_search(p, run.searches)))
    importance, movement = importance_by_layer(run), movement_by_layer(run)
    if importance is not None:
        path, title = out / "importance.png", "Where importance sits"
        shown.append(
            _plot(path, title, texts.importance(importance.in_order), lambda p: plots.draw_importance(p, importance))
        )
    else:
        absent.append(f"There is no plot of importance: the strategy {run.strategy!r} stored none, or only zeros.")
    if movement is not None:
        path, title = out / "movement.png", "How far the weights moved"
        shown.append(_plot(path, title, texts.MOVEMENT, lambda p: plots.draw_movement(p, movement)))
    embedding = read_embedding(run)
    if embedding is not None and len(embedding.vectors):
        picture = project(embedding, names)
        path, text = out / "embedding.png", texts.embedding_text(picture)
        shown.append(_plot(path, "The final embedding", text, lambda p: draw_embedding(p, picture), wide=True))
    return shown, absent


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
            shown.append(
                _plot(out / file, title, text, lambda p, f=function: f(p, compared), wide=file == "per_task.png")
            )
    pictures = []
    for method in compared.methods:
        embedding = read_embedding(method.runs[0])
        if embedding is not None and len(embedding.vectors):
            pictures.append((method.label, project(embedding, compared.task_names)))
    if pictures:
        text = f"{texts.embedding_text(pictures[0][1])} One run of each method (its first seed)."
        path = out / "embeddings.png"
        draw_all = comparison_plots.draw_embeddings
        shown.append(_plot(path, "The final embeddings", text, lambda p: draw_all(p, pictures), wide=True))
    return shown


def _plot(path: Path, title: str, text: str, draw: Callable[[Path], None], *, wide: bool = False) -> Plot:
    draw(path)
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big") // 2  # where every PNG has its width
    return Plot(title, text, "data:image/png;base64," + base64.b64encode(content).decode("ascii"), width, wide)


def _write(path: Path, template: str, values: Mapping[str, object]) -> Path:
    loader = PackageLoader("tripletmas.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template).render({"texts": texts, **values})
    path.write_text(page, encoding="utf-8")
    return path
