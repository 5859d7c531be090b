#!/usr/bin/env python3
"""What grows with the number of tasks: a stream of many tiny ones, each as large as the others, part by part.

    .venv/bin/python scripts/bench_many_tasks.py
    .venv/bin/python scripts/bench_many_tasks.py --tasks 50 --strategies mas --json docs/results

Each strategy learns them by the library's own loop into a run directory, and what a task takes is timed in parts. Two
parts grow since what they do grows: all tasks seen are embedded and searched again after each (a row of the score
matrix), and their scores, queries and drift are what a record, and a report, tell of. All else should not. The table
has the mean of the first and of the last tenth of the tasks after the first one, which protects nothing yet.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from tables import Cell, Table, keep, machine

import tripletmas as tm
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs import after_task, loop
from tripletmas.runs.catalog import build_strategy
from tripletmas.runs.directory import RunDirectory

FEATURES, DIM = 16, 8
# part -> what does it; one that lies inside another is taken off that
PARTS: dict[str, tuple[object, str]] = {
    "training": (loop, "train_task"),
    "before the task": (after_task.AfterTask, "before"),
    "after the task, in all": (after_task.AfterTask, "__call__"),
    "embedding of all tasks": (after_task, "embed_tasks"),
    "scores of all tasks": (Retrieval, "score"),
    "stored galleries": (after_task.Galleries, "after_task"),
    "files of the task": (after_task.AfterTask, "_keep"),
    "what a report shows": (Retrieval, "keep_shown"),
    "the record": (RunDirectory, "append"),
    "checkpoint": (RunDirectory, "save_checkpoint"),
}
WHOLE = ("checkpoint bytes", "memory MB")
GROWS = ("embedding of all tasks", "scores of all tasks", "what a report shows")


def make_stream(tasks: int) -> tm.Stream:
    """Tasks of two classes, eight samples each, so far around a point of their own that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * tasks).repeat_interleave(8)
    centres = torch.randn(2 * tasks, FEATURES, generator=generator)
    samples = centres[labels] + torch.randn(len(labels), FEATURES, generator=generator)
    data = tm.LabelledDataset(samples, labels, [f"{label:04d}" for label in range(2 * tasks)])
    return tm.make_stream(tm.Source(data), tasks=tasks, test_share=0.25)[0]


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Inside, the seconds of each of PARTS are added up."""

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - began

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            own = wrapped(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, own))
        yield


def measure(name: str, stream: tm.Stream, folder: Path) -> list[dict[str, float]]:
    """A row of numbers for each task."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": DIM, "hidden": (32,)}
    model = tm.make_model("mlp", (FEATURES,), options=sizes)
    objective = Retrieval(tm.make_loss("triplet", dim=DIM, num_classes=2 * len(stream)))
    config = tm.TrainConfig(epochs=2, batch_size=8, samples_per_class=4, lr=1e-3)
    run, strategy = RunDirectory.create(folder, {}), build_strategy(name, {})
    spent: dict[str, float] = defaultdict(float)
    rows: list[dict[str, float]] = []

    def note() -> None:
        """Called when a checkpoint has been saved: of the end of a task, its number is that of the weights."""
        if run.num_done == len(rows):
            return
        gc.collect()
        found = {part: 1000 * spent[part] for part in PARTS}
        inner = ("embedding of all tasks", "scores of all tasks", "stored galleries", "files of the task", "the record")
        found["after the task, the rest"] = found.pop("after the task, in all") - sum(found[part] for part in inner)
        found["files of the task"] -= found["what a report shows"]
        found["checkpoint bytes"] = sum(each.stat().st_size for each in (folder / "checkpoint").rglob("*.*"))
        found["memory MB"] = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
        rows.append(found)
        spent.clear()

    with timed(spent):
        tm.train_stream(model, stream, strategy, objective, config, run, listener=note)
    return rows


def table(found: dict[str, list[dict[str, float]]]) -> Table:
    """A row for each part, a column for each strategy: the mean of the first tenth of the tasks, and of the last."""
    first = next(iter(found.values()))
    rows: list[Mapping[str, Cell]] = []
    for part in first[0]:
        row = {"part": f"{part}{' (grows)' if part in GROWS else ''}"}
        for name, tasks in found.items():
            tenth = max(1, len(tasks) // 10)
            ends = (fmean(task[part] for task in some) for some in (tasks[1 : 1 + tenth], tasks[-tenth:]))
            row[name] = " → ".join(f"{each:.{0 if part in WHOLE else 1}f}" for each in ends)
        rows.append(row)
    about = f"Of {len(first)} tasks the first tenth → the last: milliseconds of the processor a task, bytes, megabytes"
    return Table({"part": "name", **dict.fromkeys(found, "text")}, rows, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--strategies", nargs="+", default=["finetune", "mas", "gram", "distill"], metavar="NAME")
    parser.add_argument("--json", type=Path, help="a folder: the table as JSON, for fill_tables.py")
    options = parser.parse_args()
    if options.tasks < 3:
        parser.error(f"--tasks must be >= 3, got {options.tasks}")
    torch.set_num_threads(1)
    stream, found = make_stream(options.tasks), {}
    for name in options.strategies:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, stream, Path(folder) / "run")
        print(f"{table({name: found[name]}).text()}", flush=True)
    keep(table(found), options.json, "bench-many-tasks", settings=machine(options))


if __name__ == "__main__":
    main()
