"""Tensors that a run keeps of each of its tasks, a file each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tripletmas.basics.weights import Params


class Folder(Protocol):
    """What holds the files: a `RunDirectory`."""

    path: Path

    def read_tensors(self, name: str) -> Params: ...

    def write_tensors(self, name: str, tensors: Params) -> None: ...


@dataclass(frozen=True)
class TaskFiles:
    """Tensors that a run keeps of each of its tasks, which count from 0: <name>00.safetensors, <name>01, ..."""

    run: Folder
    name: str
    suffix: str = ""

    def file(self, number: int) -> str:
        """The name of the file of a task within the run."""
        return f"{self.name}{number:02d}{self.suffix}.safetensors"

    def path(self, number: int) -> Path:
        """The file of a task."""
        return self.run.path / self.file(number)

    def numbers(self) -> list[int]:
        """The tasks that have a file, ascending."""
        return numbered(self.run.path / self.name, self.suffix)

    def read(self, number: int) -> Params:
        """The tensors of a task.

        Raises:
            ValueError: if their file is missing, damaged or another one.
        """
        return self.run.read_tensors(self.file(number))

    def find(self, number: int) -> Params | None:
        """The tensors of a task; None where it has none."""
        return self.read(number) if self.path(number).exists() else None

    def write(self, number: int, tensors: Params) -> None:
        """Keep the tensors of a task, aside and renamed."""
        self.run.write_tensors(self.file(number), tensors)


def numbered(name: Path, suffix: str = "") -> list[int]:
    """The tasks of which there is a file <name>00<suffix>.safetensors, <name>01, ..., ascending."""
    pattern = re.compile(rf"{re.escape(name.name)}(\d+){suffix}\.safetensors")
    found = (pattern.fullmatch(path.name) for path in name.parent.glob("*.safetensors"))
    return sorted(int(match[1]) for match in found if match)
