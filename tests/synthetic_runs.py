"""Writes run directories by hand, with numbers that a test can choose; without checksums, so that it can edit them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from commands import earlier_version

from tripletmas.objectives.grid import FOLLOWED, Grid, Hit, Row, write_grid
from tripletmas.objectives.scores import Scores
from tripletmas.runs.directory import RunDirectory

# gallery -> metric -> its score as a part of what `matrix` has
RETRIEVAL = {"recall@1": 1.0, "recall@2": 1.02, "r_precision": 0.8, "map@r": 0.75, "mrr": 0.9}
METRIC_LEARNING = {"seen": RETRIEVAL, "task": {metric: 1.01 * part for metric, part in RETRIEVAL.items()}}
ACCURACIES = {"accuracy_fresh": 0.7, "accuracy_stale": 0.4, "accuracy_compensated": 0.6, "accuracy_ridge": 0.65}
RECOGNITION = {
    "seen": {"recall@1": 0.75, "mrr": 0.8, **ACCURACIES},
    "task": {"recall@1": 0.95, "mrr": 0.97, "accuracy": 1.0},
}
# gallery of stored vectors -> its score as a part of the fresh one
STORED = {"stale": 0.7, "compensated": 0.9}


def write_run(
    path: Path,
    *,
    strategy: dict | None = None,
    seed: int = 0,
    num_tasks: int = 3,
    done: int | None = None,
    matrix: list[list[float]] | None = None,
    class_names: list[str] | None = None,
    data: dict | None = None,
    model: dict | None = None,
    layers: tuple[str, ...] = ("stem", "block1", "block2", "block10", "head"),
    epochs: int = 4,
    points: int = 4,
    decay: float = 0.05,
    objective: str = "metric",
    search: dict | None = None,
    searches: list[dict] | None = None,
    baseline: float | None = None,
    ahead: float | None = None,
    galleries: bool = False,
    compensate: str | None = "linear",
    samples: str = "",
    alone: bool = False,
) -> Path:
    """A run with two classes a task.

    Args:
        matrix: the primary score, rows of growing length; None draws one that falls by `decay` a task.
        done: how many tasks are finished, None for all.
        points: vectors in the final index for each class.
        objective: "recognition" for a run with heads.
        search: how a strength is searched; `searches` are the records of that.
        galleries: also write what is known of stored vectors: the scores on stale and compensated galleries, drift,
            unseen classes, the cost of re-embedding, the shown embeddings, neighbours, and the compatibility matrix.
        compensate: the map that moves stored vectors; None for none.
        baseline: recall@1 of the untrained model on every task; each task is then 0.1 above it before it is learned.
        ahead: recall@1 of every task but the first, on its own gallery, before it is learned, in place of that.
        samples: which samples the tasks have, told by their fingerprints; "" for runs that recorded none.
        alone: the configuration says nothing, as that of a run which a program of its own began.
    """
    random = torch.Generator().manual_seed(seed)
    strategy = strategy or {"name": "mas", "strength": 0.3}
    done = num_tasks if done is None else done
    class_names = class_names or [f"class {i}" for i in range(2 * num_tasks)]
    names = [f"{class_names[2 * t]},{class_names[2 * t + 1]}" for t in range(num_tasks)]
    if matrix is None:
        noise = 0.03 * torch.rand(num_tasks, num_tasks, generator=random)
        matrix = [[float(0.97 * (1 - decay) ** (t - i) - noise[t, i]) for i in range(t + 1)] for t in range(num_tasks)]
    factors = dict(RECOGNITION if objective == "recognition" else METRIC_LEARNING)
    if galleries:
        kinds = {kind: part for kind, part in STORED.items() if kind != "compensated" or compensate}
        for gallery, (stored, part) in product(("seen", "task"), kinds.items()):
            factors[f"{gallery}_{stored}"] = {m: part * of for m, of in factors[gallery].items() if m in RETRIEVAL}
    config = {
        "version": {"tripletmas": "0.1.0", "torch": "2.15.0", "python": "3.11.2"},
        "objective": objective,
        "data": data or {"name": "digits", "tasks": num_tasks},
        "model": model or {"name": "mlp", "dim": 32, "hidden": [256, 256]},
        "loss": {"name": "triplet", "mining": "batch_hard", "margin": 0.2},
        "strategy": strategy,
        "training": {"epochs": epochs, "lr": 0.001, "optimizer": "adamw"},
        "gallery": {"compensate": compensate},
        **({"search": search} if search else {}),
        "seed": seed,
        "device": "cpu",
    }
    config = {} if alone else config
    run, scores = RunDirectory(earlier_version(RunDirectory.create(path, config).path)), Scores(tuple(names))
    for record in searches or ():
        run.append(record)
    state = _weights(layers, random)
    run.keep_start_weights(state)
    importance = {name: torch.zeros_like(value) for name, value in state.items() if "running" not in name}
    penalised = strategy["name"] == "mas"
    for task in range(done):
        for epoch in range(epochs):
            loss = 0.5 * 0.6**epoch + 0.03 * float(torch.rand((), generator=random))
            penalty = 0.02 * task * (1 - 0.5**epoch) if penalised else 0.0
            numbers = {"loss": loss, "penalty": penalty, "rate": 0.001, "steps": 9, "seconds": 0.1}
            run.append({"kind": "epoch", "task": task, "epoch": epoch, **numbers})
        measured = {
            gallery: {metric: [min(1.0, part * score) for score in matrix[task]] for metric, part in metrics.items()}
            for gallery, metrics in factors.items()
        }
        for gallery, metrics in measured.items():
            for metric, row in metrics.items():
                for on_task, score in enumerate(row):
                    scores.record(gallery, metric, task, on_task, score)
        record = {"kind": "task", "task": task, "name": names[task], "seconds": 2.5, "scores": measured}
        record |= {"data": f"{samples}{task}"} if samples else {}
        record["unprotected"] = _unprotected(layers, num_tasks if objective == "recognition" else 0)
        if galleries:
            record["drift"] = [drift(task, i) for i in range(task)]
            record["unseen"] = {"recall@1": 0.5 + 0.02 * task, "mrr": 0.6}
            record["reembed"] = {"images": 200 * task, "seconds": 0.25 * task}
            if task:
                cosines = {"none": 0.5, "procrustes": 0.75 + 0.1 * task, "linear": None}
                record["compensated_by"] = {"map": "procrustes", "pairs": 1200, "held_out_cosine": cosines}
        run.append(record)
        for i, name in enumerate(state):
            state[name] = state[name] + 0.1 / (i + 1) * torch.randn(state[name].shape, generator=random)
        run.weights.write(task, state)
        if penalised:
            for i, name in enumerate(importance):
                importance[name] = importance[name] + 10.0**-i * torch.rand(importance[name].shape, generator=random)
            run.importance().write(task, importance)
    if baseline is not None:
        ahead = baseline + 0.1
        for task in range(num_tasks):
            scores.record_baseline("task", "recall@1", task, baseline)
    if ahead is not None:
        for task in range(1, min(done + 1, num_tasks)):
            scores.record("task", "recall@1", task - 1, task, ahead)
    run.keep_scores(scores.to_json())
    if done == num_tasks:
        vectors, labels = _clusters(2 * num_tasks, points, 1.0, random)
        tasks = [[2 * task, 2 * task + 1] for task in range(num_tasks)]
        run.keep_embedding({"vectors": vectors, "labels": labels}, class_names, tasks)
    if galleries and done:
        _write_followed(run, done, random)
        if done > 1:
            write_neighbours(path, done)
        run.keep_compatibility("recall@1", [[*matrix[t], *[float("nan")] * (done - 1 - t)] for t in range(done)])
    return path


def drift(after_task: int, of_task: int) -> list[float]:
    """The recorded drift of the two classes of a task: the second drifts twice as far as the first."""
    return [0.05 * (after_task - of_task), 0.1 * (after_task - of_task)]


def write_neighbours(path: Path, done: int, *, size: int = 28, channels: int = 1, each: int = 6) -> None:
    """`each` queries a task; a class is shown as that many bars. Every third query forgot its class."""
    names = [f"class {label}" for label in range(2 * done)]
    pictures: dict[str, Any] = {}
    for label, place in product(range(2 * done), range(5)):
        picture = torch.zeros(channels, size, size, dtype=torch.uint8)
        for bar in range(label % 6 + 1):
            start = size * (bar + 1) // 8
            picture[label % channels, start : start + max(1, size // 16), place : size - place] = 255 - 20 * place
        pictures[f"{label}/{place}"] = picture

    def hits(query: int, label: int, *, forgot: bool) -> tuple[Hit, ...]:
        found = [(label + (forgot and rank % 2 == 0)) % len(names) for rank in range(5)]
        scores = [0.98 - 0.03 * rank - 0.001 * (query % 9) for rank in range(5)]
        return tuple(Hit(f"{found[i]}/{i}", scores[i], names[found[i]], found[i] == label) for i in range(5))

    rows = []
    for query in range(each * done):
        task, label = query // each, 2 * (query // each) + query % 2
        before = hits(query, label, forgot=False) if task < done - 1 else ()
        after = hits(query, label, forgot=query % 3 == 2 and task < done - 1)
        rows.append(Row(f"{label}/4", (before, after), names[label], task))
    moments = ("before the last task", "after the last task")
    write_grid(RunDirectory(path), Grid(moments, tuple(rows), pictures=pictures))


def _write_followed(run: RunDirectory, done: int, random: torch.Generator) -> None:
    """The embeddings of six queries of each class after each task: they start near their class and drift."""
    vectors, labels = _clusters(2 * done, 6, 0.5, random)
    for task in range(done):
        seen = labels < 2 * (task + 1)
        vectors = vectors + 0.5 * torch.randn(2 * done, vectors.shape[1], generator=random)[labels]
        tensors = {"vectors": vectors[seen], "tasks": labels[seen] // 2, "labels": labels[seen]}
        run.of_tasks(FOLLOWED).write(task, tensors)


def _clusters(classes: int, each: int, spread: float, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of 16 dimensions and their labels: so many around the centre of each class."""
    labels = torch.arange(classes).repeat_interleave(each)
    centres = 2 * torch.randn(classes, 16, generator=random)
    return centres[labels] + spread * torch.randn(len(labels), 16, generator=random), labels


def _weights(layers: tuple[str, ...], random: torch.Generator) -> dict[str, torch.Tensor]:
    state = {}
    for layer in layers:
        state |= {f"{layer}.weight": torch.randn(6, 5, generator=random), f"{layer}.bias": torch.zeros(6)}
    return state | {"stem.running_mean": torch.zeros(6)}


def _unprotected(layers: tuple[str, ...], heads: int) -> dict[str, Any]:
    """The buffer is not held, the heads are not; a quarter of the weights of block2 have importance 0."""
    return {
        "buffers": ["stem.running_mean"],
        "frozen parameters": [],
        "replaced or new": [],
        "loss parameters": [f"heads.{i}.{kind}" for i in range(heads) for kind in ("weight", "bias")],
        "layers": {layer: [9 * (layer == "block2"), 36] for layer in layers},
    }
