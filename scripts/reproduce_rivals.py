#!/usr/bin/env python3
"""MAS and its rivals: every strategy, each at the strength that is best on validation data, on several streams.

    .venv/bin/python scripts/reproduce_rivals.py digits
    .venv/bin/python scripts/reproduce_rivals.py digits omniglot-5 --omniglot FOLDER --jobs 2
    .venv/bin/python scripts/reproduce_rivals.py --all --table > tables.md      # what is there, and what is missing

A strength is chosen by the final average on samples held out of the training data (`data.validation`), from the same
number of values for every strategy; where the best lies at an end, up to three more are tried there. Then the strategy
is run with it on the test queries, with several seeds. Each run's result is a JSON file below --out, named by the hash
of its configuration: runs that are there are not repeated, so the script goes on where it stopped, and the tables grow.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from best_strengths import (
    Config,
    Method,
    Results,
    Setting,
    chosen_strategy,
    curve,
    execute,
    swept,
    tested,
    validated,
    wanted,
)
from options import make_parser
from side_by_side import run_side_by_side
from tables import Cell, Table, keep

ALPHABETS = [  # the first fifteen of thirty
    *["Alphabet_of_the_Magi", "Anglo-Saxon_Futhorc", "Arcadian", "Armenian", "Asomtavruli_(Georgian)", "Balinese"],
    *["Bengali", "Blackfoot_(Canadian_Aboriginal_Syllabics)", "Braille", "Burmese_(Myanmar)", "Cyrillic"],
    *["Early_Aramaic", "Futurama", "Grantha", "Greek"],
]
CONV = {"epochs": 8, "batch_size": 64, "samples_per_class": 4, "freeze_batchnorm": True}
HEADS = {**CONV, "loss_lr": 0.01}  # new heads have to catch up with a trunk that has learned before
SLIM = {"name": "conv4", "width": 32}  # sized to two cores
OMNIGLOT = {"name": "omniglot", "size": 28, "root": "{omniglot}"}
FASHION = {"name": "fashion-mnist", "root": "{fashion_mnist}"}
CLOTHING = {"name": "folder", "root": "{clothing}", "size": 32, "channels": 3}
SEQUENCE = ["digits", {**OMNIGLOT, "groups": ALPHABETS[:5]}, FASHION, {**CLOTHING, "as": "clothing"}]


SETTINGS = {
    "digits": Setting(
        "Digits, 5 tasks of 2 classes; mlp, batch-hard triplet loss, 15 epochs a task",
        {"data": {"name": "digits", "tasks": 5}, "model": "mlp", "training": {"epochs": 15, "batch_size": 32}},
        seeds=(0, 1, 2, 3, 4),
        validation_seeds=(0, 1, 2),
    ),
    "omniglot-5": Setting(
        "Omniglot, the first 15 alphabets as 5 tasks of 3; conv4 of width 32, triplet loss, 8 epochs a task",
        {"data": {**OMNIGLOT, "tasks": 5, "groups": ALPHABETS}, "model": SLIM, "training": CONV},
        memory=2 * 507,
    ),
    "fashion-mnist": Setting(
        "Fashion-MNIST, 5 tasks of 2 classes, 300 images a class; conv4 of width 32, triplet loss, 8 epochs a task",
        {"data": {**FASHION, "tasks": 5, "per_class": 300}, "model": SLIM, "training": CONV},
    ),
    "clothing": Setting(
        "Clothing, photographs at 32x32, 5 tasks of 2 classes; conv4 of width 32, triplet loss, 8 epochs a task",
        {"data": {**CLOTHING, "tasks": 5}, "model": SLIM, "training": CONV},
    ),
    "split-omniglot": Setting(
        "Recognition: Omniglot, the first 15 alphabets as 5 tasks of 3; conv4 of width 32, 8 epochs a task",
        {
            "data": {**OMNIGLOT, "tasks": 5, "groups": ALPHABETS},
            "model": SLIM,
            "training": HEADS,
            "objective": "recognition",
        },
        memory=2 * 507,
    ),
    "sequence": Setting(
        "Recognition: digits, five alphabets of Omniglot, Fashion-MNIST, clothing, a task each, at most 100 images a "
        "class, 1x28x28; "
        "conv4, 8 epochs a task",
        {
            "data": {"name": "sequence", "parts": SEQUENCE, "size": 28, "channels": 1, "per_class": 100},
            "model": SLIM,
            "training": HEADS,
            "objective": "recognition",
        },
        memory=2 * 186,
    ),
    "omniglot": Setting(
        "Omniglot, 30 alphabets as 10 tasks of 3; conv4, batch-hard triplet loss, 8 epochs a task",
        {"data": {**OMNIGLOT, "tasks": 10}, "model": "conv4", "training": CONV},
        memory=2 * 964,
    ),
}


RELATIVE, DECADES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
METHODS = {
    "finetune": Method({"name": "finetune"}),
    "frozen": Method({"name": "frozen"}),
    "slow": Method({"name": "finetune"}, training={"backbone_lr": "0.01x"}),
    "joint": Method({"name": "joint"}),
    "mas": Method({"name": "mas"}, RELATIVE),
    "gram": Method({"name": "gram"}),  # by its default budget
    "mas, raw unit": Method({"name": "mas", "relative": False}, DECADES),
    "mas, logits": Method({"name": "mas", "output": "logits"}, RELATIVE),
    "local_mas": Method({"name": "local_mas"}, RELATIVE),
    "l2": Method({"name": "l2"}, DECADES),
    "ewc": Method({"name": "ewc"}, tuple(1e3 * each for each in DECADES)),
    "si": Method({"name": "si"}, DECADES),
    "distill": Method({"name": "distill"}, RELATIVE),
    "ebll": Method({"name": "ebll"}, DECADES),
    "imm, mean": Method({"name": "imm", "merging": "mean"}),
    "imm, mode": Method({"name": "imm", "merging": "mode"}),
    "imm, magmax": Method({"name": "imm", "merging": "magmax"}),
    "imm+l2, mode": Method({"name": "imm+l2", "imm": {"merging": "mode"}, "l2": {"decay": 0.0}}),
    "replay": Method({"name": "replay"}),
    "mas+distill": Method({"name": "mas+distill"}),
    "mas+replay": Method({"name": "mas+replay"}),
    "mas, batch 32": Method({"name": "mas", "batch_gradients": 32}, RELATIVE),
    "mas, batch 128": Method({"name": "mas", "batch_gradients": 128}, RELATIVE),
}
SUMMARY = {"average": "average", "forgetting": "forgetting", "learning": "plasticity"}
MEANS = {"nearest mean, fresh": "fresh", "compensated": "compensated", "stale": "stale", "ridge": "ridge"}
HEADS_ONLY, METRIC_ONLY = ("mas, logits",), ("mas, batch 32", "mas, batch 128")
SENSITIVITY = {"mas": "mas, relative unit", "mas, raw unit": "mas, raw unit", "ewc": "ewc", "si": "si"}


def applicable(setting: Setting, names: list[str]) -> list[str]:
    """The methods that a setting's objective allows."""
    recognition = setting.config.get("objective") == "recognition"
    return [name for name in names if name not in (METRIC_ONLY if recognition else HEADS_ONLY)]


# --- tables


def table(results: Results, setting: Setting, names: list[str]) -> Table:
    """The table of a setting; what is missing is shown as missing; no rows while there is nothing."""
    recognition = setting.config.get("objective") == "recognition"
    columns = {"method": "name", "strength": "text", "seeds": "text", **dict.fromkeys(SUMMARY, "spread")}
    columns |= {"average - finetune": "change", **(dict.fromkeys(MEANS, "spread") if recognition else {})}
    columns |= {"seconds": "text", "extra memory": "text"}
    rows: list[Mapping[str, Cell]] = []
    strategies = {name: chosen_strategy(results, setting, name) for name in names}
    first = setting.seeds[0]
    tests = {name: tested(setting, METHODS[name], strategy) for name, strategy in strategies.items() if strategy}
    if not any(results.get(runs[first]) for runs in tests.values()):
        return Table(columns, rows, setting.about)
    finetune = tested(setting, METHODS["finetune"], METHODS["finetune"].strategy)
    of_finetune = {seed: results.score(run) for seed, run in finetune.items()}
    for name, strategy in strategies.items():
        found = {seed: results.get(run) for seed, run in tests.get(name, {}).items()}
        done = {seed: each for seed, each in found.items() if each and "summary" in each}
        failed = [each["error"] for each in found.values() if each and "error" in each]
        if strategy is None and METHODS[name].strengths:
            tried = [results.get(each) for s in METHODS[name].strengths for each in swept(setting, METHODS[name], s)]
            failed = (
                [each["error"] for each in tried if each] if all(each and "error" in each for each in tried) else []
            )
        if strategy is None or not done:
            reason = f"failed: {failed[0].partition(':')[0]}" if failed else "missing"
            rows.append({"method": name, "strength": reason})
            continue
        shown = f"{len(done)}, {len(failed)} failed" if failed else str(len(done))
        row: dict[str, Cell] = {"method": name, "strength": _strengths(strategy), "seeds": shown}
        row |= {column: [each["summary"][key] for each in done.values()] for column, key in SUMMARY.items()}
        if name != "finetune":
            row["average - finetune"] = [each["summary"]["average"] - of_finetune[seed] for seed, each in done.items()]
        if recognition:
            row |= {column: _last(done.values(), f"accuracy_{kind}") for column, kind in MEANS.items()}
        row["seconds"] = f"{min(each['seconds'] for each in done.values()):.0f}"  # of the run that was disturbed least
        row["extra memory"] = _memory(next(iter(done.values())))
        rows.append(row)
    return Table(columns, rows, setting.about)


def _last(results: Iterable[Config], metric: str) -> list[float]:
    """The mean over tasks after the last one, of each run."""
    from tripletmas.objectives.scores import Scores

    return [float(Scores.from_json(each["scores"]).matrix(metric, "seen")[-1].mean()) for each in results]


def _strengths(strategy: Config) -> str:
    own = [f"{strategy['strength']:g}"] if "strength" in strategy else []
    parts = [f"{name} {of['strength']:g}" for name, of in strategy.items() if isinstance(of, dict) and "strength" in of]
    return ", ".join(own + parts)


def _memory(result: Config) -> str:
    weights = result["memory_bytes"] / result["weight_bytes"]
    shown = f"{weights:.1f} x weights" if weights >= 0.05 else "none"
    if result["images"]:
        pictures = f"{result['images']} images ({result['image_bytes'] / result['weight_bytes']:.1f} x)"
        return pictures if weights < 0.05 else f"{shown}, {pictures}"
    return shown


def draw(results: Results, settings: list[str], path: Path) -> None:
    """The figure of how much a wrong strength costs."""
    from tripletmas.report.numbers import Spread
    from tripletmas.report.sensitivity import Curve, Panel, draw_sensitivity

    panels = []
    for name in settings:
        setting = SETTINGS[name]
        curves = {}
        for method, label in SENSITIVITY.items():
            found = curve(results, setting, METHODS[method])
            whole = {value: Spread(tuple(each)) for value, each in found.items() if not any(map(math.isnan, each))}
            if whole:
                deviations = [each.deviation or 0.0 for each in whole.values()]
                curves[label] = Curve(list(whole), [each.mean for each in whole.values()], deviations)
        alone = validated(setting, METHODS["finetune"], METHODS["finetune"].strategy)
        finetune = Spread(tuple(results.score(each) for each in alone))
        panels.append(Panel(name, curves, (finetune.mean, finetune.deviation or 0.0)))
    draw_sensitivity(path, panels, score="average score on validation data", bottom=-0.15)


def main() -> None:
    parser = make_parser(__doc__, "runs/rivals", ("omniglot", "fashion-mnist", "clothing"))
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--all", action="store_true", help="all settings")
    parser.add_argument("--methods", default="", help="some of them only, with ; between them")
    parser.add_argument("--figure", type=Path, help="write the figure of sensitivity to the strength there")
    options = parser.parse_args()
    settings = list(SETTINGS) if options.all else options.settings
    names = options.methods.split(";") if options.methods else list(METHODS)
    for what, given, known in (("setting", settings, SETTINGS), ("method", names, METHODS)):
        unknown = [each for each in given if each not in known]
        if unknown or not given:
            parser.error(f"unknown {what} {unknown}: there are {'; '.join(known)}")
    results = Results(options.out, METHODS)
    places = {"omniglot": options.omniglot, "fashion_mnist": options.fashion_mnist, "clothing": options.clothing}
    if not options.table and not options.figure:
        for name in settings:
            setting = SETTINGS[name]
            while runs := wanted(results, setting, applicable(setting, names)):
                print(f"{name}: {len(runs)} runs", flush=True)
                jobs = [(run, results.path(run), places) for run in runs]
                run_side_by_side(execute, jobs, at_once=options.jobs, indent="  ")
    if options.figure:
        draw(results, settings, options.figure)
    for name in settings:
        measured = table(results, SETTINGS[name], applicable(SETTINGS[name], names))
        print(f"## {name}\n\n{measured.text() if measured.rows else 'Missing: no run of it is there yet.'}")
        if measured.rows:
            keep(measured, options.json, f"rivals-{name}", versions=results.versions())


if __name__ == "__main__":
    sys.exit(main())
