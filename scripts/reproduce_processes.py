#!/usr/bin/env python3
"""Whether several processes measure and hold what one does: importance, weights after a protected task, and the time.

    .venv/bin/python scripts/reproduce_processes.py
    .venv/bin/python scripts/reproduce_processes.py --model resnet18 --size 64 --samples 51 --processes 1 2
    .venv/bin/python scripts/reproduce_processes.py --model mlp --samples 11 --steps 2 --processes 1 2 --json out.json
    .venv/bin/python scripts/reproduce_processes.py --protection gram --processes 1 2 3

Each number of processes measures MAS importance (relative), or input Grams, on the same images, of which
`DistributedSampler` gives each its share, and then learns another task under DistributedDataParallel (ddp) and under
fully_shard (fsdp), held by a MAS, or by a Gram with its default budget. Printed are largest differences to one process,
and between ranks; of importance (of a Gram the diagonal) relative to the largest of its parameter; and seconds of
`consolidate`, and of adding up that much over processes again.
Batch norm is in eval mode in training, so that one batch is one function of the weights however it is shared out.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import tripletmas as tm
from tripletmas.basics import distributed

STRENGTH = 3.0


def whole(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: distributed.whole(value.detach()).clone() for name, value in values.items()}


def learned(settings: argparse.Namespace, way: str) -> dict[str, Any]:
    """Importance, the weights after a protected task, the penalty there, and what it took."""
    torch.manual_seed(0)
    model: nn.Module = tm.make_model(settings.model, (3, settings.size, settings.size), options={"dim": 16}).eval()
    model.to(memory_format=torch.contiguous_format)  # as fully_shard wants its weights
    images = torch.randn(settings.samples, 3, settings.size, settings.size)
    new = torch.randn(settings.batch * settings.steps, 3, settings.size, settings.size) + 0.5
    learner = model
    if way == "ddp" and distributed.is_on():
        learner = DistributedDataParallel(model)
    elif way == "fsdp" and distributed.is_on():
        for layer in [each for each in model.modules() if isinstance(each, nn.Conv2d)]:
            fully_shard(layer, mesh=init_device_mesh("cpu", (distributed.world_size(),)))
        fully_shard(model, mesh=init_device_mesh("cpu", (distributed.world_size(),)))
    data = TensorDataset(images)
    sampler = DistributedSampler(data, distributed.world_size(), distributed.rank(), shuffle=False)
    loader = DataLoader(data, 16, sampler=sampler)
    holds = tm.Gram(learner) if settings.protection == "gram" else tm.MAS(learner, strength=STRENGTH)
    began = time.perf_counter()
    importance = whole(holds.consolidate(loader))
    seconds = time.perf_counter() - began
    summed = {name: value for name, value in holds.state_dict().items() if name.startswith(("gram/", "factor/"))}
    began = time.perf_counter()
    distributed.sum_over_ranks(summed or importance)
    sums = time.perf_counter() - began
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01, momentum=0.9)
    holds.attach(optimizer)
    for batch in new.split(settings.batch):
        optimizer.zero_grad()
        own = batch[distributed.rank() :: distributed.world_size()]
        (learner(own) - 1).square().mean().backward()
        optimizer.step()
    found = {"importance": importance, "weights": whole(dict(model.named_parameters())), "seconds": [seconds, sums]}
    return {**found, "penalty": float(holds.value().detach())}


def member(rank: int, settings: argparse.Namespace, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{count}", rank=rank, world_size=count)
    found = {way: learned(settings, way) for way in ("ddp", "fsdp")}
    torch.save(found, Path(folder, f"{count}-{rank}"))
    dist.destroy_process_group()
    os._exit(0)  # fully_shard's mesh keeps the group's threads, which now and then abort where the interpreter ends


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor], *, relative: bool) -> float:
    """The largest difference; relative to the largest number of its parameter."""
    return max(
        float((found[name] - value).abs().max() / (value.abs().max().clamp_min(1e-30) if relative else 1))
        for name, value in expected.items()
    )


def compared(answers: list[dict[str, Any]], one: dict[str, Any], way: str) -> dict[str, float]:
    first = answers[0][way]
    expected = one[way]
    return {
        "importance": furthest(first["importance"], expected["importance"], relative=True),
        "importance_ranks": max(
            furthest(each[way]["importance"], first["importance"], relative=False) for each in answers
        ),
        "weights": furthest(first["weights"], expected["weights"], relative=False),
        "weights_ranks": max(furthest(each[way]["weights"], first["weights"], relative=False) for each in answers),
        "penalty": abs(first["penalty"] / expected["penalty"] - 1),
        "seconds": first["seconds"][0],
        "seconds_of_sums": first["seconds"][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="conv4", choices=["mlp", "conv4", "resnet18"])
    parser.add_argument("--protection", default="mas", choices=["mas", "gram"])
    parser.add_argument("--size", type=int, default=32, help="height and width of images")
    parser.add_argument("--samples", type=int, default=203, help="that importance is measured on")
    parser.add_argument("--batch", type=int, default=48, help="samples of a step, over all processes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    settings = parser.parse_args()
    if wrong := [each for each in settings.processes if settings.batch % each]:
        parser.error(f"--batch must be a multiple of the number of processes, got {settings.batch} for {wrong[0]}")
    rows: list[dict[str, Any]] = []
    one: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in dict.fromkeys([1, *settings.processes]):
            torch.multiprocessing.spawn(member, (settings, count, folder), nprocs=count)
            answers = [torch.load(Path(folder, f"{count}-{rank}"), weights_only=False) for rank in range(count)]
            one = one or answers[0]
            rows += [{"processes": count, "way": way, **compared(answers, one, way)} for way in ("ddp", "fsdp")]
    columns = ("importance", "importance_ranks", "weights", "weights_ranks", "penalty", "seconds", "seconds_of_sums")
    table = Table("processes", "way", *(name.replace("_", ", ", 1) for name in columns))
    for row in rows:
        table.add_row(str(row["processes"]), row["way"], *(f"{row[name]:.2g}" for name in columns))
    Console(width=140).print(table)
    if settings.json:
        settings.json.write_text(json.dumps({"settings": {**vars(settings), "json": None}, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
