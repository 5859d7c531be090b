#!/usr/bin/env python3
"""What collapses, and what helps: networks from scratch, by what a triplet loss learns from.

    .venv/bin/python scripts/reproduce_collapse.py --folder FOLDER_OF_PHOTOGRAPHS --fashion-mnist FOLDER

In a column: the mean recall@1 right after each task in its own gallery; in brackets how many of the tasks end in a
collapse (objectives/collapse.py), of batches or of queries. "hardest" is the loss that never softens, "default" softens
where it is stuck, "all" learns from all triplets from the start, "warm" does so with rates that rise at first.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from tables import Table, keep

from tripletmas.objectives.objective import Objective
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import run_experiment

Config = dict[str, Any]
CANDIDATES: dict[str, Config] = {"hardest": {}, "default": {}, "all": {"mining": "all"}, "warm": {"mining": "all"}}
CONV = {"epochs": 8, "batch_size": 64, "samples_per_class": 4, "freeze_batchnorm": True}


def settings(options: argparse.Namespace) -> dict[str, Config]:
    """name -> data, model, training."""
    photographs = {"name": "folder", "root": options.folder, "size": 48, "tasks": 2}
    epochs = {"epochs": options.epochs}
    known: dict[str, Config] = {"mlp, digits": {"data": {"name": "digits", "tasks": 5}, "model": "mlp", "training": {}}}
    if options.fashion_mnist:
        clothes = {"name": "fashion-mnist", "root": options.fashion_mnist, "tasks": 5, "per_class": 300}
        known["conv4, Fashion-MNIST"] = {"data": clothes, "model": {"name": "conv4", "width": 32}, "training": CONV}
    if options.folder:
        for name in ("mobilenet_v3_small", "resnet18"):
            known[f"{name}, photographs"] = {"data": photographs, "model": name, "training": epochs}
            frozen = {**epochs, "freeze_batchnorm": True}
            known[f"{name}, batch norm frozen"] = {"data": photographs, "model": name, "training": frozen}
    return known


def measured(setting: Config, candidate: str, seed: int) -> tuple[float, int, int]:
    """(mean recall@1 right after each task in its own gallery, tasks that end collapsed, tasks)."""
    if candidate == "warm":
        setting = {**setting, "training": {**setting["training"], "warmup": 0.15}}
    config = {**setting, "loss": {"name": "triplet", **CANDIDATES[candidate]}, "strategy": "finetune", "seed": seed}
    soften = Retrieval.soften
    if candidate == "hardest":
        Retrieval.soften = Objective.soften
    try:
        with tempfile.TemporaryDirectory() as folder:
            run_experiment(config, Path(folder) / "run")
            tasks = RunDirectory.open(Path(folder) / "run").records("task")
    finally:
        Retrieval.soften = soften
    collapsed = sum(bool(task.get("collapse", {}).keys() - {"chance"}) for task in tasks)
    return fmean(task["guess"]["score"] for task in tasks), collapsed, len(tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="photographs, one folder a class")
    parser.add_argument("--fashion-mnist", help="where Fashion-MNIST lies")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=12, help="of the networks on photographs")
    parser.add_argument("--candidates", default="hardest,default,all", help=f"of {', '.join(CANDIDATES)}")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", type=Path, help="a folder: the tables as JSON, for fill_tables.py")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    candidates = options.candidates.split(",")
    rows: list[dict[str, str]] = []
    for name, setting in settings(options).items():
        if options.only not in name:
            continue
        for seed in map(int, options.seeds.split(",")):
            found = [measured(setting, candidate, seed) for candidate in candidates]
            cells = [f"{score:.3f} ({collapsed} of {tasks})" for score, collapsed, tasks in found]
            rows.append({"network and data": name, "seed": str(seed), **dict(zip(candidates, cells, strict=True))})
            print(*rows[-1].values(), sep=", ", flush=True)
    about = "Mean recall@1 right after each task among its own queries, and how many tasks end collapsed"
    table = Table({"network and data": "name", **dict.fromkeys(("seed", *candidates), "text")}, rows, about)
    print(table.text())
    keep(table, options.json, "collapse")


if __name__ == "__main__":
    main()
