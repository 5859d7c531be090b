#!/usr/bin/env python3
"""The fact experiment of the MAS paper: 4 tasks of facts, mAP and top-5 of each batch B1..B4, several strategies.

    .venv/bin/python scripts/reproduce_facts.py --tune --jobs 2
    .venv/bin/python scripts/reproduce_facts.py --nlvr FOLDER --jobs 2
    .venv/bin/python scripts/reproduce_facts.py --adaptation --jobs 2
    .venv/bin/python scripts/reproduce_facts.py --table

FOLDER holds nlvr-facts.zip, unpacked or not. --tune trains a grid of strengths of mas and distill on images held out of
the training data, seed 0; the strength is the one with the best average mAP at the end. A method is given another
strength as in --methods "distill 3". --adaptation is the paper's sports test: shapes-facts in two tasks (semantic
split); after the first, importance is measured on unlabelled training images of a part of its facts (those of half of
its subjects, drawn by the seed), on as many images of all of it, and on all; from the same weights the second task is
then learned under each. Runs that are done are not repeated, so the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from options import make_parser
from side_by_side import run_side_by_side
from tables import Cell, Table, keep

Config = dict[str, Any]
TRAINING = {"epochs": 8}
SETTINGS: dict[str, tuple[str, Config]] = {
    f"{name}-{split}": (f"{title}, {split} split, 4 tasks", {**data, "split": split, "tasks": 4})
    for name, title, data in (
        ("shapes", "shapes-facts, 4000 images", {"name": "shapes-facts", "images": 4000}),
        ("nlvr", "nlvr-facts", {"name": "facts"}),
    )
    for split in ("random", "semantic")
}
GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# as --tune chose them
CHOSEN = {
    "mas": {"shapes-random": 0.3, "shapes-semantic": 0.1, "nlvr-random": 0.3, "nlvr-semantic": 10.0},
    "distill": {"shapes-random": 1.0, "shapes-semantic": 3.0, "nlvr-random": 10.0, "nlvr-semantic": 10.0},
}
# mas-parts: importance of the parts that facts have
METHODS = ("finetune", "frozen", "mas", "mas-parts", "distill", "joint")
STRENGTHS = (0.3, 1.0)  # of the adaptation
TOP = {"top-5": "seen", "top-5, own batch": "task"}
STORED = {"stale": "seen_stale", "compensated": "seen_compensated"}


def run_one(job: tuple[str, Config, int, bool, str, Path]) -> str:
    """Train one run, unless that is done."""
    from tripletmas.runs.experiment import run_experiment

    name, strategy, seed, validation, nlvr, out = job
    result = out.with_suffix(".json")
    if not result.exists():
        data = {**SETTINGS[name][1], "validation": validation, **place(name, nlvr, out)}
        training = TRAINING if name.startswith("shapes") else {**TRAINING, "epochs": 10}
        scores = run_experiment({"data": data, "training": training, "strategy": strategy, "seed": seed}, out)
        written = result.with_suffix(".part")
        written.write_text(json.dumps(scores.to_json()), encoding="utf-8")
        written.rename(result)
    last = last_row(read(out), "map")
    return f"{name} {out.parent.name} seed {seed}: mAP of each task at the end {[round(v, 3) for v in last]}"


def place(name: str, nlvr: str, out: Path) -> Config:
    """Where the images of nlvr-facts are; the list is taken out of the archive."""
    if not name.startswith("nlvr"):
        return {}
    folder = Path(nlvr)
    archive = folder / "nlvr-facts.zip"
    if (folder / "facts.csv").exists():
        return {"csv": str(folder / "facts.csv"), "images": str(folder)}
    listed = out.parents[2] / "nlvr-facts.csv"
    if not listed.exists():
        listed.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive) as packed:
            listed.write_bytes(packed.read("facts.csv"))
    return {"csv": str(listed), "images": str(archive)}


def last_row(scores: Config, metric: str, gallery: str = "seen") -> list[float]:
    return [float(value) for value in scores["matrices"][gallery][metric][-1]]


def folder_of(options: argparse.Namespace, name: str, method: str, seed: int, *, validation: bool) -> Path:
    return options.out / ("validation" if validation else "test") / name / method / f"seed{seed}"


def table(options: argparse.Namespace, name: str, methods: list[str], seeds: list[int], *, validation: bool) -> Table:
    """A row for each method, with the numbers of all seeds after the last task.

    mAP on the images of all batches as the last model embeds them, for each batch of facts, their mean, and that of all
    but the last; how far it fell; the share of an image's facts within its five best; mAP of combinations that no
    training image shows; and mean mAP in galleries as they were stored, and as they were moved since.
    """
    head = ["B1", "B2", "B3", "B4", "mean mAP", "old", "forgetting", "top-5", "top-5, own batch", "never shown"]
    head += list(STORED)
    told: list[Mapping[str, Cell]] = []
    for method in methods:
        folders = [folder_of(options, name, method.replace(" ", ""), seed, validation=validation) for seed in seeds]
        found = [(each, read(each)) for each in folders if each.with_suffix(".json").exists()]
        kind, _, strength = method.partition(" ")
        chosen = CHOSEN.get(kind.removesuffix("-parts"))
        row: dict[str, Cell] = {"strategy": kind.replace("-parts", ", of parts")}
        row |= {"strength": strength or f"{chosen[name]:g}"} if chosen else {}
        if found:
            row["seeds"] = str(len(found))
            measured = [numbers_of(scores, folder) for folder, scores in found]
            row |= {each: [of[each] for of in measured] for each in head if all(each in of for of in measured)}
        else:
            row["seeds"] = "missing"
        told.append(row)
    columns = {"strategy": "name", "strength": "text", "seeds": "text", **dict.fromkeys(head, "spread")}
    return Table(columns, told, SETTINGS[name][0])


def read(run: Path) -> Config:
    """The scores of a run that is done."""
    return json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))


def numbers_of(scores: Config, run: Path) -> dict[str, float]:
    """Column -> number, of one run."""
    from tripletmas.objectives.scores import Scores, forgetting
    from tripletmas.runs.directory import RunDirectory, is_run

    last = last_row(scores, "map")
    found = {f"B{task + 1}": value for task, value in enumerate(last)}
    found |= {"mean mAP": fmean(last), "old": fmean(last[:-1])}
    found["forgetting"] = float(forgetting(Scores.from_json(scores).matrix("map", "seen")))
    found |= {column: fmean(last_row(scores, "top@5", of)) for column, of in TOP.items()}
    found |= {column: fmean(last_row(scores, "map", of)) for column, of in STORED.items() if of in scores["matrices"]}
    unseen = RunDirectory.open(run).records("task")[-1].get("unseen") if is_run(run) else None
    return found | ({"never shown": unseen["map"]} if unseen else {})


def adapt(job: tuple[int, Path]) -> str:
    """One seed of the adaptation: what is left of the part, of the other old facts, and what was learned anew."""
    import copy

    import torch
    from reproduce_adaptation import Protected

    import tripletmas as tm
    from tripletmas.objectives.facts.fact import parse_fact
    from tripletmas.runs.experiment import build
    from tripletmas.runs.galleries import GalleryConfig

    seed, path = job
    if path.exists():
        return f"adaptation seed {seed}: done before"
    data = {"name": "shapes-facts", "images": 4000, "unseen_images": 0, "split": "semantic", "tasks": 2}
    made = build({"data": data, "training": TRAINING, "strategy": "finetune", "seed": seed})
    old, new = made.stream
    config, gallery = made.training, GalleryConfig(compensate=None)
    tm.train_stream(made.model, (old,), made.strategy, made.objective, config, gallery=gallery)

    names = old.train.class_names
    subjects = sorted({parse_fact(names[label]).subject for label in old.classes})
    order = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(seed))
    chosen = {subjects[i] for i in order[: len(subjects) // 2].tolist()}
    of_part = tuple(label for label in old.classes if parse_fact(names[label]).subject in chosen)
    others = tuple(label for label in old.classes if label not in of_part)
    halves = tuple(
        tm.Task(name, classes, old.train.of_classes(classes), old.query.of_classes(classes))
        for name, classes in (("part", of_part), ("others", others))
    )
    stream = (*halves, new)
    part, everything = halves[0].train.plain(), old.train.plain()
    drawn = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))[: len(part)]
    images = {"all": everything, "as many of all": everything.subset(drawn), "the part": part}
    importances = {name: tm.mas_importance(made.model, of.loader(), relative=True) for name, of in images.items()}
    rows = []
    for name, strength in [("finetune", 0.0), *((n, s) for s in STRENGTHS for n in importances)]:
        strategy = Protected(importances.get(name, {}), strength)
        scores = tm.train_stream(copy.deepcopy(made.model), stream, strategy, made.objective, config, gallery=gallery)
        matrix = scores.matrix("map", "seen")
        rows.append(
            {"measured": name, "strength": strength, "before": matrix[1].tolist(), "after": matrix[-1].tolist()}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"subjects": sorted(chosen), "images": {name: len(of) for name, of in images.items()}, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return f"adaptation seed {seed}: {len(of_part)} facts of {', '.join(sorted(chosen))}; {len(others)} others"


def adaptation_table(out: Path, seeds: list[int]) -> Table:
    """mAP at the end, mean ± standard deviation over seeds, and what importance from the part gains within a seed."""
    files = [out / "adaptation" / f"seed{seed}.json" for seed in seeds]
    found = [json.loads(file.read_text(encoding="utf-8"))["rows"] for file in files if file.exists()]
    head = ("part", "other old facts", "new task")
    told: list[Mapping[str, Cell]] = []
    for number, row in enumerate(found[0] if found else []):
        columns = [[rows[number]["after"][i] for rows in found] for i in range(3)]
        own = [
            next(r for r in rows if r["measured"] == "the part" and r["strength"] == row["strength"])["after"][0]
            if row["strength"]
            else float("nan")
            for rows in found
        ]
        cells: dict[str, Cell] = {"importance from": row["measured"], "strength": f"{row['strength']:g}"}
        cells |= dict(zip(head, columns, strict=True))
        if row["measured"] not in ("finetune", "the part"):
            cells["part: the part - this"] = [mine - theirs for mine, theirs in zip(own, columns[0], strict=True)]
        told.append(cells)
    columns_of = {"importance from": "name", "strength": "text", **dict.fromkeys(head, "spread")}
    return Table({**columns_of, "part: the part - this": "change"}, told, f"adaptation, {len(found)} seeds")


def main() -> None:
    parser = make_parser(__doc__, "runs/facts")
    parser.add_argument("data", nargs="*", help=f"{', '.join(SETTINGS)}; none for all that can be read")
    parser.add_argument("--nlvr", default=None, help="the folder of nlvr-facts.zip")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tune", action="store_true", help="the grid of strengths on validation data")
    parser.add_argument("--adaptation", action="store_true", help="importance from unlabelled images of a part")
    options = parser.parse_args()
    names = options.data or [name for name in SETTINGS if options.nlvr or options.table or name.startswith("shapes")]
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        parser.error(f"unknown data {unknown[0]!r}: there are {', '.join(SETTINGS)}")
    if not options.table and not options.nlvr and any(name.startswith("nlvr") for name in names):
        parser.error("--nlvr says where nlvr-facts.zip is")
    if options.adaptation:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        if not options.table:
            jobs = [(seed, options.out / "adaptation" / f"seed{seed}.json") for seed in seeds]
            run_side_by_side(adapt, jobs, at_once=options.jobs)
        measured = adaptation_table(options.out, seeds)
        print(measured.text())
        keep(measured, options.json, "facts-adaptation")
        return
    methods = options.methods.split(",")
    unknown = [method for method in methods if method.partition(" ")[0] not in METHODS]
    if unknown:
        parser.error(f"unknown method {unknown[0]!r}: there are {', '.join(METHODS)}")
    if options.tune:
        methods = [f"{method} {strength:g}" for method in methods if method in CHOSEN for strength in GRID]
    seeds = [0] if options.tune else [int(seed) for seed in options.seeds.split(",")]
    if not options.table:
        jobs = []
        for name, seed, method in ((n, s, m) for n in names for s in seeds for m in methods):
            kind, _, strength = method.partition(" ")
            strategy: Config = {"name": kind.removesuffix("-parts")}
            if strategy["name"] in CHOSEN:
                strategy["strength"] = float(strength) if strength else CHOSEN[strategy["name"]][name]
            if kind == "mas-parts":
                strategy["output"] = "parts"
            out = folder_of(options, name, method.replace(" ", ""), seed, validation=options.tune)
            jobs.append((name, strategy, seed, options.tune, options.nlvr, out))
        run_side_by_side(run_one, jobs, at_once=options.jobs)
    for name in names:
        measured = table(options, name, methods, seeds, validation=options.tune)
        print(f"\n## {name}\n\n{measured.text()}")
        keep(measured, options.json, f"facts-{'validation-' if options.tune else ''}{name}")


if __name__ == "__main__":
    sys.exit(main())
