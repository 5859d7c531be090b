"""The classes of a stream by name, and the tasks they belong to, as index/final.json has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


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
        """The task of each label; 0 where it is not known."""
        table = torch.zeros(int(labels.max()) + 1 if len(labels) else 0, dtype=torch.int64)
        for task, members in enumerate(self.tasks):
            table[[label for label in members if label < len(table)]] = task
        return table[labels]


def read_classes(run_directory: Path) -> Classes:
    """The classes of a run; nothing is known of them before its last task is finished."""
    path = run_directory / "index" / "final.json"
    if not path.is_file():
        return Classes()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); delete it or run again") from error
    names = tuple(str(name) for name in content.get("class_names", ()))
    return Classes(names, tuple(tuple(task) for task in content.get("tasks", ())))
