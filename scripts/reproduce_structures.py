#!/usr/bin/env python3
"""What a protection holds: layers' answers (`gram`), or the direction of embeddings, by two approximations.

    .venv/bin/python scripts/reproduce_structures.py digits
    .venv/bin/python scripts/reproduce_structures.py --fashion-mnist FOLDER --clothing FOLDER
    .venv/bin/python scripts/reproduce_structures.py --table                 # what is there, and what is missing

Streams, networks and training are those of `reproduce_rivals.py`, the strategies `structures.py`. Every strategy with a
strength tries as many values of it on samples held out of the training data; chosen is the best mean of two averages
after the last task, of the fresh gallery and of the stale one. With it several seeds are run on the test queries. Runs
that are there are not repeated.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import reproduce_rivals
from best_strengths import Method, Results, Setting, execute, wanted
from options import make_parser
from reproduce_pretrained import table, usefulness
from side_by_side import run_side_by_side
from tables import keep

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
OURS = Path(__file__).with_name("structures.py")
METHODS = {
    "gram, budget": Method({"name": "gram"}),
    "gram": Method({"name": "gram"}, STRENGTHS),
    "kron": Method({"name": f"{OURS}:Kron"}, STRENGTHS),
    "direction": Method({"name": f"{OURS}:Direction"}, STRENGTHS),
    "frozen": Method({"name": "frozen"}),
    "finetune": Method({"name": "finetune"}),
}
SETTINGS = {name: reproduce_rivals.SETTINGS[name] for name in ("digits", "fashion-mnist", "clothing", "omniglot-5")}


def with_strategies(setting: Setting) -> Setting:
    """The setting with the code of `structures.py`, which this account trusts from now on."""
    from tripletmas.runs import trust
    from tripletmas.runs.configuration import parse

    code: dict[str, dict] = {"strategy": {}}
    for name in ("Kron", "Direction"):
        config, _ = parse(["--strategy", f"{OURS}:{name}"])
        code["strategy"] |= config["code"]["strategy"]
    trust.accept(code)
    return replace(setting, config={**setting.config, "gallery": {"compensate": "linear"}, "code": code})


def main() -> None:
    parser = make_parser(__doc__, "runs/structures", ("omniglot", "fashion-mnist", "clothing"))
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; none for all")
    options = parser.parse_args()
    if unknown := [each for each in options.settings if each not in SETTINGS]:
        parser.error(f"unknown setting {unknown[0]!r}: there are {', '.join(SETTINGS)}")
    places = {"omniglot": options.omniglot, "fashion_mnist": options.fashion_mnist, "clothing": options.clothing}
    results = Results(options.out, METHODS, usefulness)
    for name in options.settings or SETTINGS:
        setting = with_strategies(SETTINGS[name])
        while not options.table and (runs := wanted(results, setting, list(METHODS))):
            run_side_by_side(execute, [(run, results.path(run), places) for run in runs], at_once=options.jobs)
        measured = table(results, setting, list(METHODS))
        print(f"\n## {name}\n\n{measured.text()}", flush=True)
        keep(measured, options.json, f"structures-{name}", versions=results.versions())


if __name__ == "__main__":
    sys.exit(main())
