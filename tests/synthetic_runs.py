"""Writes run directories by hand, in the layout that training writes, with numbers that a test can choose."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from tripletmas.objectives.grid import Grid, Hit, Row, write_grid
from tripletmas.runs.directory import RunDirectory

# gallery -> metric -> its score as a part of what `matrix` has
RETRIEVAL = {"recall@1": 1.0, "recall@2": 1.02, "r_precision": 0.8, "map@r": 0.75, "mrr": 0.9}
METRIC_LEARNING = {"seen": RETRIEVAL, "task": {metric: 1.01 * part for metric, part in RETRIEVAL.items()}}
ACCURACIES = {"accuracy_fresh": 0.7, "accuracy_stale": 0.4, "accuracy_compensated": 0.6}
# gallery of stored vectors -> its score as a part of the fresh one
STORED = {"stale": 0.7, "compensated": 0.9}
RECOGNITION = {
    "seen": {"recall@1": 0.75, "mrr": 0.8, **ACCURACIES},
    "task": {"recall@1": 0.95, "mrr": 0.97, "accuracy": 1.0},
}


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
    layers: tuple[str, ...] = ("stem", "block1", "block2", "block10", "head"),
    epochs: int = 4,
    points: int = 30,
    decay: float = 0.05,
    objective: str = "metric",
    searches: list[dict] | None = None,
    baseline: float | None = None,
    galleries: bool = False,
) -> Path:
    """A run with two classes a task.

    Args:
        matrix: the primary score, rows of growing length; None draws one that falls by `decay` a task.
        done: how many tasks are finished, None for all.
        points: vectors in the final index for each class.
        objective: "recognition" for a run with heads.
        searches: the records of kind "search".
        galleries: also write what is known of stored vectors: the scores on stale and compensated galleries, drift,
            unseen classes, the cost of re-embedding, the shown embeddings, neighbours, and the compatibility matrix.
        baseline: recall@1 of the untrained model on every task; each task is then 0.1 above it before it is learned.
    """
    random = torch.Generator().manual_seed(seed)
    strategy = strategy or {"name": "mas", "strength": 0.3}
    done = num_tasks if done is None else done
    class_names = class_names or [f"class {i}" for i in range(2 * num_tasks)]
    names = [f"{class_names[2 * t]},{class_names[2 * t + 1]}" for t in range(num_tasks)]
    if matrix is None:
        noise = 0.03 * torch.rand(num_tasks, num_tasks, generator=random)
        age = torch.arange(num_tasks)[:, None] - torch.arange(num_tasks)[None]
        matrix = [
            [float(0.97 * (1 - decay) ** age[t, i] - noise[t, i]) for i in range(t + 1)] for t in range(num_tasks)
        ]
    path.mkdir(parents=True)
    factors = dict(RECOGNITION if objective == "recognition" else METRIC_LEARNING)
    if galleries:
        for stored, part in STORED.items():
            for gallery in ("seen", "task"):
                factors[f"{gallery}_{stored}"] = {m: part * of for m, of in factors[gallery].items() if m in RETRIEVAL}
    config = {
        "version": {"tripletmas": "0.1.0", "torch": "2.15.0", "python": "3.11.2"},
        "objective": objective,
        "data": data or {"name": "digits", "tasks": num_tasks},
        "model": {"name": "mlp", "dim": 32, "hidden": [256, 256]},
        "loss": {"name": "triplet", "mining": "batch_hard", "margin": 0.2},
        "strategy": strategy,
        "training": {"epochs": epochs, "lr": 0.001, "optimizer": "adamw"},
        "seed": seed,
        "device": "cpu",
    }
    if galleries:
        config["gallery"] = {"compensate": "linear"}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def cut(value: float, row: list[float]) -> list[float]:
        return [min(1.0, score * value) for score in row]

    records, state = list(searches or ()), _weights(layers, random)
    (path / "weights").mkdir()
    save_file(state, path / "weights" / "start.safetensors", metadata={"order": json.dumps(list(state))})
    importance = {name: torch.zeros_like(value) for name, value in state.items() if "running" not in name}
    penalised = strategy["name"] == "mas"
    for task in range(done):
        for epoch in range(epochs):
            loss = 0.5 * 0.6**epoch + 0.03 * float(torch.rand((), generator=random))
            penalty = 0.02 * task * (1 - 0.5**epoch) if penalised else 0.0
            record = {"kind": "epoch", "task": task, "epoch": epoch, "loss": loss, "penalty": penalty}
            records.append(record | {"rate": 0.001, "steps": 9, "seconds": 0.1})
        row = matrix[task]
        scores = {
            gallery: {metric: cut(factor, row) for metric, factor in metrics.items()}
            for gallery, metrics in factors.items()
        }
        heads = [f"heads.{i}.{kind}" for i in range(num_tasks) for kind in ("weight", "bias")]
        unprotected = {
            "buffers": ["stem.running_mean"],
            "frozen parameters": [],
            "replaced or new": [],
            "loss parameters": heads if objective == "recognition" else [],
            "layers": {layer: [9 * (layer == "block2"), 36] for layer in layers},
        }
        record = {"kind": "task", "task": task, "name": names[task], "seconds": 2.5, "scores": scores}
        if galleries:
            record["drift"] = [drift(task, i) for i in range(task)]
            record["unseen"] = {"recall@1": 0.5 + 0.02 * task, "mrr": 0.6}
            record["reembed"] = {"images": 200 * task, "seconds": 0.25 * task}
        records.append(
            record | {"queries": [108] * (task + 1), "without_relevant": [0] * (task + 1), "unprotected": unprotected}
        )
        state = {
            n: v + 0.1 / (i + 1) * torch.randn(v.shape, generator=random) for i, (n, v) in enumerate(state.items())
        }
        save_file(state, path / "weights" / f"task{task:02}.safetensors", metadata={"order": json.dumps(list(state))})
        if penalised:
            (path / "importance").mkdir(exist_ok=True)
            for i, name in enumerate(importance):
                importance[name] = importance[name] + 10.0**-i * torch.rand(importance[name].shape, generator=random)
            order = {"order": json.dumps(list(importance))}
            save_file(importance, path / "importance" / f"task{task:02}.safetensors", metadata=order)
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    padded = {
        gallery: {
            metric: [
                (cut(factor, matrix[t]) if t < done else []) + [None] * (num_tasks - (t + 1 if t < done else 0))
                for t in range(num_tasks)
            ]
            for metric, factor in metrics.items()
        }
        for gallery, metrics in factors.items()
    }
    content = {"task_names": names, "matrices": padded, "baseline": {}}
    if baseline is not None:
        for t in range(min(done, num_tasks - 1)):
            padded["task"]["recall@1"][t][t + 1] = baseline + 0.1
        content["baseline"] = {"task": {"recall@1": [baseline] * num_tasks}}
    (path / "scores.json").write_text(json.dumps(content), encoding="utf-8")
    if done == num_tasks:
        _write_index(path / "index", class_names, num_tasks, points, random)
    if galleries and done:
        write_shown(path / "gallery", done, random)
        if done > 1:
            write_neighbours(path, done)
        compatibility = [[matrix[t][k] if k <= t else None for k in range(done)] for t in range(done)]
        (path / "compatibility.json").write_text(json.dumps({"metric": "recall@1", "matrix": compatibility}))
    return path


def drift(after_task: int, of_task: int) -> list[float]:
    """The recorded drift of the two classes of a task: the second drifts twice as far as the first."""
    return [0.05 * (after_task - of_task), 0.1 * (after_task - of_task)]


def write_shown(path: Path, done: int, random: torch.Generator, *, each: int = 6, dim: int = 16) -> None:
    """The embeddings of `each` queries of each class after each task: they start near their class and drift."""
    path.mkdir(exist_ok=True)
    labels = torch.arange(2 * done).repeat_interleave(each)
    centres = 2 * torch.randn(2 * done, dim, generator=random)
    vectors = centres[labels] + 0.5 * torch.randn(len(labels), dim, generator=random)
    for task in range(done):
        seen = labels < 2 * (task + 1)
        vectors = vectors + 0.5 * torch.randn(2 * done, dim, generator=random)[labels]
        tensors = {"vectors": vectors[seen], "tasks": labels[seen] // 2, "labels": labels[seen]}
        save_file(tensors | {"queries": seen.nonzero().flatten()}, path / f"shown{task:02}.safetensors")


def write_neighbours(path: Path, done: int, *, size: int = 28, channels: int = 1, each: int = 6) -> None:
    """`each` queries a task; picture p shows class p // 5 as that many bars. Every third query forgot its class."""
    names = [f"class {label}" for label in range(2 * done)]
    pictures = {}
    for label, place in product(range(2 * done), range(5)):
        picture = torch.zeros(channels, size, size, dtype=torch.uint8)
        for bar in range(label % 6 + 1):
            start = size * (bar + 1) // 8
            picture[label % channels, start : start + max(1, size // 16), place : size - place] = 255 - 20 * place
        pictures[f"{label}/{place}"] = picture

    def hits(query: int, label: int, *, forgot: bool) -> tuple[Hit, ...]:
        found = [(label + (forgot and rank % 2 == 0)) % len(names) for rank in range(5)]
        return tuple(
            Hit(
                f"{found[rank]}/{rank}",
                0.98 - 0.03 * rank - 0.001 * (query % 9),
                names[found[rank]],
                found[rank] == label,
            )
            for rank in range(5)
        )

    rows = []
    for query in range(each * done):
        task, label = query // each, 2 * (query // each) + query % 2
        before = hits(query, label, forgot=False) if task < done - 1 else ()
        after = hits(query, label, forgot=query % 3 == 2 and task < done - 1)
        rows.append(Row(f"{label}/4", (before, after), names[label], task))
    moments = ("before the last task", "after the last task")
    write_grid(RunDirectory(path), Grid(moments, tuple(rows), pictures=pictures))


def _weights(layers: tuple[str, ...], random: torch.Generator) -> dict[str, torch.Tensor]:
    state = {}
    for layer in layers:
        state[f"{layer}.weight"] = torch.randn(6, 5, generator=random)
        state[f"{layer}.bias"] = torch.zeros(6)
    return state | {"stem.running_mean": torch.zeros(6)}


def _write_index(path: Path, class_names: list[str], num_tasks: int, points: int, random: torch.Generator) -> None:
    path.mkdir()
    labels = torch.arange(2 * num_tasks).repeat_interleave(points)
    centres = 2 * torch.randn(2 * num_tasks, 16, generator=random)
    vectors = centres[labels] + torch.randn(len(labels), 16, generator=random)
    save_file({"vectors": vectors, "labels": labels}, path / "final.safetensors")
    tasks = [[2 * task, 2 * task + 1] for task in range(num_tasks)]
    (path / "final.json").write_text(json.dumps({"class_names": class_names, "tasks": tasks}), encoding="utf-8")
