#!/usr/bin/env python3
"""What the product's own loop costs beside a bare loop of PyTorch: seconds of an epoch of the same model and batches.

    .venv/bin/python scripts/bench_loop.py --threads 1
    .venv/bin/python scripts/bench_loop.py --models mlp conv4 --steps 40 --rounds 9 --json docs/results

The bare loop is what one writes by hand: a DataLoader over a TensorDataset, forward, the same loss, its value read off,
backward, the optimizer's step. The other one is what `tripletmas train` does in an epoch: it also looks whether losses,
weights and penalty are finite and whether the embedding collapses, sets the rate, and asks a strategy (finetune). Both
learn in one process, in turns, each with a copy of the model and an optimizer of its own, the same batches; the ratio
is the median over rounds of the ratio within a round, above 1 where the product's loop takes longer. `bf16` and
`channels last` are the product's loop again, with the precision, or with that layout of the weights.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import Cell, Table, keep, machine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tripletmas as tm
from tripletmas.cli.train import keep_freed_memory
from tripletmas.data.batches import draw_batches
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.precision import settled
from tripletmas.runs.task import Learner, train_task
from tripletmas.strategies.base import Strategy

DIM, PER_CLASS = 64, 4
PRECISIONS = {"product": "fp32"} | {each: each for each in ("fp32+channels_last", "bf16", "bf16+channels_last")}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Case(NamedTuple):
    """A network, the shape of its samples, and how many make a batch."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


def network(name: str, size: int, batch: int, channels: int = 3, **options: Any) -> Case:
    shape = (channels, size, size)
    return Case(lambda: tm.make_model(name, shape, options={"dim": DIM, **options}), shape, batch)


CASES = {
    "mlp": network("mlp", 8, 32, 1),
    "conv4": network("conv4", 28, 64, 1),
    "resnet18": network("resnet18", 64, 32, pretrained=False),
    "mobilenet_v3_small": network("mobilenet_v3_small", 96, 32, pretrained=False),
}


class Loops:
    """One epoch of a model by each of the loops."""

    def __init__(self, case: Case, steps: int, clock: str):
        self.clock = CLOCKS[clock]
        torch.manual_seed(0)
        samples = torch.randn(steps * case.batch, *case.shape)
        labels = torch.arange(len(samples)) // (2 * PER_CLASS)
        names = [f"{number:04d}" for number in range(int(labels[-1]) + 1)]
        data = tm.LabelledDataset(samples, labels, names)
        self.task = tm.make_stream(tm.Source(data), tasks=1, test_share=0.5)[0][0]
        own = [self.task.train[number][0] for number in range(len(self.task.train))]
        self.data = TensorDataset(torch.stack(own), self.task.train.labels)
        made = case.make()
        self.batch, self.classes = case.batch, len(names)
        self.models = {name: copy.deepcopy(made) for name in ("bare", *PRECISIONS)}

    def seconds(self, name: str) -> float:
        """Of an epoch, a step each."""
        loss = tm.make_loss("triplet", dim=DIM, num_classes=self.classes)
        began = self.clock()
        steps = self._bare(loss) if name == "bare" else self._product(name, loss)
        return (self.clock() - began) / steps

    def _bare(self, loss: nn.Module) -> int:
        model = self.models["bare"].train()
        batches = self._batches()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        total = 0.0
        for inputs, labels in DataLoader(self.data, batch_sampler=batches):
            optimizer.zero_grad()
            value = loss(model(inputs), labels)
            total += value.item()
            value.backward()
            optimizer.step()
        return len(batches)

    def _product(self, name: str, loss: nn.Module) -> int:
        precision: Any = PRECISIONS[name]
        config = tm.TrainConfig(
            epochs=1,
            batch_size=self.batch,
            samples_per_class=PER_CLASS,
            lr=1e-4,
            weight_decay=0.01,
            precision=precision,
        )
        records: list[dict[str, Any]] = []
        config = settled(config, self.models[name], self.task, None)
        train_task(
            Learner(self.models[name], Retrieval(loss), Strategy(), config),
            self.task,
            (),
            on_record=lambda _, record: records.append(record),
        )
        return records[0]["steps"]

    def _batches(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return draw_batches(
            self.task.train.labels,
            sampler="class_balanced",
            batch_size=self.batch,
            samples_per_class=PER_CLASS,
            generator=generator,
        )


def measured(case: Case, steps: int, rounds: int, clock: str) -> dict[str, list[float]]:
    """For each loop the seconds a step of every round."""
    loops = Loops(case, 2 * steps, clock)
    names = list(loops.models)
    for name in names:
        loops.seconds(name)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(loops.seconds(name))
    return taken


def row_of(model: str, taken: dict[str, list[float]]) -> dict[str, Cell]:
    """Milliseconds of the bare loop, and of each other one its ratio to that."""
    shape = "x".join(map(str, CASES[model].shape[1:]))
    ratios: dict[str, Cell] = {
        name: [one / bare for one, bare in zip(own, taken["bare"], strict=True)] for name, own in taken.items()
    }
    name = f"{model}, {CASES[model].batch} of {shape}"
    return {"model, batch": name, **ratios, "bare": [1000 * each for each in taken["bare"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's own choice if not given")
    parser.add_argument("--json", type=Path, help="a folder: the table as JSON, for fill_tables.py")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `tripletmas train` does
    rows: list[Mapping[str, Cell]] = []
    for model in options.models:
        rows.append(row_of(model, measured(CASES[model], options.steps, options.rounds, options.clock)))
    about = (
        "Milliseconds a step of a bare loop, and the ratio of the product's loop to it, by precision and layout; "
        f"AdamW, CPU, {torch.get_num_threads()} threads"
    )
    table = Table({"model, batch": "name", **dict.fromkeys(["bare", *PRECISIONS], "median")}, rows, about)
    print(table.text())
    keep(table, options.json, "bench-loop", settings=machine(options))


if __name__ == "__main__":
    main()
