#!/usr/bin/env python3
"""Forecasts against measurements: what updates do to stored vectors, told without old images, and then measured.

    .venv/bin/python scripts/reproduce_forecast.py digits
    .venv/bin/python scripts/reproduce_forecast.py --omniglot FOLDER --fashion-mnist FOLDER --clothing FOLDER
    .venv/bin/python scripts/reproduce_forecast.py --table --figure docs/forecast.png

Each run is a run directory below --out, with its forecasts beside it; runs that are done are not repeated, so that the
script goes on where it stopped. The constants in `tripletmas/runs/forecast.py` (CHANGES) are chosen on the runs of
seed 0 (--calibrate prints them) and judged on those of seed 1.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from best_strengths import placed
from reproduce_rivals import SETTINGS
from side_by_side import run_side_by_side

if TYPE_CHECKING:
    from tripletmas.runs.forecast import Change

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
LEAST = 3  # pairs to fit a line


def run_one(job: tuple[str, str, int, dict[str, str], Path]) -> str:
    """Train, unless that is done, and tell what each update did, beside what was measured."""
    data, strategy, seed, places, out = job
    from tripletmas.runs.experiment import run_experiment

    result = out.with_suffix(".json")
    if not result.exists():
        run_experiment(placed({**SETTINGS[data].config, "strategy": STRATEGIES[strategy], "seed": seed}, places), out)
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
    from tripletmas.runs.forecast import allowed_scale, forecast_of, measured_of, simulated_before
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


def interval(step: Config, gallery: str, constants: Change | None = None) -> tuple[float, float, float]:
    """(low, middle, high) with these constants, those of the package if there are none."""
    from tripletmas.runs.forecast import CHANGES, Measured, changed

    measured = Measured(step["before"], step["new"])
    known = {**CHANGES, gallery: constants} if constants else CHANGES
    found = changed(gallery, step["now"], step["was"][gallery], measured, constants=known)
    if found is None:
        raise ValueError(f"the run was not measured before the update by task {step['after']}")
    return found


def chosen(steps: list[Config], gallery: str) -> Change:
    """The constants: slopes and shifts by least squares; then the narrowest intervals, of those that hold `INSIDE`."""
    from tripletmas.runs.forecast import Change

    found = Change(fitted(steps, gallery, newest=True), fitted(steps, gallery, newest=False), 0.0, 0.0)
    middles = [interval(step, gallery, found)[1] for step in steps]
    errors = [abs(middle - fmean(step["measured"][gallery])) for middle, step in zip(middles, steps, strict=True)]
    changes = [abs(middle - fmean(step["before"][gallery])) for middle, step in zip(middles, steps, strict=True)]
    sizes = []
    for per_change in (0.05 * each for each in range(21)):
        off = sorted(error - per_change * change for error, change in zip(errors, changes, strict=True))
        margin = max(off[min(int(INSIDE * len(off)), len(off) - 1)], 0.0)
        sizes.append((margin + per_change * fmean(changes), margin, per_change))
    _, margin, per_change = min(sizes)
    return found._replace(margin=math.ceil(1000 * margin) / 1000, per_change=round(per_change, 2))


def fitted(steps: list[Config], gallery: str, *, newest: bool) -> tuple[float, float]:
    """(slope, shift) from the change that imagined images show to the one that was measured, over parts and steps."""
    pairs = []
    for step in steps:
        last = len(step["was"][gallery]) - 1
        for number, before in enumerate(step["before"][gallery]):
            if (number == last) == newest:
                change = step["now"][gallery][number] - step["was"][gallery][number]
                pairs.append((change, step["measured"][gallery][number] - before))
    if len(pairs) < LEAST:
        return 1.0, 0.0
    slope, shift = statistics.linear_regression(*zip(*pairs, strict=True))
    return round(slope, 2), round(shift, 3)


def table(options: argparse.Namespace, seed: int, data: list[str], strategies: list[str]) -> str:
    """A row for each data set and gallery, and for all data sets together."""
    lines = ["| data | gallery | task steps | measured inside | mean width | mean error | cosine, mean error |"]
    lines.append("| --- | --- |" + " ---: |" * 5)
    by_data = {name: steps_of(options, [name], strategies, seed) for name in data}
    for name, steps in {**by_data, "all": [step for each in by_data.values() for step in each]}.items():
        cosine = fmean(abs(step["cosine"][0] - step["cosine"][1]) for step in steps) if steps else 0.0
        for gallery in GALLERIES if steps else ():
            told = [interval(step, gallery) for step in steps]
            measured = [fmean(step["measured"][gallery]) for step in steps]
            inside = fmean(low <= value <= high for (low, _, high), value in zip(told, measured, strict=True))
            width = fmean(high - low for low, _, high in told)
            error = fmean(abs(middle - value) for (_, middle, _), value in zip(told, measured, strict=True))
            cells = [name, gallery, str(len(steps)), f"{inside:.0%}", f"{width:.3f}", f"{error:.3f}"]
            lines.append(f"| {' | '.join(cells)} | {f'{cosine:.3f}' if gallery == 'stale' else ''} |")
        if not steps:
            lines.append(f"| {name} | missing |" + " |" * 5)
    return "\n".join(lines) + "\n"


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"of {', '.join(DATA)}; none for all")
    parser.add_argument("--omniglot", default="data", help="where Omniglot lies")
    parser.add_argument("--fashion-mnist", default="data", help="where Fashion-MNIST lies")
    parser.add_argument("--clothing", default="data/clothing", help="the folder or archive of clothing-dataset-small")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--out", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--calibrate", action="store_true", help="print the constants that the runs of seed 0 call for")
    parser.add_argument("--figure", type=Path, help="write the figure of forecasts against measurements there")
    options = parser.parse_args()
    data: list[str] = options.data or list(DATA)
    strategies: list[str] = options.strategies.split(",")
    for what, given, known in (("data", data, DATA), ("strategy", strategies, STRATEGIES)):
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
        print({gallery: chosen(steps, gallery) for gallery in GALLERIES})
    if options.figure:
        figure(options, data, strategies, options.figure)
    for seed, says in ((JUDGED_ON, "on which they are judged"), (CHOSEN_ON, "on which constants were chosen")):
        print(f"\nseed {seed}, {says}\n\n{table(options, seed, data, strategies)}")


if __name__ == "__main__":
    sys.exit(main())
