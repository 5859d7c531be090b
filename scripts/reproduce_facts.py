#!/usr/bin/env python3
"""The fact experiment of the MAS paper: 4 tasks of facts, mAP and top-5 of each batch B1..B4, several strategies.

    .venv/bin/python scripts/reproduce_facts.py --tune --jobs 2
    .venv/bin/python scripts/reproduce_facts.py --nlvr FOLDER --jobs 2
    .venv/bin/python scripts/reproduce_facts.py --adaptation --jobs 2
    .venv/bin/python scripts/reproduce_facts.py --table

FOLDER holds nlvr-facts.zip, unpacked or not. --tune trains a grid of strengths of mas on images held out of the
training data, seed 0; the strength is the one with the best average mAP at the end. --adaptation measures importance
after the first task on unlabelled images of a part of its facts, of all of them, and of the part alone by the masked
variant, and learns the second task under each. Runs that are done are not repeated, so the script goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import zipfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

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
GRID = (0.1, 0.3, 1.0, 3.0)
CHOSEN: dict[str, float] = {}  # as --tune chose them
METHODS = ("finetune", "frozen", "mas", "joint")
PARTS = ("embedding", "parts")


def run_one(job: tuple[str, Config, int, bool, str, Path]) -> str:
    """Train one run, unless that is done."""
    import torch

    from tripletmas.allocator import keep_freed_memory
    from tripletmas.experiment import run_experiment

    name, strategy, seed, validation, nlvr, out = job
    torch.set_num_threads(1)
    keep_freed_memory()
    result = out.with_suffix(".json")
    if not result.exists():
        data = {**SETTINGS[name][1], "validation": validation, **place(name, nlvr, out)}
        training = TRAINING if name.startswith("shapes") else {**TRAINING, "epochs": 20}
        scores = run_experiment({"data": data, "training": training, "strategy": strategy, "seed": seed}, out)
        written = result.with_suffix(".part")
        written.write_text(json.dumps(scores.to_json()), encoding="utf-8")
        written.rename(result)
    last = last_row(json.loads(result.read_text(encoding="utf-8")), "map")
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


def table(options: argparse.Namespace, name: str, methods: list[str], seeds: list[int], *, validation: bool) -> str:
    """B1..B4 after the last task, their mean, forgetting, top-5; mean ± standard deviation over seeds."""
    from tripletmas.forgetting import Scores, forgetting

    head = ["strategy", "seeds", "B1", "B2", "B3", "B4", "mean mAP", "old batches", "forgetting", "top-5", "own top-5"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    for method in methods:
        files = [
            folder_of(options, name, method.replace(" ", ""), seed, validation=validation).with_suffix(".json")
            for seed in seeds
        ]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
        if not found:
            lines.append(f"| {method} | missing |" + " |" * (len(head) - 2))
            continue
        rows = [last_row(each, "map") for each in found]
        columns = [[row[task] for row in rows] for task in range(4)]
        columns += [[fmean(row) for row in rows], [fmean(row[:-1]) for row in rows]]
        columns.append([forgetting(Scores.from_json(each).matrix("map", "seen")) for each in found])
        columns += [[fmean(last_row(each, "top@5", scope)) for each in found] for scope in ("seen", "task")]
        lines.append(f"| {method} | {len(found)} | {' | '.join(spread(column) for column in columns)} |")
    return f"{SETTINGS[name][0]}\n\n" + "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"{', '.join(SETTINGS)}; none for all that can be read")
    parser.add_argument("--nlvr", default=None, help="the folder of nlvr-facts.zip")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/facts"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--tune", action="store_true", help="the grid of strengths on validation data")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    names = options.data or [name for name in SETTINGS if options.nlvr or options.table or name.startswith("shapes")]
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        parser.error(f"unknown data {unknown[0]!r}: there are {', '.join(SETTINGS)}")
    if not options.table and not options.nlvr and any(name.startswith("nlvr") for name in names):
        parser.error("--nlvr says where nlvr-facts.zip is")
    methods = [f"mas {strength:g}" for strength in GRID] if options.tune else options.methods.split(",")
    seeds = [0] if options.tune else [int(seed) for seed in options.seeds.split(",")]
    if not options.table:
        jobs = []
        for name, seed, method in ((n, s, m) for n in names for s in seeds for m in methods):
            kind, _, strength = method.partition(" ")
            strategy: Config = {"name": kind}
            if kind == "mas":
                strategy["strength"] = float(strength) if strength else CHOSEN.get(name, 0.3)
            out = folder_of(options, name, method.replace(" ", ""), seed, validation=options.tune)
            jobs.append((name, strategy, seed, options.tune, options.nlvr, out))
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            for line in pool.imap_unordered(run_one, jobs):
                print(line, flush=True)
    for name in names:
        print(f"\n## {name}\n\n{table(options, name, methods, seeds, validation=options.tune)}")


if __name__ == "__main__":
    sys.exit(main())
