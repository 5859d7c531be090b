#!/usr/bin/env python3
"""The tables of results in docs/expect.md and docs/results.md: every method on one data set, several seeds each.

    .venv/bin/python scripts/reproduce_table.py digits
    .venv/bin/python scripts/reproduce_table.py omniglot --root FOLDER --jobs 2

Each run is a run directory below --out; runs that are done are not repeated, so the script goes on where it stopped,
and prints the table of what is there.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from options import make_parser
from side_by_side import run_side_by_side
from tables import Table, keep, table_of

from tripletmas import report
from tripletmas.report.formats import comparison_json
from tripletmas.runs.directory import RunDirectory, is_run

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "finetune": ["--strategy=finetune"],
    "frozen": ["--strategy=frozen"],
    **{
        f"mas-{strength}": ["--strategy=mas", f"--strategy.strength={strength}"]
        for strength in ("0.03", "0.1", "0.3", "1", "3")
    },
    **{
        f"local_mas-{strength}": ["--strategy=local_mas", f"--strategy.strength={strength}"]
        for strength in ("0.03", "0.1", "0.3", "1", "3")
    },
    "joint": ["--strategy=joint"],
}
COLUMNS = ("method", "seeds", "average", "forgetting", "learning", "fresh", "stale", "compensated")
# folder -> what differs from datasets/<data>/mas.yaml
VARIANTS = {
    "digits": {
        "digits": [],
        "digits-slow": ["--training.lr=0.0003"],
        "digits-batch64": ["--training.batch_size=64"],
    },
    "omniglot": {
        "omniglot-frozen": ["--training.freeze_batchnorm=true"],
        "omniglot-free": ["--training.freeze_batchnorm=false"],
    },
}


def main() -> None:
    parser = make_parser(__doc__, "runs/reproduce")
    parser.add_argument("data", choices=list(VARIANTS))
    parser.add_argument("--root", help="where the data are, if not in ./data")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--variants", help="some of them only: such as digits-slow, omniglot-free")
    options = parser.parse_args()

    variants = options.variants.split(",") if options.variants else list(VARIANTS[options.data])
    if not options.table:
        todo = [
            (options.out / variant / method / f"seed{seed}", variant, method, seed)
            for seed in options.seeds.split(",")
            for variant in variants
            for method in options.methods.split(",")
        ]
        run_side_by_side(train, [(options.data, options.root, *run) for run in todo], at_once=options.jobs)
    for variant in variants:
        methods = [options.out / variant / method for method in METHODS]
        done = [method for method in methods if any(map(is_done, sorted(method.glob("seed*"))))]
        if done:
            compared = report.comparison(done)
            print(f"\n{variant}\n\n{report.comparison_markdown(compared)}")
            table = table_of(comparison_json(compared))
            shown = Table(
                {name: table.columns[name] for name in COLUMNS}, table.rows, f"{variant}: {compared.kind.primary.title}"
            )
            keep(shown, options.json, variant, versions=compared.methods[0].runs[0].section("version"))


def train(job: tuple[str, str | None, Path, str, str, str]) -> str:
    """What the command line does, without its report; in a process that goes on to the next run."""
    from tripletmas.cli.main import main as tripletmas

    data, root, out, variant, method, seed = job
    if is_done(out):
        return f"{out}: done before"
    arguments = ["train", f"--config={ROOT / 'datasets' / data / 'mas.yaml'}"]
    arguments += [*METHODS[method], f"--seed={seed}", f"--out={out}", "--report=false"]
    arguments += [f"--data.root={root}", "--data.download=false"] if root else []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        status = tripletmas([*arguments, *VARIANTS[data][variant]])
    return f"{out}: done" if status == 0 else f"{out}: failed\n{told.getvalue()}"


def is_done(out: Path) -> bool:
    if not is_run(out):
        return False
    scores = RunDirectory.open(out).scores()
    return scores is not None and scores["matrices"]["seen"]["recall@1"][-1][0] is not None


if __name__ == "__main__":
    main()
