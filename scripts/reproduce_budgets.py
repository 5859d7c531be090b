#!/usr/bin/env python3
"""How much the budget of `gram` matters, and whether one default suits different data: the score over the budget.

    .venv/bin/python scripts/reproduce_budgets.py digits
    .venv/bin/python scripts/reproduce_budgets.py omniglot-5 'birds, pretrained' --omniglot FOLDER --birds FOLDER
    .venv/bin/python scripts/reproduce_budgets.py --table --figure docs/budget.png

The score is the mean of two averages of recall@1 on everything seen after the last task, that of the fresh gallery and
that of the stale one, which was never embedded again; all on samples held out of the training data. Budgets are
multiples of the default one; beside them stand strengths, the same for every layer. Streams, networks and training are
those of `reproduce_rivals.py` and `reproduce_pretrained.py`. Runs that are there are not repeated.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import reproduce_pretrained
import reproduce_rivals
from best_strengths import Config, Method, Results, Setting, execute, placed, validated
from options import make_parser
from reproduce_pretrained import usefulness, with_model
from side_by_side import run_side_by_side
from tables import Cell, Table, keep

TIMES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the default budget
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
SETTINGS = {
    **{name: reproduce_rivals.SETTINGS[name] for name in ("digits", "omniglot-5", "fashion-mnist", "clothing")},
    "birds, pretrained": reproduce_pretrained.SETTINGS["birds"],
    "clothing, pretrained": reproduce_pretrained.SETTINGS["clothing"],
}
GRAM, FROZEN = Method({"name": "gram"}), Method({"name": "frozen"})


def prepared(name: str, model: str | None, out: Path) -> Setting:
    """The setting, with the pretrained model where that is meant."""
    return with_model(SETTINGS[name], model, out) if name.endswith("pretrained") else SETTINGS[name]


def default_of(setting: Setting, places: dict[str, str]) -> float:
    """The default budget, which depends on how many linear maps the network has."""
    from tripletmas.protection.structured.gram import Gram
    from tripletmas.runs.experiment import build

    made = build(placed({**setting.config, "strategy": "finetune"}, places))
    gram = Gram(made.model)
    gram.consolidate([made.stream[0].train[[0, 1]][0]])
    assert gram.budget is not None
    return gram.budget


def strategies_of(default: float) -> dict[str, Config]:
    """The rows of the table."""
    rows: dict[str, Config] = {"frozen": FROZEN.strategy}
    rows |= {f"budget x {times:g}": {"name": "gram", "budget": float(f"{times * default:.3g}")} for times in TIMES}
    return rows | {f"strength {each:g}": {"name": "gram", "strength": each} for each in STRENGTHS}


def scores_of(results: Results, setting: Setting, strategy: Config) -> list[float]:
    """Of each seed; nan where a run is missing."""
    method = FROZEN if strategy["name"] == "frozen" else GRAM
    return [results.score(run) for run in validated(setting, method, strategy)]


def table(results: Results, settings: dict[str, Setting], defaults: dict[str, float]) -> Table:
    """A column for each set, a row for each budget and strength; what is missing is empty."""
    heads = {name: f"{name} ({defaults[name]:.2g})" for name in settings}
    rows: list[Mapping[str, Cell]] = []
    for kind in strategies_of(1.0):
        row: dict[str, Cell] = {"gram": kind}
        for name, setting in settings.items():
            found = scores_of(results, setting, strategies_of(defaults[name])[kind])
            row |= {} if any(map(math.isnan, found)) else {heads[name]: found}
        rows.append(row)
    about = "Mean of fresh and stale recall@1 on validation data; in brackets the default budget"
    return Table({"gram": "name", **dict.fromkeys(heads.values(), "spread")}, rows, about)


def draw(results: Results, settings: dict[str, Setting], defaults: dict[str, float], path: Path) -> None:
    """One curve for each set: budgets against the best strength."""
    from tripletmas.report.numbers import Spread
    from tripletmas.report.sensitivity import Curve, Panel, draw_sensitivity

    curves = {}
    for name, setting in settings.items():
        rows = strategies_of(defaults[name])
        found = {row: scores_of(results, setting, strategy) for row, strategy in rows.items()}
        whole = {row: Spread(tuple(each)) for row, each in found.items() if not any(map(math.isnan, each))}
        best = max((spread.mean for row, spread in whole.items() if row.startswith("strength")), default=math.nan)
        budgets = {times: whole[f"budget x {times:g}"] for times in TIMES if f"budget x {times:g}" in whole}
        if budgets and not math.isnan(best):
            means, deviations = zip(
                *((each.mean - best, each.deviation or 0.0) for each in budgets.values()), strict=True
            )
            curves[name] = Curve(list(budgets), means, deviations)
    draw_sensitivity(
        path,
        [Panel("gram", curves, (0.0, 0.0))],
        score="fresh and stale recall@1",
        base="best strength",
        axis="budget, as a multiple of the default",
    )


def main() -> None:
    parser = make_parser(__doc__, "runs/budgets", ("omniglot", "fashion-mnist", "clothing", "birds"))
    parser.add_argument("settings", nargs="*", help=f"of {'; '.join(SETTINGS)}; none for all")
    parser.add_argument("--model", help="FILE:NAME of another pretrained model")
    parser.add_argument("--figure", type=Path, help="write the figure there")
    options = parser.parse_args()
    if unknown := [each for each in options.settings if each not in SETTINGS]:
        parser.error(f"unknown setting {unknown[0]!r}: there are {'; '.join(SETTINGS)}")
    places = {
        "omniglot": options.omniglot,
        "fashion_mnist": options.fashion_mnist,
        "clothing": options.clothing,
        "birds": options.birds,
    }
    settings = {name: prepared(name, options.model, options.out) for name in options.settings or SETTINGS}
    defaults = {name: default_of(setting, places) for name, setting in settings.items()}
    results = Results(options.out, {"gram": GRAM, "frozen": FROZEN}, usefulness)
    for name, setting in settings.items() if not options.table else ():
        strategies = strategies_of(defaults[name]).values()
        runs = [run for strategy in strategies for run in validated(setting, GRAM, strategy)]
        jobs = [(run, results.path(run), places) for run in runs if not results.path(run).exists()]
        print(f"{name}: {len(jobs)} runs", flush=True)
        run_side_by_side(partial(execute, resumable=True), jobs, at_once=options.jobs, indent="  ")
    if options.figure:
        draw(results, settings, defaults, options.figure)
    measured = table(results, settings, defaults)
    print(measured.markdown())
    keep(measured, options.json, "budgets", versions=results.versions())


if __name__ == "__main__":
    sys.exit(main())
