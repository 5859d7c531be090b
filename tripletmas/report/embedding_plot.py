"""The final embedding in two dimensions: t-SNE of the normalised vectors, a colour for each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from tripletmas.report.numbers import short_names
from tripletmas.report.read import Run
from tripletmas.report.style import LIGHT, MARKERS, Theme, halo, series_style, without_scales

_MAX_POINTS = 600
_MIN_POINTS = 50  # with fewer points t-SNE shows its own noise: the two principal directions are shown
_STEPS = 500  # of t-SNE: 1000, the default, take twice as long and keep as many of the ten nearest neighbours together
_LAID_OUT = {
    "t-SNE": "laid out in two dimensions by t-SNE, which keeps neighbours together (the distance between groups "
    "means little)",
    "PCA": "seen along their two principal directions (PCA)",
}
_LETTER, _LINE = 0.045, 0.07  # of a name, in shares of the smallest picture: a quarter of a comparison's width
_ROUNDS = 50  # of moving names apart
MAX_COLOURS = 16  # more classes than this cannot be told apart: the colour is then the task


@dataclass(frozen=True)
class Groups:
    """What the colours of points mean.

    Attributes:
        of: (n,) the group of each point, a position in `names`.
        by: "class" or "task".
    """

    of: Tensor
    names: tuple[str, ...]
    by: str

    def style(self, group: int, theme: Theme = LIGHT) -> tuple[str, str]:
        """The colour and the marker of a group."""
        if len(self.names) > MAX_COLOURS:
            return theme.in_order(len(self.names))[group], MARKERS[0]
        return series_style(group, theme)


@dataclass(frozen=True)
class Picture:
    """The points (n, 2) of at most 600 vectors.

    Attributes:
        method: "t-SNE" or "PCA".
        of: how many vectors there are.
    """

    points: np.ndarray
    groups: Groups
    method: str
    of: int

    @property
    def text(self) -> str:
        """How to read the picture."""
        shown, names, by = len(self.points), self.groups.names, self.groups.by
        points = f"{shown} of the {self.of:,} queries" if shown < self.of else f"The {self.of:,} queries"
        why = "" if by == "class" else ": there are too many classes to tell their colours apart"
        if len(names) > MAX_COLOURS:
            why += "; it runs from dark (first task) to bright (last)"
        text = f"{points} as the final model embeds them, {_LAID_OUT[self.method]}. The colour is the {by}{why}."
        return text + (" Classes that form clean groups can be found by nearest neighbour." if not why else "")


def grouped(labels: Tensor, tasks: Tensor, class_name: Callable[[int], str], task_name: Callable[[int], str]) -> Groups:
    """A colour for each class, or for each task where there are too many classes."""
    by_class = len(labels.unique()) <= MAX_COLOURS
    values, name = (labels, class_name) if by_class else (tasks, task_name)
    present = values.unique()
    names = tuple(name(value) for value in present.tolist())
    return Groups(torch.searchsorted(present, values), names, "class" if by_class else "task")


def final_picture(run: Run) -> Picture | None:
    """The queries of all tasks as the final model embeds them; None where there are none that are finite."""
    kept = run.directory.embedding()
    if kept is None:
        return None
    finite = kept["vectors"].isfinite().all(dim=1)
    vectors, labels = kept["vectors"][finite].float(), kept["labels"][finite].long()
    tasks = kept["tasks"][finite].long() if "tasks" in kept else run.classes.task_of(labels)
    return project(vectors, labels, tasks, run) if len(vectors) else None


def project(vectors: Tensor, labels: Tensor, tasks: Tensor, run: Run) -> Picture:
    """Lay vectors (n, dim) of these classes and tasks out in two dimensions; the same input gives the same picture."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(vectors), generator=generator)[:_MAX_POINTS].sort().values
    points, method = _two_dimensions(normalize(vectors[chosen], dim=1).numpy())
    groups = grouped(labels[chosen], tasks[chosen], run.classes.name, run.task_name)
    return Picture(points, groups, method, len(vectors))


def draw_embedding(figure: Figure, theme: Theme, picture: Picture) -> None:
    """A dot for each vector; the name of a class stands at the middle of its points."""
    figure.set_size_inches(8.4, 5.6)
    axes = figure.add_subplot()
    draw_points(axes, picture, theme)
    name_tasks(figure, axes, picture)


def draw_points(axes: Axes, picture: Picture, theme: Theme = LIGHT) -> None:
    """Draw the picture on axes without scales: only nearness means anything in it."""
    without_scales(axes)
    groups, names = picture.groups, short_names(picture.groups.names)
    members = [picture.points[(groups.of == i).numpy()] for i in range(len(names))]
    for i, name in enumerate(names):
        colour, marker = groups.style(i, theme)
        mark = {"color": colour, "marker": marker, "alpha": 0.75, "linewidths": 0, "label": name}
        axes.scatter(members[i][:, 0], members[i][:, 1], s=16, **mark)
    axes.margins(0.03)
    if groups.by == "class":
        extent = np.maximum(np.ptp(picture.points, axis=0), 1e-9)
        middles = np.stack([np.median(each, axis=0) for each in members])
        for name, (x, y) in zip(names, _apart(middles / extent, names) * extent, strict=True):
            place = axes.text(x, y, name, ha="center", va="center", color=theme.ink, zorder=5)
            place.set(fontsize=10, weight="bold", path_effects=halo(theme))


def _apart(middles: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The middles (n, 2) of names, in shares of the picture, moved up and down until none stands on another."""
    middles = middles.copy()
    for _ in range(_ROUNDS):
        for i, j in combinations(range(len(names)), 2):
            wide, high = middles[j] - middles[i]
            if abs(wide) < _LETTER * (len(names[i]) + len(names[j])) / 2 and abs(high) < _LINE:
                push = math.copysign((_LINE - abs(high)) / 2, high)
                middles[i, 1] -= push
                middles[j, 1] += push
    return middles


def name_tasks(figure: Figure, axes: Axes, picture: Picture) -> None:
    """The tasks in a legend below, where their points were drawn on these axes: they lie too mixed for names there."""
    if picture.groups.by == "task" and len(picture.groups.names) <= MAX_COLOURS:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=5, handletextpad=0.2, columnspacing=1.2)


def _two_dimensions(vectors: np.ndarray) -> tuple[np.ndarray, str]:
    """(n, 2). t-SNE starts from the principal components, so the picture keeps the large-scale arrangement."""
    n, dim = vectors.shape
    if n < 3 or dim < 2 or np.ptp(vectors, axis=0).max() < 1e-6:  # nothing to lay out: one dimension, or one point
        return np.pad(vectors, ((0, 0), (0, 2)))[:, :2], "PCA"
    from sklearn.decomposition import PCA  # here, since it takes a second
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if n < _MIN_POINTS or dim == 2:
        return PCA(2, random_state=0).fit_transform(vectors), "PCA"
    perplexity = 30 if n > 120 else n / 4
    layout = TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=_STEPS)
    with threadpool_limits(1):  # several wait for each other where cores are busy: 2.5 seconds of them in place of 1
        return layout.fit_transform(vectors), "t-SNE"
