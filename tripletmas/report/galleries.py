"""Fresh, stale and compensated galleries of one run: what stored vectors still find, and what re-embedding costs.

All scores are by the metric that searches are compared by: recall@1, or the mAP of facts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from tripletmas.objectives.scores import average
from tripletmas.report.numbers import number
from tripletmas.report.plots import Line, draw_lines
from tripletmas.report.read import Run
from tripletmas.report.style import Theme

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


def meaning(run: Run, kind: str) -> str:
    """What a gallery of this kind is, in this run."""
    if kind == "fresh":
        return "embedded again by the present model after every task"
    if kind == "stale":
        return "each task's part as embedded when that task was learned, never again"
    name = str(run.section("gallery").get("compensate"))
    how = _MAPS.get(name, f"by the map {name}")
    return f"the stale vectors, moved {how} fitted on the new task's images alone"


def gallery_rows(run: Run) -> list[GalleryRow]:
    """A row for each kind of gallery that was measured; [] where only the fresh one was."""
    by_scope = [stored_matrices(run, scope) for scope in SCOPES]
    kinds = [kind for kind in KINDS if any(kind in matrices for matrices in by_scope)]
    return [GalleryRow(kind, meaning(run, kind), _shares(by_scope, kind), *_cost(run, kind)) for kind in kinds]


def _shares(by_scope: Sequence[Mapping[str, Tensor]], kind: str) -> tuple[str, ...]:
    """Of each scope the average, and the share of the fresh average that it is."""
    cells = []
    for matrices in by_scope:
        mean, fresh = (average(matrices[each]) if each in matrices else math.nan for each in (kind, "fresh"))
        share = 100 * mean / fresh if fresh else math.nan
        cells += [number(mean), "–" if math.isnan(share) else f"{share:.0f} %"]
    return tuple(cells)


def _cost(run: Run, kind: str) -> tuple[str, str]:
    """The images and the seconds of embedding again, which only the fresh gallery needs; dashes if not recorded."""
    records = [task["reembed"] for task in run.tasks if task.get("reembed")]
    if not records:
        return "–", "–"
    images, seconds = (sum(record[key] for record in records) * (kind == "fresh") for key in ("images", "seconds"))
    return f"{images:,}", f"{seconds:.3g}"


def draw_galleries(figure: Figure, theme: Theme, curves: Mapping[str, Sequence[float]], low: float, label: str) -> None:
    """A line for each kind of gallery over the tasks; kinds have one colour in all plots."""
    styles = zip(KINDS, theme.series, ("o", "s", "^"), strict=False)
    lines = [Line(curves[kind], kind, colour, style={"marker": m}) for kind, colour, m in styles if kind in curves]
    draw_lines(figure, theme, lines, label, low)
