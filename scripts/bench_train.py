#!/usr/bin/env python3
"""Where the time of `tripletmas train --data digits --strategy mas` goes, part by part.

    .venv/bin/python scripts/bench_train.py
    .venv/bin/python scripts/bench_train.py --rounds 5 --json docs/results
    .venv/bin/python scripts/bench_train.py --words --data digits --strategy gram --model mlp

Each round is a process of its own, from the start of Python to its end. What a part does inside another counts as its
own: a package that the report imports is no part of the report. Shown are medians of the wall's seconds over rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # in the process that is watched nothing is imported before
    from tables import Cell, Table

WORDS = ["--data", "digits", "--strategy", "mas"]
# what is imported -> its part; the first that fits
IMPORTS = {
    "torch._dynamo": "torch's compiler, which the first optimizer imports",
    "torch": "import torch",
    "scipy": "import scipy",
    "sklearn": "import scikit-learn, pandas",
    "pandas": "import scikit-learn, pandas",
    "matplotlib": "import matplotlib",
    "pytorch_metric_learning": "import pytorch-metric-learning, faiss",
    "faiss": "import pytorch-metric-learning, faiss",
    "tripletmas": "import tripletmas, and what else it needs",
}
# (module, class or "", function) -> its part
FUNCTIONS = {
    ("tripletmas.runs.loop", "", "train_task"): "training",
    ("tripletmas.runs.after_task", "AfterTask", "__call__"): "importance, scores and files after each task",
    ("tripletmas.runs.directory", "RunDirectory", "save_checkpoint"): "checkpoints",
    ("tripletmas.cli.live_page", "LivePage", "__call__"): "the page of a run that goes on",
    ("tripletmas.cli.train", "", "_report"): "the report, the rest of it",
    ("tripletmas.report.embedding_plot", "", "_two_dimensions"): "the report: t-SNE",
    ("tripletmas.report.style", "", "painted"): "the report: pictures laid out and painted",
}
REST, START, END = "all else", "start of Python", "end of the process"


class Parts:
    """Seconds by part: while one lasts, none counts for the part that it lies inside."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()
        self._open = [REST]

    def inside(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._count()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._count()
                self._open.pop()

        return call

    def _count(self) -> None:
        now = time.perf_counter()
        self._spent[self._open[-1]] += now - self._since
        self._since = now

    def finish(self) -> dict[str, float]:
        self._count()
        return dict(self._spent)


def watch(parts: Parts) -> None:
    """From now on imports and `FUNCTIONS` count for their parts, the latter once their module has been imported."""
    import importlib

    importer = importlib._bootstrap  # type: ignore[attr-defined]  # every import that finds no module ends there
    load = importer._find_and_load

    def find_and_load(name: str, importing: Any) -> Any:
        part = next((IMPORTS[of] for of in IMPORTS if name == of or name.startswith(f"{of}.")), None)
        module = parts.inside(part, load)(name, importing) if part else load(name, importing)
        for (where, owner, function), of in FUNCTIONS.items():
            if where == name:
                held = getattr(module, owner) if owner else module
                setattr(held, function, parts.inside(of, getattr(held, function)))
        return module

    importer._find_and_load = find_and_load


def run_inside(noted: Path, began: float, words: list[str]) -> int:
    """What a process of its own does: the command, watched; when it is through, and the parts, are noted."""
    parts = Parts()
    started = time.time() - began
    watch(parts)
    from tripletmas.cli.main import main as tripletmas

    sys.argv = ["tripletmas", *words]
    status = tripletmas()
    noted.write_text(json.dumps({**parts.finish(), START: started, "ended": time.time()}), encoding="utf-8")
    return status


def once(words: list[str]) -> dict[str, float]:
    """The seconds of each part in one process."""
    with tempfile.TemporaryDirectory() as folder:
        noted, began = Path(folder) / "noted.json", time.time()
        command = ["train", *words, "--out", f"{folder}/run"]
        given = [sys.executable, __file__, "--inside", str(noted), str(began), *command]
        done = subprocess.run(given, capture_output=True, text=True, check=False, cwd=folder)
        ended = time.time()
        if done.returncode:
            raise SystemExit(f"tripletmas {' '.join(command)}: {done.stderr}")
        found = json.loads(noted.read_text(encoding="utf-8"))
    end = ended - found.pop("ended")
    return {**found, END: end, "in all": ended - began}


def table(rounds: list[dict[str, float]], words: list[str]) -> Table:
    """A row for each part, the longest first."""
    from tables import Table

    names = sorted(
        {name for each in rounds for name in each}, key=lambda name: -median(of.get(name, 0) for of in rounds)
    )
    ordered = [*(name for name in names if name != "in all"), "in all"]
    rows: list[dict[str, Cell]] = [
        {"part": name, "seconds": [each.get(name, 0.0) for each in rounds]} for name in ordered
    ]
    return Table(
        {"part": "name", "seconds": "median"}, rows, f"Where the time of `tripletmas train {' '.join(words)}` goes"
    )


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        noted, began, *words = sys.argv[2:]
        sys.exit(run_inside(Path(noted), float(began), words))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a folder: the table as JSON, for fill_tables.py")
    parser.add_argument("--words", nargs=argparse.REMAINDER, default=WORDS, help="of another training")
    options = parser.parse_args()
    from tables import keep, machine

    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {options.rounds}")
    measured = table([once(options.words) for _ in range(options.rounds)], options.words)
    print(measured.text())
    keep(measured, options.json, "bench-train", settings=machine(options))


if __name__ == "__main__":
    main()
