#!/usr/bin/env python3
"""The main job on real data that needs no download: four strategies on handwritten digits, 5 tasks of 2 classes."""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from pathlib import Path

from rich.console import Console

from tripletmas import report
from tripletmas.runs.arguments import read_yaml
from tripletmas.runs.experiment import run_experiment

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = ("finetune", "frozen", "mas", "joint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="rewritten if it is there")
    parser.add_argument("--seeds", default="0,1,2", help="each strategy is trained once for each")
    parser.add_argument("--epochs", type=int, help="epochs a task")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    console = Console()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    console.print(
        f"1,797 handwritten digits, 5 tasks of 2 classes learned one after the other, seeds {options.seeds}\n"
    )
    config = read_yaml(ROOT / "datasets" / "digits" / "mas.yaml")
    if options.epochs:
        config["training"]["epochs"] = options.epochs
    began = time.perf_counter()
    runs = [options.out / strategy for strategy in STRATEGIES]
    for strategy, out in zip(STRATEGIES, runs, strict=True):
        if (out / "config.yaml").exists() or any(out.glob("seed*/config.yaml")):
            shutil.rmtree(out)
        part = config["strategy"] if strategy == "mas" else {"name": strategy}
        for seed in seeds:
            run_experiment({**config, "strategy": part, "seed": seed}, out / f"seed{seed}")
        console.print(f"  {strategy:9} trained, {time.perf_counter() - began:.0f} s so far")
    console.print()
    console.print(report.comparison_table(report.comparison(runs)))
    console.print(
        "finetune protects nothing; frozen learns the first task only; mas holds the weights that earlier tasks need;\n"
        "joint trains on all data so far, which the others do not have.\n",
        soft_wrap=True,
    )
    for out in runs:
        report.write_report(out / f"seed{seeds[0]}")
    page = report.write_comparison(runs, options.out / "comparison")
    console.print(f"report: {page}", soft_wrap=True)
    console.print(f"and of one run: {runs[2] / f'seed{seeds[0]}' / 'report' / 'report.html'}", soft_wrap=True)


if __name__ == "__main__":
    main()
