"""The command that scores a run: evaluate."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from tripletmas.basics.distributed import is_main
from tripletmas.basics.files import save_json
from tripletmas.cli import galleries
from tripletmas.cli.console import (
    console,
    make_parser,
    make_table,
    name_and_options,
    open_run,
)
from tripletmas.cli.outputs import check_output
from tripletmas.data.tasks import Stream
from tripletmas.index.choice import COMPENSATE
from tripletmas.objectives.embedded import EmbeddedTasks, TaskScores, embed_tasks
from tripletmas.objectives.kind import Kind
from tripletmas.objectives.kinds import kind_of
from tripletmas.objectives.objective import Objective
from tripletmas.runs import catalog, configuration, texts
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import Experiment, load_trained
from tripletmas.runs.watch import judged, score_of


def evaluate(arguments: Sequence[str]) -> dict[str, Any]:
    """Score the model of a run: each task's queries in the gallery of all tasks, and in their own."""
    parser = make_parser("evaluate", evaluate.__doc__, "run", "--after", "--trust-code")
    parser.add_argument("--task", type=str, default=None, help="show only this task: its name, or its number from 0")
    parser.add_argument(
        "--json",
        type=str,
        default=None,
        metavar="FILE",
        help="also write the scores there; without FILE they alone are printed",
    )
    parser.add_argument(
        "--gallery",
        type=str,
        default="fresh",
        help="some of fresh, stale, compensated (by the map of the run), query (it moves queries back to stale ones), "
        f"{', '.join(COMPENSATE)}, with commas between",
    )
    parser.add_argument(
        "--compatibility",
        action="store_true",
        help="also score every model's queries in every earlier model's gallery, and keep that for the report",
    )
    own, of_data = _split_data_options(arguments)
    options = parser.parse_args(own)
    check_output("--json", options.json, "JSON", read=_values(of_data))
    run = open_run(options.run, trust_code=options.trust_code)
    experiment, after = load_trained(run, options.after)
    kinds = galleries.kinds_of(options.gallery, experiment.gallery.compensate)
    _check(experiment.kind, of_data, stored=len(kinds) > 1, compatibility=options.compatibility)
    stream = _other_data(run, experiment, of_data) if of_data else experiment.stream[: after + 1]
    chosen = _chosen(stream, options.task)
    objective = experiment.objective
    embedded = embed_tasks(experiment.strategy.deployed(experiment.model), stream, objective.embed)
    kept = galleries.galleries_of(run, experiment, after, kinds) if len(kinds) > 1 else None
    stored = galleries.stored_of(kept, kinds) if kept else {}
    moved = kept.asked_by_part(embedded) if kept and galleries.QUERY in kinds else None
    found = objective.score_other(stream, embedded) if of_data else objective.score(stream, embedded, stored)
    found = galleries.with_moved(found, objective, stream, moved)
    title = f"{run.path}, model after task {after} ({experiment.stream[after].name})"
    names = [stream[number].name for number in chosen]
    content: dict[str, Any] = {"tasks": names, "after": after} | {
        gallery: {metric: [per_task[number] for number in chosen] for metric, per_task in metrics.items()}
        for gallery, metrics in found.values.items()
    }
    for gallery, text in (("seen", "the gallery of all tasks"), ("task", "each task's own gallery")):
        console().print(_table(f"{title}: {text}", names, content[gallery], experiment.kind.main_metrics))
    if kept:
        content["galleries"] = galleries.compare(run, experiment, embedded, stored, found, chosen, moved)
        console().print(galleries.table(content["galleries"], title, experiment.kind.primary.searched))
        for table in galleries.choices_tables(kept, [task.name for task in stream]):
            console().print(table)
    if options.compatibility:
        with run.locked():
            galleries.print_compatibility(run, experiment, after)
    _tell_collapse(objective, stream, chosen, embedded, found)
    if left_out := sum(found.without_relevant[number] for number in chosen):
        print(f"{left_out} {experiment.kind.wording.left_out}")
    if options.json and is_main():
        save_json(options.json, content)
    return content


def _tell_collapse(
    objective: Objective, stream: Stream, chosen: Sequence[int], embedded: EmbeddedTasks, found: TaskScores
) -> None:
    """Warn of tasks whose embedding has collapsed, or on which scores are what guessing gives."""
    for number in chosen:
        score = score_of(objective, stream[number], found, number)
        if signs := judged(objective, stream[number], embedded.queries[number], score).get("collapse"):
            print(f"warning: task {stream[number].name}: {'; '.join(signs.values())}", file=sys.stderr)


def _check(kind: Kind, of_data: Sequence[str], *, stored: bool, compatibility: bool) -> None:
    """Whether a run of this kind can be scored so."""
    if compatibility and not kind.finds_items:
        raise ValueError(f"--compatibility is for images that search images, not for objective {kind.name}")
    if of_data and not kind.takes_other_data:
        raise ValueError(f"a run of objective {kind.name} is scored on its own data: leave --data out")
    if of_data and (stored or compatibility):
        raise ValueError("stale galleries and compatibility are those of the run's own data: leave --data out")


def _other_data(run: RunDirectory, experiment: Experiment, of_data: Sequence[str]) -> Stream:
    """The tasks that these options describe, if the model takes their samples."""
    config, _ = configuration.parse(of_data, program="tripletmas evaluate")
    stream = catalog.build_data(*name_and_options(config["data"]), kind_of(config)).stream
    stream = texts.stream_read_by(experiment.model, stream, experiment.config["model"]["name"])
    own, other = (each[0].query.sample_shape for each in (experiment.stream, stream))
    if own != other:
        raise ValueError(
            f"the model of {run.path} takes samples of shape {own}, the data have {other}: set --data.size or "
            "--data.channels"
        )
    return stream


def _table(title: str, names: Sequence[str], values: Mapping[str, Sequence[float]], main: Sequence[str]) -> Table:
    """A row for each task, a column for each metric, or for the main ones, where a kind names them; and the means."""
    shown = {metric: per_task for metric, per_task in values.items() if not main or metric in main}
    table = make_table(title, "task", *(f">{metric}" for metric in shown))
    for row, name in enumerate(names):
        table.add_row(name, *(_cell(per_task[row]) for per_task in shown.values()))
    if len(names) > 1:
        table.add_row("mean", *(_cell(_mean(per_task)) for per_task in shown.values()), style="bold")
    return table


def _mean(values: Sequence[float]) -> float:
    """Over the tasks that have a value: not all have facts of every order."""
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else math.nan


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _split_data_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(other options, those that describe data: `--data NAME` and `--data.OPTION VALUE`)."""
    own, of_data = [], []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument.partition("=")[0] != "--data" and not argument.startswith("--data."):
            own.append(argument)
            continue
        of_data.append(argument)
        if "=" not in argument and waiting:
            of_data.append(waiting.pop(0))
    return own, of_data


def _values(options: Sequence[str]) -> list[str]:
    """The values of `--option=value` and `--option value`."""
    return [each.rpartition("=")[2] for each in options]


def _chosen(stream: Stream, task: str | None) -> list[int]:
    """The numbers of the tasks that are asked for, by name, which tables show, or else by number."""
    if task is None:
        return list(range(len(stream)))
    names = [each.name for each in stream]
    numbers = list(map(str, range(len(names))))
    if task not in names + numbers:
        known = ", ".join(f"{number} ({name})" for number, name in zip(numbers, names, strict=True))
        raise ValueError(f"no task {task!r}; there are {known}")
    found = (names if task in names else numbers).index(task)
    if task in numbers and task != numbers[found]:
        other = names[int(task)]
        print(
            f"note: {task!r} is taken as the name of a task, whose number is {found}; number {task} is {other!r}",
            file=sys.stderr,
        )
    return [found]
