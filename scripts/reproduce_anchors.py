#!/usr/bin/env python3
"""What a few old samples are worth that one may keep: strategies x how many of each class, on stale galleries.

    .venv/bin/python scripts/reproduce_anchors.py digits
    .venv/bin/python scripts/reproduce_anchors.py --fashion-mnist FOLDER --clothing FOLDER --jobs 2
    .venv/bin/python scripts/reproduce_anchors.py --table --figure docs/anchors.png

`gram` and `distill` hold the model to the vectors that the index has for them (`gram+anchors`, `distill+anchors`);
`replay` learns from as many samples again, with their labels. Streams, networks and training are those of
`reproduce_rivals.py`, distill's strength is the one that was best there on validation data. The map that compensates
is the linear one, into whose fit go samples that anchors keep. Runs that are there are not repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import reproduce_rivals
from best_strengths import Config, Method, Results, Setting, execute, tested
from options import make_parser
from reproduce_pretrained import GALLERIES, average
from side_by_side import run_side_by_side
from tables import Cell, Table, keep, mean_of

KEPT = (0, 1, 5, 20)  # samples of each class
CLASSES = 10  # of each of the streams
DISTILL = {"digits": 33.0, "fashion-mnist": 33.0, "clothing": 3.0}  # as docs/results.md has it
SETTINGS = {name: reproduce_rivals.SETTINGS[name] for name in DISTILL}
STRATEGIES = ("gram", "distill", "replay")


def strategy_of(name: str, kept: int, setting: str) -> Config | None:
    """The options of a strategy that keeps so many samples of each class; None where it cannot."""
    if name == "replay" and kept == 1:
        return None  # a batch needs pairs
    if name == "replay":
        return {"name": name, "memory": kept * CLASSES} if kept else {"name": "finetune"}
    own = {"distill": {"strength": DISTILL[setting]}} if name == "distill" else {}
    if not kept:
        return {"name": name, **own.get(name, {})}
    return {"name": f"{name}+anchors", "anchors": {"per_class": kept}, **own}


def with_map(setting: Setting) -> Setting:
    return replace(setting, config={**setting.config, "gallery": {"compensate": "linear"}})


def runs_of(setting: str) -> dict[tuple[str, int], dict[int, Config]]:
    """(strategy, samples of each class) -> seed -> run."""
    rows = [(name, kept) for name in STRATEGIES for kept in KEPT] + [("frozen", 0)]
    found = {}
    for name, kept in rows:
        if strategy := strategy_of(name, kept, setting):
            found[name, kept] = tested(with_map(SETTINGS[setting]), Method(strategy), strategy)
    return found


def table(results: Results, setting: str) -> Table:
    """What is missing is shown as missing."""
    columns = {"strategy": "name", "kept of each class": "text", "seeds": "text"}
    columns |= dict.fromkeys(GALLERIES, "spread") | {"stale - none kept": "change"}
    rows: list[Mapping[str, Cell]] = []
    stale: dict[tuple[str, int], dict[int, float]] = {}  # by seed
    for (name, kept), runs in runs_of(setting).items():
        found = {seed: results.get(run) for seed, run in runs.items()}
        done = {seed: each for seed, each in found.items() if each and "summary" in each}
        row: dict[str, Cell] = {"strategy": name, "kept of each class": str(kept)}
        row["seeds"] = str(len(done)) if done else "missing"
        if done:
            row |= {gallery: [average(each, gallery) for each in done.values()] for gallery in GALLERIES}
            stale[name, kept] = {seed: average(each, "stale") for seed, each in done.items()}
            none = stale.get((name, 0), {})
            if kept and none.keys() & done.keys():
                row["stale - none kept"] = [own - none[seed] for seed, own in stale[name, kept].items() if seed in none]
        rows.append(row)
    return Table(columns, rows, SETTINGS[setting].about)


def draw(tables: Mapping[str, Table], path: Path) -> None:
    """A panel for each set: the stale gallery over what is kept, the fresh one behind it."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(tables), figsize=(3.6 * len(tables), 3.2), layout="constrained", squeeze=False)
    for axes, (name, measured) in zip(panels[0], tables.items(), strict=True):
        for number, strategy in enumerate(STRATEGIES):
            rows = [row for row in measured.rows if row["strategy"] == strategy and "stale" in row]
            places = [KEPT.index(int(str(row["kept of each class"]))) for row in rows]
            for gallery, line in (("stale", "-"), ("fresh", ":")):
                means = [mean_of(row[gallery]) for row in rows]
                label = {"label": strategy} if gallery == "stale" else {}
                axes.plot(places, means, line, marker="o", markersize=4, color=f"C{number}", **label)
        for row in measured.rows:
            if row["strategy"] == "frozen" and "stale" in row:
                axes.axhline(mean_of(row["stale"]), color="0.5", linewidth=1, label="frozen", zorder=0)
        axes.set(title=name, xticks=range(len(KEPT)), xticklabels=[str(each) for each in KEPT], ylim=(0, 1))
        axes.set_xlabel("samples kept of each class")
        axes.grid(axis="y", alpha=0.3)
    panels[0][0].set_ylabel("recall@1, stale (line) and fresh (dots)")
    panels[0][0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = make_parser(__doc__, "runs/anchors", ("fashion-mnist", "clothing"))
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; none for all")
    parser.add_argument("--figure", type=Path, help="write the figure there")
    options = parser.parse_args()
    if unknown := [each for each in options.settings if each not in SETTINGS]:
        parser.error(f"unknown setting {unknown[0]!r}: there are {', '.join(SETTINGS)}")
    places = {"fashion_mnist": options.fashion_mnist, "clothing": options.clothing}
    results, tables = Results(options.out, {}), {}
    for name in options.settings or SETTINGS:
        runs = [run for of in runs_of(name).values() for run in of.values() if results.get(run) is None]
        if runs and not options.table:
            print(f"{name}: {len(runs)} runs", flush=True)
            jobs = [(run, results.path(run), places) for run in runs]
            run_side_by_side(execute, jobs, at_once=options.jobs, indent="  ")
        tables[name] = table(results, name)
        print(f"\n## {name}\n\n{tables[name].text()}", flush=True)
        keep(tables[name], options.json, f"anchors-{name}", versions=results.versions())
    if options.figure:
        draw(tables, options.figure)


if __name__ == "__main__":
    sys.exit(main())
