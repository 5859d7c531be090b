"""A map of the embedding after each task, in which drift is seen: one projection for all steps.

The vectors are those of gallery/shown00.safetensors, shown01, ...: the same queries after every task, and those of each
new task beside them. One PCA is fitted on the unit-length vectors of all files together, so that a place means the same
at every step, and a point that moves has moved in the embedding.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from torch import Tensor
from torch.nn.functional import normalize

from tripletmas.report.classes import Classes
from tripletmas.report.embedding_plot import MAX_COLOURS
from tripletmas.report.layers import read_tensors
from tripletmas.report.read import Run
from tripletmas.report.style import LIGHT, MARKERS, Theme, canvas, series_style

_MAX_POINTS = 1200
_WIDTH, _LEAST, _MOST, _EDGE = 1000, 420, 720, 24  # of the drawing; the height follows the points

_SHAPES = {  # of about the same area
    "o": "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0",
    "^": "M0-7.5L7 5.5H-7Z",
    "s": "M-5.4-5.4H5.4V5.4H-5.4Z",
    "D": "M0-7.6L7.6 0L0 7.6L-7.6 0Z",
}


@dataclass(frozen=True)
class EmbeddingMap:
    """The points of each step, on a drawing of `width` x `height`.

    Attributes:
        points: for each step (points, 2), the first of them the same queries as in the step before.
        after: for each step the task that it comes after, from 0. A run begun by an earlier version lacks the first.
        groups: (points of the last step,) the class, or the task where there are too many classes.
        names: of the groups.
        labels: (points of the last step,) class names.
        moved: for each step, the mean of 1 - cos(vector a step earlier, vector now); nan for the first.
        kept: the share of the variance that the two axes keep.
        shown, of: how many queries are in the last step, and how many the run has.
    """

    points: tuple[np.ndarray, ...]
    after: tuple[int, ...]
    groups: tuple[int, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    coloured_by: str
    moved: tuple[float, ...]
    kept: float
    shown: int
    of: int
    width: int
    height: int
    task_names: tuple[str, ...]


def read_map(run: Run, classes: Classes) -> EmbeddingMap | None:
    """The map of a run; None where it has no embeddings of shown queries, or fewer than two of them."""
    paths = _shown_files(run)
    files, after = [read_tensors(path) for path in paths.values()], tuple(paths)
    if not files or len(files[-1]["vectors"]) < 2:
        return None
    total = len(files[-1]["vectors"])
    chosen = torch.arange(0, total, -(-total // _MAX_POINTS))  # every k-th, in the order of the files
    steps = [normalize(each["vectors"].float(), dim=1)[chosen[chosen < len(each["vectors"])]] for each in files]
    flat, kept = _project(torch.cat(steps))
    points, height = _on_drawing(flat)
    ends = np.cumsum([len(step) for step in steps])
    labels, tasks = files[-1]["labels"][chosen], files[-1]["tasks"][chosen]
    present = labels.unique()
    by_class = len(present) <= MAX_COLOURS
    values = labels if by_class else tasks
    present = values.unique()
    known = run.task_names
    task_names = tuple(known[i] if i < len(known) else f"task {i + 1}" for i in range(after[-1] + 1))
    names = [classes.name(i) if by_class else f"{i + 1}  {task_names[i]}" for i in present.tolist()]
    return EmbeddingMap(
        points=tuple(np.split(points, ends[:-1])),
        after=after,
        groups=tuple(torch.searchsorted(present, values).tolist()),
        names=tuple(names),
        labels=tuple(classes.name(label) for label in labels.tolist()),
        coloured_by="class" if by_class else "task",
        moved=(float("nan"), *(_turned(old, new) for old, new in pairwise(steps))),
        kept=kept,
        shown=len(chosen),
        of=total,
        width=_WIDTH,
        height=height,
        task_names=task_names,
    )


def map_json(found: EmbeddingMap) -> str:
    """What the page's script draws, as JSON that may stand inside <script>: no character in it is markup."""
    classes = sorted(set(found.labels))
    content: dict[str, Any] = {
        "after": [task + 1 for task in found.after],
        "steps": [points.flatten().tolist() for points in found.points],
        "groups": found.groups,
        "shapes": [group_shape(found, group) for group in range(len(found.names))],
        "classes": classes,
        "labels": [classes.index(label) for label in found.labels],
        "said": [step_text(found, step) for step in range(len(found.points))],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def step_text(found: EmbeddingMap, step: int) -> str:
    """What is seen at a step, in words."""
    task, last = found.after[step], found.after[-1]
    what = f"After task {task + 1} of {last + 1}, {found.task_names[task]}: {len(found.points[step])} queries."
    if step:
        what += f" Those of earlier tasks have turned by {found.moved[step]:.3f} on average since the step before."
    return what


def group_style(found: EmbeddingMap, group: int, theme: Theme) -> tuple[str, str]:
    """The colour and the marker of a group."""
    if len(found.names) > MAX_COLOURS:
        return theme.in_order(len(found.names))[group], MARKERS[0]
    return series_style(group, theme)


def map_colours(found: EmbeddingMap, theme: Theme) -> list[str]:
    """The colour of each group."""
    return [group_style(found, group, theme)[0] for group in range(len(found.names))]


def group_shape(found: EmbeddingMap, group: int) -> str:
    """The marker of a group as the path of an SVG, around 0."""
    return _SHAPES[group_style(found, group, LIGHT)[1]]


def draw_map(path: Path, found: EmbeddingMap, *, theme: Theme = LIGHT) -> None:
    """The last step, for pages whose script does not run; a faint line leads to each point from the step before."""
    now = found.points[-1]
    groups = np.asarray(found.groups)
    with canvas(path, theme, width=8.4, height=8.4 * found.height / found.width + 0.4) as figure:
        axes = figure.add_subplot()
        if len(found.points) > 1:
            old = found.points[-2]
            trails = np.stack([old, now[: len(old)]], axis=1)
            axes.add_collection(LineCollection(list(trails), colors=theme.muted, linewidths=0.6, alpha=0.4, zorder=1))
        for i in range(len(found.names)):
            colour, marker = group_style(found, i, theme)
            axes.scatter(*now[groups == i].T, s=18, color=colour, marker=marker, linewidths=0, zorder=2)
        axes.set_xlim(0, found.width)
        axes.set_ylim(found.height, 0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)


def _shown_files(run: Run) -> dict[int, Path]:
    """The number of each finished task -> its file, in order; a file of a task that was cut off is left out."""
    finished = {int(task.get("task", 0)) for task in run.tasks}
    found = {}
    for path in (run.path / "gallery").glob("shown*.safetensors"):
        number = re.fullmatch(r"shown(\d+)", path.stem)
        if number and int(number[1]) in finished:
            found[int(number[1])] = path
    return dict(sorted(found.items()))


def _project(vectors: Tensor) -> tuple[np.ndarray, float]:
    """(n, 2): the two principal directions, and the share of the variance that they keep; 1 where there is none."""
    centred = (vectors - vectors.mean(dim=0)).double()
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    flat = torch.zeros(len(vectors), 2, dtype=torch.float64)
    for axis, direction in enumerate(directions[:2]):
        sign = -1.0 if direction[direction.abs().argmax()] < 0 else 1.0  # the same picture on every machine
        flat[:, axis] = centred @ direction * sign
    variance = lengths.square()
    return flat.numpy(), float(variance[:2].sum() / variance.sum()) if variance.sum() > 1e-12 else 1.0


def _on_drawing(flat: np.ndarray) -> tuple[np.ndarray, int]:
    """Whole places on the drawing and its height; both axes have one scale, so that distances can be compared."""
    low, size = flat.min(axis=0), np.maximum(np.ptp(flat, axis=0), 1e-9)
    height = int(np.clip(size[1] / size[0] * _WIDTH, _LEAST, _MOST))
    scale = min((_WIDTH - 2 * _EDGE) / size[0], (height - 2 * _EDGE) / size[1])
    corner = (np.array([_WIDTH, height]) - scale * size) / 2
    return np.rint(corner + scale * (flat - low)).astype(int), height


def _turned(old: Tensor, new: Tensor) -> float:
    return float(1 - (old * new[: len(old)]).sum(dim=1).mean())
