"""What the checksums of a checkpoint cost, of the time that writing it takes without them, in one process, in turns."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tripletmas.basics import files
from tripletmas.runs import checkpoint
from tripletmas.runs.checkpoint import Checkpoint, save_checkpoint

OURS = (files._content_checksum, checkpoint.checksum, torch.serialization.set_crc32_options)
NONE = (lambda tensors: "0" * 8, lambda content: "0" * 8, lambda asked: OURS[2](True))  # and torch's own are as before


def state(megabytes: int) -> Checkpoint:
    """Weights, importance and reference, and Adam's two moments: five tensors of a size for each layer."""
    count = megabytes * 2**20 // (4 * 5 * 4)
    layers = [f"layer{number}" for number in range(4)]
    model = {name: torch.randn(count) for name in layers}
    strategy = {f"{part}/{name}": torch.rand(count) for part in ("importance", "reference") for name in layers}
    moments = {number: {"exp_avg": torch.randn(count), "exp_avg_sq": torch.rand(count)} for number in range(4)}
    steps = {"optimizer": {"state": moments, "param_groups": []}, "scaler": {}}
    return Checkpoint(task=0, epoch=1, model=model, strategy=strategy, objective={}, optimizer=steps)


def seconds(root: Path, saved: Checkpoint, *, checksums: bool) -> float:
    """How long one takes to write."""
    files._content_checksum, checkpoint.checksum, torch.serialization.set_crc32_options = OURS if checksums else NONE
    began = time.perf_counter()
    save_checkpoint(root, saved, "run")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300, help="of tensors in the checkpoint")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--folder", type=str, default=None, help="where to write (default: where temporary files lie)")
    parser.add_argument("--json", type=str, default=None, metavar="FILE", help="also write the seconds there")
    options = parser.parse_args()
    saved = state(options.megabytes)
    found: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        seconds(Path(folder), saved, checksums=True)  # the first finds nothing in any cache
        for number in range(options.rounds):
            for checksums in (True, False) if number % 2 else (False, True):
                found[checksums].append(seconds(Path(folder), saved, checksums=checksums))
    fastest, median = ({each: of(found[each]) for each in found} for of in (min, statistics.median))
    for name, of in (("fastest", fastest), ("median", median)):
        print(f"{name:8} {of[True]:.3f} s with checksums, {of[False]:.3f} s without: {of[True] / of[False] - 1:+.1%}")
    if options.json:
        content = {"with": found[True], "without": found[False]}
        Path(options.json).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
