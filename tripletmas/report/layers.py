"""Importance and movement of the weights of a run, layer by layer.

A layer is a module: the parameters `conv1.weight` and `conv1.bias` make the layer `conv1`. Buffers (the running
statistics of batch normalisation) are no parameters and left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from tripletmas.basics.weights import Params
from tripletmas.report.heat_map import MAX_NUMBERS, colour_bar, number_colour, write_in_cell
from tripletmas.report.read import Run
from tripletmas.report.style import MAP, Theme, log_axis, row_axis

MAX_LAYERS = 60  # more rows than this are unreadable: layers are then merged into the modules that hold them
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class LayerImportance:
    """Importance by layer after the last finished task.

    Attributes:
        layers: from input to output.
        share: (layers,) of the total importance, sums to 1.
        mean: (layers,) importance per weight.
    """

    layers: tuple[str, ...]
    share: Tensor
    mean: Tensor


@dataclass(frozen=True)
class LayerMovement:
    """How far the weights of each layer moved.

    Attributes:
        steps: the columns: the task learned, and last "all" (from the start to the end).
        distance: (layers, steps), ||new - old|| / ||old||; nan where old is zero.
    """

    layers: tuple[str, ...]
    steps: tuple[str, ...]
    distance: Tensor


def importance_by_layer(run: Run) -> LayerImportance | None:
    """Importance by layer after the last finished task; None where the run stores none or it is zero."""
    files = run.directory.importance()
    if not files.numbers() or run.directory.is_behind(files.file(files.numbers()[-1])):
        return None
    importance = files.read(files.numbers()[-1])
    layers = group_by_layer(list(importance))
    total = torch.tensor([sum(float(importance[n].double().sum()) for n in names) for names in layers.values()])
    count = torch.tensor([sum(importance[n].numel() for n in names) for names in layers.values()])
    return LayerImportance(tuple(layers), total / total.sum(), total / count) if total.sum() > 0 else None


def movement_by_layer(run: Run) -> LayerMovement | None:
    """Relative distance of the weights by layer, each task and the whole way; None before the first task is done."""
    tasks = run.directory.weights.numbers()
    if not tasks:
        return None
    first = previous = _parameters(run.directory.start_weights())
    layers = group_by_layer(list(first))
    columns = []
    for task in tasks:
        present = _parameters(run.directory.weights.read(task))
        columns.append(_distance(layers, previous, present))
        previous = present
    columns.append(_distance(layers, first, previous))
    return LayerMovement(tuple(layers), (*(str(task + 1) for task in tasks), "all"), torch.stack(columns, dim=1))


def draw_importance(figure: Figure, theme: Theme, importance: LayerImportance) -> None:
    """Two dot plots over the layers in network order: the share of the total importance, and importance per weight."""
    names = [_short(name) for name in importance.layers]
    figure.set_figheight(_height(len(names)))
    panels = figure.subplots(1, 2, sharey=True)
    columns = {"share of the total": importance.share, "mean per weight": importance.mean}
    for axes, (title, values), colour in zip(panels, columns.items(), theme.series, strict=False):
        positive, whole = values > 0, {"transform": axes.get_yaxis_transform()}  # x from 0 to 1
        axes.set_title(title)
        axes.hlines(range(len(names)), 0, 1, color=theme.rule, linewidth=0.7, zorder=0, **whole)
        axes.scatter(values[positive], positive.nonzero().flatten(), s=26, color=colour, zorder=3, label=title)
        for row in (~positive).nonzero().flatten().tolist():
            axes.text(0.02, row, "zero", va="center", fontsize=8, color=theme.muted, **whole)
        log_axis(axes, ticks=3)
        low, high = float(values[positive].min()), float(values[positive].max())
        axes.set_xlim(10 ** math.floor(math.log10(low) - 0.15), 10 ** math.ceil(math.log10(high) + 0.05))
        axes.tick_params(axis="x", which="minor", length=0)
        row_axis(axes, names, edge=0.6)


def draw_movement(figure: Figure, theme: Theme, movement: LayerMovement) -> None:
    """The relative distance in percent as a heat map: a row for each layer, a column for each task, and the whole."""
    rows, columns = movement.distance.shape
    percent = 100 * movement.distance.masked_fill(movement.distance <= 0, torch.nan)
    if percent.isnan().all():
        low, high = 0.1, 1.0
    else:
        low, high = float(np.nanmin(percent)), float(np.nanmax(percent))
    figure.set_figheight(_height(rows, 0.27))
    axes = figure.add_subplot()
    norm = LogNorm(max(low, high / 1e4), max(high, low * 1.01))
    # The last column is another quantity, the way from start to end: a gap sets it apart.
    edges = np.append(np.arange(columns), [columns - 0.75, columns + 0.25])
    spaced = np.insert(percent.numpy(), columns - 1, np.nan, axis=1)
    mesh = axes.pcolormesh(
        edges, np.arange(rows + 1), spaced, cmap=MAP, norm=norm, edgecolors=theme.background, linewidth=0.6
    )
    axes.set_yticks(np.arange(rows) + 0.5, [_short(name) for name in movement.layers])
    axes.set_ylim(rows, 0)
    centres = [*(np.arange(columns - 1) + 0.5), columns - 0.25]
    step = max(1, math.ceil((columns - 1) / 15))
    shown = [*range(0, columns - 1, step), columns - 1]
    axes.set_xticks([centres[i] for i in shown], [movement.steps[i] for i in shown])
    axes.set_xlabel("while learning task (all: from the first weights to the last)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if columns <= MAX_NUMBERS and rows <= 24:
        for i, j in np.argwhere(~np.isnan(percent.numpy())):
            text = f"{float(percent[i, j]):.2g}" if percent[i, j] < 100 else f"{float(percent[i, j]):.0f}"
            colour = number_colour(float(norm(float(percent[i, j]))))
            write_in_cell(axes, centres[j], i + 0.5, text, colour, 8)
    else:
        colour_bar(figure, mesh, axes).set_label("percent")


def group_by_layer(names: Sequence[str], limit: int = MAX_LAYERS) -> dict[str, list[str]]:
    """Parameter names by layer, in the order given; deep modules are merged until at most `limit` layers remain.

    >>> group_by_layer(["conv.weight", "conv.bias", "head.weight"])
    {'conv': ['conv.weight', 'conv.bias'], 'head': ['head.weight']}
    """
    depth = max((name.count(".") for name in names), default=0)
    while True:
        layers: dict[str, list[str]] = {}
        for name in names:
            parts = name.split(".")
            layer = ".".join(parts[: min(depth, len(parts) - 1)]) or name
            layers.setdefault(layer, []).append(name)
        if len(layers) <= limit or depth <= 1:
            return layers
        depth -= 1


def _parameters(state: Params) -> Params:
    return {n: t for n, t in state.items() if t.is_floating_point() and n.split(".")[-1] not in _BUFFERS}


def _distance(layers: dict[str, list[str]], old: Params, new: Params) -> Tensor:
    values = []
    for names in layers.values():
        kept = [n for n in names if n in new and new[n].shape == old[n].shape]  # a replaced head has no distance
        moved = sum(float((new[n].double() - old[n].double()).square().sum()) for n in kept)
        length = sum(float(old[n].double().square().sum()) for n in kept)
        values.append((moved / length) ** 0.5 if length > 0 else float("nan"))
    return torch.tensor(values, dtype=torch.float64)


def _height(rows: int, each: float = 0.22) -> float:
    """The height in inches of a plot with a row for each layer."""
    return max(2.2, 0.9 + each * rows) if rows < 30 else 0.9 + 0.17 * rows


def _short(name: str) -> str:
    """The end of a long name: what tells layers apart."""
    return name if len(name) <= 26 else f"…{name[-25:]}"
