"""The final embedding in two dimensions: t-SNE of the normalised vectors, a colour for each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn.functional import normalize

from tripletmas.report.layers import FinalEmbedding
from tripletmas.report.numbers import short_names
from tripletmas.report.style import LIGHT, Theme, canvas, series_style

_MAX_POINTS = 600
_MIN_POINTS = 50  # with fewer points t-SNE shows its own noise: the two principal directions are shown
MAX_COLOURS = 16  # more classes than this cannot be told apart: the colour is then the task


@dataclass(frozen=True)
class Picture:
    """The points (n, 2) of at most 600 vectors, and what their colours mean.

    Attributes:
        method: "t-SNE" or "PCA".
        shown, of: how many vectors are in the picture, and how many there are.
        groups: (n,) the class, or the task where there are too many classes, as a position in `names`.
        coloured_by: "class" or "task".
    """

    points: np.ndarray
    method: str
    shown: int
    of: int
    groups: Tensor
    names: tuple[str, ...]
    coloured_by: str


def project(embedding: FinalEmbedding, task_names: tuple[str, ...]) -> Picture:
    """Lay the vectors out in two dimensions; the same input gives the same picture."""
    total = len(embedding.vectors)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(total, generator=generator)[:_MAX_POINTS].sort().values
    vectors = normalize(embedding.vectors[chosen], dim=1).numpy()
    labels, tasks = embedding.labels[chosen], embedding.tasks[chosen]
    present = labels.unique()
    if len(present) <= MAX_COLOURS:
        groups = torch.searchsorted(present, labels)
        names = tuple(embedding.class_names[i] if i < len(embedding.class_names) else str(i) for i in present.tolist())
        by = "class"
    else:
        present = tasks.unique()
        groups = torch.searchsorted(present, tasks)
        names = tuple(task_names[i] if i < len(task_names) else f"task {i + 1}" for i in present.tolist())
        by = "task"
    points, method = _two_dimensions(vectors)
    return Picture(points, method, len(chosen), total, groups, names, by)


def draw_embedding(
    path: Path, picture: Picture, *, theme: Theme = LIGHT, width: float = 8.4, height: float = 5.6
) -> None:
    """A dot for each vector; the name of a class stands at the middle of its points."""
    with canvas(path, theme, width=width, height=height) as figure:
        axes = figure.add_subplot()
        draw_points(axes, picture, theme)
        name_tasks(figure, axes, picture)


def draw_points(axes: Axes, picture: Picture, theme: Theme = LIGHT) -> None:
    """Draw the picture on axes without scales: only nearness means anything in it."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    names = short_names(picture.names)
    in_order = theme.in_order(len(names))
    for i, name in enumerate(names):
        members = picture.points[(picture.groups == i).numpy()]
        colour, marker = series_style(i, theme)
        if len(names) > MAX_COLOURS:
            colour, marker = in_order[i], "o"
        mark = {"color": colour, "marker": marker, "alpha": 0.75, "linewidths": 0, "label": name}
        axes.scatter(members[:, 0], members[:, 1], s=16, **mark)
        if picture.coloured_by == "class" and len(members):
            x, y = np.median(members, axis=0)
            halo = [withStroke(linewidth=3, foreground=theme.background)]
            place = axes.text(x, y, name, ha="center", va="center", color=theme.ink, path_effects=halo, zorder=5)
            place.set(fontsize=10, weight="bold")
    axes.margins(0.03)


def name_tasks(figure: Figure, axes: Axes, picture: Picture) -> None:
    """The tasks in a legend below, where their points were drawn on these axes: they lie too mixed for names there."""
    if picture.coloured_by == "task" and len(picture.names) <= MAX_COLOURS:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=5, handletextpad=0.2, columnspacing=1.2)


def _two_dimensions(vectors: np.ndarray) -> tuple[np.ndarray, str]:
    """(n, 2). t-SNE starts from the principal components, so the picture keeps the large-scale arrangement."""
    n, dim = vectors.shape
    if n < 3 or dim < 2 or np.ptp(vectors, axis=0).max() < 1e-6:  # nothing to lay out: one dimension, or one point
        return np.pad(vectors, ((0, 0), (0, 2)))[:, :2], "PCA"
    if n < _MIN_POINTS or dim == 2:
        return PCA(2, random_state=0).fit_transform(vectors), "PCA"
    return TSNE(2, perplexity=30 if n > 120 else n / 4, init="pca", random_state=0).fit_transform(vectors), "t-SNE"
