#!/usr/bin/env python3
"""What exact per-sample importance costs, against a plain forward and backward pass on the same batch.

    .venv/bin/python scripts/bench_importance.py
    .venv/bin/python scripts/bench_importance.py --models resnet18-64 mlp --json importance.json

Four ways to the same sums, one after the other in one process, round by round so that the noise of the machine hits all
alike; of each the fastest round counts. `plain` is one forward and backward pass of the summed squared length, which
gives no importance. `ours` is tripletmas. `loop` is one forward and backward pass for each sample, what the authors'
code does with a batch size of 1. `vmap` is torch.func.vmap over torch.func.grad. Beside them `gram`: what a `tm.Gram`
measures, by forward passes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tripletmas as tm
from tripletmas.basics.weights import Params


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    samples: Callable[[int], Tensor]
    batch_size: int


def randn(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def backbone(name: str, size: int, batch_size: int) -> Case:
    shape = (3, size, size)
    return Case(lambda: tm.make_model(name, shape, options={"dim": 128}), randn(*shape), batch_size)


class MiniLM(nn.Module):
    """What all-MiniLM-L6-v2 is, with random weights: the mean over the words that the mask shows."""

    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel

        sizes: dict[str, Any] = {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        }
        self.encoder = BertModel(BertConfig(**sizes), add_pooling_layer=False)

    def forward(self, texts: Tensor) -> Tensor:
        words, mask = texts.unbind(1)
        states = self.encoder(input_ids=words, attention_mask=mask).last_hidden_state
        return (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)


def texts(n: int, longest: int = 32) -> Tensor:
    """Words and mask, (n, 2, longest), of texts of 6 words and more, of which one is the longest."""
    lengths = torch.randint(6, longest, (n,))
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths.unsqueeze(1)).long()
    return torch.stack([torch.randint(1000, 30000, (n, longest)) * mask, mask], dim=1)


CASES = {
    "mlp": Case(lambda: tm.make_model("mlp", (784,), options={"dim": 64, "hidden": (400, 400)}), randn(784), 1024),
    "conv4": Case(lambda: tm.make_model("conv4", (1, 28, 28)), randn(1, 28, 28), 256),
    "resnet18-64": backbone("resnet18", 64, 64),
    "resnet18-224": backbone("resnet18", 224, 16),
    "vit_b_16-224": backbone("vit_b_16", 224, 4),
    "mobilenet_v3-64": backbone("mobilenet_v3_large", 64, 32),
    "minilm": Case(MiniLM, texts, 32),
}
ON_GPU = {"resnet50-224": backbone("resnet50", 224, 64), "vit_b_16-224-64": backbone("vit_b_16", 224, 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {**CASES, **ON_GPU}
    parser.add_argument("--models", nargs="+", choices=list(known), default=None)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=4, help="that are measured in one call")
    parser.add_argument("--batch", type=int, help="in place of each model's own batch size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of torch; default: as torch chooses")
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    chosen = options.models or [*CASES, *(ON_GPU if device.type == "cuda" else {})]
    about = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "batches": options.batches,
        "rounds": options.rounds,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(header(options.ways), flush=True)
    results = {}
    for name in chosen:
        case = known[name]
        batch_size = options.batch or case.batch_size
        results[name] = measured(case, batch_size, options.batches, device, options.ways, options.rounds)
        print(line(name, batch_size, results[name], options.ways), flush=True)
    if options.json:
        options.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n", encoding="utf-8")


def measured(case: Case, batch_size: int, num_batches: int, device: torch.device, ways: list[str], rounds: int) -> dict:
    torch.manual_seed(0)
    model = case.make().to(device).eval()
    for module in model.modules():  # as after training: statistics that are not those of a fresh layer
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    batches = [case.samples(batch_size).to(device) for _ in range(num_batches)]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, float] = {}
    for number in range(rounds + 1):  # the first is for warming up
        for way in ways:
            if sum(seconds[way]) > 20:
                continue  # what takes that long is known well enough
            with PeakMemory(device) as peak:
                took = timed(lambda way=way: WAYS[way](model, batches), device)
            if number:
                seconds[way].append(took)
            memory[way] = max(memory.get(way, 0.0), peak.megabytes)
    fastest = {way: min(values) for way, values in seconds.items()}
    return {
        "batch_size": batch_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": fastest,
        "all_seconds": seconds,
        "ratio_to_plain": {way: value / fastest["plain"] for way, value in fastest.items()} if "plain" in ways else {},
        "peak_megabytes": memory,
        **differences(model, batches[:1]),
    }


# --- the ways


def plain(model: nn.Module, batches: list[Tensor]) -> None:
    for batch in batches:
        model(batch).square().sum().backward()
    model.zero_grad(set_to_none=True)


def ours(model: nn.Module, batches: list[Tensor]) -> Params:
    return tm.mas_importance(model, batches)


def loop(model: nn.Module, batches: list[Tensor]) -> Params:
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    samples = [sample for batch in batches for sample in batch.split(1)]
    for sample in samples:
        gradients = torch.autograd.grad(model(sample).square().sum(), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name].add_(gradient.abs())
    return {name: value / len(samples) for name, value in total.items()}


def vectorized(model: nn.Module, batches: list[Tensor]) -> Params:
    def squared_length(parameters: Params, sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample.unsqueeze(0),)).square().sum()

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for batch in batches:
        for name, value in vmap(grad(squared_length), in_dims=(None, 0))(parameters, batch).items():
            total[name] += value.abs().sum(0)
    return {name: value / sum(map(len, batches)) for name, value in total.items()}


def gram(model: nn.Module, batches: list[Tensor]) -> Params:
    """What a `tm.Gram` measures: no importance in the sense of the others, but what it costs beside them."""
    return tm.Gram(model).consolidate(batches)


WAYS: dict[str, Callable[[nn.Module, list[Tensor]], object]] = {
    "plain": plain,
    "ours": ours,
    "loop": loop,
    "vmap": vectorized,
    "gram": gram,
}


def differences(model: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Largest differences between ours and the loop, and of both in float32 to the loop in float64."""
    exact = [batch.double() if batch.is_floating_point() else batch for batch in batches]
    single, single_loop = ours(model, batches), loop(model, batches)
    double, truth = ours(model.double(), exact), loop(model, exact)
    return {
        "float32": difference(single, single_loop),
        "float64": difference(double, truth),
        "ours_float32_to_loop_float64": difference(single, truth),
        "loop_float32_to_loop_float64": difference(single_loop, truth),
    }


def difference(found: Params, expected: Params) -> float:
    """The largest difference, relative to the largest importance in the same parameter; but for those in which all is
    rounding, as in the bias of attention's keys, on which nothing depends."""
    largest = {name: float(value.abs().max()) for name, value in expected.items()}
    noise = 1e-7 * max(largest.values())
    return max(
        float((found[name] - expected[name]).abs().max()) / most for name, most in largest.items() if most > noise
    )


# --- measuring


def timed(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


class PeakMemory:
    """Megabytes above those at the start: of the device, or on Linux of the process, looked at every 2 ms; else nan."""

    def __init__(self, device: torch.device):
        self._device, self.megabytes = device, float("nan")

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif sys.platform == "linux":
            self._before = self._largest = resident()
            self._stop = threading.Event()
            self._watcher = threading.Thread(target=self._watch)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.megabytes = (torch.cuda.max_memory_allocated(self._device) - self._before) / 1e6
        elif sys.platform == "linux":
            self._stop.set()
            self._watcher.join()
            self.megabytes = (self._largest - self._before) / 1e6

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._largest = max(self._largest, resident())


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- printing

DIFFERENCES = {
    "float32": "f32 to loop",
    "float64": "f64 to loop",
    "ours_float32_to_loop_float64": "f32 to f64",
    "loop_float32_to_loop_float64": "loop to f64",
}


def header(ways: list[str]) -> str:
    columns = [f"{'model':<16}{'batch':>6}", *(f"{way + ' s':>9}" for way in ways)]
    columns += [f"{way + '/plain':>11}" for way in ways if way != "plain"]
    return "".join(
        [*columns, *(f"{way + ' MB':>9}" for way in ways), *(f"{name:>12}" for name in DIFFERENCES.values())]
    )


def line(name: str, batch_size: int, result: dict, ways: list[str]) -> str:
    columns = [f"{name:<16}{batch_size:>6}", *(f"{result['seconds'][way]:>9.4f}" for way in ways)]
    columns += [f"{result['ratio_to_plain'].get(way, float('nan')):>11.2f}" for way in ways if way != "plain"]
    columns += [f"{result['peak_megabytes'][way]:>9.0f}" for way in ways]
    return "".join([*columns, *(f"{result[name]:>12.1e}" for name in DIFFERENCES)])


if __name__ == "__main__":
    main()
