"""How a run was made: the command that makes it again, its data, its configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tripletmas.report.read import Run
from tripletmas.report.streams import of_stream
from tripletmas.runs.directory import flatten


@dataclass(frozen=True)
class Made:
    """What the end of a page says.

    Attributes:
        command: that makes the run again, given in the folder in which it lies; "" where the configuration does not say
            what it consists of.
        stream: the fingerprint of all tasks; "" where it is not known.
        tasks: name, number of queries, fingerprint of each finished one.
        options: part of the configuration -> option -> value; "" for what belongs to none.
    """

    command: str
    stream: str
    tasks: Sequence[tuple[str, str, str]]
    options: Mapping[str, Mapping[str, Any]]


def made_by(run: Run) -> Made:
    """How this run was made."""
    whole = all(part in run.config for part in ("data", "model", "loss", "strategy", "training"))
    name = run.path.resolve().name
    command = shlex.join(["tripletmas", "train", "--config", f"{name}/config.yaml", "--out", f"{name}-again"])
    options: dict[str, dict[str, Any]] = {}
    for key, value in flatten({key: value for key, value in run.config.items() if key != "version"}).items():
        part, _, option = key.partition(".")
        options.setdefault(part if option else "", {})[option or part] = value
    return Made(command if whole else "", of_stream(run), _tasks(run), options)


def _tasks(run: Run) -> list[tuple[str, str, str]]:
    """Of each finished task; [] where no fingerprint was recorded."""
    queries = list(run.tasks[-1].get("queries", [])) if run.tasks else []
    return [
        (run.task_name(i), f"{queries[i]:,}" if i < len(queries) else "–", str(task["data"]))
        for i, task in enumerate(run.tasks)
        if "data" in task
    ]
