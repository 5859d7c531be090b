"""A run directory read back: everything that the tables, the plots and the pages show comes from here.

Only `config.yaml` is required. What else is absent is listed in `Run.missing`, in words, and left out of the report.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from tripletmas.objectives.scores import Scores, forward_transfer, last_row
from tripletmas.report.configs import Record, comparable, differing_keys, section
from tripletmas.report.primary import Primary, primary_of


@dataclass(frozen=True)
class Run:
    """One run, read from its directory.

    Attributes:
        epochs: the records of kind "epoch", by task and epoch; where a resumed run repeated one, the later record.
        tasks: the records of kind "task", one for each finished task.
        searches: the records of kind "search", one for each task whose strength was searched.
        scores: nan where not yet measured.
        missing: what the directory lacks, one sentence each.
    """

    path: Path
    name: str
    config: Record
    epochs: tuple[Record, ...]
    tasks: tuple[Record, ...]
    searches: tuple[Record, ...]
    scores: Scores
    missing: tuple[str, ...]

    @property
    def strategy(self) -> str:
        """The name of the strategy; "?" where the configuration has none."""
        return str(section(self.config, "strategy").get("name", "?"))

    @property
    def primary(self) -> Primary:
        """The score that the run is judged by."""
        return primary_of(self.config)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of all tasks of the stream, as far as the directory knows them."""
        return tuple(self.scores.task_names)

    @property
    def seconds(self) -> float:
        """The time that all epochs and all evaluations took together; nan if none was recorded."""
        seconds = [float(record["seconds"]) for record in (*self.epochs, *self.tasks) if "seconds" in record]
        return sum(seconds) if seconds else math.nan

    def seconds_of(self, task: int) -> float:
        """The time that the epochs and the evaluation of one task took; nan if it was not recorded."""
        of_task = [record for record in (*self.epochs, *self.tasks) if record.get("task") == task]
        seconds = [float(record["seconds"]) for record in of_task if "seconds" in record]
        return sum(seconds) if seconds else math.nan

    def metrics(self, gallery: str) -> tuple[str, ...]:
        """The metrics measured on this gallery."""
        return tuple(self.scores.matrices.get(gallery, {}))

    def matrix(self, metric: str | None = None, gallery: str | None = None) -> Tensor | None:
        """The measured part (t, t) of a score matrix, t <= number of tasks; None where nothing was measured.

        Above the diagonal it is nan: what was measured there is for `forward_transfer` alone.

        Args:
            metric, gallery: None for those of the primary score.
        """
        metric, gallery = metric or self.primary.metric, gallery or self.primary.gallery
        if metric not in self.metrics(gallery):
            return None
        full = self.scores.matrix(metric, gallery)
        done = len(last_row(full))
        above = torch.ones(done, done).triu(1).bool()
        return full[:done, :done].masked_fill(above, torch.nan) if done else None

    @property
    def forward_transfer(self) -> float:
        """Of recall@1 (of facts mAP) on the task's own gallery, whatever the objective; nan where not measured."""
        metric = self.primary.searched
        baseline = self.scores.baseline.get("task", {}).get(metric)
        if baseline is None or metric not in self.metrics("task"):
            return math.nan
        full = self.scores.matrix(metric, "task")
        done = len(last_row(full))
        measured = full[:done, :done]  # without the next task of an unfinished run, which may not be measured yet
        if measured.diagonal(1).isnan().any():
            return math.nan  # the stream has grown since: what came later was measured on no task ahead
        return forward_transfer(measured, baseline[:done])

    @property
    def unseen(self) -> tuple[float, ...]:
        """After each task, the score of what is in no task (recall@1, of facts mAP); nan where not measured."""
        found = (task.get("unseen", {}).get(self.primary.searched) for task in self.tasks)
        return tuple(math.nan if value is None else float(value) for value in found)

    @property
    def finished(self) -> bool:
        """Whether every task of the stream was measured."""
        matrix = self.matrix()
        return matrix is not None and len(matrix) == len(self.task_names)


def read_run(path: Path | str) -> Run:
    """Read the run directory at `path`.

    Raises:
        ValueError: if it is no run directory, or a file in it cannot be read; the message names the file.
    """
    path = Path(path)
    seeds = seed_directories(path)
    if not (path / "config.yaml").is_file():
        if seeds:
            raise ValueError(f"{path} holds the runs of {len(seeds)} seeds; read one of them, such as {seeds[0]}")
        what = "lacks config.yaml" if path.is_dir() else "does not exist"
        raise ValueError(f"no run directory: {path} {what}; give the directory that `tripletmas train --out` wrote")
    config = _read_config(path / "config.yaml")
    records = _read_records(path / "metrics.jsonl")
    epochs = {(r.get("task", 0), r.get("epoch", 0)): r for r in records if r.get("kind") == "epoch"}
    tasks = {r.get("task", 0): r for r in records if r.get("kind") == "task"}
    tasks = tuple(tasks[key] for key in sorted(tasks))
    searches = {r.get("task", 0): r for r in records if r.get("kind") == "search"}
    missing = [what for file, what in _OPTIONAL if not any(path.glob(file))]
    scores = _read_scores(path / "scores.json", tasks)
    run = Run(
        path=path,
        name=_name(path),
        config=config,
        epochs=tuple(epochs[key] for key in sorted(epochs)),
        tasks=tasks,
        searches=tuple(searches[key] for key in sorted(searches)),
        scores=scores,
        missing=(),
    )
    matrix = run.matrix()
    done = 0 if matrix is None else len(matrix)
    if done < len(run.task_names):
        missing.insert(0, f"Tasks finished: {done} of {len(run.task_names)}. The numbers are those so far.")
    elif not done:
        missing.insert(0, "No task is finished yet: there are no scores.")
    return replace(run, missing=tuple(missing))


def read_group(path: Path | str, *, seeds: Sequence[int] | None = None) -> tuple[Run, ...]:
    """The runs of one configuration: of each seed if `path` holds seed0, seed1, ..., else the one run at `path`.

    Args:
        seeds: read the runs of these seeds only; None for all.

    Raises:
        ValueError: as `read_run`, if a seed is absent, and if the configurations differ in more than the seed.
    """
    path = Path(path)
    folders = [] if (path / "config.yaml").is_file() else seed_directories(path)
    if not folders:
        run = read_run(path)
        if seeds is not None and run.config.get("seed") not in seeds:
            raise ValueError(f"{path} is a single run with seed {run.config.get('seed')}, not one of {list(seeds)}")
        return (run,)
    by_seed = {int(folder.name[4:]): folder for folder in folders}
    chosen = list(by_seed) if seeds is None else list(dict.fromkeys(seeds))
    if absent := [seed for seed in chosen if seed not in by_seed]:
        raise ValueError(f"{path} has no run of seed {', '.join(map(str, absent))}; it has {list(by_seed)}")
    runs = tuple(read_run(by_seed[seed]) for seed in chosen)
    first = comparable(runs[0].config)
    for run in runs[1:]:
        keys = differing_keys(first, comparable(run.config))
        if keys:
            raise ValueError(
                f"{path} is no group of seeds: {runs[0].path.name} and {run.path.name} differ in {', '.join(keys)}; "
                "give runs of different configurations separately"
            )
    return runs


def seed_directories(path: Path) -> list[Path]:
    """The directories seed0, seed1, ... in `path` that hold a run, by number."""
    found = [p for p in path.glob("seed*") if re.fullmatch(r"seed\d+", p.name) and (p / "config.yaml").is_file()]
    return sorted(found, key=lambda p: int(p.name[4:]))


_OPTIONAL = (
    ("metrics.jsonl", "metrics.jsonl is absent: no loss curves and no duration."),
    (
        "scores.json",
        "scores.json is absent: the scores are those in metrics.jsonl; how many tasks follow is not known.",
    ),
    ("weights/*.safetensors", "weights/ is absent: how far the weights moved cannot be shown."),
    ("index/final.safetensors", "index/final.safetensors is absent: there is no picture of the embedding."),
)


def _name(path: Path) -> str:
    resolved = path.resolve()
    return f"{resolved.parent.name}/{resolved.name}" if re.fullmatch(r"seed\d+", resolved.name) else resolved.name


def _read_config(path: Path) -> Record:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping (data, model, loss, strategy, ...), got {config!r}")
    return config


def _read_records(path: Path) -> list[Record]:
    """The records; a last line that was cut short when the run was killed is dropped, any other is an error."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is no valid JSON ({error}); remove the line") from error
    return records


def _read_scores(path: Path, tasks: tuple[Record, ...]) -> Scores:
    """scores.json, or, where it is absent, the same from the records of the finished tasks."""
    if path.is_file():
        try:
            return Scores.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            advice = "delete the file, and the scores are taken from metrics.jsonl"
            raise ValueError(f"{path} holds no score matrices ({error!r}); {advice}") from error
    size = len(tasks)
    matrices: dict[str, dict[str, list[list[float | None]]]] = {}
    for row, task in enumerate(tasks):
        for gallery, metrics in task.get("scores", {}).items():
            for metric, values in metrics.items():
                empty: list[list[float | None]] = [[None] * size for _ in range(size)]
                matrix = matrices.setdefault(gallery, {}).setdefault(metric, empty)
                matrix[row][: len(values)] = values[:size]
    names = [str(task.get("name", f"task {i}")) for i, task in enumerate(tasks)]
    return Scores.from_json({"task_names": names, "matrices": matrices})
