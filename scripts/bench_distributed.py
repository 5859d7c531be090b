#!/usr/bin/env python3
"""Images a second that the product's own loop learns, by one process and by two under torchrun, and where time goes.

    .venv/bin/python scripts/bench_distributed.py
    .venv/bin/python scripts/bench_distributed.py --model resnet18 --size 64 --batch 64 --rounds 5 --json out.json

Three ways on two cores: one process of one thread, one of two threads, two processes of one thread each. They take
turns in every round, so that what else the machine does hits all alike; shown are medians over the rounds, and that of
the ratios within a round. Images are drawn once and kept as JPEG in memory, so that each is decoded when it is read.
Milliseconds of a step are those of the first process: `gather` is embeddings, their gradients, and what batch norm
gathers (with the wait for the other process), `sum of gradients` that over processes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from tripletmas.basics import distributed, shares
from tripletmas.basics.launched import launched
from tripletmas.data.batches import seed_everything
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Task
from tripletmas.models import whole_batch
from tripletmas.models.making import make_model
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs import task as task_training
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.sharing import Sharing
from tripletmas.runs.task import Learner, train_task
from tripletmas.strategies.finetune import Finetune

WAYS = {"1 process": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}
CLASSES = 8


class Jpegs(Sequence[Tensor]):
    """Images that are decoded when they are read."""

    def __init__(self, count: int, size: int):
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randint(0, 256, (count, size // 8, size // 8, 3), generator=generator, dtype=torch.uint8)
        self._encoded = []
        for each in coarse.numpy():
            buffer = BytesIO()
            Image.fromarray(each).resize((size, size)).save(buffer, "JPEG")
            self._encoded.append(buffer.getvalue())

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        return pil_to_tensor(Image.open(BytesIO(self._encoded[index])))


class Clock:
    """Seconds spent in each of some functions, without those that they call in others of them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = time.perf_counter()

    def watch(self, owner: Any, name: str, what: str) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inside = self._running[-1] if self._running else ""
            self._turn(inside if inside == "sum of gradients" else what)
            try:
                return inner(*args, **kwargs)
            finally:
                self._turn(None)

        setattr(owner, name, timed)

    def _turn(self, to: str | None) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1] if self._running else "the rest"] += now - self._since
        self._since = now
        if to is None:
            self._running.pop()
        else:
            self._running.append(to)


def work(options: argparse.Namespace) -> None:
    """In one of the processes: learn, and write what the first one has measured."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    count = options.batch * options.steps
    labels = torch.arange(count) % CLASSES
    data = LabelledDataset(Jpegs(count, options.size), labels, [str(each) for each in range(CLASSES)])
    task = Task("drawn", train=data, query=data, classes=tuple(range(CLASSES)))
    seed_everything(0)
    model = make_model(options.model, (3, options.size, options.size), options={"dim": 64})
    still = "always" if options.freeze_batchnorm else None
    config = TrainConfig(epochs=1, batch_size=options.batch, freeze_batchnorm=still)
    objective = Retrieval(make_loss("triplet", dim=64, num_classes=CLASSES))
    learner = Learner(model, objective, Finetune(), config)
    process = launched()
    if process is None:
        found = measured(learner, task, count)
    else:
        with distributed.joined(process):
            found = measured(learner, task, count)
    if process is None or process.rank == 0:
        Path(options.work).write_text(json.dumps(found))


def measured(learner: Learner, task: Task, count: int) -> dict[str, Any]:
    train_task(learner, task, ())  # warm
    clock = Clock()
    clock.watch(LabelledDataset, "__getitems__", "loading")
    clock.watch(Sharing, "embed", "forward")
    clock.watch(Tensor, "backward", "backward")
    for module in (task_training, whole_batch):
        clock.watch(module, "gather_shares", "gather")
    for module in (distributed, shares):
        clock.watch(module, "sum_over_ranks", "gather")
    clock.watch(task_training, "sum_gradients", "sum of gradients")
    clock.watch(Retrieval, "forward", "loss")
    clock.watch(torch.optim.AdamW, "step", "optimizer")
    began = time.perf_counter()
    train_task(learner, task, ())
    seconds = time.perf_counter() - began
    clock._turn("end")
    steps = count / learner.config.batch_size
    parts = {what: 1000 * spent / steps for what, spent in clock.seconds.items() if what != "the rest"}
    parts["the rest"] = 1000 * seconds / steps - sum(parts.values())
    return {"rate": count / seconds, "milliseconds": parts}


def run(way: str, arguments: Sequence[str]) -> dict[str, Any]:
    processes, threads = WAYS[way]
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "measured.json")
        words = [*(started if processes > 1 else []), __file__, *arguments, "--work", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, *words], env=environment, check=True)
        return json.loads(out.read_text())


def shown(rounds: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    parts = ["loading", "forward", "loss", "backward", "gather", "sum of gradients", "optimizer", "the rest"]
    for column in ("way", "images a second", "to 1 process", *parts):
        table.add_column(column, justify="left" if column == "way" else "right")
    middle: Callable[[Any], float] = statistics.median
    for way in WAYS:
        rates = [each[way]["rate"] for each in rounds]
        ratios = [each[way]["rate"] / each["1 process"]["rate"] for each in rounds]
        spent = [middle(each[way]["milliseconds"].get(part, 0.0) for each in rounds) for part in parts]
        table.add_row(way, f"{middle(rates):.0f}", f"{middle(ratios):.2f}", *(f"{each:.1f}" for each in spent))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="conv4")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--freeze-batchnorm", action="store_true", help="as where a pretrained network learns on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parser.add_argument("--work", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    words = [f"--{name}={getattr(options, name)}" for name in ("model", "size", "batch", "steps")]
    words += ["--freeze-batchnorm"] * options.freeze_batchnorm
    rounds = [{way: run(way, words) for way in WAYS} for _ in range(options.rounds)]
    if options.json:
        options.json.write_text(json.dumps(rounds))
    title = f"{options.model}, {options.size} x {options.size}, batches of {options.batch}; milliseconds of a step"
    Console(width=160).print(shown(rounds, title))


if __name__ == "__main__":
    main()
