#!/usr/bin/env python3
"""What scoring retrieval costs, against the bare search of faiss and against pytorch-metric-learning.

    .venv/bin/python scripts/bench_retrieval.py
    .venv/bin/python scripts/bench_retrieval.py --sizes 12000x12000 250000x10000 --json docs/results
    .venv/bin/python scripts/bench_retrieval.py --million
    .venv/bin/python scripts/bench_retrieval.py --ways bare ours --before OTHER_CHECKOUT

Three ways, one after the other in one process, round by round so that the noise of the machine hits all alike; ratios
are of medians. `bare` is the search of faiss.IndexFlatIP over the same normalised vectors, as deep as the metrics need,
and no metric. `ours` is tripletmas.evaluate: recall@1, 2, 4, 8, R-precision, MAP@R and MRR, with a defined order among
equal scores. `peer` is the AccuracyCalculator of pytorch-metric-learning with k="max_bin_count" (its default, the whole
gallery for every query, is many times slower), for precision@1, R-precision and MAP@R, on vectors that are already
normalised. What ours and the peer both compute must agree to 1e-5: the peer ranks by squared distances in float32, and
each pair across rank R that is closer than their rounding moves the mean of 10,000 queries by some 1e-6.

`before` is `evaluate` of another checkout, imported beside this one's.

A size is gallery x queries; where both are equal, the queries are the gallery. Classes have 20 to 60 items, normally
distributed around centres of their own. The peak of memory is that of a process of its own for each way, above what it
held before the first call. `--clock cpu` counts the time of the process on all cores in place of the clock on the wall:
on a machine that does other things, too, with --threads 1 it tells more.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from tables import Cell, Table, keep, machine
from torch.nn import functional

from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.retrieval.evaluate import RetrievalScores, evaluate

SIZES = ("12000x12000", "60000x10000", "250000x10000")
MILLION = "1000000x10000"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=size, default=[size(each) for each in SIZES])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--noise", type=float, default=1.6, help="deviation within a class; that of centres is 1")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="whose `evaluate` is timed, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, help="of torch and faiss; default: as they choose")
    parser.add_argument("--million", action="store_true", help=f"only ours, once, {MILLION}, with a bar of progress")
    parser.add_argument("--json", type=Path, help="a folder: the table as JSON, for fill_tables.py")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # what a process of its own is asked
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {options.rounds}")
    if options.before:
        before: Callable[..., Any] = evaluate_of(options.before)
        WAYS["before"] = lambda data: before(data.queries, data.gallery)
        options.ways.append("before")
    if options.threads:
        torch.set_num_threads(options.threads)
        faiss.omp_set_num_threads(options.threads)
    if options.peak:
        print(own_peak(Data(*options.sizes[0], options.dim, options.noise), options.peak))
        return
    print(f"torch {torch.__version__}, faiss {faiss.__version__}, {torch.get_num_threads()} threads", flush=True)
    if options.million:
        found = once(Data(*size(MILLION), options.dim, options.noise), options.clock)
        print(json.dumps(found, indent=1))
        numbers: dict[str, Cell] = {name: [of] for name, of in found.items() if name != "values"}
        row = {"gallery x queries": MILLION, **numbers, "recall@1": [found["values"]["recall@1"]]}
        forms = {"gallery x queries": "name", **dict.fromkeys(numbers, "whole"), "recall@1": "mean"}
        keep(Table(forms, [row], "Scoring a million"), options.json, "bench-million", settings=machine(options))
        return
    columns = {"gallery x queries": "name", "depth": "whole", **{f"{way} s": "median" for way in options.ways}}
    columns |= {f"{way} / bare": "median" for way in ratios_of(options.ways)}
    columns |= {f"{way} MB": "whole" for way in options.ways} | {"ours to peer": "text", "recall@1": "mean"}
    rows: list[Mapping[str, Cell]] = []
    for gallery, queries in options.sizes:
        rows.append(measured(gallery, queries, options))
        lines = Table(columns, rows[-1:]).markdown().splitlines()
        print("\n".join(lines if len(rows) == 1 else lines[-1:]), flush=True)
    about = "Scoring retrieval and the bare search, medians of rounds, and the peak of memory above the data"
    keep(Table(columns, rows, about), options.json, "bench-retrieval", settings=machine(options))


def size(text: str) -> tuple[int, int]:
    try:
        gallery, queries = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a size is GALLERYxQUERIES, got {text!r}") from None
    if gallery < 100 or queries < 1:
        raise argparse.ArgumentTypeError(f"a size needs a gallery of >= 100 and a query, got {text!r}")
    return gallery, queries


class Data:
    """Embeddings of clustered classes; `gallery` is None where the queries are the gallery."""

    def __init__(self, num_gallery: int, num_queries: int, dim: int, noise: float):
        random = torch.Generator().manual_seed(0)
        total = num_gallery if num_gallery == num_queries else num_gallery + num_queries
        sizes = torch.randint(20, 61, (total // 20 + 1,), generator=random)
        labels = torch.arange(len(sizes)).repeat_interleave(sizes)[:total]
        labels = labels[torch.randperm(total, generator=random)]
        centres = torch.randn(int(labels.max()) + 1, dim, generator=random)
        vectors = torch.empty(total, dim)
        for start in range(0, total, 2**16):
            block = labels[start : start + 2**16]
            vectors[start : start + 2**16] = centres[block] + noise * torch.randn(len(block), dim, generator=random)
        everything = Embeddings(vectors, labels)
        if total == num_gallery:
            self.queries, self.gallery = everything, None
        else:
            self.queries = Embeddings(vectors[:num_queries], labels[:num_queries])
            self.gallery = Embeddings(vectors[num_queries:], labels[num_queries:])
        searched = self.gallery or self.queries
        counts = searched.labels.bincount(minlength=int(labels.max()) + 1)[self.queries.labels]
        itself = int(self.gallery is None)
        self.depth = max(int(counts.max()) - itself, 8) + itself  # R, or the deepest recall@k; and the query itself

    @cached_property
    def unit_queries(self) -> torch.Tensor:
        return functional.normalize(self.queries.vectors, dim=1)

    @cached_property
    def unit_gallery(self) -> torch.Tensor:
        """A copy of the gallery, which `ours` does not need: made when another way asks for it."""
        return functional.normalize(self.gallery.vectors, dim=1) if self.gallery else self.unit_queries


# --- the three ways


def bare(data: Data) -> object:
    index = faiss.IndexFlatIP(data.unit_gallery.shape[1])
    index.add(data.unit_gallery.numpy())
    return index.search(data.unit_queries.numpy(), data.depth)


def ours(data: Data) -> RetrievalScores:
    return evaluate(data.queries, data.gallery)


def peer(data: Data) -> dict[str, float]:
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
    )
    gallery = (data.unit_gallery, data.gallery.labels) if data.gallery else (None, None)
    return calculator.get_accuracy(data.unit_queries, data.queries.labels, *gallery)


WAYS: dict[str, Callable[[Data], Any]] = {"bare": bare, "ours": ours, "peer": peer}


def evaluate_of(checkout: Path) -> Callable[..., RetrievalScores]:
    """`evaluate` of another checkout: its modules are imported under the names that ours have, then put aside."""

    def taken() -> dict[str, Any]:
        names = [name for name in sys.modules if name.partition(".")[0] == "tripletmas"]
        return {name: sys.modules.pop(name) for name in names}

    own = taken()
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module("tripletmas.objectives.retrieval.evaluate").evaluate
    finally:
        sys.path.remove(str(checkout))
        taken()
        sys.modules.update(own)


# --- measuring


def measured(num_gallery: int, num_queries: int, options: argparse.Namespace) -> dict[str, Cell]:
    """The row of a size."""
    data = Data(num_gallery, num_queries, options.dim, options.noise)
    clock, ways = CLOCKS[options.clock], options.ways
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, Any] = {}
    for number in range(options.rounds + 1):  # the first is for warming up
        for way in ways:
            started = clock()
            answers[way] = WAYS[way](data)
            if number:
                seconds[way].append(clock() - started)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    row: dict[str, Cell] = {"gallery x queries": f"{num_gallery} x {num_queries}", "depth": [data.depth]}
    row |= {f"{way} s": seconds[way] for way in ways}
    row |= {f"{way} / bare": [medians[way] / medians["bare"]] for way in ratios_of(ways)}
    row |= {f"{way} MB": [peak(num_gallery, num_queries, way, options)] for way in ways}
    if "ours" in ways:
        row["recall@1"] = [answers["ours"]["recall@1"]]
    if "ours" in ways and "peer" in ways:
        row["ours to peer"] = f"{difference(answers['ours'], answers['peer']):.1e}"
    return row


def ratios_of(ways: list[str]) -> list[str]:
    """The ways that are compared with the bare one."""
    return [way for way in ways if way != "bare" and "bare" in ways]


def difference(found: RetrievalScores, theirs: dict[str, float]) -> float:
    """The largest difference of what both compute; above the tolerance an error."""
    pairs = {"recall@1": "precision_at_1", "r_precision": "r_precision", "map@r": "mean_average_precision_at_r"}
    largest = max(abs(found[name] - theirs[other]) for name, other in pairs.items())
    if not largest <= TOLERANCE:
        raise SystemExit(f"ours and pytorch-metric-learning differ by {largest}: {found.values}, {theirs}")
    return largest


def peak(num_gallery: int, num_queries: int, way: str, options: argparse.Namespace) -> float:
    """Megabytes that one call adds to a process of its own."""
    command = [sys.executable, __file__, "--peak", way, "--sizes", f"{num_gallery}x{num_queries}"]
    command += ["--dim", str(options.dim), "--noise", str(options.noise)]
    command += ["--threads", str(options.threads)] if options.threads else []
    command += ["--before", str(options.before)] if options.before else []
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def own_peak(data: Data, way: str) -> float:
    dim = (data.unit_queries, data.unit_gallery)[0].shape[1]  # both are made now: they are data
    WAYS[way](Data(200, 200, dim, 1.0))  # what is loaded at the first call does not count
    before = reset_high_water()
    WAYS[way](data)
    return high_water() - before


def reset_high_water() -> float:
    """Megabytes that this process holds now, from which on the most is noted; nan where that is not known."""
    if sys.platform != "linux":
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return high_water()


def high_water() -> float:
    """The most megabytes that this process has held since; nan where that is not known."""
    if sys.platform != "linux":
        return float("nan")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def once(data: Data, clock: str) -> dict[str, Any]:
    before, started = reset_high_water(), CLOCKS[clock]()
    found = evaluate(data.queries, data.gallery, progress=True)
    return {
        "seconds": CLOCKS[clock]() - started,
        "peak_megabytes": high_water() - before,
        "peak_megabytes_with_data": high_water(),
        "depth": data.depth,
        "values": found.values,
    }


if __name__ == "__main__":
    main()
