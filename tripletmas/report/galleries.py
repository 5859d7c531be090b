"""Fresh, stale and compensated galleries of one run: what stored vectors still find, and what re-embedding costs.

All scores are by the metric that searches are compared by: recall@1, or the mAP of facts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tripletmas.objectives.scores import average
from tripletmas.report.configs import section
from tripletmas.report.numbers import number
from tripletmas.report.read import Run
from tripletmas.report.style import LIGHT, Theme, canvas, label_line_ends, series_style, task_axis

KINDS = {"fresh": "", "stale": "_stale", "compensated": "_compensated"}  # kind -> how its galleries' names end
SCOPES = {"seen": "everything seen", "task": "the task's own"}
_MAPS = {
    "sdc": "by the drift of the new items nearest to them (SDC)",
    "linear": "by a linear map",
    "mlp": "by a small network",
}


@dataclass(frozen=True)
class GalleryRow:
    """One kind of gallery after the last finished task.

    Attributes:
        meaning: what it is.
        scores: of each scope its average, and the share of the fresh average that it keeps.
        images, seconds: what embedding earlier images again, after every task, took in all; a dash if not recorded.
    """

    kind: str
    meaning: str
    scores: tuple[str, ...]
    images: str
    seconds: str


def stored_matrices(run: Run, scope: str) -> dict[str, Tensor]:
    """kind -> its matrix, for the gallery of `scope`; {} where only the fresh one was measured."""
    found = {kind: run.matrix(run.primary.searched, scope + ending) for kind, ending in KINDS.items()}
    measured = {kind: matrix for kind, matrix in found.items() if matrix is not None}
    return measured if measured.keys() - {"fresh"} else {}


def averages(matrix: Tensor) -> list[float]:
    """The mean over the tasks learned so far, after each task."""
    return [average(matrix[: t + 1, : t + 1]) for t in range(len(matrix))]


def meaning(run: Run, kind: str) -> str:
    """What a gallery of this kind is, in this run."""
    if kind == "fresh":
        return "embedded again by the present model after every task"
    if kind == "stale":
        return "each task's part as embedded when that task was learned, never again"
    name = str(section(run.config, "gallery").get("compensate"))
    how = _MAPS.get(name, f"by the map {name}")
    return f"the stale vectors, moved {how} fitted on the new task's images alone"


def gallery_rows(run: Run) -> list[GalleryRow]:
    """A row for each kind of gallery that was measured; [] where only the fresh one was."""
    by_scope = {scope: stored_matrices(run, scope) for scope in SCOPES}
    kinds = [kind for kind in KINDS if any(kind in matrices for matrices in by_scope.values())]
    records = [task["reembed"] for task in run.tasks if task.get("reembed")]
    rows = []
    for kind in kinds:
        scores = []
        for matrices in by_scope.values():
            mean, fresh = (average(matrices[k]) if k in matrices else math.nan for k in (kind, "fresh"))
            share = 100 * mean / fresh if fresh else math.nan
            scores += [number(mean), "–" if math.isnan(share) else f"{share:.0f} %"]
        images = seconds = "–"
        if records:
            again = kind == "fresh"
            images = f"{sum(record['images'] for record in records) * again:,}"
            seconds = f"{sum(record['seconds'] for record in records) * again:.3g}"
        rows.append(GalleryRow(kind, meaning(run, kind), tuple(scores), images, seconds))
    return rows


def draw_galleries(
    path: Path, curves: Mapping[str, Sequence[float]], *, low: float, theme: Theme = LIGHT, label: str = "recall@1"
) -> None:
    """A line for each kind of gallery over the tasks; kinds have one colour in all plots."""
    size = max(map(len, curves.values()))
    with canvas(path, theme) as figure:
        axes = figure.add_subplot()
        ends = []
        for i, kind in enumerate(KINDS):
            if kind in curves:
                colour, marker = series_style(i, theme)[0], ("o", "s", "^")[i]
                axes.plot(range(1, len(curves[kind]) + 1), curves[kind], color=colour, marker=marker)
                ends.append((curves[kind][-1], kind, colour))
        task_axis(axes, size)
        axes.set_ylim(low, 1.01)
        axes.set_ylabel(label)
        axes.grid(axis="y")
        label_line_ends(axes, [end for end in ends if not math.isnan(end[0])], theme, x=size)
