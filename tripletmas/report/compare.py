"""Runs of several methods on one stream, side by side: the numbers, and what each method is called.

Everything here is of the primary score (`primary`), unless it says otherwise. A method trained with several seeds is
one row: mean ± sample standard deviation (ddof=1) over its seeds.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tripletmas.objectives import scores as measures
from tripletmas.objectives.kind import Kind
from tripletmas.objectives.scores import PairedDifference
from tripletmas.report import collapse
from tripletmas.report.galleries import KINDS, stored_matrices
from tripletmas.report.numbers import Spread, averages
from tripletmas.report.read import Record, Run, comparable, differing_keys, read_group
from tripletmas.runs.directory import flatten

# How a model is shown the samples of a stream, which differs with the models: the stream is the same.
_SHOWN = ("size", "channels", "interpolation", "crop", "augment", "in_memory")


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
    done, labels = [_done(runs, len(task_names)) for runs in groups], _labels(groups, directories)
    joint = _joint(groups, done)
    reference = {} if joint is None else {_seed(run): matrix for run, matrix in done[joint]}
    methods = tuple(
        _method(labels[i], runs, done[i], len(task_names), {} if i == joint else reference)
        for i, runs in enumerate(groups)
    )
    paired = tuple(_paired(method, methods[0]) for method in methods[1:])
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
        galleries=_galleries([run for run, _ in done]),
        note="; ".join(filter(None, (_note(len(runs), seeds, joint), collapse.note([run for run, _ in done])))),
        void=any(collapse.learned_nothing(run) for run, _ in done),
    )


def _note(num_runs: int, seeds: Sequence[int | None], joint: Mapping[int | None, Tensor]) -> str:
    """What was left out of a row whose finished runs have these seeds, and why."""
    lost, alone = num_runs - len(seeds), [seed for seed in seeds if joint and seed not in joint]
    notes = {
        f"{lost} of {num_runs} runs did not finish and are left out": lost,
        f"intransigence of {len(alone)} of {len(seeds)} runs is against the mean of joint's seeds": alone,
    }
    return "; ".join(note for note, applies in notes.items() if applies)


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
    if one.kind is not other.kind:
        raise ValueError(
            f"{one.path} ({one.kind.name}) and {other.path} ({other.kind.name}) had different "
            "objectives and cannot be compared; compare runs of one objective"
        )
    first, second = (flatten(run.section("data")) for run in (one, other))
    if keys := [key for key in differing_keys(first, second) if key not in _SHOWN]:
        what = "; ".join(f"data.{key}: {first.get(key, 'absent')} and {second.get(key, 'absent')}" for key in keys)
        raise ValueError(
            f"{one.path} and {other.path} learned different streams and cannot be compared ({what}); "
            "compare runs whose `data` configuration is equal"
        )


def _labels(groups: Sequence[tuple[Run, ...]], directories: Sequence[Path | str]) -> list[str]:
    """The strategy and what tells the rows apart; the seed or the directory where the configurations are equal."""
    first = [runs[0] for runs in groups]
    labels = [", ".join([run.strategy, *_options(comparable(run.config), _telling(run, first))]) for run in first]
    told_apart = list(labels)
    for i, label in enumerate(labels):
        same = [groups[j] for j, other in enumerate(labels) if other == label]
        if len(same) > 1:
            seeds = {_seed(runs[0]) for runs in same if len(runs) == 1} - {None}
            told_apart[i] += f", seed={_seed(first[i])}" if len(seeds) == len(same) else f" ({Path(directories[i])})"
    return told_apart


def _telling(run: Run, rows: Sequence[Run]) -> set[str]:
    """The keys of the configuration that tell a row from the others.

    Across strategies only what lies outside their own options tells anything: mas has a strength, joint has none. So
    it is across models. How a strength was searched tells searches apart; a run without one needs no such words.
    """
    own, keys = comparable(run.config), set()
    for row in rows:
        other = comparable(row.config)
        keys |= {
            key
            for key in differing_keys(own, other)
            if (row.strategy == run.strategy or not key.startswith("strategy"))
            and (own.get("model.name") == other.get("model.name") or not _is_of_a_model(key))
            and (not key.startswith("search.") or (key in own and key in other))
        }
    return keys


def _is_of_a_model(key: str) -> bool:
    """Whether an option, such as its width or the size of its images, differs since models do."""
    section, _, option = key.partition(".")
    return (section == "model" and option != "name") or (section == "data" and option in _SHOWN and option != "augment")


def _options(config: Record, keys: set[str]) -> list[str]:
    """`strength=1`: the last part of a key, its whole where two keys end alike; `model=conv4` of a name.

    Of a combined strategy the part that the option belongs to stays: `mas.strength=1`.
    """
    ends = Counter(key.removesuffix(".name").split(".")[-1] for key in keys)

    def name(key: str) -> str:
        if re.fullmatch(r"strategy\.\w+\..+", key):
            return key.removeprefix("strategy.")
        end = key.removesuffix(".name").split(".")[-1]
        return end if ends[end] == 1 else key

    return [f"{name(key)}={config[key]}" for key in sorted(keys) if key in config and key != "strategy.name"]
