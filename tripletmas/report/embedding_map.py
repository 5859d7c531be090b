"""A map of the embedding after each task, in which drift is seen: one projection for all steps.

The vectors are those of the queries that a run follows: the same after every task, and those of each new task beside
them. One PCA is fitted on the unit-length vectors of all files together, so that a place means the same
at every step, and a point that moves has moved in the embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tripletmas.objectives.grid import FOLLOWED
from tripletmas.report import texts
from tripletmas.report.embedding_plot import Groups, grouped
from tripletmas.report.read import Run
from tripletmas.report.style import Theme

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
        after: for each step the task that it comes after, from 0.
        groups: those of the last step.
        labels: (points of the last step,) class names.
        said: for each step what is seen, in words.
        kept: the share of the variance that the two axes keep.
        shown, of: how many queries are in the last step, and how many the run has.
    """

    points: tuple[np.ndarray, ...]
    after: tuple[int, ...]
    groups: Groups
    labels: tuple[str, ...]
    said: tuple[str, ...]
    kept: float
    shown: int
    of: int
    width: int
    height: int

    def colours(self, theme: Theme) -> list[str]:
        """The colour of each group."""
        return [self.groups.style(group, theme)[0] for group in range(len(self.groups.names))]

    @property
    def shapes(self) -> list[str]:
        """The marker of each group as the path of an SVG, around 0."""
        return [_SHAPES[self.groups.style(group)[1]] for group in range(len(self.groups.names))]

    @property
    def mark_size(self) -> float:
        """The size of the marks: many are smaller, or they would hide each other."""
        return 0.75 if self.shown > 250 else 1.0

    @property
    def trail_opacity(self) -> float:
        """Many trails are fainter, too."""
        return min(0.45, max(0.1, 45 / self.shown))

    @property
    def last_marks(self) -> list[list[list[int]]]:
        """For each group the places of its points at the last step, for pages whose script does not run."""
        now, of = self.points[-1], self.groups.of.numpy()
        return [now[of == group].tolist() for group in range(len(self.groups.names))]

    @property
    def last_trails(self) -> list[str]:
        """For each group, as the path of an SVG, how its points came there from the step before."""
        now = self.points[-1]
        old = self.points[-2] if len(self.points) > 1 else now[:0]
        ways, of = np.hstack([old, now[: len(old)]]), self.groups.of.numpy()[: len(old)]
        groups = (ways[of == group].tolist() for group in range(len(self.groups.names)))
        return ["".join(f"M{x} {y}L{to_x} {to_y}" for x, y, to_x, to_y in group) for group in groups]

    @property
    def text(self) -> str:
        """How to read the map."""
        text = texts.MAP.format(kept=f"{100 * self.kept:.0f} %", coloured_by=self.groups.by)
        return text + (f" {self.shown} of {self.of} queries are shown." if self.shown < self.of else "")

    @property
    def json(self) -> str:
        """What the page's script draws, as JSON that may stand inside <script>: no character in it is markup."""
        classes = sorted(set(self.labels))
        content: dict[str, Any] = {
            "after": [task + 1 for task in self.after],
            "steps": [points.flatten().tolist() for points in self.points],
            "groups": self.groups.of.tolist(),
            "shapes": self.shapes,
            "size": self.mark_size,
            "opacity": self.trail_opacity,
            "classes": classes,
            "labels": [classes.index(label) for label in self.labels],
            "said": self.said,
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def read_map(run: Run) -> EmbeddingMap | None:
    """The map of a run; None where it follows no queries, or fewer than two."""
    files, finished = run.directory.of_tasks(FOLLOWED), {task.get("task", 0) for task in run.tasks}
    after = [task for task in files.numbers() if task in finished]  # without that of a task that was cut off
    if not after:
        return None
    last = files.read(after[-1])
    total = len(last["vectors"])
    if total < 2:
        return None
    chosen = torch.arange(0, total, -(-total // _MAX_POINTS))  # every k-th, in the order of the files
    vectors = [files.read(task)["vectors"].float() for task in after]
    steps = [normalize(each, dim=1)[chosen[chosen < len(each)]] for each in vectors]
    flat, kept = _project(torch.cat(steps))
    points, height = _on_drawing(flat)
    labels, tasks = last["labels"][chosen], last["tasks"][chosen]
    return EmbeddingMap(
        points=tuple(np.split(points, np.cumsum([len(step) for step in steps])[:-1])),
        after=tuple(after),
        groups=grouped(labels, tasks, run.classes.name, lambda task: f"{task + 1}  {run.task_name(task)}"),
        labels=tuple(run.classes.name(label) for label in labels.tolist()),
        said=tuple(_said(run, after, steps)),
        kept=kept,
        shown=len(chosen),
        of=total,
        width=_WIDTH,
        height=height,
    )


def _said(run: Run, after: Sequence[int], steps: Sequence[Tensor]) -> Iterator[str]:
    """What is seen at each step, with the mean of 1 - cos(vector a step earlier, vector now)."""
    for number, (task, step) in enumerate(zip(after, steps, strict=True)):
        what = f"After task {task + 1} of {after[-1] + 1}, {run.task_name(task)}: {len(step)} queries."
        if number:
            old = steps[number - 1]
            turned = float(1 - (old * step[: len(old)]).sum(dim=1).mean())
            what += f" Those of earlier tasks have turned by {turned:.3f} on average since the step before."
        yield what


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
