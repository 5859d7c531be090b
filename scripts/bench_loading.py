#!/usr/bin/env python3
"""Images a second, decoded, augmented and trained on, against a bare loop of torchvision and a DataLoader.

    .venv/bin/python scripts/bench_loading.py FOLDER_OF_CLASSES
    .venv/bin/python scripts/bench_loading.py FOLDER_OF_CLASSES --size 224 --model resnet18 --json out.json

Both read the same files in the same process, no workers, round by round so that the noise of the machine hits both
alike; what is shown is the median over the rounds, and that of the ratios within a round. `decoded`: batches of images
of one size. `photo`: with a crop that is resized, a flip, and brightness, contrast and saturation; the bare loop does
what torchvision's recipes do, it crops the decoded photograph and changes it as a PIL image (`bare`), or as a tensor of
bytes (`bare, tensors`). `trained`: the same, and a step of a metric loss for each batch; ours is the project's loop.
`in memory` is what this project does with sets below 1 GiB: they are decoded once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.folders import folder
from tripletmas.data.tasks import Task, make_stream
from tripletmas.models.making import make_model
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.task import Learner, train_task
from tripletmas.strategies.finetune import Finetune

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="photographs, <class>/<image>")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--images", type=int, default=512, help="so many of them, evenly drawn, in an epoch")
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rates = measured(ways(options), options.rounds, CLOCKS[options.clock])
    rows = table(rates)
    print(
        f"{options.images} images at {options.size}, {options.model}, torch {torch.__version__}, clock {options.clock}"
    )
    for row in rows:
        print(" ".join(f"{cell:>{28 if place == 0 else 18}}" for place, cell in enumerate(row)))
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1))


def ways(options: argparse.Namespace) -> dict[str, dict[str, Callable[[], int]]]:
    """row -> way -> one pass over the images, which returns how many there were."""
    read, bare = ours(options), theirs(options)
    found: dict[str, dict[str, Callable[[], int]]] = {
        row: {way: lambda made=made: seen(made) for way, made in loaders.items()}
        for row, loaders in {
            "decoded": {"ours": read("none", False), "bare": bare("none")},
            "photo": {"ours": read("photo", False), "bare": bare("pil"), "bare, tensors": bare("tensor")},
            "photo, in memory": {"ours": read("photo", True)},
        }.items()
    }
    shape = (3, options.size, options.size)
    found["photo, trained"] = {
        "ours": trained(read("photo", False).dataset, options.model, shape),
        "bare": bare_training(bare("pil"), options.model, shape),
    }
    found["photo, in memory, trained"] = {"ours": trained(read("photo", True).dataset, options.model, shape)}
    return found


def chosen(count: int, size: int) -> list[int]:
    """Positions of so many of `size` images, evenly drawn."""
    return torch.linspace(0, size - 1, min(count, size)).round().long().tolist()


def ours(options: argparse.Namespace) -> Callable[[str, bool], DataLoader]:
    """(augmentation, in memory) -> batches of this project."""
    sources = {kept: folder(root=options.folder, size=options.size, in_memory=kept) for kept in (False, True)}

    def loader(augment: Any, in_memory: bool) -> DataLoader:
        (task,), _ = make_stream(sources[in_memory], tasks=1, by="class", augment=augment)
        view = task.train.subset(chosen(options.images, len(task.train)))
        return view.loader(BATCH, seed=0)

    return loader


def theirs(options: argparse.Namespace) -> Callable[[str], DataLoader]:
    """A way of augmentation -> batches of torchvision's recipes."""
    size, jitter = options.size, v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
    change = [v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), v2.RandomHorizontalFlip(), jitter]
    end = [v2.ToDtype(torch.float32, scale=True)]
    transforms = {
        "none": [v2.Resize(size, antialias=True), v2.CenterCrop(size), v2.ToImage(), *end],
        "pil": [*change, v2.ToImage(), *end],
        "tensor": [v2.ToImage(), *change, *end],
    }

    def loader(way: str) -> DataLoader:
        data = ImageFolder(options.folder, transform=v2.Compose(transforms[way]))
        return DataLoader(Subset(data, chosen(options.images, len(data))), batch_size=BATCH, shuffle=True)

    return loader


def seen(batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    return sum(len(labels) for _, labels in batches)


def trained(data: Any, model: str, shape: tuple[int, ...]) -> Callable[[], int]:
    """An epoch of the project's loop."""
    assert isinstance(data, LabelledDataset)
    learner = Learner(*learned(model, shape), Finetune(), TrainConfig(epochs=1, batch_size=BATCH))
    task = Task("all", data.classes, data, data)

    def epoch() -> int:
        train_task(learner, task, ())
        return len(data)

    return epoch


def bare_training(batches: DataLoader, model: str, shape: tuple[int, ...]) -> Callable[[], int]:
    network, loss = learned(model, shape)

    def epoch() -> int:
        optimizer, count = torch.optim.AdamW(network.parameters(), lr=1e-3), 0
        network.train()
        for images, labels in batches:
            optimizer.zero_grad()
            value = loss(network(images), labels)
            value.backward()
            value.item()
            optimizer.step()
            count += len(labels)
        return count

    return epoch


def learned(model: str, shape: tuple[int, ...]) -> tuple[nn.Module, Retrieval]:
    torch.manual_seed(0)
    return make_model(model, shape), Retrieval(make_loss("triplet", dim=64, num_classes=1000))


def measured(
    found: dict[str, dict[str, Callable[[], int]]], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, list[float]]]:
    """row -> way -> images a second in each round; a first round is not counted."""
    rates: dict[str, dict[str, list[float]]] = {row: {way: [] for way in each} for row, each in found.items()}
    for number in range(rounds + 1):
        for row, each in found.items():
            for way, go in each.items():
                began = clock()
                count = go()
                if number:
                    rates[row][way].append(count / (clock() - began))
    return rates


def table(rates: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """The medians, and of each row the median ratio to `bare`, which rows in memory take from the row without."""
    rows = [["", "ours", "bare", "bare, tensors", "ours / bare"]]
    for row, each in rates.items():
        bare = rates[row.replace(", in memory", "")]["bare"]
        ratio = statistics.median(a / b for a, b in zip(each["ours"], bare, strict=True))
        cells = [f"{statistics.median(each[way]):.0f}" if way in each else "" for way in rows[0][1:4]]
        rows.append([row, *cells, f"{ratio:.2f}"])
    return rows


if __name__ == "__main__":
    main()
