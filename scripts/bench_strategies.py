#!/usr/bin/env python3
"""What each strategy costs: time of a training step in the second task, relative to finetune, and what it keeps.

    .venv/bin/python scripts/bench_strategies.py --threads 2
    .venv/bin/python scripts/bench_strategies.py --objective recognition --model conv4 --json docs/results

Every strategy of the catalog learns a first task of random images, then the second, a pass in each round, with the
library's own loop. All take turns in every round, so that what else the machine does hits all alike. A step is timed
from the end of the step before to its own end. The ratio is the median over the rounds of that within a round. `kept`
is the size of the state that a strategy keeps between steps, in copies of the trainable parameters; the model, the
optimizer and samples of earlier tasks that are read again are not in it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tables import Cell, Table, keep, machine

import tripletmas as tm
from tripletmas.basics.weights import trainable
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.catalog import STRATEGIES, build_strategy
from tripletmas.runs.task import Learner, train_task

DIM = 64
SAMPLES_PER_CLASS = 4
COMBINATIONS = ("mas+distill",)
BASELINE = "finetune"


class Training:
    """A strategy that has learned the first task and goes on with the second, a pass at a time."""

    def __init__(self, name: str, stream: tm.Stream, options: argparse.Namespace):
        self.name = name
        self.stream = stream
        self.ends: list[float] = []  # when each step of the present pass ended
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"dim": DIM} | ({"pretrained": False} if options.model == "resnet18" else {})
        model = tm.make_model(options.model, stream[0].train.sample_shape, options=sizes).to(options.device)
        names = stream[0].train.class_names
        if options.objective == "recognition":
            objective = Recognition(DIM, [task.classes for task in stream], names).to(options.device)
        else:
            objective = Retrieval(tm.make_loss("triplet", dim=DIM, num_classes=len(names)))
        config = tm.TrainConfig(epochs=1, batch_size=options.batch_size, samples_per_class=SAMPLES_PER_CLASS, lr=1e-4)
        strategy = build_strategy(name, {})
        strategy.prepare(model, objective, stream)
        self.learner = Learner(model, objective, strategy, config)
        train_task(self.learner, stream[0], ())
        strategy.after_task(model, stream[0])
        after_step = strategy.after_step

        def note_end(model: torch.nn.Module) -> None:
            after_step(model)
            self.ends.append(time.perf_counter())

        strategy.after_step = note_end

    def seconds_per_step(self) -> float:
        """The mean in a pass over the second task, without the first step, which allocates; nan if none is made."""
        self.ends.clear()
        train_task(self.learner, self.stream[1], self.stream[:1])
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1) if self.ends else math.nan

    def bytes_kept(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.learner.strategy.state_dict().values())

    def bytes_trainable(self) -> int:
        return sum(value.numel() * value.element_size() for value in trainable(self.learner.model).values())


def make_stream(options: argparse.Namespace) -> tm.Stream:
    """Two tasks of random images, `--steps` batches of classes each."""
    generator = torch.Generator().manual_seed(0)
    num_classes = 2 * max(2, options.batch_size // SAMPLES_PER_CLASS)
    labels = torch.arange(num_classes).repeat_interleave(SAMPLES_PER_CLASS * options.steps + 2)
    shape = (3, options.size, options.size)
    samples = torch.randint(256, (len(labels), *shape), generator=generator, dtype=torch.uint8)
    data = tm.LabelledDataset(samples, labels, [str(label) for label in range(num_classes)])
    # 2 queries of each class, which nobody asks
    return tm.make_stream(tm.Source(data), tasks=2, test_share=1e-6)[0]


def measure(options: argparse.Namespace) -> Table:
    """A row for each strategy, finetune first; one that trains nothing in the second task has no times."""
    stream = make_stream(options)
    names = [BASELINE, *(name for name in options.strategies if name != BASELINE)]
    trainings = [Training(name, stream, options) for name in names]
    for training in trainings:
        training.seconds_per_step()  # the first time, memory is allocated
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds):
        first = turn % len(trainings)  # whoever comes after the hungriest finds the caches and the memory it left
        for training in trainings[first:] + trainings[:first]:
            seconds[training.name].append(training.seconds_per_step())
    rows: list[Mapping[str, Cell]] = []
    for training in trainings:
        own, row = seconds[training.name], {"strategy": training.name}
        if not math.isnan(own[0]):
            row |= {"ms": [1000 * each for each in own]}
            row |= {"time": [each / bare for each, bare in zip(own, seconds[BASELINE], strict=True)]}
        rows.append({**row, "kept": [training.bytes_kept() / training.bytes_trainable()]})
    about = (
        f"{options.model}, {options.objective}, {options.batch_size} images of {options.size}x{options.size}, adamw: "
        "a step in the second task, its time relative to finetune, and what is kept in copies of the weights"
    )
    return Table({"strategy": "name", "ms": "median", "time": "median", "kept": "median"}, rows, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["resnet18", "conv4", "mlp"], default="resnet18")
    parser.add_argument("--objective", choices=["metric", "recognition"], default="metric")
    parser.add_argument("--strategies", nargs="+", default=[*STRATEGIES, *COMBINATIONS], metavar="NAME")
    parser.add_argument("--size", type=int, default=64, help="side of the images, in pixels")
    parser.add_argument("--batch-size", type=int, default=64, help=f"samples, {SAMPLES_PER_CLASS} of each class")
    parser.add_argument("--steps", type=int, default=4, help="of a pass; those after its first are timed")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of the CPU; torch's own choice if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="a folder: the table as JSON, for fill_tables.py")
    options = parser.parse_args()
    if options.batch_size < 2 * SAMPLES_PER_CLASS:
        parser.error(
            f"--batch-size must be >= {2 * SAMPLES_PER_CLASS} to form a negative pair, got {options.batch_size}"
        )
    if options.steps < 2:
        parser.error(f"--steps must be >= 2, for the first of a pass is not timed, got {options.steps}")
    if options.threads:
        torch.set_num_threads(options.threads)
    measured = measure(options)
    print(measured.text())
    keep(measured, options.json, f"bench-strategies-{options.objective}", settings=machine(options))


if __name__ == "__main__":
    main()
