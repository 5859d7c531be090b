"""A run directory read back: everything that the tables, the plots and the pages show comes from here.

Only the configuration is required. What else is absent is listed in `Run.missing`, in words, and left out of the
report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics.sentences import short
from tripletmas.objectives.kind import Kind, Primary
from tripletmas.objectives.kinds import KINDS, kind_of
from tripletmas.objectives.scores import Scores, forward_transfer, last_row
from tripletmas.runs.directory import RunDirectory, flatten, is_run, seed_directories

Record = dict[str, Any]

_ADVICE = "delete the file, and the scores are taken from metrics.jsonl"
_NO_METHOD = ("seed", "device", "version", "out")  # what tells no method apart: where and how a run was made


@dataclass(frozen=True)
class Classes:
    """The classes of a stream.

    Attributes:
        names: of all classes, by label; empty where they are not known.
        tasks: the labels of each task, in the order of the task; empty where they are not known.
    """

    names: tuple[str, ...] = ()
    tasks: tuple[tuple[int, ...], ...] = ()

    def name(self, label: int) -> str:
        """The name of a class; one that has none is called by its label."""
        return self.names[label] if 0 <= label < len(self.names) else f"class {label}"

    def task_of(self, labels: Tensor) -> Tensor:
        """The task of each label, of several the last; 0 where it is not known."""
        table = torch.zeros(int(labels.max()) + 1 if len(labels) else 0, dtype=torch.int64)
        for task, members in enumerate(self.tasks):
            table[[label for label in members if label < len(table)]] = task
        return table[labels]

    def known_before(self) -> list[int]:
        """For each task how many of its classes earlier ones have, too."""
        known: set[int] = set()
        found = []
        for members in self.tasks:
            found.append(len(known.intersection(members)))
            known.update(members)
        return found


@dataclass(frozen=True)
class Run:
    """One run, read from its directory.

    Attributes:
        epochs: the records of kind "epoch", by task and epoch; where a resumed run repeated one, the later record.
        tasks: the records of kind "task", one for each finished task.
        searches: the records of kind "search", one for each task whose strength was searched.
        scores: nan where not yet measured.
        classes: those of the tasks that are finished.
        missing: what the directory lacks, one sentence each.
    """

    directory: RunDirectory
    name: str
    config: Record
    epochs: tuple[Record, ...]
    tasks: tuple[Record, ...]
    searches: tuple[Record, ...]
    scores: Scores
    classes: Classes
    missing: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.directory.path

    @property
    def strategy(self) -> str:
        """The name of the strategy; "?" where the configuration has none."""
        return self.called("strategy")

    def called(self, part: str) -> str:
        """What strategy, data, model or loss is called; "?" where the configuration does not name it."""
        return short(str(self.section(part).get("name", "?")))

    @property
    def kind(self) -> Kind:
        """The kind of task that the run learned; of one whose configuration does not say, told by its scores."""
        if "objective" in self.config:
            return kind_of(self.config)
        fitting = (k for k in KINDS.values() if k.primary.metric in self.scores.matrices.get(k.primary.gallery, {}))
        return [kind_of(self.config), *fitting][-1]

    @property
    def primary(self) -> Primary:
        """The score that the run is judged by."""
        return self.kind.primary

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of all tasks of the stream, as far as the directory knows them."""
        return self.scores.task_names

    def task_name(self, task: int) -> str:
        """The name of a task; one that has none is called by its number, from 1."""
        return self.task_names[task] if task < len(self.task_names) else f"task {task + 1}"

    def section(self, name: str) -> Record:
        """A part of the configuration, such as "strategy": empty where absent, a bare name as {"name": it}."""
        value = self.config.get(name)
        return value if isinstance(value, dict) else {} if value is None else {"name": value}

    def seconds(self, task: int | None = None) -> float:
        """The time that the epochs and evaluations took, all or those of a task; nan if it was not recorded."""
        of_task = (record for record in (*self.epochs, *self.tasks) if task in (None, record.get("task")))
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
    def num_done(self) -> int:
        """How many tasks were measured."""
        matrix = self.matrix()
        return 0 if matrix is None else len(matrix)

    @property
    def finished(self) -> bool:
        """Whether every task of the stream was measured."""
        return self.num_done == len(self.task_names) > 0


def read_run(path: Path | str) -> Run:
    """Read the run directory at `path`.

    Raises:
        ValueError: if it is no run directory, or a file in it cannot be read; the message names the file.
    """
    path = Path(path)
    if not is_run(path):
        if seeds := seed_directories(path):
            raise ValueError(f"{path} holds the runs of {len(seeds)} seeds; read one of them, such as {seeds[0]}")
        if any(is_run(each) for each in path.glob("*")):
            raise ValueError(f"{path} is a folder of runs, not one; name those that you mean, or all: {path}/*")
        what = "lacks config.yaml" if path.is_dir() else "does not exist"
        raise ValueError(f"no run directory: {path} {what}; give the directory that `tripletmas train --out` wrote")
    directory = RunDirectory(path)
    directory.check_record_sum()
    own, records, classes = path.resolve(), directory.records(), directory.classes() or {}
    tasks = _latest(records, "task", "task")
    run = Run(
        directory=directory,
        name=f"{own.parent.name}/{own.name}" if re.fullmatch(r"seed\d+", own.name) else own.name,
        config=directory.config(),
        epochs=_latest(records, "epoch", "task", "epoch"),
        tasks=tasks,
        searches=_latest(records, "search", "task"),
        scores=_scores(directory, records, tasks),
        classes=Classes(tuple(map(str, classes.get("class_names", ()))), tuple(map(tuple, classes.get("tasks", ())))),
    )
    return replace(run, missing=tuple(_missing(run)))


def read_group(path: Path | str, *, seeds: Sequence[int] | None = None) -> tuple[Run, ...]:
    """The runs of one configuration: of each seed if `path` holds seed0, seed1, ..., else the one run at `path`.

    Args:
        seeds: read the runs of these seeds only; None for all.

    Raises:
        ValueError: as `read_run`, if a seed is absent, and if the configurations differ in more than the seed.
    """
    path = Path(path)
    folders = [] if is_run(path) else seed_directories(path)
    if not folders:
        run = read_run(path)
        if seeds is not None and run.config.get("seed") not in seeds:
            raise ValueError(f"{path} is a single run with seed {run.config.get('seed')}, not one of {list(seeds)}")
        return (run,)
    by_seed = {int(folder.name.removeprefix("seed")): folder for folder in folders}
    chosen = dict.fromkeys(by_seed if seeds is None else seeds)
    if absent := chosen.keys() - by_seed.keys():
        raise ValueError(f"{path} has no run of seed {', '.join(map(str, sorted(absent)))}; it has {list(by_seed)}")
    first, *others = (read_run(by_seed[seed]) for seed in chosen)
    for run in others:
        if keys := differing_keys(comparable(first.config), comparable(run.config)):
            raise ValueError(
                f"{path} is no group of seeds: {first.path.name} and {run.path.name} differ in {', '.join(keys)}; "
                "give runs of different configurations separately"
            )
    return (first, *others)


def comparable(config: Record) -> Record:
    """The flat configuration without what tells no method apart: seed, device, versions, where the run lies."""
    return {key: value for key, value in flatten(config).items() if key.split(".")[0] not in _NO_METHOD}


def differing_keys(one: Record, other: Record) -> list[str]:
    """The keys whose values differ between two flat configurations; a key that only one has differs."""
    absent = object()
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key, absent) != other.get(key, absent)]


def _latest(records: Sequence[Record], kind: str, *keys: str) -> tuple[Record, ...]:
    """The records of a kind in the order of their keys, of those with equal keys the later one."""
    own = (record for record in records if record.get("kind") == kind)
    latest = {tuple(record.get(key, 0) for key in keys): record for record in own}
    return tuple(latest[key] for key in sorted(latest))


def _scores(directory: RunDirectory, records: Sequence[Record], tasks: Sequence[Record]) -> Scores:
    """The score matrices; of a run that is not done, or that lacks the file, from its records."""
    names = tuple(str(task.get("name", f"task {number}")) for number, task in enumerate(tasks))
    if (content := directory.scores()) is not None:
        if content["matrices"]:
            try:
                return Scores.from_json(content)
            except ValueError as error:
                raise ValueError(f"{directory.path}/scores.json holds no score matrices ({error}); {_ADVICE}") from None
        names = tuple(content["task_names"])
    scores = Scores(names)
    for record in records:
        if record.get("kind") in ("task", "ahead"):
            scores.take(record)
    return scores


def _missing(run: Run) -> list[str]:
    """What the directory lacks, one sentence each."""
    done, size, directory = run.num_done, len(run.task_names), run.directory
    lacks = {
        f"Tasks finished: {done} of {size}. The numbers are those so far.": done < size,
        "No task is finished yet: there are no scores.": not size,
        "metrics.jsonl is absent: no loss curves and no duration.": not (run.epochs or run.tasks or run.searches),
        "scores.json is absent: the scores are those in metrics.jsonl; how many tasks follow is not known.": (
            not directory.has("scores.json")
        ),
        "weights/ is absent: how far the weights moved cannot be shown.": not directory.weights.numbers(),
        "importance/ is not that of the checkpoint, as adding to it was interrupted: tripletmas resume mends it.": any(
            directory.is_behind(directory.importance().file(number)) for number in directory.importance().numbers()[-1:]
        ),
        "index/final.safetensors is absent: there is no picture of the embedding.": directory.embedding() is None,
    }
    return [sentence for sentence, absent in lacks.items() if absent]
