"""Runs of several methods on one stream, side by side: the numbers, and what each method is called.

Everything here is of the primary score (`primary`), unless it says otherwise. A method trained with several seeds is
one row: mean ± sample standard deviation (ddof=1) over its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tripletmas.objectives import scores as measures
from tripletmas.objectives.kind import Kind
from tripletmas.objectives.scores import PairedDifference
from tripletmas.report import collapse, gains
from tripletmas.report.galleries import KINDS, stored_matrices
from tripletmas.report.labels import labels_of
from tripletmas.report.numbers import Spread, averages
from tripletmas.report.read import Run, read_group
from tripletmas.report.significance import PairedTest, holm, paired_test
from tripletmas.report.streams import check_comparable


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
        note: what was left out of the row and why, and what collapsed; empty if nothing.
        void: one of the runs learned nothing, so forgetting and backward transfer say nothing.
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
    void: bool = False

    def by_seed(self, spread: Spread) -> dict[int, float]:
        """One of its numbers by the seed of the run, of runs that name one."""
        return {seed: value for seed, value in zip(self.seeds, spread.values, strict=True) if seed is not None}


@dataclass(frozen=True)
class Paired:
    """How a method differs from the first one, over the seeds that both have.

    Attributes:
        average_test, forgetting_test: with p-values for all methods together (Holm).
    """

    label: str
    average: PairedDifference
    forgetting: PairedDifference
    average_test: PairedTest
    forgetting_test: PairedTest

    @property
    def seeds(self) -> int:
        """How many seeds both have."""
        return self.average.better + self.average.same + self.average.worse


@dataclass(frozen=True)
class Comparison:
    """The methods, and the names of the tasks that all of them learned.

    Attributes:
        kind: of task, which says what all of them are judged by.
        paired: each method but the first against the first; empty where none shares two seeds with it.
        joint: the label of the joint training that intransigence is measured against, with the run of the same seed
            where there is one, else with the mean over joint's seeds; None without a finished joint run.
    """

    task_names: tuple[str, ...]
    methods: tuple[Method, ...]
    kind: Kind
    paired: tuple[Paired, ...]
    joint: str | None

    @property
    def galleries(self) -> tuple[str, ...]:
        """The kinds of galleries that all finished runs of any method have; empty where none stored vectors."""
        return tuple(kind for kind in KINDS if any(kind in method.galleries for method in self.methods))


def comparison(directories: Sequence[Path | str], *, seeds: Sequence[int] | None = None) -> Comparison:
    """Read run directories and compare them; each directory, with one run or with seed0, seed1, ..., is one row.

    A row is called by its strategy and the options in which it differs from the other rows. A run that has not
    finished its stream cannot be compared: it is left out of the means, and the row's note says so.

    Args:
        seeds: compare the runs of these seeds only; None for all.

    Raises:
        ValueError: if there is no directory, one is no run, or the runs had different objectives or learned different
            streams, as `streams.check_comparable` tells them apart.
    """
    if not directories:
        raise ValueError("nothing to compare: give at least one run directory")
    groups = [read_group(directory, seeds=seeds) for directory in directories]
    first = groups[0][0]
    for runs in groups[1:]:
        check_comparable(first, runs[0])
    task_names = max((run.task_names for runs in groups for run in runs), key=len)
    done, labels = [_done(runs, len(task_names)) for runs in groups], labels_of(groups, directories)
    joint = _joint(groups, done)
    reference = {} if joint is None else {_seed(run): matrix for run, matrix in done[joint]}
    methods = tuple(
        _method(labels[i], runs, done[i], len(task_names), {} if i == joint else reference)
        for i, runs in enumerate(groups)
    )
    paired = _together([_paired(method, methods[0]) for method in methods[1:]])
    return Comparison(
        task_names=task_names,
        methods=methods,
        kind=first.kind,
        paired=paired if any(each.seeds > 1 for each in paired) else (),
        joint=None if joint is None else labels[joint],
    )


def _joint(groups: Sequence[tuple[Run, ...]], done: Sequence[Sequence[tuple[Run, Tensor]]]) -> int | None:
    """Which row is the joint training that others are measured against."""
    return next((i for i, runs in enumerate(groups) if runs[0].strategy == "joint" and done[i]), None)


def _seed(run: Run) -> int | None:
    return run.config.get("seed")


def _done(runs: Sequence[Run], num_tasks: int) -> list[tuple[Run, Tensor]]:
    """The runs that finished so many tasks, with their score matrices."""
    finished = (run for run in runs if run.finished and len(run.task_names) == num_tasks)
    return [(run, matrix) for run in finished if (matrix := run.matrix()) is not None]


def _method(
    label: str,
    runs: tuple[Run, ...],
    done: Sequence[tuple[Run, Tensor]],
    num_tasks: int,
    joint: Mapping[int | None, Tensor],
) -> Method:
    """One row; `joint` has the matrix of each seed of joint training, {} for none."""
    seeds = tuple(_seed(run) for run, _ in done)

    def over_runs(measure: Callable[[Run, Tensor], float]) -> Spread:
        return Spread(tuple(measure(run, matrix) for run, matrix in done))

    def of_matrix(measure: Callable[[Tensor], float]) -> Spread:
        return over_runs(lambda _, matrix: measure(matrix))

    def intransigence(run: Run, matrix: Tensor) -> float:
        mean = torch.stack(list(joint.values())).mean(dim=0)
        return measures.intransigence(matrix, joint.get(_seed(run), mean))

    curves = [averages(matrix) for _, matrix in done]
    finished = [run for run, _ in done]
    return Method(
        label=label,
        runs=runs,
        seeds=seeds,
        average=of_matrix(measures.average),
        forgetting=of_matrix(measures.forgetting),
        backward_transfer=of_matrix(measures.backward_transfer),
        learning=of_matrix(measures.plasticity),
        forward_transfer=over_runs(lambda run, _: run.forward_transfer),
        unseen=over_runs(lambda run, _: next(reversed(run.unseen), math.nan)),
        intransigence=over_runs(intransigence) if joint else Spread(()),
        per_task=tuple(of_matrix(lambda matrix, i=i: float(matrix[-1, i])) for i in range(num_tasks)),
        seconds=over_runs(lambda run, _: run.seconds()),
        curves=torch.tensor(curves, dtype=torch.float64),
        galleries=_galleries(finished),
        note="; ".join(filter(None, (_note(len(runs), seeds, joint), collapse.note(finished), gains.note(finished)))),
        void=any(collapse.learned_nothing(run) for run, _ in done),
    )


def _note(num_runs: int, seeds: Sequence[int | None], joint: Mapping[int | None, Tensor]) -> str:
    """What was left out of a row whose finished runs have these seeds, and why."""
    lost, alone = num_runs - len(seeds), [seed for seed in seeds if joint and seed not in joint]
    notes = {
        f"{lost} of {num_runs} runs did not finish and are left out of the means": lost,
        f"intransigence of {len(alone)} of {len(seeds)} runs is against the mean of joint's seeds": alone,
    }
    return "; ".join(note for note, applies in notes.items() if applies)


def _galleries(runs: Sequence[Run]) -> dict[str, Spread]:
    measured = [stored_matrices(run, "seen") for run in runs]
    kinds = [kind for kind in KINDS if measured and all(kind in matrices for matrices in measured)]
    return {kind: Spread(tuple(measures.average(matrices[kind]) for matrices in measured)) for kind in kinds}


def _paired(method: Method, first: Method) -> Paired:
    ours, theirs = ([of.by_seed(spread) for spread in (of.average, of.forgetting)] for of in (method, first))
    return Paired(
        method.label,
        measures.paired_difference(ours[0], theirs[0]),
        measures.paired_difference(ours[1], theirs[1], lower_is_better=True),
        paired_test(ours[0], theirs[0]),
        paired_test(ours[1], theirs[1]),
    )


def _together(pairs: Sequence[Paired]) -> tuple[Paired, ...]:
    """The same with the p-values of all of them together."""
    average = holm([pair.average_test.p for pair in pairs])
    forgotten = holm([pair.forgetting_test.p for pair in pairs])
    return tuple(
        replace(
            pair,
            average_test=replace(pair.average_test, p=of_average),
            forgetting_test=replace(pair.forgetting_test, p=of_forgotten),
        )
        for pair, of_average, of_forgotten in zip(pairs, average, forgotten, strict=True)
    )
