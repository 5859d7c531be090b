"""The plots on the page of one run, by section: each where the run has data for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tripletmas.objectives.compatibility import average_compatibility, backward_compatibility
from tripletmas.objectives.scores import last_row
from tripletmas.report import plots, texts
from tripletmas.report.drift import draw_class_drift, drift_by_class, drift_by_task, most_and_least
from tripletmas.report.embedding_plot import draw_embedding, final_picture
from tripletmas.report.galleries import KINDS, SCOPES, draw_galleries, stored_matrices
from tripletmas.report.heat_map import draw_matrix
from tripletmas.report.html import Plot, make_plot
from tripletmas.report.layers import draw_importance, draw_movement, importance_by_layer, movement_by_layer
from tripletmas.report.numbers import averages, begun, lower_end, number, scale_of
from tripletmas.report.read import Run
from tripletmas.report.search import draw_search, search_text
from tripletmas.report.values import Values, of_curves, of_epochs, of_matrix

Found = Iterator[Plot | str]  # plots, and a sentence for each that the run lacks and `run.missing` does not say
Stored = Mapping[str, Mapping[str, Tensor]]  # scope -> kind of gallery -> its score matrix


@dataclass(frozen=True)
class Sections:
    """The plots of each section, and what is absent, in sentences."""

    learning: list[Plot]
    galleries: list[Plot]
    drift: list[Plot]
    absent: list[str]


def run_plots(run: Run, out: Path, *, brief: bool = False) -> Sections:
    """Draw all plots of a run into the directory `out`.

    Args:
        brief: the curves alone, while the run is still learning.
    """
    if brief:
        return Sections(_plots(list(_scores(run, out))), [], [], [])
    stored = {scope: matrices for scope in SCOPES if (matrices := stored_matrices(run, scope))}
    own_maps = not stored or run.primary.metric != run.primary.searched
    sections = [
        [*_scores(run, out), *(_maps(run, out) if own_maps else ()), *_beyond(run, out), *_model(run, out)],
        [*_galleries(run, out, stored), *_compatibility(run, out)],
        list(_drift(run, out)),
    ]
    return Sections(
        *map(_plots, sections), absent=[each for found in sections for each in found if isinstance(each, str)]
    )


def _plots(found: Sequence[Plot | str]) -> list[Plot]:
    return [each for each in found if isinstance(each, Plot)]


def _scores(run: Run, out: Path) -> Found:
    matrix, words, label = run.matrix(), run.kind.wording, run.primary.label
    if matrix is not None:
        draw = partial(plots.draw_over_tasks, matrix=matrix, task_names=run.task_names, label=label)
        alt = f"Average {label} after each task: {_listed(averages(matrix))}."
        shown = of_matrix(matrix, run.task_names, "after task", mean=True)
        title = f"{begun(label)} over tasks"
        yield make_plot(out / "over_tasks.png", title, words.curves, draw, alt=alt, values=shown)
    if run.epochs:
        draw = partial(plots.draw_loss, epochs=run.epochs, task_names=run.task_names, name=words.loss)
        shown = of_epochs(run.epochs, run.task_names, words.loss)
        yield make_plot(out / "loss.png", "Loss", texts.LOSS, draw, values=shown)


def _maps(run: Run, out: Path) -> Found:
    """The score matrices that the report of such a run shows."""
    maps = [(each, run.matrix(each.metric, each.gallery)) for each in run.kind.wording.maps]
    measured = [(each, matrix) for each, matrix in maps if matrix is not None]
    scale = scale_of([matrix for _, matrix in measured])
    for each, matrix in measured:
        yield _score_map(run, out / f"scores_{each.gallery}.png", each.title, each.text, matrix, scale)


def _beyond(run: Run, out: Path) -> Found:
    """What was never trained on, and how strengths were searched."""
    if not all(math.isnan(value) for value in run.unseen):
        (title, text), label = run.kind.wording.unseen, run.primary.searched_label
        draw = partial(plots.draw_unseen, values=run.unseen, label=label)
        alt = f"{label} of what was never trained on, after each task: {_listed(run.unseen)}."
        shown = of_curves({label: run.unseen}, run.task_names)
        yield make_plot(out / "unseen.png", title, text, draw, alt=alt, values=shown)
    if run.searches:
        title, draw = "Strength, chosen without old data", partial(draw_search, records=run.searches)
        yield make_plot(out / "search.png", title, search_text(run.searches), draw)


def _model(run: Run, out: Path) -> Found:
    """Where importance sits, and the final embedding."""
    if importance := importance_by_layer(run):
        draw = partial(draw_importance, importance=importance)
        columns = zip(importance.layers, importance.share.tolist(), importance.mean.tolist(), strict=True)
        rows = [[layer, f"{share:.3g}", f"{mean:.3g}"] for layer, share, mean in columns]
        shown = Values(["layer", "share of the total", "mean per weight"], rows)
        yield make_plot(out / "importance.png", "Where importance sits", texts.IMPORTANCE, draw, values=shown)
    else:
        yield f"There is no plot of importance: the strategy {run.strategy!r} stored none, or only zeros."
    if picture := final_picture(run):
        draw = partial(draw_embedding, picture=picture)
        yield make_plot(out / "embedding.png", "The final embedding", picture.text, draw, wide=True)


def _galleries(run: Run, out: Path, stored: Stored) -> Found:
    if not stored:
        yield "Stored vectors were not measured: there are no stale or compensated galleries."
    scale = scale_of([matrix for matrices in stored.values() for matrix in matrices.values()])
    label = run.primary.searched_label
    for scope, matrices in stored.items():
        curves = {kind: averages(matrix) for kind, matrix in matrices.items()}
        moved = texts.CURVES_MOVED if "compensated" in matrices else ""
        text = texts.CURVES_SEEN + moved if scope == "seen" else texts.CURVES_TASK
        alt = " ".join(f"{kind.capitalize()}: {_listed(values)}." for kind, values in curves.items())
        draw = partial(draw_galleries, curves=curves, low=scale[0], label=label, names=run.task_names)
        shown, title = of_curves(curves, run.task_names), f"Average {label}, {SCOPES[scope]}"
        yield make_plot(out / f"galleries_{scope}.png", title, text, draw, alt=alt, values=shown)
    # the map of what the run is judged by has the shorter name
    name = "scores" if run.primary.metric == run.primary.searched else "recall_scores"
    for kind, ending in KINDS.items():
        text = texts.GALLERY_MAP.format(metric=begun(label)) if kind == "fresh" else "The same scale, the same queries."
        for scope, matrices in stored.items():
            if kind in matrices:
                title = f"{kind.capitalize()} gallery, {SCOPES[scope]}"
                yield _score_map(run, out / f"{name}_{scope}{ending}.png", title, text, matrices[kind], scale)


def _score_map(run: Run, path: Path, title: str, text: str, matrix: Tensor, scale: tuple[float, float]) -> Plot:
    draw = partial(draw_matrix, matrix=matrix, task_names=run.task_names, low=scale[0], high=scale[1])
    alt = f"After the last task, task by task: {_listed(last_row(matrix).tolist())}."
    values = of_matrix(matrix, run.task_names, "after learning task")
    return make_plot(path, title, text, draw, alt=alt, values=values)


def _compatibility(run: Run, out: Path) -> Found:
    content = run.directory.compatibility()
    if content is None:
        return
    try:
        rows = [[math.nan if value is None else float(value) for value in row] for row in content["matrix"]]
        matrix, metric = torch.tensor(rows, dtype=torch.float64), str(content["metric"])
        average, backward = average_compatibility(matrix), backward_compatibility(matrix)
    except (ValueError, KeyError, TypeError) as error:
        path = run.path / "compatibility.json"
        raise ValueError(f"{path} holds no compatibility matrix ({error!r}); delete it or evaluate again") from error
    if len(matrix) != len(run.tasks):
        yield (
            f"The compatibility of models was measured over {len(matrix)} tasks, and {len(run.tasks)} are finished: "
            "run `tripletmas evaluate RUN --compatibility` again."
        )
        return
    share = number(100 * average, 0) + " %" * (not math.isnan(average))
    text = texts.COMPATIBILITY.format(metric=metric, share=share, backward=number(backward, signed=True))
    draw = partial(
        draw_matrix,
        matrix=matrix,
        task_names=run.task_names,
        low=lower_end([matrix]),
        row="queries by the model after task",
        column="gallery by the model after task",
    )
    alt = f"The last model's queries in each model's gallery: {_listed(last_row(matrix).tolist())}."
    shown = of_matrix(matrix, run.task_names, "queries by the model after task")
    yield make_plot(out / "compatibility.png", "Compatibility of models", text, draw, alt=alt, values=shown)


def _drift(run: Run, out: Path) -> Found:
    by_task, by_class, movement = drift_by_task(run), drift_by_class(run), movement_by_layer(run)
    if by_task is not None:
        high = max(float(by_task.nan_to_num(0).max()), 0.01)
        draw = partial(draw_matrix, matrix=by_task, task_names=run.task_names, high=high, column="of task")
        alt = f"Drift of the earlier tasks after the last one: {_listed(by_task[-1, :-1].tolist(), 3)}."
        shown = of_matrix(by_task, run.task_names, "after learning task")
        yield make_plot(out / "drift_tasks.png", "Drift by task", texts.DRIFT_BY_TASK, draw, alt=alt, values=shown)
    if by_class:
        draw, most = partial(draw_class_drift, drifts=by_class), most_and_least(by_class)[0]
        alt = f"Most drifted: {', '.join(f'{each.name} {number(each.drift)}' for each in most[:5])}."
        shown = Values(
            ["class", "task", "drift"], [[each.name, str(each.task + 1), number(each.drift)] for each in by_class]
        )
        yield make_plot(out / "drift_classes.png", "Drift by class", texts.DRIFT_BY_CLASS, draw, alt=alt, values=shown)
    if movement:
        draw = partial(draw_movement, movement=movement)
        head = ["layer, in percent", *(f"task {step}" if step != "all" else step for step in movement.steps)]
        rows = [
            [layer, *(f"{100 * far:.3g}" for far in way)]
            for layer, way in zip(movement.layers, movement.distance.tolist(), strict=True)
        ]
        title = "Drift by layer: how far the weights moved"
        yield make_plot(out / "movement.png", title, texts.MOVEMENT, draw, values=Values(head, rows))


def _listed(values: Sequence[float], digits: int = 2) -> str:
    return ", ".join(number(value, digits) for value in values)
