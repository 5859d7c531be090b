#!/usr/bin/env python3
"""Forecasts against measurements: what updates do to stored vectors, told without old images, and then measured.

    .venv/bin/python scripts/reproduce_forecast.py digits
    .venv/bin/python scripts/reproduce_forecast.py --omniglot FOLDER --fashion-mnist FOLDER --clothing FOLDER
    .venv/bin/python scripts/reproduce_forecast.py --table --figure docs/forecast.png

Each run is a run directory below --out, with its forecasts beside it; runs that are done are not repeated, so that the
script goes on where it stopped. The constants in `tripletmas/runs/forecast.py` (CALIBRATION, and MARGIN for strategies
that hold layers) are chosen on the runs of seed 0 (--calibrate prints them) and judged on those of seed 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from best_strengths import placed
from options import make_parser
from reproduce_rivals import SETTINGS
from side_by_side import run_side_by_side
from tables import Cell, Table, keep

Config = dict[str, Any]
DATA = ("digits", "omniglot-5", "fashion-mnist", "clothing")
STRATEGIES: dict[str, Config] = {
    "finetune": {"name": "finetune"},
    "distill": {"name": "distill", "strength": 10.0},
    "gram": {"name": "gram", "budget": 0.01},
}
GALLERIES = ("stale", "compensated", "fresh")
CHOSEN_ON, JUDGED_ON = 0, 1
INSIDE = 0.92  # a little more than nine in ten of the runs on which constants are chosen
RAW = dict.fromkeys(GALLERIES, (0.0, 0.0))


def run_one(job: tuple[str, str, int, dict[str, str], Path]) -> str:
    """Train, unless that is done, and tell what each update did, beside what was measured."""
    data, strategy, seed, places, out = job
    from tripletmas.runs.experiment import run_experiment

    result = out.with_suffix(".json")
    if not result.exists():
        config = {**SETTINGS[data].config, "strategy": STRATEGIES[strategy], "gallery": {"compensate": "linear"}}
        run_experiment(placed({**config, "seed": seed}, places), out)
        aside = result.with_suffix(".part")
        aside.write_text(json.dumps(told(out)), encoding="utf-8")
        aside.rename(result)
    steps = json.loads(result.read_text(encoding="utf-8"))
    last = ", ".join(f"{g} {interval(steps[-1], g)[1]:.2f} ({fmean(steps[-1]['measured'][g]):.2f})" for g in GALLERIES)
    return f"{data} {strategy} seed {seed}: after the last task {last}"


def told(out: Path) -> list[Config]:
    """For each update: what imagined images find after it and before it, and what was measured."""
    from tripletmas.objectives.scores import Scores
    from tripletmas.runs.directory import RunDirectory
    from tripletmas.runs.experiment import load_trained
    from tripletmas.runs.forecast import allowed_scale, by_itself, forecast_of, measured_of, simulated_before
    from tripletmas.runs.imagined import parts_of_run
    from tripletmas.runs.moves import shares_of
    from tripletmas.runs.simulated import simulated

    run = RunDirectory.open(out)
    experiment, last = load_trained(run)
    scores = Scores.from_json(run.scores())
    matrices = {g: scores.matrix("recall@1", "seen" if g == "fresh" else f"seen_{g}") for g in GALLERIES}
    steps = []
    for after in range(1, last + 1):
        parts, shares, measured = parts_of_run(run, experiment, after), shares_of(run, after), measured_of(run, after)
        scale = allowed_scale([part for part in parts if not part.is_current], shares)
        drift = next(each["drift"] for each in run.records("task") if each["task"] == after)
        steps.append(
            {
                "after": after,
                "alone": {name: list(each) for name, each in by_itself(parts, scale, calibration=RAW).items()},
                "knows": bool(shares),
                "now": simulated(parts, scale),
                "was": simulated_before(parts, measured),
                "before": measured.before,
                "new": measured.new,
                "measured": {name: matrix[after, : after + 1].tolist() for name, matrix in matrices.items()},
                "cosine": [forecast_of(parts, shares=shares).cosine, 1 - fmean(fmean(each) for each in drift)],
            }
        )
    return steps


# --- what was told against what was measured


def interval(step: Config, gallery: str) -> tuple[float, float, float]:
    """(low, middle, high) as the package tells it."""
    from tripletmas.runs.forecast import CALIBRATION, MARGIN

    return by_change(step, gallery, MARGIN) if step["knows"] else alone(step, gallery, CALIBRATION[gallery])


def alone(step: Config, gallery: str, constants: tuple[float, float]) -> tuple[float, float, float]:
    """What imagined images tell by themselves, with constants: what is added, how much wider it is at each end."""
    (low, middle, high), (shift, margin) = step["alone"][gallery], constants
    ends = (low + shift - margin, middle + shift, high + shift + margin)
    low, middle, high = (min(max(each, 0.0), 1.0) for each in ends)
    return low, middle, high


def by_change(step: Config, gallery: str, margin: float) -> tuple[float, float, float]:
    """What their change tells, added to what was measured before."""
    from tripletmas.runs.forecast import Measured, changed

    measured = Measured(step["before"], step["new"])
    found = changed(gallery, step["now"], step["was"][gallery], measured, margin=margin)
    if found is None:
        raise ValueError(f"the run was not measured before the update by task {step['after']}")
    return found


def chosen(steps: list[Config], gallery: str) -> tuple[float, float]:
    """The constants for which the interval is narrowest, of those with which nine of ten measurements lie inside."""
    found = []
    for shift in (0.005 * each for each in range(-20, 31)):
        off = []
        for step in steps:
            (low, _, high), measured = step["alone"][gallery], fmean(step["measured"][gallery]) - shift
            off.append(max(measured - high, low - measured, 0.0))
        found.append((most_of(off), shift))
    margin, shift = min(found)
    return round(shift, 3), round(margin, 3)


def chosen_margin(steps: list[Config]) -> float:
    """The margin with which nine of ten measurements lie inside, of all galleries together."""
    off = [abs(by_change(step, g, 0.0)[1] - fmean(step["measured"][g])) for step in steps for g in GALLERIES]
    return math.ceil(1000 * most_of(off)) / 1000


def most_of(off: list[float]) -> float:
    """How far nine of ten are off at most."""
    return sorted(off)[min(int(INSIDE * len(off)), len(off) - 1)]


def table(options: argparse.Namespace, seed: int, data: list[str], strategies: list[str]) -> Table:
    """A row for each data set and gallery, and for all data sets together."""
    columns = {"data": "name", "gallery": "name", "task steps": "text", "measured inside": "share"}
    columns |= dict.fromkeys(("mean width", "mean error", "cosine, mean error"), "mean")
    rows: list[Mapping[str, Cell]] = []
    by_data = {name: steps_of(options, [name], strategies, seed) for name in data}
    for name, steps in {**by_data, "all": [step for each in by_data.values() for step in each]}.items():
        for gallery in GALLERIES if steps else ():
            told = [interval(step, gallery) for step in steps]
            measured = [fmean(step["measured"][gallery]) for step in steps]
            both = list(zip(told, measured, strict=True))
            row: dict[str, Cell] = {"data": name, "gallery": gallery, "task steps": str(len(steps))}
            row["measured inside"] = [float(low <= value <= high) for (low, _, high), value in both]
            row["mean width"] = [high - low for low, _, high in told]
            row["mean error"] = [abs(middle - value) for (_, middle, _), value in both]
            cosines = [abs(step["cosine"][0] - step["cosine"][1]) for step in steps if "cosine" in step]
            if gallery == "stale" and cosines:
                row["cosine, mean error"] = cosines
            rows.append(row)
        if not steps:
            rows.append({"data": name, "gallery": "missing"})
    return Table(columns, rows, f"seed {seed}; {', '.join(strategies)}")


def steps_of(options: argparse.Namespace, data: list[str], strategies: list[str], seed: int) -> list[Config]:
    files = [folder(options, d, s, seed).with_suffix(".json") for d in data for s in strategies]
    return [step for file in files if file.exists() for step in json.loads(file.read_text(encoding="utf-8"))]


def folder(options: argparse.Namespace, data: str, strategy: str, seed: int) -> Path:
    return options.out / data / strategy / f"seed{seed}"


def figure(options: argparse.Namespace, data: list[str], strategies: list[str], path: Path) -> None:
    from tripletmas.report.forecast import Point, draw_forecasts

    panels = {}
    for gallery in GALLERIES:
        points = []
        for name in data:
            for step in steps_of(options, [name], strategies, JUDGED_ON):
                points.append(Point(name, interval(step, gallery), fmean(step["measured"][gallery])))
        panels[gallery] = points
    draw_forecasts(path, panels)


def main() -> None:
    parser = make_parser(__doc__, "runs/forecast", ("omniglot", "fashion-mnist", "clothing"))
    parser.add_argument("data", nargs="*", help=f"of {', '.join(DATA)}; none for all")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--calibrate", action="store_true", help="print the constants that the runs of seed 0 call for")
    parser.add_argument("--figure", type=Path, help="write the figure of forecasts against measurements there")
    options = parser.parse_args()
    data: list[str] = options.data or list(DATA)
    strategies: list[str] = options.strategies.split(",")
    there = [each.name for each in options.out.glob("*")] if options.table else []  # runs that other scripts made
    for what, given, known in (("data", data, (*DATA, *there)), ("strategy", strategies, STRATEGIES)):
        unknown = [each for each in given if each not in known]
        if unknown:
            parser.error(f"unknown {what} {unknown[0]!r}: there are {', '.join(known)}")
    places = {"omniglot": options.omniglot, "fashion_mnist": options.fashion_mnist, "clothing": options.clothing}
    if not options.table and not options.calibrate and not options.figure:
        order = ((d, s, seed) for d in data for seed in (CHOSEN_ON, JUDGED_ON) for s in strategies)
        jobs = [(d, s, seed, places, folder(options, d, s, seed)) for d, s, seed in order]
        run_side_by_side(run_one, jobs, at_once=options.jobs)
    if options.calibrate:
        steps = steps_of(options, data, strategies, CHOSEN_ON)
        told, added = ([step for step in steps if step["knows"] == knows] for knows in (False, True))
        print({gallery: chosen(told, gallery) for gallery in GALLERIES} if told else "")
        print(chosen_margin(added) if added else "")
    if options.figure:
        figure(options, data, strategies, options.figure)
    for seed, says in ((JUDGED_ON, "on which they are judged"), (CHOSEN_ON, "on which constants were chosen")):
        measured = table(options, seed, data, strategies)
        print(f"\nseed {seed}, {says}\n\n{measured.markdown()}\n")
        if seed == JUDGED_ON:
            keep(measured, options.json, f"forecast-{'-'.join(strategies)}")


if __name__ == "__main__":
    sys.exit(main())
