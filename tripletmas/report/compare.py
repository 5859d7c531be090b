"""Runs of several methods on one stream, side by side: the numbers, and what each method is called.

Everything here is of the primary score (`primary`), unless it says otherwise. A method trained with several seeds is
one row: mean ± sample standard deviation (ddof=1) over its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tripletmas.objectives import scores as measures
from tripletmas.objectives.scores import PairedDifference
from tripletmas.report.configs import Record, differing_keys, flatten, section
from tripletmas.report.galleries import KINDS, stored_matrices
from tripletmas.report.labels import labels_of
from tripletmas.report.numbers import Spread
from tripletmas.report.primary import Primary
from tripletmas.report.read import Run, read_group


@dataclass(frozen=True)
class Method:
    """One row: the runs of one configuration, and what their score matrices say (finished runs only).

    Attributes:
        seeds: of the finished runs, in the order of all values below; None where a run names none.
        average: the score after the last task, mean over the tasks.
        learning: the score on each task right after it was learned, mean over the tasks (the diagonal): plasticity.
        forward_transfer: of recall@1 on the task's own gallery; nan where it was not measured.
        unseen: the score of what is in no task (recall@1, of facts mAP), after the last one; nan where not measured.
        intransigence: against joint training, see `Comparison.joint`; empty without it, and for joint itself.
        per_task: the score after the last task, one for each task.
        curves: (seeds, tasks) the average over the tasks seen so far, after each task.
        galleries: kind ("fresh", "stale", "compensated") -> the average on everything seen; kinds that a
            finished run lacks are left out, and without stored vectors it is empty.
        note: what was left out of the row and why; empty if nothing.
    """

    label: str
    runs: tuple[Run, ...]
    seeds: tuple[int | None, ...]
    average: Spread
    forgetting: Spread
    backward_transfer: Spread
    learning: Spread
    forward_transfer: Spread
    unseen: Spread
    intransigence: Spread
    per_task: tuple[Spread, ...]
    seconds: Spread
    curves: Tensor
    galleries: Mapping[str, Spread]
    note: str


@dataclass(frozen=True)
class Paired:
    """How a method differs from the first one, over the seeds that both have."""

    label: str
    average: PairedDifference
    forgetting: PairedDifference

    @property
    def seeds(self) -> int:
        """How many seeds both have."""
        return self.average.better + self.average.same + self.average.worse


@dataclass(frozen=True)
class Comparison:
    """The methods, and the names of the tasks that all of them learned.

    Attributes:
        primary: what all of them are judged by.
        paired: each method but the first against the first; empty where none shares two seeds with it.
        joint: the label of the joint training that intransigence is measured against, with the run of the same seed
            where there is one, else with the mean over joint's seeds; None without a finished joint run.
    """

    task_names: tuple[str, ...]
    methods: tuple[Method, ...]
    primary: Primary
    paired: tuple[Paired, ...]
    joint: str | None

    @property
    def galleries(self) -> tuple[str, ...]:
        """The kinds of galleries that all finished runs of all methods have; stored vectors must be among them."""
        finished = [method for method in self.methods if method.seeds]
        kinds = [kind for kind in KINDS if finished and all(kind in method.galleries for method in finished)]
        return tuple(kinds) if len(kinds) > 1 else ()


def comparison(directories: Sequence[Path | str], *, seeds: Sequence[int] | None = None) -> Comparison:
    """Read run directories and compare them; each directory, with one run or with seed0, seed1, ..., is one row.

    A row is called by its strategy and the options in which it differs from the other rows. A run that has not
    finished its stream cannot be compared: it is left out of the means, and the row's note says so.

    Args:
        seeds: compare the runs of these seeds only; None for all.

    Raises:
        ValueError: if there is no directory, one is no run, or the runs had different objectives or learned different
            streams (the differing keys of `data` are named).
    """
    if not directories:
        raise ValueError("nothing to compare: give at least one run directory")
    groups = [read_group(directory, seeds=seeds) for directory in directories]
    first = groups[0][0]
    for runs in groups[1:]:
        _check_comparable(first, runs[0])
    task_names = max((run.task_names for runs in groups for run in runs), key=len)
    labels = labels_of(groups, [Path(directory) for directory in directories])
    joint = next((i for i, runs in enumerate(groups) if runs[0].strategy == "joint" and _done(runs, task_names)), None)
    reference = {} if joint is None else {run.config.get("seed"): m for run, m in _done(groups[joint], task_names)}
    methods = tuple(
        _method(label, runs, task_names, {} if i == joint else reference)
        for i, (label, runs) in enumerate(zip(labels, groups, strict=True))
    )
    paired = tuple(_paired(method, methods[0]) for method in methods[1:])
    return Comparison(
        task_names=task_names,
        methods=methods,
        primary=first.primary,
        paired=paired if any(each.seeds > 1 for each in paired) else (),
        joint=None if joint is None else labels[joint],
    )


def _done(runs: Sequence[Run], task_names: Sequence[str]) -> list[tuple[Run, Tensor]]:
    """The runs that finished all these tasks, with their score matrices."""
    finished = [run for run in runs if run.finished and len(run.task_names) == len(task_names)]
    return [(run, matrix) for run in finished if (matrix := run.matrix()) is not None]


def _method(label: str, runs: tuple[Run, ...], task_names: Sequence[str], joint: Mapping[int | None, Tensor]) -> Method:
    """One row; `joint` has the matrix of each seed of joint training, {} for none."""
    done, num_tasks = _done(runs, task_names), len(task_names)
    matrices = [matrix for _, matrix in done]
    seeds = tuple(run.config.get("seed") for run, _ in done)
    curves = [[measures.average(m[: t + 1, : t + 1]) for t in range(num_tasks)] for m in matrices]
    notes, intransigence = [], []
    if len(done) < len(runs):
        notes.append(f"{len(runs) - len(done)} of {len(runs)} runs did not finish and are left out")
    if joint:
        mean = torch.stack(list(joint.values())).mean(dim=0)
        intransigence = [
            measures.intransigence(m, joint.get(seed, mean)) for seed, m in zip(seeds, matrices, strict=True)
        ]
        if alone := [seed for seed in seeds if seed not in joint]:
            notes.append(f"intransigence of {len(alone)} of {len(seeds)} runs is against the mean of joint's seeds")
    return Method(
        label=label,
        runs=runs,
        seeds=seeds,
        average=Spread(tuple(measures.average(m) for m in matrices)),
        forgetting=Spread(tuple(measures.forgetting(m) for m in matrices)),
        backward_transfer=Spread(tuple(measures.backward_transfer(m) for m in matrices)),
        learning=Spread(tuple(measures.plasticity(m) for m in matrices)),
        forward_transfer=Spread(tuple(run.forward_transfer for run, _ in done)),
        unseen=Spread(tuple(next(reversed(run.unseen), math.nan) for run, _ in done)),
        intransigence=Spread(tuple(intransigence)),
        per_task=tuple(Spread(tuple(float(m[-1, i]) for m in matrices)) for i in range(num_tasks)),
        seconds=Spread(tuple(run.seconds for run, _ in done)),
        curves=torch.tensor(curves, dtype=torch.float64).reshape(len(curves), num_tasks),
        galleries=_galleries([run for run, _ in done]),
        note="; ".join(notes),
    )


def _galleries(runs: Sequence[Run]) -> dict[str, Spread]:
    measured = [stored_matrices(run, "seen") for run in runs]
    kinds = [kind for kind in KINDS if measured and all(kind in matrices for matrices in measured)]
    return {kind: Spread(tuple(measures.average(matrices[kind]) for matrices in measured)) for kind in kinds}


def _paired(method: Method, first: Method) -> Paired:
    def by_seed(of: Method, spread: Spread) -> dict[int, float]:
        return {seed: value for seed, value in zip(of.seeds, spread.values, strict=True) if seed is not None}

    return Paired(
        method.label,
        measures.paired_difference(by_seed(method, method.average), by_seed(first, first.average)),
        measures.paired_difference(
            by_seed(method, method.forgetting), by_seed(first, first.forgetting), lower_is_better=True
        ),
    )


def _check_comparable(one: Run, other: Run) -> None:
    if one.primary != other.primary:
        raise ValueError(
            f"{one.path} ({one.primary.objective}) and {other.path} ({other.primary.objective}) had different "
            "objectives and cannot be compared; compare runs of one objective"
        )
    first, second = (_given(flatten(section(run.config, "data"))) for run in (one, other))
    if keys := differing_keys(first, second):
        what = "; ".join(f"data.{key}: {first.get(key, 'absent')} and {second.get(key, 'absent')}" for key in keys)
        raise ValueError(
            f"{one.path} and {other.path} learned different streams and cannot be compared ({what}); "
            "compare runs whose `data` configuration is equal"
        )


def _given(options: Record) -> Record:
    """Without options that are off: a run of an older version does not know them."""
    return {key: value for key, value in options.items() if value is not None and value is not False}
