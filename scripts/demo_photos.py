#!/usr/bin/env python3
"""Photographs of one's own: a pretrained network learns them month by month, and yesterday's index stays usable.

    scripts/demo photos FOLDER

FOLDER holds <class>/<image>, or <month>/<class>/<image>; without months its classes come in three portions. The network
is EfficientNet-Lite0 with ImageNet weights from a pip package. Every command is printed before it is run, so that what
is done here can be done by hand.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from lite0_weights import MODEL, weights_file

from tripletmas.cli.main import main as tripletmas
from tripletmas.data.folders import folder
from tripletmas.data.images import find_images

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = ("pretrained", "finetune", "gram")
PORTIONS = 3


def run(*arguments: str) -> None:
    """A command, printed and run; an end of the demo where it fails."""
    print(f"\n$ tripletmas {shlex.join(arguments)}\n", flush=True)
    if status := tripletmas(list(arguments)):
        sys.exit(status)


def tasks_of(photographs: str) -> list[str]:
    """The options that make tasks of what is there."""
    found = folder(root=photographs, size=8, in_memory=False)
    if found.train.groups is not None:
        return []
    return ["--data.tasks", str(min(PORTIONS, len(found.train.classes)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the photographs, or a zip archive of them")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "photos", help="rewritten if it is there")
    parser.add_argument("--size", default="96", help="pixels, 96 or 224 or 96x128: more see more, and take longer")
    parser.add_argument("--per-class", type=int, default=20, help="images a class that are learned, and asked for")
    parser.add_argument("--epochs", type=int, default=3, help="epochs a task")
    options = parser.parse_args()
    began = time.perf_counter()
    try:
        weights = weights_file(options.out.parent / "efficientnet_lite0.safetensors")
        tasks = tasks_of(options.folder)
    except ValueError as error:
        parser.error(str(error))
    shutil.rmtree(options.out, ignore_errors=True)
    common = ["--data", "folder", "--data.root", options.folder, "--data.size", options.size, *tasks]
    common += ["--data.per_class", str(options.per_class), "--training.epochs", str(options.epochs)]
    common += ["--model", MODEL["name"], "--model.weights", str(weights), "--training.lr", "2e-4"]
    common += ["--training.freeze_batchnorm", "always"]
    for strategy in STRATEGIES:
        run("train", *common, "--strategy", strategy, "--out", str(options.out / strategy))
    run("compare", *(str(options.out / strategy) for strategy in STRATEGIES), "--out", str(options.out / "comparison"))
    index, picture = str(options.out / "photos.index"), find_images(options.folder)[0]
    run("index", "build", str(options.out / "gram"), "--images", options.folder, "--out", index)
    if Path(options.folder).is_dir():
        page = str(options.out / "neighbours.html")
        run("query", index, str(Path(options.folder) / picture), "-k", "5", "--html", page)
    print(f"\n{time.perf_counter() - began:.0f} s in all. Next:")
    print(f"  tripletmas query {index} PHOTOGRAPH -k 5      # or a page: tripletmas serve {index}")
    print(f"  tripletmas resume {options.out / 'gram'}      # when one more folder has come")


if __name__ == "__main__":
    sys.exit(main())
