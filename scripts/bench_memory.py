#!/usr/bin/env python3
"""Memory at its peak: a plain training step, measuring importance and Grams, and a step under protection by either.

    .venv/bin/python scripts/bench_memory.py                       # ResNet-50 and ViT-B/16 at 224, on a CPU
    .venv/bin/python scripts/bench_memory.py --models resnet18-64 --batch 8 --json memory.json

Each is done in a process of its own. Shown are megabytes above what the process had once the model was made, looked at
every 2 ms: activations, gradients, the state of AdamW, what a protection holds; and their ratio to the plain step's.
Of protected steps, what was measured before is there, and what measuring took for a while is not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_importance import CASES, PeakMemory, backbone, resident
from rich.console import Console
from rich.table import Table
from torch import nn

import tripletmas as tm

KNOWN = {**CASES, "resnet50-224": backbone("resnet50", 224, 4)}
WAYS = ("step", "importance", "gram", "step with MAS", "step with Gram")
STEPS = 3


def protection_of(way: str, model: nn.Module) -> Any:
    return tm.Gram(model) if "ram" in way else tm.MAS(model)


def held_now() -> int:
    """Bytes in memory, without what is free but was not given back to the system."""
    gc.collect()
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    return resident()


def measured(name: str, way: str, batch: int | None, threads: int) -> dict[str, float]:
    """Of one way, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    case = KNOWN[name]
    model = case.make().eval()
    inputs = case.samples(batch or case.batch_size)
    with torch.no_grad():
        model(inputs)  # what libraries take once
    device, held = torch.device("cpu"), held_now()
    if way.startswith("step"):
        guard = protection_of(way, model) if way != "step" else None
        if guard is not None:
            guard.consolidate([inputs])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        if guard is not None:
            guard.attach(optimizer)
        start = held_now()
        began = time.perf_counter()
        with PeakMemory(device) as peak:
            for _ in range(STEPS):
                optimizer.zero_grad()
                model(inputs).square().sum().backward()
                optimizer.step()
        most = peak.megabytes + (start - held) / 1e6
        seconds = (time.perf_counter() - began) / STEPS
    else:
        began = time.perf_counter()
        with PeakMemory(device) as peak:
            protection_of(way, model).consolidate([inputs, inputs])
        most, seconds = peak.megabytes, (time.perf_counter() - began) / 2
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6
    return {"megabytes": most, "weights": weights, "batch": len(inputs), "seconds": seconds}


def in_a_process(*given: Any) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(KNOWN), default=["resnet50-224", "vit_b_16-224"])
    parser.add_argument("--batch", type=int, help="in place of each model's own batch size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    table = Table("model", "batch", "weights MB", "what", "peak MB", "to a plain step")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.models:
        found[name] = {way: in_a_process(name, way, options.batch, options.threads) for way in WAYS}
        plain = found[name]["step"]["megabytes"]
        for way, row in found[name].items():
            ratio = f"{row['megabytes'] / plain:.2f}"
            table.add_row(name, f"{row['batch']:.0f}", f"{row['weights']:.0f}", way, f"{row['megabytes']:.0f}", ratio)
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
