"""Fresh, stale and compensated galleries of one run: what stored vectors still find, and what re-embedding costs.

All scores are by the metric that searches are compared by: recall@1, or the mAP of facts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from tripletmas.objectives.scores import average
from tripletmas.report.numbers import number
from tripletmas.report.read import Run

if TYPE_CHECKING:  # they draw, and take a while to import
    from matplotlib.figure import Figure

    from tripletmas.report.style import Theme

KINDS = {"fresh": "", "stale": "_stale", "compensated": "_compensated"}  # kind -> how its galleries' names end
SCOPES = {"seen": "everything seen", "task": "the task's own"}
_MAPS = {
    "sdc": "by the drift of the new items nearest to them (SDC)",
    "linear": "by a linear map",
    "mlp": "by a small network",
    "procrustes": "by a rotation",
    "shrunk": "by a linear map, the nearer to the identity the fewer the images,",
    "auto": "by a map, chosen after each task and",
}


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
    own = "and on images of one's own" if run.section("gallery").get("images") else "alone"
    return f"the stale vectors, moved {how} fitted on the new task's images {own}"


def gallery_rows(run: Run) -> list[list[str]]:
    """A row for each kind of gallery that was measured; [] where only the fresh one was.

    Its cells: the kind; what it is; of each scope the average after the last finished task, and the share of the fresh
    average that it keeps; the images and seconds that embedding again took after every task, in all.
    """
    by_scope = [stored_matrices(run, scope) for scope in SCOPES]
    rows = []
    for kind in KINDS:
        if any(kind in matrices for matrices in by_scope):
            again = [task["reembed"] for task in run.tasks if kind == "fresh"]  # only the fresh one needs it
            images, seconds = (sum(record[what] for record in again) for what in ("images", "seconds"))
            kept = (cell for matrices in by_scope for cell in _kept(matrices, kind))
            rows.append([kind, meaning(run, kind), *kept, f"{images:,}", f"{seconds:.3g}"])
    return rows


def best_stored(rows: Sequence[Sequence[str]]) -> set[tuple[str, int]]:
    """(kind, which of the cells after the first two of `gallery_rows`): the higher average of stale and compensated."""
    stored = [row for row in rows if row[0] != "fresh" and len(row) > 4]
    if len(stored) < 2:
        return set()
    best = {place: max(row[2 + place] for row in stored) for place in (0, 2)}
    return {(row[0], place) for row in stored for place, cell in best.items() if row[2 + place] == cell}


def _kept(matrices: Mapping[str, Tensor], kind: str) -> tuple[str, str]:
    """The average on one kind of gallery, and the share of the fresh average that it is."""
    mean, fresh = (average(matrices[each]) if each in matrices else math.nan for each in (kind, "fresh"))
    share = 100 * mean / fresh if fresh else math.nan
    return number(mean), "–" if math.isnan(share) else f"{share:.0f} %"


def choice_rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """(candidates, a row for each task at which a map chose itself); ([], []) where none did.

    Its cells: the task; the map; how many pairs there were; by each candidate the mean cosine between held-out samples
    of the task, moved, and where the new model has them.
    """
    chosen = [(record["task"], record["compensated_by"]) for record in run.tasks if "compensated_by" in record]
    rows = [
        [run.task_name(task), each["map"], f"{each['pairs']:,}", *map(_cosine, each["held_out_cosine"].values())]
        for task, each in chosen
    ]
    return list(chosen[0][1]["held_out_cosine"]) if chosen else [], rows


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def draw_galleries(
    figure: Figure,
    theme: Theme,
    curves: Mapping[str, Sequence[float]],
    low: float,
    label: str,
    names: Sequence[str] = (),
) -> None:
    """A line for each kind of gallery over the tasks; kinds have one colour in all plots."""
    from tripletmas.report.plots import Line, draw_lines

    styles = zip(KINDS, theme.series, ("o", "s", "^"), strict=False)
    lines = [Line(curves[kind], kind, colour, style={"marker": m}) for kind, colour, m in styles if kind in curves]
    draw_lines(figure, theme, lines, label, low, names)
