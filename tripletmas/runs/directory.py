"""The run directory: what is in it, and the guard of its configuration.

config.yaml          the resolved configuration, with versions
metrics.jsonl        one record a line, appended: an epoch, a task
scores.json          the score matrices
checkpoint/          the latest state
weights/             the model at the start and after each task
importance/          what is protected after each task; task00-1 of a second protection, before00 what was before images
objective/           what the objective has learned after each task: heads, class means, proxies
gallery/             the stored gallery of each task, the drift it brought, and queries that a report follows
shown/               what a report shows of searches
index/               the final embeddings of all queries, and their classes
compatibility.json   the scores of every model's queries in every earlier one's gallery, if they were asked for
forecast.json        what updates were expected to do to stored vectors, if it was asked for
report/              derived from the rest; may be deleted
log/                 what a logger was told, and how much of the records; no part of the run
lock                 held by the process that writes, of several the main one

Every file says which one of which run it is, and bears a checksum (`basics.files`); the record of a task lists the
files that were written for it, so that older ones are noticed. Others know only names of what is shown, and of logs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from tripletmas.basics.distributed import is_main, on_main
from tripletmas.basics.files import damaged, edition_of, read_json, read_tensors, save_json, save_tensors
from tripletmas.basics.locks import locked
from tripletmas.basics.shape import check_shape
from tripletmas.basics.weights import Params, load_state
from tripletmas.runs import shapes
from tripletmas.runs.checkpoint import REMEDY, Checkpoint, load_checkpoint, save_checkpoint
from tripletmas.runs.identity import differing_keys, read_config, write_config
from tripletmas.runs.records import Record, Records
from tripletmas.runs.task_files import TaskFiles

_LEFT = {"config.yaml.part", "config.yaml.part.mode", "lock", "lock.holder"}  # by a start that was killed
_START = "weights/start.safetensors"


class RunDirectory:
    """A folder that holds one run.

    Attributes:
        weights: the state of the model that is deployed after each task; with it the task is done.
        objectives: the state of the objective after each task, as the heads of recognition.
        galleries: each task's stored gallery (see `Galleries.last`).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.weights = self.of_tasks("weights/task")
        self.objectives = self.of_tasks("objective/task")
        self.galleries = self.of_tasks("gallery/task")
        self._written: set[str] = set()  # since the last record that lists files

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Any], *, completed: Callable[[Mapping[str, Any]], Any] = dict
    ) -> RunDirectory:
        """A run directory with this configuration: a new one, or the present one if its configuration is equal.

        Args:
            completed: fills in the defaults of options that the present run did not know, being of an older version.

        Raises:
            ValueError: if the folder holds a run of another configuration (the differing keys are listed), or files
                that are no run; if it lies inside a run; if another process writes to it.
        """
        run = cls(path)
        if outer := run_around(path):
            raise ValueError(f"{run.path} lies inside the run {outer}: choose another --out")
        taken = not is_run(run.path) and run.path.exists()
        if taken and (not run.path.is_dir() or any(p.name not in _LEFT for p in run.path.iterdir())):
            raise ValueError(f"{run.path} exists and holds something that is no run: choose another --out")
        with run.locked():
            if not is_run(run.path):
                write_config(run.path / "config.yaml", config)
            elif differing := differing_keys(flatten(completed(run.config())), flatten(config)):
                raise ValueError(
                    f"{run.path} holds a run with another configuration ({'; '.join(differing)}): choose another "
                    "--out, or delete that folder"
                )
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The run that is in a folder; ValueError if there is none."""
        run = cls(path)
        if not is_run(run.path):
            several = [each.name for each in seed_directories(run.path)]
            hint = f"; it holds the runs {', '.join(several)}: name one of them" if several else ""
            raise ValueError(f"{run.path} is no run directory (it has no config.yaml: train --out writes it){hint}")
        return run

    def config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            ValueError: if its file is damaged, or was changed since it was written.
        """
        return read_config(self.path / "config.yaml")[0]

    @cached_property
    def identity(self) -> str:
        """What tells the files of this run from those of others; "" in a run of an earlier version."""
        return read_config(self.path / "config.yaml")[1] if is_run(self.path) else ""

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes from writing to the run; errors as `basics.locks`."""
        return locked(self.path / "lock", self.path) if is_main() else nullcontext()

    # --- records

    @cached_property
    def _records(self) -> Records:
        return Records(self.path / "metrics.jsonl", self.identity)

    def append(self, record: Mapping[str, Any], *, files: Sequence[str] = ()) -> None:
        """Add a record; that of a task lists the files that were written for it.

        Args:
            files: that will be written next: until then, those in their places count as older.
        """
        listed = sorted({*files, *(self._written if record.get("kind") == "task" else ())})
        self._records.append({**record, **({"files": listed} if listed else {})})
        self._written.difference_update(listed)

    def records(self, kind: str | None = None, *, size: int | None = None) -> list[Record]:
        """All records, those of a kind or in the first bytes, without a last one that was cut short by a kill.

        Raises:
            ValueError: if another line is damaged.
        """
        return [record for record in self._records.read(size) if kind in (None, record.get("kind"))]

    def is_behind(self, name: str) -> bool:
        """Whether a safetensors file is older than the record that announces it: its writer was killed in between."""
        expected = self._records.expected(name)
        return expected is not None and self.has(name) and (edition_of(self.path / name) or 0) < expected.edition

    # --- what is kept of each task

    @property
    def num_done(self) -> int:
        """How many tasks are done."""
        return len(self.weights.numbers())

    def task_done(self, after: int | None = None) -> int:
        """The number of the task after which a model is asked for; None for the last that is done.

        Raises:
            ValueError: if it is not done yet.
        """
        done = self.num_done
        if not done:
            raise ValueError(f"{self.path}: no task is done yet; go on with: tripletmas resume {self.path}")
        if after is not None and not 0 <= after < done:
            raise ValueError(f"{self.path}: tasks 0 to {done - 1} are done, so there is no model after task {after}")
        return done - 1 if after is None else after

    def load_weights(self, model: nn.Module, number: int) -> None:
        """Give a model the weights that were deployed after a task.

        Raises:
            ValueError: if they are those of another model, or cannot be read.
        """
        load_state(model, self.weights.read(number), str(self.weights.path(number)))

    def importance(self, position: int = 0) -> TaskFiles:
        """The importance that a protection of the strategy, by its position, holds after each task."""
        return TaskFiles(self, "importance/task", f"-{position}" if position else "")

    def of_tasks(self, name: str) -> TaskFiles:
        """Files of tensors under a name of the caller's, such as gallery/shown, one for each task."""
        return TaskFiles(self, name)

    def start_weights(self) -> Params:
        """The state of the model before the first task."""
        return self.read_tensors(_START)

    def has_started(self) -> bool:
        """Whether the state of the model before the first task is here."""
        return (self.path / _START).is_file()

    @on_main
    def keep_start_weights(self, state: Params) -> None:
        """Keep the state of the model before the first task."""
        save_tensors(self.path / _START, state, place=self._records.place(_START))

    # --- what is kept of the whole run; None where it is not there

    def scores(self) -> Any:
        """The score matrices, as `Scores.to_json` gave them."""
        return self.read_json("scores.json", shapes.SCORES)

    @on_main
    def keep_scores(self, scores: Mapping[str, Any]) -> None:
        """Keep the score matrices."""
        save_json(self.path / "scores.json", scores, self._records.place("scores.json"))

    def compatibility(self) -> Any:
        """The metric and the matrix of compatibility."""
        return self.read_json("compatibility.json", shapes.COMPATIBILITY)

    def keep_compatibility(self, metric: str, matrix: Sequence[Sequence[float]]) -> None:
        """Keep the matrix of compatibility."""
        self.write_json("compatibility.json", {"metric": metric, "matrix": matrix})

    def forecasts(self) -> list[dict[str, Any]]:
        """What is expected of each update that was asked for, by the task `after` which it is, ascending."""
        return self.read_json("forecast.json", shapes.FORECASTS) or []

    def keep_forecast(self, record: Mapping[str, Any]) -> None:
        """Keep what is expected of the update by the task `after`, in place of what was."""
        others = [each for each in self.forecasts() if each["after"] != record["after"]]
        self.write_json("forecast.json", sorted([*others, dict(record)], key=lambda each: each["after"]))

    def embedding(self) -> Params | None:
        """The present `vectors` (n, dim) of all queries, `labels` (n,) and, but in older runs, `tasks` (n,)."""
        name = "index/final.safetensors"
        return self.read_tensors(name) if self.has(name) else None

    def classes(self) -> Any:
        """`class_names` of the stream, by label, and `tasks`: the labels of each."""
        return self.read_json("index/final.json", shapes.CLASSES)

    def keep_embedding(self, embedding: Params, class_names: Sequence[str], tasks: Sequence[Sequence[int]]) -> None:
        """Keep the present `vectors`, `labels` and `tasks` of all queries, and what `classes` gives."""
        self.write_tensors("index/final.safetensors", embedding)
        self.write_json("index/final.json", {"class_names": class_names, "tasks": tasks})

    def has(self, name: str) -> bool:
        """Whether the run has a file of this name."""
        return (self.path / name).is_file()

    @on_main
    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, aside and renamed."""
        save_json(self.path / name, content, self._records.place(name))
        self._written.add(name)

    def read_json(self, name: str, shape: Any = None) -> Any:
        """A JSON file of the run; None if it has none of this name.

        Args:
            shape: how its content must be made, as of `check_shape`; None: in any way.

        Raises:
            ValueError: if it is damaged, another one, or of another shape.
        """
        if not self.has(name):
            return None
        content = read_json(self.path / name, REMEDY, self._records.expected(name))
        try:
            if shape is not None:
                check_shape(content, shape)
        except ValueError as error:
            raise damaged(self.path / name, error, REMEDY) from None
        return content

    @on_main
    def write_tensors(self, name: str, tensors: Params) -> None:
        """Write a safetensors file of the run, aside and renamed."""
        save_tensors(self.path / name, tensors, place=self._records.place(name))
        self._written.add(name)

    def read_tensors(self, name: str) -> Params:
        """A safetensors file of the run.

        Raises:
            ValueError: if it is missing, damaged or another one.
        """
        return read_tensors(self.path / name, REMEDY, place=self._records.expected(name))[0]

    @on_main
    def save_checkpoint(self, state: Checkpoint) -> None:
        """Replace the latest checkpoint; until the new one is whole, the old one stays.

        Raises:
            OSError: if it cannot be written, as when the disk is full; the old checkpoint is untouched.
        """
        size = self._records.size
        state = replace(state, record_bytes=size, record_sum=self._records.checksum(size))
        save_checkpoint(self.path / "checkpoint", state, self.identity)

    def load_checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint; None if there is none yet.

        Raises:
            ValueError: if a file of it is missing, damaged or another one.
        """
        return load_checkpoint(self.path / "checkpoint", self.identity)

    def check_records(self, state: Checkpoint | None) -> None:
        """Whether the records are those that there were at the latest checkpoint, or, for None, before the first.

        Raises:
            ValueError: if some are missing or others, or if they tell of more than a run has without a checkpoint.
        """
        self._records.check(state)

    def check_record_sum(self) -> None:
        """As `check_records`, of their sum alone: for who only reads a run. It may lack records or a checkpoint."""
        self._records.check_sum()

    def rewind(self, state: Checkpoint | None) -> None:
        """Cut off the records that were written after this checkpoint, all for None: that part will be run again.

        Raises:
            ValueError: if records are missing that were there when the checkpoint was written.
        """
        self._records.cut(state.record_bytes if state else 0)


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "config.yaml").is_file()


def run_around(path: str | Path) -> Path | None:
    """The run that has begun in one of the folders that a path lies in; None for none."""
    begun = ("metrics.jsonl", "scores.json", "weights", "checkpoint")
    parents = filter(is_run, Path(os.path.realpath(path)).parents)
    return next((each for each in parents if any((each / name).exists() for name in begun)), None)


def seed_directories(path: Path) -> list[Path]:
    """The runs seed0, seed1, ... in a folder, by number."""
    found = [each for each in path.glob("seed*") if re.fullmatch(r"seed\d+", each.name) and is_run(each)]
    return sorted(found, key=lambda each: int(each.name.removeprefix("seed")))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"data": {"name": "digits"}} -> {"data.name": "digits"}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
