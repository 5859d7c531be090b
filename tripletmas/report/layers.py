"""Importance and movement of the weights, layer by layer, and the final embedding, from the files of a run.

A layer is a module: the parameters `conv1.weight` and `conv1.bias` make the layer `conv1`. Buffers (the running
statistics of batch normalisation) are no parameters and left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tripletmas.basics import files
from tripletmas.report.classes import read_classes
from tripletmas.report.read import Run

MAX_LAYERS = 60  # more rows than this are unreadable: layers are then merged into the modules that hold them
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class LayerImportance:
    """Importance by layer after the last finished task.

    Attributes:
        layers: from input to output if `in_order`, else by name.
        share: (layers,) of the total importance, sums to 1.
        mean: (layers,) importance per weight.
    """

    layers: tuple[str, ...]
    share: Tensor
    mean: Tensor
    in_order: bool


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


@dataclass(frozen=True)
class FinalEmbedding:
    """The queries of all tasks, embedded by the final model: vectors (n, dim) raw, labels (n,), tasks (n,)."""

    vectors: Tensor
    labels: Tensor
    tasks: Tensor
    class_names: tuple[str, ...]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in network order if its metadata has it as "order" (JSON list of names).

    The format itself sorts by name; without that entry the order is by name, numbers by value.
    """
    return _ordered(path)[0]


def _ordered(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file, and whether their order is that of the network."""
    tensors, order = files.read_tensors(path, "delete it or run again", header="order")
    return (tensors, True) if order else ({name: tensors[name] for name in sorted(tensors, key=_natural)}, False)


def importance_by_layer(run: Run) -> LayerImportance | None:
    """Importance by layer after the last finished task; None where the run stores none or it is zero."""
    paths = sorted((run.path / "importance").glob("task*.safetensors"))
    if not paths:
        return None
    importance = read_tensors(paths[-1])
    weights = run.path / "weights" / paths[-1].name
    order, in_order = _ordered(weights if weights.is_file() else paths[-1])
    names = [name for name in order if name in importance] + [name for name in importance if name not in order]
    layers = group_by_layer(names)
    total = torch.tensor([sum(float(importance[n].double().sum()) for n in names) for names in layers.values()])
    count = torch.tensor([sum(importance[n].numel() for n in names) for names in layers.values()])
    if not total.sum() > 0:
        return None
    return LayerImportance(tuple(layers), total / total.sum(), total / count, in_order)


def movement_by_layer(run: Run) -> LayerMovement | None:
    """Relative distance of the weights by layer, each task and the whole way; None with fewer than two files."""
    start = run.path / "weights" / "start.safetensors"
    paths = [start] if start.is_file() else []
    paths += sorted((run.path / "weights").glob("task*.safetensors"))
    if len(paths) < 2:
        return None
    first = previous = _parameters(paths[0])
    layers = group_by_layer(list(first))
    columns = []
    for path in paths[1:]:
        present = _parameters(path)
        columns.append(_distance(layers, previous, present))
        previous = present
    columns.append(_distance(layers, first, previous))
    steps = tuple(str(int(re.sub(r"\D", "", path.stem)) + 1) for path in paths[1:])
    return LayerMovement(tuple(layers), (*steps, "all"), torch.stack(columns, dim=1))


def read_embedding(run: Run) -> FinalEmbedding | None:
    """The final embedding of all queries; None where the run has none. Vectors that are not finite are left out."""
    path = run.path / "index" / "final.safetensors"
    if not path.is_file():
        return None
    tensors = read_tensors(path)
    if not {"vectors", "labels"} <= tensors.keys():
        raise ValueError(
            f"{path} must hold vectors and labels, got {', '.join(tensors) or 'nothing'}; delete it or run again"
        )
    finite = tensors["vectors"].isfinite().all(dim=1)
    vectors, labels = tensors["vectors"][finite].float(), tensors["labels"][finite].long()
    classes = read_classes(run.path)
    names = classes.names or tuple(str(label) for label in range(int(labels.max()) + 1 if len(labels) else 0))
    return FinalEmbedding(vectors, labels, classes.task_of(labels), names)


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


def _parameters(path: Path) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    return {n: t for n, t in tensors.items() if t.is_floating_point() and n.split(".")[-1] not in _BUFFERS}


def _distance(layers: dict[str, list[str]], old: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
    values = []
    for names in layers.values():
        kept = [n for n in names if n in new and new[n].shape == old[n].shape]  # a replaced head has no distance
        moved = sum(float((new[n].double() - old[n].double()).square().sum()) for n in kept)
        length = sum(float(old[n].double().square().sum()) for n in kept)
        values.append((moved / length) ** 0.5 if length > 0 else float("nan"))
    return torch.tensor(values, dtype=torch.float64)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `layer2` before `layer10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
