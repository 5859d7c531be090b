"""The run directory: what is in it, and the guard of its configuration.

config.yaml          the resolved configuration, with versions
metrics.jsonl        one record a line, appended: an epoch, a task
scores.json          the score matrices
checkpoint/          the latest state
weights/             the model at the start and after each task
importance/          the importance that is protected after each task; task00-1 is that of a second protection
objective/           what the objective has learned after each task: heads, class means, proxies
gallery/             the stored gallery of each task, the drift it brought, and queries that a report follows
shown/               what a report shows of searches
index/               the final embeddings of all queries, and their classes
compatibility.json   the scores of every model's queries in every earlier one's gallery, if they were asked for
forecast.json        what updates were expected to do to stored vectors, if it was asked for
report/              derived from the rest; may be deleted

No other module knows these names, but for those that objectives and the report give to what is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from tripletmas.basics.files import damaged, read_json, read_tensors, save_json, save_tensors, save_text, without_nan
from tripletmas.basics.weights import Params, load_state
from tripletmas.basics.yaml_files import read_mapping
from tripletmas.runs.checkpoint import REMEDY, Checkpoint, load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class TaskFiles:
    """Tensors that a run keeps of each of its tasks, which count from 0: <name>00.safetensors, <name>01, ..."""

    name: Path
    suffix: str = ""

    def path(self, number: int) -> Path:
        """The file of a task."""
        return self.name.with_name(f"{self.name.name}{number:02d}{self.suffix}.safetensors")

    def numbers(self) -> list[int]:
        """The tasks that have a file, ascending."""
        pattern = re.compile(rf"{re.escape(self.name.name)}(\d+){self.suffix}\.safetensors")
        found = (pattern.fullmatch(path.name) for path in self.name.parent.glob("*.safetensors"))
        return sorted(int(match[1]) for match in found if match)

    def read(self, number: int) -> Params:
        """The tensors of a task.

        Raises:
            ValueError: if their file is missing or damaged.
        """
        return read_tensors(self.path(number), REMEDY)[0]

    def find(self, number: int) -> Params | None:
        """The tensors of a task; None where it has none."""
        return self.read(number) if self.path(number).exists() else None

    def write(self, number: int, tensors: Params) -> None:
        """Keep the tensors of a task, aside and renamed."""
        save_tensors(self.path(number), tensors)


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

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Any], *, completed: Callable[[Mapping[str, Any]], Any] = dict
    ) -> RunDirectory:
        """A run directory with this configuration: a new one, or the present one if its configuration is equal.

        Args:
            completed: fills in the defaults of options that the present run did not know, being of an older version.

        Raises:
            ValueError: if the folder holds a run of another configuration (the differing keys are listed), or files
                that are no run.
        """
        run = cls(path)
        if is_run(run.path):
            differing = _differing(completed(run.config()), dict(config))
            if differing:
                raise ValueError(
                    f"{run.path} holds a run with another configuration ({'; '.join(differing)}): choose another "
                    "--out, or delete that folder"
                )
            return run
        if run.path.exists() and (
            not run.path.is_dir() or any(p.name != "config.yaml.part" for p in run.path.iterdir())
        ):
            raise ValueError(f"{run.path} exists and holds something that is no run: choose another --out")
        run.path.mkdir(parents=True, exist_ok=True)
        save_text(run.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The run that is in a folder.

        Raises:
            ValueError: if there is none.
        """
        run = cls(path)
        if not is_run(run.path):
            several = [each.name for each in seed_directories(run.path)]
            hint = f"; it holds the runs {', '.join(several)}: name one of them" if several else ""
            raise ValueError(f"{run.path} is no run directory (it has no config.yaml){hint}")
        return run

    def config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            ValueError: if its file is damaged.
        """
        path = self.path / "config.yaml"
        try:
            return read_mapping(path)
        except OSError as error:
            raise damaged(path, error, REMEDY) from None
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None

    # --- records

    @property
    def _records(self) -> Path:
        return self.path / "metrics.jsonl"

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        with open(self._records, "a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(record), allow_nan=False) + "\n")

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All records, or those of a kind, without a last one that was cut short as its process was killed.

        Raises:
            ValueError: if another line is damaged.
        """
        text = self._records.read_text(encoding="utf-8") if self._records.exists() else ""
        found: list[dict[str, Any]] = []
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            try:
                found += [dict(json.loads(line))] if line.strip() else []
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self._records}, line {number} is no record ({error}): remove the line") from None
        return [record for record in found if kind in (None, record.get("kind"))]

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
        return TaskFiles(self.path / "importance/task", f"-{position}" if position else "")

    def of_tasks(self, name: str) -> TaskFiles:
        """Files of tensors under a name of the caller's, such as gallery/shown, one for each task."""
        return TaskFiles(self.path / name)

    def start_weights(self) -> Params:
        """The state of the model before the first task."""
        return self.read_tensors("weights/start.safetensors")

    def keep_start_weights(self, state: Params) -> None:
        """Keep the state of the model before the first task."""
        self.write_tensors("weights/start.safetensors", state)

    # --- what is kept of the whole run; None where it is not there

    def scores(self) -> Any:
        """The score matrices, as `Scores.to_json` gave them."""
        return self.read_json("scores.json")

    def keep_scores(self, scores: Mapping[str, Any]) -> None:
        """Keep the score matrices."""
        self.write_json("scores.json", scores)

    def compatibility(self) -> Any:
        """The metric and the matrix of compatibility."""
        return self.read_json("compatibility.json")

    def keep_compatibility(self, metric: str, matrix: Sequence[Sequence[float]]) -> None:
        """Keep the matrix of compatibility."""
        self.write_json("compatibility.json", {"metric": metric, "matrix": matrix})

    def forecasts(self) -> list[dict[str, Any]]:
        """What is expected of each update that was asked for, by the task `after` which it is, ascending."""
        return self.read_json("forecast.json") or []

    def keep_forecast(self, record: Mapping[str, Any]) -> None:
        """Keep what is expected of the update by the task `after`, in place of what was."""
        others = [each for each in self.forecasts() if each["after"] != record["after"]]
        self.write_json("forecast.json", sorted([*others, dict(record)], key=lambda each: each["after"]))

    def embedding(self) -> Params | None:
        """The present `vectors` (n, dim) and `labels` (n,) of all queries."""
        name = "index/final.safetensors"
        return self.read_tensors(name) if self.has(name) else None

    def classes(self) -> Any:
        """`class_names` of the stream, by label, and `tasks`: the labels of each."""
        return self.read_json("index/final.json")

    def keep_embedding(self, embedding: Params, class_names: Sequence[str], tasks: Sequence[Sequence[int]]) -> None:
        """Keep the present `vectors` and `labels` of all queries, and what `classes` gives."""
        self.write_tensors("index/final.safetensors", embedding)
        self.write_json("index/final.json", {"class_names": class_names, "tasks": tasks})

    # --- files by their names

    def has(self, name: str) -> bool:
        """Whether the run has a file of this name."""
        return (self.path / name).is_file()

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, aside and renamed."""
        save_json(self.path / name, content)

    def read_json(self, name: str) -> Any:
        """A JSON file of the run; None if it has none of this name.

        Raises:
            ValueError: if it is damaged.
        """
        return read_json(self.path / name, REMEDY) if self.has(name) else None

    def write_tensors(self, name: str, tensors: Params) -> None:
        """Write a safetensors file of the run, aside and renamed."""
        save_tensors(self.path / name, tensors)

    def read_tensors(self, name: str) -> Params:
        """A safetensors file of the run.

        Raises:
            ValueError: if it is missing or damaged.
        """
        return read_tensors(self.path / name, REMEDY)[0]

    # --- checkpoints

    def save_checkpoint(self, state: Checkpoint) -> None:
        """Replace the latest checkpoint; until the new one is whole, the old one stays.

        Raises:
            OSError: if it cannot be written, as when the disk is full; the old checkpoint is untouched.
        """
        save_checkpoint(self.path / "checkpoint", replace(state, record_bytes=self._record_bytes()))

    def load_checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint; None if there is none yet.

        Raises:
            ValueError: if a file of it is missing or damaged.
        """
        return load_checkpoint(self.path / "checkpoint")

    def rewind(self, state: Checkpoint | None) -> None:
        """Cut off the records that were written after this checkpoint, all for None: that part will be run again.

        Raises:
            ValueError: if records are missing that were there when the checkpoint was written.
        """
        kept, size = state.record_bytes if state else 0, self._record_bytes()
        if size < kept:
            raise damaged(self._records, f"{size} bytes of {kept}", REMEDY)
        if size > kept:
            with open(self._records, "rb+") as file:
                file.truncate(kept)

    def _record_bytes(self) -> int:
        return self._records.stat().st_size if self._records.exists() else 0


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "config.yaml").is_file()


def seed_directories(path: Path) -> list[Path]:
    """The runs seed0, seed1, ... in a folder, by number."""
    found = [each for each in path.glob("seed*") if re.fullmatch(r"seed\d+", each.name) and is_run(each)]
    return sorted(found, key=lambda each: int(each.name.removeprefix("seed")))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"data": {"name": "digits"}} -> {"data.name": "digits"}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which two configurations differ, as `key: old -> new`; versions are no part of a configuration."""
    a, b = (
        {key: value for key, value in flatten(each).items() if key.split(".")[0] != "version"} for each in (old, new)
    )
    return [
        f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    ]
