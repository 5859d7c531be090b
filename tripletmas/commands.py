"""The commands: each parses its own options, calls the library, and prints."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from tripletmas import catalog, configuration, sweeps
from tripletmas import report as reports
from tripletmas.checkpoint import RunDirectory, without_nan
from tripletmas.data import LabelledDataset
from tripletmas.evaluation import score_recognition, score_tasks
from tripletmas.experiment import load_means, load_trained, run_experiment
from tripletmas.images import ImageFiles, find_images, read_images
from tripletmas.params import Params
from tripletmas.recognition import Recognition
from tripletmas.tasks import Stream


def train(arguments: Sequence[str]) -> None:
    """Learn a stream of tasks; one run, or one for each seed."""
    extra = jsonargparse.ArgumentParser(add_help=False)
    extra.add_argument("--out", type=str, default=None, help="the run directory to write (default: runs/STRATEGY)")
    extra.add_argument("--seeds", type=str, default=None, help="such as 0,1,2: one run for each, in OUT/seed0, ...")
    extra.add_argument("--report", type=bool, default=True, help="write a report at the end")
    extra.add_argument(
        "--sweep",
        action="append",
        metavar="OPTION=VALUES",
        help="such as strategy.strength=0.1,0.3,1: a run for each value, in OUT/strength=0.1, ...; several combine",
    )
    extra.add_argument(
        "--trials", type=int, default=None, help="let optuna choose so many values in a sweep over strength=0.01..10"
    )
    asked = "--print_config" in arguments  # taken out first: jsonargparse has a special meaning for this name
    arguments = [each for each in arguments if each != "--print_config"]
    config, own = configuration.parse(arguments, extra=extra)
    if asked:
        print(yaml.safe_dump(config, sort_keys=False), end="")
        return
    out = Path(own["out"] or f"runs/{config['strategy']['name']}")
    if any(each.partition("=")[0] == "--seed" for each in arguments) and own["seeds"] is not None:
        raise ValueError("give --seed or --seeds, not both")
    seeds = None if own["seeds"] is None else _numbers(own["seeds"], "--seeds")

    def with_values(values: sweeps.Chosen) -> dict[str, Any]:
        given = [*arguments, *(f"--{option}={value}" for option, value in values.items())]
        return configuration.parse(given, extra=extra)[0]

    def run(config: dict[str, Any], folder: Path) -> None:
        _run_seeds(config, folder, seeds, write_report=own["report"], is_single=not own["sweep"])

    if own["trials"] is not None:
        _guided(own["sweep"] or [], own["trials"], out, with_values, run)
    elif own["sweep"]:
        _sweep(own["sweep"], out, with_values, run)
    else:
        run(config, out)


def search(arguments: Sequence[str]) -> None:
    """Learn a stream with a strength that is searched for each task on that task's data alone; show the search."""
    extra = jsonargparse.ArgumentParser(add_help=False)
    extra.add_argument("--out", type=str, default=None, help="the run directory to write (default: runs/search)")
    config, own = configuration.parse(arguments, extra=extra, program="tripletmas search", may_search=True)
    if configuration.searched(config["strategy"]) is None:
        name = config["strategy"]["name"]
        if "+" in name:
            raise ValueError(f"say whose strength is searched: such as --strategy.{name.split('+')[0]}.strength auto")
        if "strength" not in config["strategy"]:
            raise ValueError(f"strategy {name!r} has no strength to search")
        config, own = configuration.parse([*arguments, "--strategy.strength=auto"], extra=extra)
    out = Path(own["out"] or "runs/search")
    _run(config, out)
    _console().print(reports.search_table(reports.read_run(out).searches))


def resume(arguments: Sequence[str]) -> None:
    """Go on with a run, or with all runs of a folder of seeds."""
    parser = _parser("resume", resume.__doc__)
    parser.add_argument("run", type=str, help="the run directory")
    path = Path(parser.parse_args(arguments).run)
    for each in reports.seed_directories(path) or [path]:
        run = RunDirectory.open(each)
        _run({key: value for key, value in run.config().items() if key != "version"}, each)


def evaluate(arguments: Sequence[str]) -> None:
    """Score the model of a run: each task's queries in the gallery of all tasks, and in their own."""
    parser = _parser("evaluate", evaluate.__doc__)
    parser.add_argument("run", type=str, help="the run directory")
    parser.add_argument("--task", type=str, default=None, help="show only this task: its number, from 0, or its name")
    parser.add_argument("--after", type=int, default=None, help="the model after this task (default: the last)")
    parser.add_argument("--json", type=str, default=None, metavar="FILE", help="also write the scores there")
    own, of_data = _split_data_options(arguments)
    options = parser.parse_args(own)
    run = RunDirectory.open(options.run)
    experiment, after = load_trained(run, options.after)
    stream = experiment.stream[: after + 1]
    if of_data:
        config, _ = configuration.parse(of_data, program="tripletmas evaluate")
        stream = catalog.build_data(*_name_and_options(config["data"]))
        if stream[0].query.sample_shape != experiment.stream[0].query.sample_shape:
            raise ValueError(
                f"the model of {run.path} takes samples of shape {experiment.stream[0].query.sample_shape}, the data "
                f"have {stream[0].query.sample_shape}: set --data.size or --data.channels"
            )
    chosen = _chosen(stream, options.task)
    model = experiment.strategy.deployed(experiment.model)
    found = score_tasks(model, stream, batch_size=experiment.training.eval_batch_size)
    if isinstance(experiment.loss, Recognition) and not of_data:  # heads and means know the run's own classes only
        means = load_means(run, after)
        for gallery, accuracies in score_recognition(experiment.loss, means, stream, found.queries).items():
            found.values[gallery].update(accuracies)
    names = [stream[number].name for number in chosen]
    values = {
        gallery: {metric: [per_task[number] for number in chosen] for metric, per_task in metrics.items()}
        for gallery, metrics in found.values.items()
    }
    for gallery, text in (("seen", "the gallery of all tasks"), ("task", "each task's own gallery")):
        table = Table(title=f"{run.path}, model after task {after}: {text}", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("task")
        for metric in values[gallery]:
            table.add_column(metric, justify="right")
        for row, name in enumerate(names):
            table.add_row(name, *(f"{per_task[row]:.3f}" for per_task in values[gallery].values()))
        if len(names) > 1:
            means = (sum(per_task) / len(per_task) for per_task in values[gallery].values())
            table.add_row("mean", *(f"{mean:.3f}" for mean in means), style="bold")
        _console().print(table)
    left_out = sum(found.without_relevant[number] for number in chosen)
    if left_out:
        print(f"{left_out} queries have no other item of their class in the gallery and are not counted")
    if options.json:
        content = without_nan({"tasks": names, "after": after, **values})
        Path(options.json).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def compare(arguments: Sequence[str]) -> None:
    """Put runs, or folders of seeds, side by side."""
    parser = _parser("compare", compare.__doc__)
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--seeds", type=str, default=None, help="such as 0,1,2: only these seeds")
    parser.add_argument("--out", type=str, default=None, help="folder of the page (default: beside the first run)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown, write no page")
    options = parser.parse_args(arguments)
    seeds = None if options.seeds is None else _numbers(options.seeds, "--seeds")
    directories = [Path(run) for run in options.runs]
    _print_comparison(directories, markdown=options.markdown, seeds=seeds)
    if not options.markdown:
        out = Path(options.out) if options.out else directories[0].parent / "comparison"
        print(f"page: {reports.write_comparison(directories, out, seeds=seeds)}")


def report(arguments: Sequence[str]) -> None:
    """Write the report of a run again, from its directory alone."""
    parser = _parser("report", report.__doc__)
    parser.add_argument("run", type=str, help="the run directory")
    print(f"report: {reports.write_report(parser.parse_args(arguments).run)}")


def importance(arguments: Sequence[str]) -> None:
    """Measure importance on unlabelled images, such as those of the place where the model is used, and add it to the
    run's protection: what these images need will be held while the next tasks are learned."""
    parser = _parser("importance", importance.__doc__)
    parser.add_argument("run", type=str, help="the run directory")
    parser.add_argument("--images", type=str, required=True, help="a folder of images, in any sub-folders")
    parser.add_argument("--weight", type=float, default=1.0, help="how much it counts; a task of the run counts 1")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    parser.add_argument(
        "--invert", action="store_true", help="read black on white as white on black, which digits and omniglot are"
    )
    options = parser.parse_args(arguments)
    if options.weight <= 0:
        raise ValueError(f"--weight must be > 0, got {options.weight}")
    run = RunDirectory.open(options.run)
    state = run.load_checkpoint()
    if state is None or state.epoch:
        raise ValueError(f"{run.path} stopped in the middle of a task; first: tripletmas resume {run.path}")
    experiment, _ = load_trained(run)
    strategy = experiment.strategy
    strategy.prepare(experiment.model, experiment.loss, experiment.stream)
    if len(strategy.protections) != 1:
        what = "protects no weights" if not strategy.protections else "has several protections: which one is not clear"
        raise ValueError(f"{run.path}: the strategy {experiment.config['strategy']['name']!r} {what}")
    strategy.load_state_dict(state.strategy)
    images = _unlabelled(options.images, experiment.stream[0].query.sample_shape, options.skip_unreadable)
    if options.invert:
        images = images.with_transform(lambda image: 1 - image)
    protection = strategy.protections[0]
    total = sum(float(value.sum()) for value in protection.importance.values())
    batches = tqdm(images.loader(experiment.training.eval_batch_size), desc="importance", unit="batch", leave=False)
    measured = protection.estimate(experiment.model, batches)
    protection.add(measured, weight=options.weight)
    run.rewind(state)
    # before the checkpoint, which says how many records belong to it: others are cut off when the run goes on
    run.append({"kind": "importance", "images": str(options.images), "samples": len(images), "weight": options.weight})
    run.save_checkpoint(replace(state, strategy=strategy.state_dict()))
    run.write_tensors(f"importance/task{state.task - 1:02d}.safetensors", protection.importance)
    added = options.weight * sum(float(value.sum()) for value in measured.values())
    print(f"{run.path}: importance of {len(images)} images added (sum {added:.4g} to {total:.4g} so far)")
    _print_layers(measured)
    for sentence in protection.coverage().lines():
        print(sentence)


# --- what the commands share


def _parser(command: str, description: str | None) -> jsonargparse.ArgumentParser:
    return jsonargparse.ArgumentParser(prog=f"tripletmas {command}", description=description)


def _run(config: dict[str, Any], out: Path, *, write_report: bool = True, go_on: str | None = None) -> None:
    """Train, print the scores, write the report; Ctrl-C says how to go on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run_experiment(config, out)
    except KeyboardInterrupt:
        if not (out / "config.yaml").exists():
            raise  # it came while the data were read: there is no run to go on with
        go_on = go_on or f"tripletmas resume {out}"
        raise KeyboardInterrupt(f"saved up to the last whole epoch; go on with: {go_on}") from None
    _print_comparison([out])
    if write_report:
        print(f"report: {reports.write_report(out)}")


def _run_seeds(
    config: dict[str, Any], out: Path, seeds: Sequence[int] | None, *, write_report: bool, is_single: bool
) -> None:
    """One run, or one for each seed."""
    again = "the same command, which goes on where it stopped"
    if seeds is None:
        _run(config, out, write_report=write_report, go_on=None if is_single else again)
        return
    if (out / "config.yaml").exists():
        raise ValueError(f"{out} holds a single run: choose another --out for several seeds")
    for seed in seeds:
        _run({**config, "seed": seed}, out / f"seed{seed}", write_report=write_report, go_on=again)
    _print_comparison([out])


_Configured = Callable[[sweeps.Chosen], dict[str, Any]]  # the configuration with these values
_Runner = Callable[[dict[str, Any], Path], None]


def _sweep(texts: Sequence[str], out: Path, configured: _Configured, run: _Runner) -> None:
    """A run for every combination of values; all are checked before the first begins."""
    runs = {out / sweeps.folder_of(values): configured(values) for values in sweeps.combinations(texts)}
    _say_what_chooses(next(iter(runs.values())))
    for folder, config in runs.items():
        run(config, folder)
    _print_comparison(list(runs))


def _guided(texts: Sequence[str], trials: int, out: Path, configured: _Configured, run: _Runner) -> None:
    """Runs with the values that optuna chooses."""
    lowest = {option: f"{low:g}" for option, (low, _) in sweeps.ranges(texts).items()}
    _say_what_chooses(configured(lowest))

    def score(values: sweeps.Chosen, number: int) -> float:
        folder = out / f"trial{number:03d}"
        run(configured(values), folder)
        return reports.comparison([folder]).methods[0].average.mean

    best, value = sweeps.guided(texts, trials, score)
    _print_comparison([out / f"trial{number:03d}" for number in range(trials)])
    print(f"best of {trials}: {', '.join(f'{name}={chosen}' for name, chosen in best.items())} ({value:.3f})")


def _say_what_chooses(config: dict[str, Any]) -> None:
    if not config["data"].get("validation"):
        print(
            "the scores of this sweep are on the queries themselves: to choose an option by them, and measure with it "
            "afterwards, sweep with --data.validation true",
            file=sys.stderr,
        )


def _print_comparison(
    directories: Sequence[Path], *, markdown: bool = False, seeds: Sequence[int] | None = None
) -> None:
    found = reports.comparison(directories, seeds=seeds)
    if markdown:
        print(reports.comparison_markdown(found))
    else:
        _console().print(reports.comparison_table(found))


def _console() -> Console:
    """The terminal; where output goes to a file or a pipe, wide enough for any table."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(number) for number in text.strip("[]").split(",")]
    except ValueError:
        raise ValueError(
            f"{option} must be whole numbers with commas between them, such as 0,1,2; got {text!r}"
        ) from None


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


def _name_and_options(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return part["name"], {key: value for key, value in part.items() if key != "name"}


def _chosen(stream: Stream, task: str | None) -> list[int]:
    """The numbers of the tasks that are asked for, by number or by name."""
    if task is None:
        return list(range(len(stream)))
    chosen = [number for number in range(len(stream)) if task == str(number)]
    chosen += [number for number, each in enumerate(stream) if task == each.name]
    if not chosen:
        names = ", ".join(f"{number} ({each.name})" for number, each in enumerate(stream))
        raise ValueError(f"no task {task!r}; there are {names}")
    return chosen[:1]


def _unlabelled(root: str, shape: tuple[int, ...], skip_unreadable: bool) -> LabelledDataset:
    """All images below a folder, in the size and with the channels that the model takes."""
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"the model takes samples of shape {shape}, which are no square images")
    images = ImageFiles(Path(root), find_images(root), size=shape[1], channels=shape[0])
    samples, kept = read_images(images, skip_unreadable=skip_unreadable)
    if not kept:
        raise ValueError(f"{root}: no image in it can be read")
    return LabelledDataset(samples, torch.zeros(len(kept)), ["unlabelled"])


def _print_layers(importance: Params) -> None:
    total = sum(float(value.sum()) for value in importance.values())
    layers: dict[str, float] = {}
    for name, value in importance.items():
        layer = name.rpartition(".")[0] or name
        layers[layer] = layers.get(layer, 0.0) + float(value.sum())
    table = Table(title="where it sits", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("layer")
    table.add_column("share", justify="right")
    for layer, value in layers.items():
        table.add_row(layer, f"{value / total:.1%}")
    _console().print(table)
