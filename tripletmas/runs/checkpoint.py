"""The latest state of a run: one folder of tensors, named by its place in the run; written aside and renamed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tripletmas.basics.files import atomic_write, damaged, read_json, read_tensors, write_tensors
from tripletmas.basics.weights import Params

REMEDY = "restore it from a copy, or train anew"
_PARTS = ("model", "strategy", "objective")
_PLACE = ("task", "epoch", "record_bytes")


@dataclass(frozen=True)
class Checkpoint:
    """A whole state: after `epoch` epochs of task number `task`, both counted from 0.

    Attributes:
        model, strategy, objective: tensors by name.
        optimizer: state_dicts of "optimizer" and "scaler"; None between tasks, since each task has fresh ones.
        record_bytes: how long metrics.jsonl was then; what follows was written by a run that did not get further.
    """

    task: int
    epoch: int
    model: Params
    strategy: Params
    objective: Params
    optimizer: dict[str, Any] | None
    record_bytes: int = 0


def save_checkpoint(root: Path, state: Checkpoint) -> None:
    """Replace the latest checkpoint in `root`; until the new one is whole, the old one stays.

    Raises:
        OSError: if it cannot be written, as when the disk is full; the old checkpoint is untouched.
    """
    with atomic_write(root / _next_name(root, state)) as aside:
        aside.mkdir()
        for part in _PARTS:
            write_tensors(aside / f"{part}.safetensors", getattr(state, part))
        buffer = io.BytesIO()  # written to a disk that is full, torch.save hides that this was the cause
        torch.save(state.optimizer, buffer)
        (aside / "optimizer.pt").write_bytes(buffer.getbuffer())
        place = {key: getattr(state, key) for key in _PLACE}
        (aside / "place.json").write_text(json.dumps(place), encoding="utf-8")
    for older in _folders(root)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(root: Path) -> Checkpoint | None:
    """The latest checkpoint in `root`; None if there is none yet.

    Raises:
        ValueError: if a file of it is missing or damaged.
    """
    if not (folders := _folders(root)):
        return None
    folder = folders[-1]
    found = read_json(folder / "place.json", REMEDY)
    try:
        place = {key: int(found[key]) for key in _PLACE}
    except (TypeError, LookupError) as error:
        raise damaged(folder / "place.json", error, REMEDY) from None
    parts: dict[str, Any] = {part: read_tensors(folder / f"{part}.safetensors", REMEDY)[0] for part in _PARTS}
    return Checkpoint(**place, optimizer=_load_plain(folder / "optimizer.pt"), **parts)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("task*") if path.suffix != ".part")


def _next_name(root: Path, state: Checkpoint) -> str:
    """By the place in the run; saved again at the same place it gets a number, and replaces nothing yet."""
    name = f"task{state.task:04d}-epoch{state.epoch:06d}"
    same = [path.name for path in _folders(root) if path.name.startswith(name)]
    return f"{name}-{int(same[-1][len(name) + 1 :] or 0) + 1:04d}" if same else name


def _load_plain(path: Path) -> Any:
    """What torch.save wrote: tensors, numbers, containers of these."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, LookupError, RuntimeError, EOFError, pickle.UnpicklingError):
        # torch's own words advise to load it with weights_only=False, which would run what is in the file
        raise damaged(path, "it holds no tensors that can be loaded", REMEDY) from None
    except OSError as error:
        raise damaged(path, error, REMEDY) from None
