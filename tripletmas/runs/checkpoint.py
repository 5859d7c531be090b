"""The latest state of a run: one folder of tensors, named by its place in the run; written aside and renamed."""

from __future__ import annotations

import io
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletmas.basics.files import (
    Place,
    atomic_write,
    checksum,
    damaged,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from tripletmas.basics.shape import check_shape

if TYPE_CHECKING:  # torch is imported where a state is saved and read: who asks what a run is needs none
    from tripletmas.basics.weights import Params

REMEDY = "restore it from a copy, or train anew"
_PARTS = ("model", "strategy", "objective")
_NAME = re.compile(r"task\d{4,}-epoch\d{6,}(-\d{4,})?")
_WHERE = {"task": int, "epoch": int, "record_bytes": int, "record_sum?": (str, None), "optimizer_sum?": str}
_STEPS = (None, {"optimizer": {"state": {str: dict}, "param_groups": [dict]}, "scaler": dict, "factors?": dict})


@dataclass(frozen=True)
class Checkpoint:
    """A whole state: after `epoch` epochs of task number `task`, both counted from 0.

    Attributes:
        model, strategy, objective: tensors by name.
        optimizer: state_dicts of "optimizer" and "scaler", and of "factors" where there are any (see `models.lora`);
            None between tasks, since each task has fresh ones.
        record_bytes: how long metrics.jsonl was then; what follows was written by a run that did not get further.
        record_sum: the checksum of that much of it; None in a checkpoint of an earlier version.
    """

    task: int
    epoch: int
    model: Params
    strategy: Params
    objective: Params
    optimizer: dict[str, Any] | None
    record_bytes: int = 0
    record_sum: str | None = None

    @property
    def place(self) -> str:
        """Where in the run it was written, in words."""
        return f"after epoch {self.epoch} of task {self.task}" if self.epoch else f"before task {self.task}"


def save_checkpoint(root: Path, state: Checkpoint, run: str = "") -> None:
    """Replace the latest checkpoint in `root`; until the new one is whole, the old one stays.

    Args:
        run: the identity of the run.

    Raises:
        OSError: if it cannot be written, as when the disk is full; the old checkpoint is untouched.
    """
    name = _next_name(root, state)
    with atomic_write(root / name, folder=True) as aside:
        for part in _PARTS:
            write_tensors(aside / f"{part}.safetensors", getattr(state, part), place=_place(run, name, part))
        steps = _saved(state.optimizer)
        with ThreadPoolExecutor(1) as beside:
            summed = beside.submit(checksum, steps)
            (aside / "optimizer.pt").write_bytes(steps)
        where = {"task": state.task, "epoch": state.epoch, "record_bytes": state.record_bytes}
        sums = {"record_sum": state.record_sum, "optimizer_sum": summed.result()}
        write_json(aside / "place.json", {**where, **sums}, _place(run, name, "place"))
    for older in _folders(root)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(root: Path, run: str = "") -> Checkpoint | None:
    """The latest checkpoint in `root`; None if there is none yet.

    Args:
        run: the identity of the run; "" where it has none, then files without a checksum are read, too.

    Raises:
        ValueError: if a file of it is missing, damaged or another one.
    """
    if not (folders := _folders(root)):
        return None
    folder = folders[-1]
    place = {part: _place(run, folder.name, part) if run else None for part in _PARTS}
    where = _where(folder, run)
    parts: dict[str, Any] = {
        part: read_tensors(folder / f"{part}.safetensors", REMEDY, place=place[part])[0] for part in _PARTS
    }
    return Checkpoint(
        task=where["task"],
        epoch=where["epoch"],
        optimizer=_load_plain(folder / "optimizer.pt", where.get("optimizer_sum")),
        record_bytes=where["record_bytes"],
        record_sum=where.get("record_sum"),
        **parts,
    )


def counted_records(root: Path, run: str = "") -> tuple[int, str | None] | None:
    """How long metrics.jsonl was at the latest checkpoint in `root`, and its checksum; None if there is none yet.

    Raises:
        ValueError: if it cannot be read there; errors as `load_checkpoint`.
    """
    while folders := _folders(root):
        try:
            where = _where(folders[-1], run)
        except ValueError:
            if _folders(root)[-1:] != folders[-1:]:
                continue  # the run has gone on meanwhile, and that one is gone
            raise
        return where["record_bytes"], where.get("record_sum")
    return None


def _where(folder: Path, run: str) -> dict[str, Any]:
    """The place in the run that a checkpoint tells."""
    where = read_json(folder / "place.json", REMEDY, _place(run, folder.name, "place") if run else None)
    try:
        check_shape(where, _WHERE)
        if (where["task"], where["epoch"]) != _numbers(folder)[:2]:
            raise ValueError(f"task {where['task']}, epoch {where['epoch']} is not where {folder.name} was written")
    except ValueError as error:
        raise damaged(folder / "place.json", error, REMEDY) from None
    return where


def _saved(content: Any) -> memoryview:
    """What torch.save writes; to a disk that is full, it would hide that this was the cause.

    Without checksums of its own, which torch does not compare when it loads: that pays for a part of ours.
    """
    import torch
    from torch.serialization import get_crc32_options, set_crc32_options

    buffer, before = io.BytesIO(), get_crc32_options()
    set_crc32_options(False)
    try:
        torch.save(content, buffer)
    finally:
        set_crc32_options(before)
    return buffer.getbuffer()


def _place(run: str, folder: str, part: str) -> Place:
    return Place(run, f"checkpoint/{folder}/{part}")


def _folders(root: Path) -> list[Path]:
    """The checkpoints, the latest last; what a killed process left beside them is none."""
    found = [path for path in root.glob("task*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_numbers)


def _numbers(path: Path) -> tuple[int, int, int]:
    """(task, epoch, how many times it was saved there before) of a checkpoint, by its name."""
    task, epoch, again = re.findall(r"\d+", f"{path.name}-0")[:3]
    return int(task), int(epoch), int(again)


def _next_name(root: Path, state: Checkpoint) -> str:
    """By the place in the run; saved again at the same place it gets a number, and replaces nothing yet."""
    name = f"task{state.task:04d}-epoch{state.epoch:06d}"
    same = [_numbers(path)[2] for path in _folders(root) if _numbers(path)[:2] == (state.task, state.epoch)]
    return f"{name}-{same[-1] + 1:04d}" if same else name


def _load_plain(path: Path, expected: str | None) -> Any:
    """What torch.save wrote: tensors, numbers, containers of these.

    Args:
        expected: its checksum; None where that is not known.
    """
    import torch

    try:
        content = path.read_bytes()
        if expected is not None and checksum(content) != expected:
            raise damaged(path, "its checksum is wrong", REMEDY)
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (LookupError, RuntimeError, EOFError, pickle.UnpicklingError):
        # torch's own words advise to load it with weights_only=False, which would run what is in the file
        raise damaged(path, "it holds no tensors that can be loaded", REMEDY) from None
    except OSError as error:
        raise damaged(path, error, REMEDY) from None
    try:
        check_shape(found, _STEPS, "the optimizer's state")
    except ValueError as error:
        raise damaged(path, error, REMEDY) from None
    return found
