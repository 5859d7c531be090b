#!/usr/bin/env python3
"""How long commands take that compute little, each in a process of its own, and what of that they import.

    .venv/bin/python scripts/bench_startup.py
    .venv/bin/python scripts/bench_startup.py --rounds 3 --only "index info" query --json docs/results

A small run on digits is trained, and an index of images built, in a temporary folder; then the commands take turns.
Shown are medians over the rounds: the seconds until the process has ended, those of the processor (which do not count
what other programs do meanwhile), and those of the processor before the command itself begins; and which of the large
packages were imported.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import Cell, Table, keep, machine

LARGE = ("torch", "torchvision", "pytorch_metric_learning", "scipy", "sklearn", "matplotlib", "faiss", "transformers")
WHY = {
    "torch": "whatever holds weights or vectors",
    "torchvision": "a model of its, or augmented images; list models",
    "pytorch_metric_learning": "a loss is made",
    "scipy": "by pytorch-metric-learning and scikit-learn",
    "sklearn": "t-SNE in a report that is drawn",
    "matplotlib": "a report that is drawn",
    "faiss": "an index is searched",
    "transformers": "a model of texts",
}
# what a process does before and after the words of a command, which come as JSON
PROGRAM = """
import json, sys, time
from tripletmas.cli.main import main
before, noted, sys.argv = time.process_time(), sys.argv[2], ["tripletmas", *json.loads(sys.argv[1])]
try:
    status = main()
except SystemExit as left:
    status = left.code or 0
found = {"status": status, "before": before, "processor": time.process_time(), "modules": sorted(sys.modules)}
open(noted, "w").write(json.dumps(found))
"""
BARE = {"python alone": "pass", "import torch": "import torch"}


def prepare(folder: Path) -> dict[str, list[str]]:
    """Command -> its words, once what they need is in a folder."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(60):
        file = folder / "images" / f"{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((random.random((8, 8)) * 255).astype(np.uint8)).save(file)
    run, index, image = str(folder / "run"), str(folder / "shop.index"), str(folder / "images" / "0" / "0.png")
    small = ["--data.tasks", "[4,6]", "--training.epochs", "2", "--device", "cpu"]
    for words in (
        ["train", "--data", "digits", *small, "--out", run],
        ["index", "build", run, "--images", str(folder / "images"), "--out", index, "--force"],
    ):
        subprocess.run([sys.executable, "-m", "tripletmas", *words], check=True, capture_output=True)
    return {
        "version": ["--version"],
        "help": ["--help"],
        "train --help": ["train", "--help"],
        "list": ["list"],
        "list strategies": ["list", "strategies"],
        "list models": ["list", "models"],
        "index info": ["index", "info", index],
        "query": ["query", index, image, "--k", "3", "--force"],
        "resume (finished)": ["resume", run],
        "report": ["report", run],
    }


def once(words: list[str], folder: Path) -> dict[str, Any]:
    """What a command takes; its exit status is 0, but for `list` without a word."""
    noted = folder / "noted.json"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(words), str(noted)], capture_output=True, check=False, cwd=folder
    )
    seconds = time.perf_counter() - began
    found = json.loads(noted.read_text())
    if found["status"] not in ((2,) if words == ["list"] else (0,)):
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode()}")
    return {**found, "seconds": seconds, "modules": [name for name in LARGE if name in found["modules"]]}


def bare(program: str) -> dict[str, Any]:
    """The same of Python without us."""
    began, before = time.perf_counter(), processor_of_children()
    subprocess.run([sys.executable, "-c", program], check=True)
    seconds, spent = time.perf_counter() - began, processor_of_children() - before
    return {"seconds": seconds, "processor": spent, "modules": []}


def processor_of_children() -> float:
    """Seconds of processes that have ended; `os.times` counts in hundredths, which Python alone may not fill."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(folder: Path, rounds: int, only: list[str]) -> Table:
    """A row for each command."""
    commands = {name: words for name, words in prepare(folder).items() if not only or name in only}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (*BARE, *commands)}
    for _ in range(rounds):
        for name, program in BARE.items():
            found[name].append(bare(program))
        for name, words in commands.items():
            found[name].append(once(words, folder))
    columns = {"seconds": "seconds", "of the processor": "processor", "before it begins": "before"}
    rows: list[Mapping[str, Cell]] = []
    for name, of in found.items():
        times = {column: [each[key] for each in of] for column, key in columns.items() if key in of[0]}
        rows.append({"command": name, **times, "large packages": ", ".join(of[-1]["modules"]) or "none"})
    forms = {"command": "name", **dict.fromkeys(columns, "median"), "large packages": "name"}
    return Table(forms, rows, "Commands that compute little, each in a process of its own; medians")


def needed_by(measured: Table) -> str:
    """In Markdown: what needs each of the large packages that were imported."""
    imported = {package for row in measured.rows for package in str(row["large packages"]).split(", ")}
    lines = ["| package | who needs it |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {package} | {WHY[package]} |" for package in LARGE if package in imported)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[], metavar="COMMAND", help="as in the table; all if not given")
    parser.add_argument("--json", type=Path, help="a folder: the table as JSON, for fill_tables.py")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {options.rounds}")
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), options.rounds, options.only)
    print(f"{measured.text()}\n{needed_by(measured)}")
    keep(measured, options.json, "bench-startup", settings=machine(options))


if __name__ == "__main__":
    main()
