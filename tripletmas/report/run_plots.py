"""The plots on the page of one run, by section: each where the run has data for it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tripletmas.objectives.compatibility import average_compatibility, backward_compatibility
from tripletmas.objectives.scores import last_row
from tripletmas.report import heat_map, plots, texts
from tripletmas.report.classes import Classes
from tripletmas.report.drift import draw_class_drift, drift_by_class, drift_by_task, most_and_least
from tripletmas.report.embedding_map import EmbeddingMap, draw_map, step_text
from tripletmas.report.embedding_plot import draw_embedding, project
from tripletmas.report.figures import Plot, make_plot
from tripletmas.report.galleries import KINDS, SCOPES, averages, draw_galleries, stored_matrices
from tripletmas.report.layers import importance_by_layer, movement_by_layer, read_embedding
from tripletmas.report.numbers import begun, number
from tripletmas.report.read import Run
from tripletmas.report.search import draw_search, search_text
from tripletmas.report.wording import wording


@dataclass
class Sections:
    """The plots of each section, and a sentence for each that the run lacks and `run.missing` does not say."""

    learning: list[Plot] = field(default_factory=list)
    galleries: list[Plot] = field(default_factory=list)
    drift: list[Plot] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def run_plots(run: Run, classes: Classes, out: Path) -> Sections:
    """Draw all plots of a run into the directory `out`."""
    shown = Sections()
    stored = {scope: matrices for scope in SCOPES if (matrices := stored_matrices(run, scope))}
    _learning(shown, run, out, with_maps=not stored or run.primary.metric != run.primary.searched)
    if stored:
        _galleries(shown.galleries, run, out, stored)
    else:
        shown.absent.append("Stored vectors were not measured: there are no stale or compensated galleries.")
    _compatibility(shown, run, out)
    _drift(shown, run, classes, out)
    return shown


def map_plot(found: EmbeddingMap, out: Path) -> Plot:
    """The last step of the map, for readers whose browser runs no script."""
    alt = step_text(found, len(found.points) - 1)
    return make_plot(out / "map.png", "The last step", "", partial(draw_map, found=found), alt=alt, wide=True)


def _learning(shown: Sections, run: Run, out: Path, *, with_maps: bool) -> None:
    scores, names, words, label = run.matrix(), run.task_names, wording(run.primary), run.primary.label
    add = shown.learning.append
    if scores is not None:
        draw = partial(plots.draw_over_tasks, matrix=scores, task_names=names, label=label)
        alt = f"Average {label} after each task: {_listed(averages(scores))}."
        add(make_plot(out / "over_tasks.png", f"{begun(label)} over tasks", words.curves, draw, alt=alt))
    if run.epochs:
        draw = partial(plots.draw_loss, epochs=run.epochs, task_names=names, name=words.loss)
        add(make_plot(out / "loss.png", "Loss", texts.LOSS, draw))
    if with_maps:
        maps = [(each, m) for each in words.maps if (m := run.matrix(each.metric, each.gallery)) is not None]
        low = heat_map.lower_end([matrix for _, matrix in maps])
        for each, matrix in maps:
            path = out / f"scores_{each.gallery}.png"
            add(_score_map(path, each.title, each.text, matrix, names, low))
    if not all(math.isnan(value) for value in run.unseen):
        label = run.primary.searched_label
        draw = partial(plots.draw_unseen, values=run.unseen, label=label)
        alt = f"{label} of what was never trained on, after each task: {_listed(run.unseen)}."
        add(make_plot(out / "unseen.png", words.unseen[0], words.unseen[1], draw, alt=alt))
    if run.searches:
        title, draw = "Strength, chosen without old data", partial(draw_search, records=run.searches)
        add(make_plot(out / "search.png", title, search_text(run.searches), draw))
    importance = importance_by_layer(run)
    if importance is not None:
        text, draw = texts.importance(importance.in_order), partial(plots.draw_importance, importance=importance)
        add(make_plot(out / "importance.png", "Where importance sits", text, draw))
    else:
        shown.absent.append(
            f"There is no plot of importance: the strategy {run.strategy!r} stored none, or only zeros."
        )
    embedding = read_embedding(run)
    if embedding is not None and len(embedding.vectors):
        picture = project(embedding, names)
        text, draw = texts.embedding_text(picture), partial(draw_embedding, picture=picture)
        add(make_plot(out / "embedding.png", "The final embedding", text, draw, wide=True))


def _galleries(add_to: list[Plot], run: Run, out: Path, stored: dict[str, dict[str, Tensor]]) -> None:
    low = heat_map.lower_end([matrix for matrices in stored.values() for matrix in matrices.values()])
    for scope, matrices in stored.items():
        curves = {kind: averages(matrix) for kind, matrix in matrices.items()}
        text = texts.CURVES_SEEN if scope == "seen" else texts.CURVES_TASK
        alt = " ".join(f"{kind.capitalize()}: {_listed(values)}." for kind, values in curves.items())
        label = run.primary.searched_label
        title = f"Average {label}, {SCOPES[scope]}"
        draw = partial(draw_galleries, curves=curves, low=low, label=label)
        add_to.append(make_plot(out / f"galleries_{scope}.png", title, text, draw, alt=alt))
    for kind in KINDS:
        for scope, matrices in stored.items():
            if kind in matrices:
                path, title = out / f"scores_{scope}{KINDS[kind]}.png", f"{kind.capitalize()} gallery, {SCOPES[scope]}"
                if run.primary.metric != run.primary.searched:
                    path = path.with_name(f"recall_{path.name}")  # the map of what the run is judged by has the name
                text = "The same scale, the same queries."
                if kind == "fresh":
                    text = texts.GALLERY_MAP.format(metric=run.primary.searched_label)
                add_to.append(_score_map(path, title, text, matrices[kind], run.task_names, low))


def _score_map(path: Path, title: str, text: str, matrix: Tensor, names: Sequence[str], low: float) -> Plot:
    draw = partial(heat_map.draw_matrix, matrix=matrix, task_names=names, low=low)
    return make_plot(
        path, title, text, draw, alt=f"After the last task, task by task: {_listed(last_row(matrix).tolist())}."
    )


def _compatibility(shown: Sections, run: Run, out: Path) -> None:
    path = run.path / "compatibility.json"
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [[math.nan if value is None else float(value) for value in row] for row in content["matrix"]]
        matrix, metric = torch.tensor(rows, dtype=torch.float64), str(content["metric"])
        numbers = (average_compatibility(matrix), backward_compatibility(matrix))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no compatibility matrix ({error!r}); delete it or evaluate again") from error
    if len(matrix) != len(run.tasks):
        shown.absent.append(
            f"The compatibility of models was measured over {len(matrix)} tasks, and {len(run.tasks)} are finished: "
            "run `tripletmas evaluate RUN --compatibility` again."
        )
        return
    said = f"{100 * numbers[0]:.0f} % of the pairs" if not math.isnan(numbers[0]) else "– of the pairs"
    text = (
        f"{texts.COMPATIBILITY.format(metric=metric)} Average compatibility: in {said} the old gallery serves the "
        "newer model's queries no worse than its own model's. Backward compatibility: "
        f"{number(numbers[1], signed=True)}, what old galleries gain (above 0) or lose by the last model's queries, on "
        "average."
    )
    draw = partial(
        heat_map.draw_matrix,
        matrix=matrix,
        task_names=run.task_names,
        low=heat_map.lower_end([matrix]),
        row="queries by the model after task",
        column="gallery by the model after task",
    )
    alt = f"The last model's queries in each model's gallery: {_listed(last_row(matrix).tolist())}."
    shown.galleries.append(make_plot(out / "compatibility.png", "Compatibility of models", text, draw, alt=alt))


def _drift(shown: Sections, run: Run, classes: Classes, out: Path) -> None:
    by_task, by_class, movement = drift_by_task(run), drift_by_class(run, classes), movement_by_layer(run)
    add = shown.drift.append
    if by_task is not None:
        high = max(float(by_task.nan_to_num(0).max()), 0.01)
        names = run.task_names[: len(by_task)]
        draw = partial(heat_map.draw_matrix, matrix=by_task, task_names=names, high=high, column="of task")
        alt = f"Drift of the earlier tasks after the last one: {_listed(by_task[-1, :-1].tolist())}."
        add(make_plot(out / "drift_tasks.png", "Drift by task", texts.DRIFT_BY_TASK, draw, alt=alt))
    if by_class:
        draw, most = partial(draw_class_drift, drifts=by_class), most_and_least(by_class)[0]
        alt = f"Most drifted: {', '.join(f'{each.name} {each.drift:.2f}' for each in most[:5])}."
        add(make_plot(out / "drift_classes.png", "Drift by class", texts.DRIFT_BY_CLASS, draw, alt=alt))
    if movement is not None:
        draw = partial(heat_map.draw_movement, movement=movement)
        add(make_plot(out / "movement.png", "Drift by layer: how far the weights moved", texts.MOVEMENT, draw))


def _listed(values: Sequence[float]) -> str:
    return ", ".join(number(value, 2) for value in values)
