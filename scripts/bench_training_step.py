#!/usr/bin/env python3
"""What protection costs: seconds of a training step without it, with MAS attached, with its penalty in the loss, and
with a Gram of two earlier tasks attached; what the Gram stores, and how long measuring one takes, in epochs.

    .venv/bin/python scripts/bench_training_step.py --threads 2
    .venv/bin/python scripts/bench_training_step.py --images FOLDER --clock cpu --warm-up 10
    .venv/bin/python scripts/bench_training_step.py --model efficientnet_lite0 --size 96
    .venv/bin/python scripts/bench_training_step.py --model transformer --size 128 --repeats 5
    .venv/bin/python scripts/bench_training_step.py --model mlp --size 8 --json step.json

transformer is one of the size of MiniLM (6 layers of 384), on sentences of so many tokens. efficientnet_lite0 needs the
packages that `efficientnet_lite0.py` names.

All variants train on the same ten batches, each with its own copy of the model and optimizer: of noise, or with
`--images` of photographs, `<class>/<image>`, the first classes for the two tasks that the Gram holds and the next ones
for the steps. What a layer learns of photographs, and where their inputs lie, is not what noise makes of it: tell by
them what protection costs. The variants take turns in every round, so that what else the machine does hits all alike;
printed are the medians over the rounds, of the wall's seconds or with `--clock cpu` of the processor's. On a GPU the
script waits for it before and after each timed block. A Gram's first steps in a task are not like its later ones:
`--warm-up 40` times what comes after 40 of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import tripletmas as tm
from tripletmas.data.folders import folder

DIM, WORDS = 64, 30_522
SAMPLES_PER_CLASS = 4
BATCHES = 10  # of an epoch
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and labels
MODELS = ["resnet18", "conv4", "mlp", "efficientnet_lite0", "transformer"]
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
}


class Training:
    """A model that has learned two tasks and goes on with the next, a step at a time."""

    def __init__(
        self, name: str, model: torch.nn.Module, tasks: tuple[list[Batch], list[Batch]], optimizer: str, clock: str
    ):
        self.name, self.clock = name, CLOCKS[clock]
        self.model = copy.deepcopy(model)
        self.learned, self.batches = tasks
        self.turn = 0
        labels = torch.cat([labels for _, labels in self.batches])
        self.loss = tm.make_loss("triplet", dim=DIM, num_classes=int(labels.max()) + 1)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.mas = tm.MAS(self.model)
        self.gram: tm.Gram | None = None
        if name == "gram":
            self.gram = tm.Gram(self.model)
            for part in (self.learned, self.learned[: BATCHES // 2]):
                self.gram.consolidate(part)
            self.gram.attach(self.optimizer)
        elif name != "none":
            # every weight matters: how importance was measured makes no difference to the time of a step
            self.mas.add({key: torch.full_like(p, 1e-3) for key, p in self.model.named_parameters()})
        if name == "attached":
            self.mas.attach(self.optimizer)
        for module in self.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()  # as training does after the first task

    def step(self) -> None:
        inputs, labels = self.batches[self.turn % len(self.batches)]
        self.turn += 1
        self.optimizer.zero_grad()
        objective = self.loss(self.model(inputs), labels)
        if self.name == "in the loss":
            objective = objective + self.mas.value()
        objective.item()  # as training does, which looks whether it is finite
        objective.backward()
        self.optimizer.step()

    def seconds_per_step(self, steps: int) -> float:
        self._wait()
        began = self.clock()
        for _ in range(steps):
            self.step()
        self._wait()
        return (self.clock() - began) / steps

    def seconds_to_measure(self) -> float:
        """Of measuring a Gram of the ten batches and adding it; the model is left as it is."""
        model = copy.deepcopy(self.model)
        gram = tm.Gram(model)
        self._wait()
        began = self.clock()
        gram.consolidate(self.learned)
        self._wait()
        return self.clock() - began

    def stored(self) -> float | None:
        """Of the Gram, in copies of the weights: its state, and the eigenvectors of layers that it has had to bring
        back, which it keeps while a task is learned; None for the others."""
        if self.gram is None:
            return None
        kept = [*self.gram.state_dict().values()]
        kept += [each for held in self.gram._held.values() for each in vars(held).get("_of_square", ())]
        return bytes_of(kept) / bytes_of(self.model.parameters())

    def extra_memory(self) -> int | None:
        """Bytes at the peak of a step beyond what is held between steps; None on CPUs, where torch does not count."""
        if self.learned[0][0].device.type != "cuda":
            return None
        self._wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.step()
        self._wait()
        return torch.cuda.max_memory_allocated() - before

    def _wait(self) -> None:
        if self.learned[0][0].device.type == "cuda":
            torch.cuda.synchronize()


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


class Transformer(torch.nn.Module):
    """A sentence encoder: the mean over its tokens."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, 384)
        layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, activation="gelu", batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(self.words(tokens)).mean(dim=1)


def made(options: argparse.Namespace) -> tuple[torch.nn.Module, tuple[list[Batch], list[Batch]]]:
    """The model, and batches of what it has learned and of what comes next."""
    tasks = photographs(options) if options.images else ([noise(options) for _ in range(BATCHES)],) * 2
    shape = tuple(tasks[0][0][0].shape[1:])
    if options.model == "transformer":
        return Transformer().to(options.device), tasks
    if options.model == "efficientnet_lite0":
        from efficientnet_lite0 import EfficientNetLite0

        return EfficientNetLite0(shape).to(options.device), tasks
    sizes: dict[str, Any] = {"dim": DIM} | ({"pretrained": False} if options.model == "resnet18" else {})
    return tm.make_model(options.model, shape, options=sizes).to(options.device), tasks


def noise(options: argparse.Namespace) -> Batch:
    labels = torch.arange(options.batch, device=options.device) // SAMPLES_PER_CLASS
    if options.model == "transformer":
        return torch.randint(WORDS, (options.batch, options.size), device=options.device), labels
    return torch.randn(options.batch, 3, options.size, options.size, device=options.device), labels


def photographs(options: argparse.Namespace) -> tuple[list[Batch], list[Batch]]:
    """Two tasks of as many classes as ten batches need, as many photographs of each as there are."""
    data = folder(root=options.images, size=options.size).train
    order = torch.argsort(data.labels, stable=True)[: 2 * BATCHES * options.batch]
    if len(order) < 2 * BATCHES * options.batch:
        raise SystemExit(f"--images must have {2 * BATCHES * options.batch} photographs, and has {len(order)}")
    generator = torch.Generator().manual_seed(0)
    tasks = []
    for numbers in order.chunk(2):
        mixed = numbers[torch.randperm(len(numbers), generator=generator)]
        inputs = torch.stack([data[int(number)][0] for number in mixed]).to(options.device)
        labels = torch.unique(data.labels[mixed], return_inverse=True)[1].to(options.device)
        tasks.append(list(zip(inputs.split(options.batch), labels.split(options.batch), strict=True)))
    return tasks[0], tasks[1]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each variant, the one without protection first."""
    torch.manual_seed(0)
    model, tasks = made(options)
    variants = [
        Training(name, model, tasks, options.optimizer, options.clock)
        for name in ("none", "attached", "in the loss", "gram")
    ]
    for training in variants:
        training.seconds_per_step(2 + options.warm_up)  # the first step allocates the optimizer's state
    seconds: dict[str, list[float]] = {training.name: [] for training in variants}
    for turn in range(options.repeats):
        first = turn % len(variants)  # whoever comes after the hungriest finds the caches and the memory it left
        for training in variants[first:] + variants[:first]:
            seconds[training.name].append(training.seconds_per_step(options.steps))
    ratios = {
        name: statistics.median(own / bare for own, bare in zip(times, seconds["none"], strict=True))
        for name, times in seconds.items()
    }
    bare, *_, held = variants
    epochs = [held.seconds_to_measure() / (BATCHES * bare.seconds_per_step(BATCHES)) for _ in range(3)]
    return [
        {
            "protection": training.name,
            "median_seconds": statistics.median(seconds[training.name]),
            "fastest_seconds": min(seconds[training.name]),
            "ratio": ratios[training.name],  # the median over the rounds of the ratio within a round
            "extra_memory": training.extra_memory(),
            "stored": training.stored(),
            "epochs": statistics.median(epochs) if training is held else None,
        }
        for training in variants
    ]


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    table = Table()
    table.add_column("protection")
    for name in ("median ms", "fastest ms", "ratio", "peak MiB", "stored, in copies", "measured, in epochs"):
        table.add_column(name, justify="right")
    for row in rows:
        memory = "–" if row["extra_memory"] is None else f"{row['extra_memory'] / 2**20:.1f}"
        times = [f"{1000 * row[key]:.2f}" for key in ("median_seconds", "fastest_seconds")]
        stored = "" if row["stored"] is None else f"{row['stored']:.2f}"
        epochs = "" if row["epochs"] is None else f"{row['epochs']:.2f}"
        table.add_row(row["protection"], *times, f"{row['ratio']:.3f}", memory, stored, epochs)
    print(title)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw")
    parser.add_argument("--size", type=int, default=64, help="side of the images, in pixels; tokens of a sentence")
    parser.add_argument("--batch", type=int, default=64, help=f"samples, {SAMPLES_PER_CLASS} of each class")
    parser.add_argument("--images", metavar="FOLDER", help="photographs in place of noise; a zip archive, too")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed together")
    parser.add_argument(
        "--warm-up", type=int, default=0, help="steps of each variant before timing, beside the two that allocate"
    )
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's own choice if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    if options.batch < 2 * SAMPLES_PER_CLASS:
        parser.error(f"--batch must be >= {2 * SAMPLES_PER_CLASS} to form a negative pair, got {options.batch}")
    if options.images and options.model == "transformer":
        parser.error("--images are for models of images")
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = measure(options)
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print_table(
        rows,
        f"{options.model}, {options.batch} {'photographs' if options.images else 'samples'} of size {options.size}, "
        f"{options.optimizer}, {device}, "
        f"{torch.get_num_threads()} threads, after {2 + options.warm_up} steps, torch {torch.__version__}",
    )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        settings |= {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "machine": platform.machine()}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
