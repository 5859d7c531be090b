"""The run directory: what is in it, atomic saves, resume, and the guard of its configuration.

config.yaml          the resolved configuration, with versions
metrics.jsonl        one record a line, appended: an epoch, a task
scores.json          the score matrices
checkpoint/          the latest state, as one folder named by its place in the run; written aside and renamed
weights/             the model at the start and after each task
importance/          the importance that is protected after each task; task00-1 is that of a second protection
recognition/         heads and class means after each task, where the objective is recognition
gallery/             the stored gallery of each task, the drift it brought, and what a report shows of them
index/               the final embeddings of all queries
compatibility.json   the scores of every model's queries in every earlier one's gallery, if they were asked for
report/              derived from the rest; may be deleted
"""

from __future__ import annotations

import io
import json
import math
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from tripletmas.basics.files import write_tensors, written_aside
from tripletmas.basics.weights import Params

_PARTS = ("model", "strategy", "loss", "means")


@dataclass(frozen=True)
class Checkpoint:
    """A whole state: after `epoch` epochs of task number `task`, both counted from 0.

    Attributes:
        model, strategy, loss, means: tensors by name; means are those of recognition.
        optimizer: state_dicts of "optimizer" and "scaler"; None between tasks, since each task has fresh ones.
        record_bytes: how long metrics.jsonl was then; what follows was written by a run that did not get further.
    """

    task: int
    epoch: int
    model: Params
    strategy: Params
    loss: Params
    optimizer: dict[str, Any] | None
    record_bytes: int = 0
    means: Params = field(default_factory=dict)


class RunDirectory:
    """A folder that holds one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

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
        if (run.path / "config.yaml").exists():
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
        run._write_text("config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The run that is in a folder.

        Raises:
            ValueError: if there is none.
        """
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            several = sorted(p.name for p in run.path.glob("seed*")) if run.path.is_dir() else []
            hint = f"; it holds the runs {', '.join(several)}: name one of them" if several else ""
            raise ValueError(f"{run.path} is no run directory (it has no config.yaml){hint}")
        return run

    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        path = self.path / "config.yaml"
        try:
            return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    # --- records

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(record), allow_nan=False) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a last one that was cut short as its process was killed."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, aside and renamed."""
        self._write_text(name, json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """A JSON file of the run; None if it has none of this name."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    # --- tensors

    def write_tensors(self, name: str, tensors: Params) -> None:
        """Write a safetensors file of the run, aside and renamed."""
        with written_aside(self.path / name) as aside:
            _save(tensors, aside)

    def read_tensors(self, name: str) -> Params:
        """A safetensors file of the run.

        Raises:
            ValueError: if it is missing or cut short.
        """
        return _load(self.path / name)

    # --- checkpoints

    def save_checkpoint(self, state: Checkpoint) -> None:
        """Replace the latest checkpoint; until the new one is whole, the old one stays.

        Raises:
            OSError: if it cannot be written, as when the disk is full; the old checkpoint is untouched.
        """
        records = self.path / "metrics.jsonl"
        place = {
            "task": state.task,
            "epoch": state.epoch,
            "record_bytes": records.stat().st_size if records.exists() else 0,
        }
        with written_aside(self.path / "checkpoint" / self._next_folder(state.task, state.epoch)) as aside:
            aside.mkdir()
            for part in _PARTS:
                _save(getattr(state, part), aside / f"{part}.safetensors")
            buffer = io.BytesIO()  # written to a disk that is full, torch.save hides that this was the cause
            torch.save(state.optimizer, buffer)
            (aside / "optimizer.pt").write_bytes(buffer.getbuffer())
            (aside / "place.json").write_text(json.dumps(place), encoding="utf-8")
        for older in self._checkpoints()[:-1]:
            shutil.rmtree(older)

    def load_checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint; None if there is none yet.

        Raises:
            ValueError: if a file of it is missing or cut short.
        """
        folders = self._checkpoints()
        if not folders:
            return None
        folder = folders[-1]
        try:
            place = json.loads((folder / "place.json").read_text(encoding="utf-8"))
            task, epoch, record_bytes = (int(place[key]) for key in ("task", "epoch", "record_bytes"))
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise ValueError(_damaged(folder / "place.json", error)) from None
        optimizer = _load_plain(folder / "optimizer.pt")
        parts: dict[str, Any] = {part: _load(folder / f"{part}.safetensors") for part in _PARTS}
        return Checkpoint(task=task, epoch=epoch, record_bytes=record_bytes, optimizer=optimizer, **parts)

    def rewind(self, state: Checkpoint | None) -> None:
        """Cut off the records that were written after this checkpoint, all for None: that part will be run again.

        Raises:
            ValueError: if records are missing that were there when the checkpoint was written.
        """
        records = self.path / "metrics.jsonl"
        kept = state.record_bytes if state else 0
        size = records.stat().st_size if records.exists() else 0
        if size < kept:
            raise ValueError(_damaged(records, f"{size} bytes of {kept}"))
        if size > kept:
            with open(records, "rb+") as file:
                file.truncate(kept)

    # --- inside

    def _checkpoints(self) -> list[Path]:
        return sorted(p for p in (self.path / "checkpoint").glob("task*") if p.suffix != ".part")

    def _next_folder(self, task: int, epoch: int) -> str:
        """Named by its place in the run; saved again at the same place it gets a number, and replaces nothing yet."""
        name = f"task{task:04d}-epoch{epoch:06d}"
        same = [p.name for p in self._checkpoints() if p.name.startswith(name)]
        return f"{name}-{int(same[-1][len(name) + 1 :] or 0) + 1:04d}" if same else name

    def _write_text(self, name: str, text: str) -> None:
        with written_aside(self.path / name) as aside:
            aside.write_text(text, encoding="utf-8")


def without_nan(content: Any) -> Any:
    """The same with None for nan, which JSON lacks."""
    if isinstance(content, float):
        return None if math.isnan(content) else content
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    return [without_nan(value) for value in content] if isinstance(content, (list, tuple)) else content


def _save(tensors: Params, path: Path) -> None:
    # the file sorts its tensors by size and name; the report shows layers in the order of the network
    write_tensors(tensors, path, {"order": json.dumps(list(tensors))})


def _load(path: Path) -> Params:
    try:
        with safe_open(path, framework="pt") as file:
            # the order in which they were saved: sums over them, such as the penalty, are then the same bit for bit
            order = (file.metadata() or {}).get("order")
            return {name: file.get_tensor(name) for name in (json.loads(order) if order else file.keys())}
    except (OSError, SafetensorError) as error:
        raise ValueError(_damaged(path, error)) from None


def _load_plain(path: Path) -> Any:
    """What torch.save wrote: tensors, numbers, containers of these."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, LookupError, RuntimeError, EOFError, pickle.UnpicklingError):
        # torch's own words advise to load it with weights_only=False, which would run what is in the file
        raise ValueError(_damaged(path, "it holds no tensors that can be loaded")) from None
    except OSError as error:
        raise ValueError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception | str) -> str:
    return f"{path} cannot be read ({error}): it is missing or cut short; restore it from a copy, or train anew"


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys in which two configurations differ, as `key: old -> new`; versions are no part of a configuration."""
    differing = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if key == "version" and not prefix:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differing += _differing(a, b, f"{prefix}{key}.")
        elif a != b:
            differing.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return differing
