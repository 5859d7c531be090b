#!/usr/bin/env python3
"""Avalanche's own EWC and MAS against MAS of tripletmas, as plugins of one strategy: digits, a head a task.

    python scripts/compare_avalanche.py [--seeds 0,1,2] [--epochs 4]

Each method has the strength of `STRENGTHS` that is best on seed 100. Printed are the mean over tasks of the accuracy of
a task's own head after the last of five tasks, how far it fell since the task was learned, and seconds for all of it.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import torch

import tripletmas as tm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that Avalanche finds or not
    from avalanche.models import MTSimpleMLP
    from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, MASPlugin
    from avalanche.training.supervised import Naive

    from tripletmas.integrations.avalanche import ProtectionPlugin, benchmark_from

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
# (model, strength) -> plugin
METHODS: dict[str, Callable[[Any, float], Any]] = {
    "none": lambda model, strength: None,
    "EWC, Avalanche": lambda model, strength: EWCPlugin(strength),
    "MAS, Avalanche": lambda model, strength: MASPlugin(strength),
    "MAS": lambda model, strength: ProtectionPlugin(tm.MAS(model, strength)),
    "MAS, of the layer below the heads": lambda model, strength: ProtectionPlugin(
        tm.MAS(model, strength, layer="features")
    ),
}


def accuracy(model: Any, experience: Any) -> float:
    """Of a task's own head, on its queries."""
    images, labels, tasks = (torch.stack([torch.as_tensor(each) for each in part]) for part in zip(*experience.dataset))  # noqa: B905
    with torch.no_grad():
        return float((model.eval()(images, tasks).argmax(dim=1) == labels).float().mean())


def learn(method: str, strength: float, seed: int, epochs: int) -> tuple[float, float, float]:
    """(mean accuracy after the last task, forgetting, seconds)."""
    stream, _ = tm.make_stream(tm.data.digits(), tasks=5, order_seed=seed)
    benchmark = benchmark_from(stream, task_labels=True)
    torch.manual_seed(seed)
    model = MTSimpleMLP(input_size=64, hidden_size=100)
    plugin = METHODS[method](model, strength)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        train_mb_size=16,
        train_epochs=epochs,
        evaluator=EvaluationPlugin(loggers=[]),
        plugins=[plugin] if plugin else [],
    )
    began, learned = time.perf_counter(), []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        learned.append(accuracy(model, benchmark.streams["test"][experience.current_experience]))
    seconds = time.perf_counter() - began
    final = [accuracy(model, experience) for experience in benchmark.streams["test"]]
    return fmean(final), fmean(a - b for a, b in zip(learned[:-1], final[:-1], strict=True)), seconds


def tried(method: str, strength: float, epochs: int) -> float:
    """The accuracy on seed 100; 0 where training diverges, as under a penalty that is too strong for its rate."""
    try:
        return learn(method, strength, 100, epochs)[0]
    except ValueError:
        return 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print(f"{'method':36}{'strength':>9}{'accuracy':>16}{'forgetting':>16}{'seconds':>9}")
    for method in METHODS:
        strengths = STRENGTHS if method != "none" else STRENGTHS[:1]
        best = max(strengths, key=lambda strength: tried(method, strength, options.epochs))
        found = [learn(method, best, seed, options.epochs) for seed in options.seeds]
        columns = [f"{fmean(values):.3f} ± {_deviation(values):.3f}" for values in list(zip(*found, strict=True))[:2]]
        seconds = fmean(each[2] for each in found)
        print(
            f"{method:36}{best if method != 'none' else '':>9}{columns[0]:>16}{columns[1]:>16}{seconds:9.1f}",
            flush=True,
        )


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
