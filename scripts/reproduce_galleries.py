#!/usr/bin/env python3
"""Galleries that are never embedded again: strategies x fresh, stale and compensated galleries, several seeds.

    .venv/bin/python scripts/reproduce_galleries.py --tune --omniglot FOLDER --fashion-mnist FOLDER --jobs 2
    .venv/bin/python scripts/reproduce_galleries.py --omniglot FOLDER --fashion-mnist FOLDER --jobs 2
    .venv/bin/python scripts/reproduce_galleries.py --table

--tune trains a grid of strengths on samples held out of the training data (`data.validation`), seed 0. The strengths
of distill, and of mas+distill, which is the preset no-reindex, are those whose compensated gallery was best there by
any map, among those whose fresh recall was no worse than finetune's. Each run is a run directory below --out, with its
scores on all galleries beside it; runs that are done are not repeated, so the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from options import make_parser
from side_by_side import run_side_by_side
from tables import Cell, Table, keep, mean_of

Config = dict[str, Any]
MODEL = {"name": "conv4", "width": 32}
TRAINING = {"epochs": 8, "batch_size": 64, "samples_per_class": 4, "freeze_batchnorm": True}
SETTINGS: dict[str, tuple[str, Config]] = {
    "omniglot": (
        "Omniglot, 30 alphabets as 10 tasks of 3",
        {"name": "omniglot", "size": 28, "tasks": 10},
    ),
    "fashion-mnist": (
        "Fashion-MNIST, 5 tasks of 2 classes, 300 images a class",
        {"name": "fashion-mnist", "tasks": 5, "per_class": 300},
    ),
}
GRID: dict[str, Config] = {
    "finetune": {"name": "finetune"},
    **{f"distill {d}": {"name": "distill", "strength": d} for d in (10, 30, 100, 300)},
    **{
        f"mas {m} + distill {d}": {"name": "mas+distill", "mas": {"strength": m}, "distill": {"strength": d}}
        for m, d in ((0.1, 10), (0.03, 30), (0.1, 30), (0.1, 100), (0.3, 100), (0.3, 300))
    },
}
# as --tune chose them: the strength of distill, those of mas and distill together
CHOSEN = {"omniglot": (30, (0.1, 10)), "fashion-mnist": (100, (0.3, 100))}
METHODS = ("finetune", "frozen", "mas", "gram", "distill", "no-reindex", "joint")
MAPS = ("sdc", "linear", "mlp")
GALLERIES = ("fresh", "stale", *MAPS)


def strategy_of(method: str, data: str) -> Config:
    """The strategy of a row; that of no-reindex is the preset's, mas+distill, with the strengths of the data set."""
    from tripletmas.runs.arguments import read_yaml

    distill, (mas, with_mas) = CHOSEN[data]
    if method == "no-reindex":
        preset = read_yaml(method)["strategy"]
        return {**preset, "mas": {"strength": mas}, "distill": {"strength": with_mas}}
    return {"name": method, **({"strength": distill} if method == "distill" else {})}


def run_one(job: tuple[str, Config, int, bool, str, Path]) -> str:
    """Train, unless that is done, and score the last model on every gallery."""
    data, strategy, seed, validation, root, out = job
    from tripletmas.runs.experiment import run_experiment

    result = out.with_suffix(".json")
    if not result.exists():
        place = {"root": root, "validation": validation, **SETTINGS[data][1]}
        config = {"data": place, "model": MODEL, "training": TRAINING, "strategy": strategy, "seed": seed}
        config["gallery"] = {"compensate": "linear"}
        run_experiment(config, out)
        found = scored(out)
        aside = result.with_suffix(".part")
        aside.write_text(json.dumps(found), encoding="utf-8")
        aside.rename(result)
    found = json.loads(result.read_text(encoding="utf-8"))
    return f"{data} {out.parent.name} seed {seed}: " + ", ".join(f"{g} {found['seen'][g]:.3f}" for g in GALLERIES)


def scored(out: Path) -> Config:
    """scope -> gallery -> the average of recall@1 over all tasks, by the last model; each map from the same run."""
    from tripletmas.objectives.embedded import embed_tasks
    from tripletmas.objectives.retrieval.objective import score_embedded
    from tripletmas.runs.directory import RunDirectory
    from tripletmas.runs.experiment import load_trained
    from tripletmas.runs.galleries import Galleries

    run = RunDirectory.open(out)
    experiment, last = load_trained(run)
    galleries = Galleries(MAPS)
    galleries.restore(run, experiment.model, experiment.stream, last + 1)
    embedded = embed_tasks(experiment.model, experiment.stream, experiment.objective.embed)
    values = score_embedded(embedded, galleries.parts).values
    return {
        scope: {g: fmean(values[scope if g == "fresh" else f"{scope}_{g}"]["recall@1"]) for g in GALLERIES}
        for scope in ("seen", "task")
    }


def folder(options: argparse.Namespace, data: str, method: str, seed: int, *, validation: bool) -> Path:
    part = "validation" if validation else "test"
    return options.out / part / data / method.replace(" ", "") / f"seed{seed}"


def table(options: argparse.Namespace, data: str, methods: list[str], seeds: list[int], *, validation: bool) -> Table:
    """Recall@1 on everything seen after the last task, mean over tasks, mean ± standard deviation over seeds."""
    columns = {"strategy": "name", "seeds": "text", **dict.fromkeys(GALLERIES, "spread")}
    rows: list[Mapping[str, Cell]] = []
    for method in methods:
        files = [folder(options, data, method, seed, validation=validation).with_suffix(".json") for seed in seeds]
        found = [json.loads(file.read_text(encoding="utf-8"))["seen"] for file in files if file.exists()]
        if not found:
            rows.append({"strategy": method, "seeds": "missing"})
            continue
        row: dict[str, Cell] = {"strategy": method, "seeds": str(len(found))}
        row |= {gallery: [each[gallery] for each in found] for gallery in GALLERIES}
        best = max(mean_of(row[name]) for name in MAPS) / mean_of(row["fresh"])
        rows.append({**row, "best compensated / fresh": f"{best:.1%}"})
    about = f"{SETTINGS[data][0]}; conv4 of width 32, triplet loss, 8 epochs a task"
    return Table({**columns, "best compensated / fresh": "text"}, rows, about)


def main() -> None:
    parser = make_parser(__doc__, "runs/galleries", ("omniglot", "fashion-mnist"))
    parser.add_argument("data", nargs="*", help="omniglot, fashion-mnist; none for both")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tune", action="store_true", help="the grid of strengths on validation data")
    options = parser.parse_args()
    data = options.data or list(SETTINGS)
    methods = list(GRID) if options.tune else options.methods.split(",")
    for what, given, known in (("data", data, SETTINGS), ("method", methods, {**GRID, **dict.fromkeys(METHODS)})):
        unknown = [each for each in given if each not in known]
        if unknown:
            parser.error(f"unknown {what} {unknown[0]!r}: there are {', '.join(known)}")
    seeds = [0] if options.tune else [int(seed) for seed in options.seeds.split(",")]
    if not options.table:
        roots = {"omniglot": options.omniglot, "fashion-mnist": options.fashion_mnist}
        jobs = []
        for name, seed, method in ((n, s, m) for n in data for s in seeds for m in methods):
            strategy = GRID[method] if options.tune else strategy_of(method, name)
            out = folder(options, name, method, seed, validation=options.tune)
            jobs.append((name, strategy, seed, options.tune, roots[name], out))
        run_side_by_side(run_one, jobs, at_once=options.jobs)
    for name in data:
        measured = table(options, name, methods, seeds, validation=options.tune)
        print(f"\n## {name}\n\n{measured.text()}")
        keep(measured, options.json, f"galleries-{'validation-' if options.tune else ''}{name}")


if __name__ == "__main__":
    sys.exit(main())
