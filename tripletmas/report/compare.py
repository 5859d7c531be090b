"""Runs of several methods on one stream, side by side: the numbers, and the table for terminal and Markdown.

Everything here is recall@1 on the gallery of all tasks seen so far. A method trained with several seeds is one row:
mean ± sample standard deviation (ddof=1) over its seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

from tripletmas import forgetting as measures
from tripletmas.report.read import Record, Run, comparable, differing_keys, flatten, read_group, section


@dataclass(frozen=True)
class Spread:
    """A number measured once for each seed; nan where it was not measured."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds; nan without any."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (ddof=1); None for fewer than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int = 3, *, signed: bool = False) -> str:
        """The mean ± the deviation, as shown: "0.912 ± 0.004", or a dash where nothing was measured."""
        if math.isnan(self.mean):
            return "–"
        mean = number(self.mean, digits, signed=signed)
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Method:
    """One row: the runs of one configuration, and what their score matrices say (finished runs only).

    Attributes:
        average: recall@1 after the last task, mean over the tasks.
        learning: recall@1 on each task right after it was learned, mean over the tasks (the diagonal): plasticity.
        per_task: recall@1 after the last task, one for each task.
        curves: (seeds, tasks) the average over the tasks seen so far, after each task.
        note: what was left out of the row and why; empty if nothing.
    """

    label: str
    runs: tuple[Run, ...]
    average: Spread
    forgetting: Spread
    backward_transfer: Spread
    learning: Spread
    per_task: tuple[Spread, ...]
    seconds: Spread
    curves: Tensor
    note: str


@dataclass(frozen=True)
class Comparison:
    """The methods, and the names of the tasks that all of them learned."""

    task_names: tuple[str, ...]
    methods: tuple[Method, ...]


def comparison(directories: Sequence[Path | str], *, seeds: Sequence[int] | None = None) -> Comparison:
    """Read run directories and compare them; each directory, with one run or with seed0, seed1, ..., is one row.

    A row is called by its strategy and the options in which it differs from the other rows. A run that has not
    finished its stream cannot be compared: it is left out of the means, and the row's note says so.

    Args:
        seeds: compare the runs of these seeds only; None for all.

    Raises:
        ValueError: if there is no directory, one is no run, or the runs learned different streams (the differing
            keys of `data` are named).
    """
    if not directories:
        raise ValueError("nothing to compare: give at least one run directory")
    groups = [read_group(directory, seeds=seeds) for directory in directories]
    first = groups[0][0]
    for runs in groups[1:]:
        _check_same_stream(first, runs[0])
    task_names = max((run.task_names for runs in groups for run in runs), key=len)
    labels = _labels(groups, [Path(directory) for directory in directories])
    methods = [_method(label, runs, len(task_names)) for label, runs in zip(labels, groups, strict=True)]
    return Comparison(task_names, tuple(methods))


def comparison_table(comparison: Comparison) -> RenderableType:
    """The comparison for the terminal: `rich.print(comparison_table(...))`.

    A table with a row for each method, and below it one with a row for each task, so that 80 columns are enough.
    """
    head, *rows = _cells(comparison)
    first = _terminal_table(head[:6], [row[:6] for row in rows])
    first.title = "recall@1 on the gallery of all tasks seen"
    labels = [method.label for method in comparison.methods]
    tasks = [
        [f"{i + 1}  {name}", *(method.per_task[i].text() for method in comparison.methods)]
        for i, name in enumerate(short_names(comparison.task_names, 24))
    ]
    second = _terminal_table(["on task", *labels], tasks)
    heading = Text("of which, after the last task", style="bold")  # as a title it would wrap at the table's width
    notes = [f"{method.label}: {method.note}." for method in comparison.methods if method.note]
    return Group(first, heading, second, *(escape(note) for note in notes))


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table, for a README."""
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in _cells(comparison))
    rule = ["---"] + ["---:"] * (len(head) - 1)
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    notes = [f"{method.label}: {method.note}" for method in comparison.methods if method.note]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number as shown, never "-0.000"; a dash for nan."""
    if math.isnan(value):
        return "–"
    value = round(value, digits) + 0.0
    return f"{value:+.{digits}f}" if signed and value else f"{value:.{digits}f}"


def short_names(names: Sequence[str], limit: int = 14) -> list[str]:
    """Task names that fit on an axis: cut to `limit` characters with an ellipsis."""
    return [name if len(name) <= limit else f"{name[: limit - 1]}…" for name in names]


def _cells(comparison: Comparison) -> list[list[str]]:
    """The header and one row for each method; tasks beyond ten have no column of their own, the page shows them."""
    shown = comparison.task_names if len(comparison.task_names) <= 10 else ()
    head = ["method", "average", "forgetting", "backward transfer", "learning", "seconds", *short_names(shown)]
    rows = [head]
    for method in comparison.methods:
        rows.append(
            [
                method.label,
                method.average.text(),
                method.forgetting.text(),
                method.backward_transfer.text(signed=True),
                method.learning.text(),
                method.seconds.text(1),
                *(spread.text() for spread in method.per_task[: len(shown)]),
            ]
        )
    return rows


def _method(label: str, runs: tuple[Run, ...], num_tasks: int) -> Method:
    finished = [run for run in runs if run.finished and len(run.task_names) == num_tasks]
    matrices = [matrix for run in finished if (matrix := run.matrix()) is not None]
    curves = [[measures.average(m[: t + 1, : t + 1]) for t in range(num_tasks)] for m in matrices]
    note = f"{len(runs) - len(finished)} of {len(runs)} runs did not finish and are left out"
    return Method(
        label=label,
        runs=runs,
        average=Spread(tuple(measures.average(m) for m in matrices)),
        forgetting=Spread(tuple(measures.forgetting(m) for m in matrices)),
        backward_transfer=Spread(tuple(measures.backward_transfer(m) for m in matrices)),
        learning=Spread(tuple(measures.plasticity(m) for m in matrices)),
        per_task=tuple(Spread(tuple(float(m[-1, i]) for m in matrices)) for i in range(num_tasks)),
        seconds=Spread(tuple(run.seconds for run in finished)),
        curves=torch.tensor(curves, dtype=torch.float64).reshape(len(curves), num_tasks),
        note=note if len(finished) < len(runs) else "",
    )


def _check_same_stream(one: Run, other: Run) -> None:
    first, second = flatten(section(one.config, "data")), flatten(section(other.config, "data"))
    if keys := differing_keys(first, second):
        what = "; ".join(f"data.{key}: {first.get(key, 'absent')} and {second.get(key, 'absent')}" for key in keys)
        raise ValueError(
            f"{one.path} and {other.path} learned different streams and cannot be compared ({what}); "
            "compare runs whose `data` configuration is equal"
        )


def _labels(groups: Sequence[tuple[Run, ...]], directories: Sequence[Path]) -> list[str]:
    """The strategy and what tells the rows apart; the seed or the directory where the configurations are equal."""
    configs = [comparable(runs[0].config) for runs in groups]
    strategies = [runs[0].strategy for runs in groups]
    labels = []
    for config, strategy in zip(configs, strategies, strict=True):
        rivals = [other for other, name in zip(configs, strategies, strict=True) if name == strategy]
        keys = {key for other in rivals for key in differing_keys(config, other)}
        # Across strategies only what lies outside their own options tells anything: mas has a strength, joint has none.
        keys |= {key for other in configs for key in differing_keys(config, other) if not key.startswith("strategy")}
        labels.append(", ".join([strategy, *_options(config, keys)]))
    for label in {label for label in labels if labels.count(label) > 1}:
        same = [i for i, other in enumerate(labels) if other == label]
        seeds = [groups[i][0].config.get("seed") if len(groups[i]) == 1 else None for i in same]
        by_seed = None not in seeds and len(set(seeds)) == len(same)
        for i, seed in zip(same, seeds, strict=True):
            labels[i] += f", seed={seed}" if by_seed else f" ({directories[i]})"
    return labels


def _options(config: Record, keys: set[str]) -> list[str]:
    """`strength=1`: the last part of a key, its whole where two keys end alike."""
    last = [key.split(".")[-1] for key in keys]
    names = {key: key.split(".")[-1] if last.count(key.split(".")[-1]) == 1 else key for key in keys}
    return [f"{names[key]}={config[key]}" for key in sorted(keys) if key in config and key != "strategy.name"]


def _terminal_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    for i, name in enumerate(head):
        longest = max((len(row[i]) for row in rows), default=0)
        # The label of a method breaks only where it is very long.
        table.add_column(escape(name), justify="right" if i else "left", no_wrap=i == 0 and longest <= 24)
    for row in rows:
        # Without the space a narrow column breaks "0.912 ±0.004" before the sign only.
        table.add_row(*(escape(cell.replace("± ", "±")) for cell in row))
    return table
