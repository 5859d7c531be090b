"""An index that need not fit into memory: seconds, bytes and memory of building, opening, asking and moving it.

    .venv/bin/python scripts/bench_large.py --out FOLDER
    .venv/bin/python scripts/bench_large.py --out FOLDER --sizes 10000000 --exact-queries 500 --kind IVF4096,SQ8

Vectors of dim 128 in clusters are made block after block, as a model gives them, and are never all in memory. Each
step is a process of its own, so that its memory is its own: the most that was resident (VmHWM: with pages of the file,
which the system takes back when it needs them), and of that what is the process's alone (RssAnon, looked at every 20
ms). Steps: build an exact index; open it, with all checksums; ask it; move it to another model by a linear map, fitted
on 2000 pairs; build lists on the disk; ask them, with the recall of the exact 10 nearest; move them, which makes new
lists.

Files go to a folder of their own below --out and are deleted; at the same time there are at most two of a size.
`--move` says which of the two are moved: a move needs room for two files. What is told of larger sizes is computed from
the largest one measured, not measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import faiss
import torch
from torch import Tensor

from tripletmas.index import streamed
from tripletmas.index.drift import fit_drift
from tripletmas.index.images import ImageIndex, Part, Settings, Transform

DIM, K, PAIRS, BLOCK = 128, 10, 2000, 2**16
CLUSTER = 100  # vectors of one, on average
OLD, NEW = Part("a" * 64, 0, "a" * 64), "b" * 64
STEPS = ("make", "build", "open", "ask", "move", "build-lists", "open-lists", "ask-lists", "move-lists")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--out", type=Path, required=True, help="a folder with room for two indexes")
    parser.add_argument("--queries", type=int, default=10_000, help="of the lists")
    parser.add_argument("--exact-queries", type=int, default=10_000, help="of the exact index, and for the recall")
    parser.add_argument("--kind", default="IVF4096,Flat", help="of the lists, for a million and more")
    parser.add_argument("--small-kind", default="IVF1024,Flat", help="of the lists, below a million")
    parser.add_argument("--nprobe", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--noise", type=float, default=1.6, help="deviation within a cluster; that of centres is 1")
    parser.add_argument("--move", nargs="*", choices=["exact", "lists"], default=["exact", "lists"])
    parser.add_argument("--threads", type=int, help="of torch and faiss; default: as they choose")
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)  # what a process of its own is asked
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
        faiss.omp_set_num_threads(options.threads)
    if options.step:
        logging.basicConfig(level=logging.INFO, format="    %(message)s")
        print(json.dumps(measured(options.step, options.sizes[0], options)))
        return
    results = {size: of_size(size, options) for size in options.sizes}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    extrapolated(results)


def of_size(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Every step of one size."""
    print(f"{size} vectors of dim {DIM}, {kind_of(size, options)}", flush=True)
    print(f"{'':<14}{'seconds':>9}{'of CPU':>9}{'MB on disk':>12}{'resident MB':>13}{'own MB':>8}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    folder, found = Path(tempfile.mkdtemp(dir=options.out)), {}
    left_out = {f"move{ending}" for name, ending in (("exact", ""), ("lists", "-lists")) if name not in options.move}
    try:
        for step in (each for each in STEPS if each not in left_out):
            found[step] = asked(step, size, folder, options)
            print(line(step, found[step]), flush=True)
            if step == ("ask" if "move" in left_out else "move"):  # what comes is of the lists
                (folder / "index").unlink()
    finally:
        shutil.rmtree(folder)
    return found


def asked(step: str, size: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", step, "--sizes", str(size), "--folder", str(folder)]
    command += ["--out", str(options.out), "--queries", str(options.queries), "--kind", options.kind]
    command += ["--small-kind", options.small_kind, "--exact-queries", str(options.exact_queries), "--nprobe"]
    command += [
        *map(str, options.nprobe),
        "--noise",
        str(options.noise),
        *(["--threads", str(options.threads)] if options.threads else []),
    ]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def line(step: str, found: dict[str, Any]) -> str:
    size = f"{found['bytes'] / 1e6:.0f}" if found.get("bytes") else ""
    told = f"{step:<14}{found['seconds']:>9.1f}{found['cpu_seconds']:>9.1f}{size:>12}"
    told += f"{found['resident_mb']:>13.0f}{found['own_mb']:>8.0f}"
    columns = ("seconds", "cpu_seconds", "bytes", "resident_mb", "own_mb")
    more = {key: value for key, value in found.items() if key not in columns}
    return "  ".join([told, *(f"{key} {value}" for key, value in more.items())])


# --- one step, in a process of its own


def measured(step: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    most = MostOwn()
    started, at_work = time.perf_counter(), time.process_time()
    found = globals()[step.replace("-", "_")](size, options)
    seconds, cpu = time.perf_counter() - started, time.process_time() - at_work
    return {"seconds": seconds, "cpu_seconds": cpu, "resident_mb": status("VmHWM"), "own_mb": most.end(), **found}


class MostOwn:
    """The most memory of this process's own, looked at from a thread."""

    def __init__(self):
        self._most, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self._most = max(self._most, status("RssAnon"))

    def end(self) -> float:
        self._ended.set()
        self._thread.join()
        return max(self._most, status("RssAnon"))


def status(name: str) -> float:
    """Megabytes that Linux tells of this process; nan elsewhere."""
    if sys.platform != "linux":
        return float("nan")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(each.split()[1]) for each in lines if each.startswith(f"{name}:")) * 1024 / 1e6


def blocks(size: int, noise: float, seed: int = 0) -> Iterator[Tensor]:
    """Vectors in clusters, the same each time."""
    centres = torch.randn(max(size // CLUSTER, 1), DIM, generator=torch.Generator().manual_seed(1))
    for number, start in enumerate(range(0, size, BLOCK)):
        random, count = torch.Generator().manual_seed(1000 * seed + number + 2), min(BLOCK, size - start)
        chosen = torch.randint(len(centres), (count,), generator=random)
        yield torch.randn(count, DIM, generator=random).mul_(noise).add_(centres[chosen])


def queries(size: int, noise: float, count: int) -> Tensor:
    """Of the same clusters."""
    few = islice(blocks(size, noise, seed=7), -(-count // BLOCK))
    return torch.cat(list(few))[:count].clone()


def kind_of(size: int, options: argparse.Namespace) -> str:
    return options.kind if size >= 1_000_000 else options.small_kind


def settings_of(size: int, options: argparse.Namespace, *, on_disk: bool) -> Settings:
    return Settings(DIM, Transform((224, 224), 3), kind=kind_of(size, options) if on_disk else "exact", on_disk=on_disk)


def make(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """What making the vectors alone takes, which is part of building (once, and for lists once more)."""
    for _ in blocks(size, options.noise):
        pass
    return {}


def _built(size: int, options: argparse.Namespace, name: str, *, on_disk: bool) -> dict[str, Any]:
    names = [f"{number:09d}.jpg" for number in range(size)]
    path = options.folder / name
    streamed.built(path, settings_of(size, options, on_disk=on_disk), lambda: blocks(size, options.noise), names, OLD)
    return {"bytes": path.stat().st_size}


def _opened(options: argparse.Namespace, name: str) -> dict[str, Any]:
    path = options.folder / name
    ImageIndex.open(path)
    started = time.perf_counter()
    ImageIndex.open(path, verify=False)
    return {"of which without checksums": round(time.perf_counter() - started, 2)}


def _moved(options: argparse.Namespace, name: str) -> dict[str, Any]:
    path = options.folder / name
    index = ImageIndex.open(path, verify=False)
    before = torch.nn.functional.normalize(torch.randn(PAIRS, DIM, generator=torch.Generator().manual_seed(3)), dim=1)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(4)))[0]
    drift = fit_drift("linear", before, torch.nn.functional.normalize(before + 0.3 * before @ turn, dim=1))
    streamed.moved(index, {0: drift}, NEW, ("linear",)).save(path)
    return {"bytes": path.stat().st_size}


def build(size: int, options: argparse.Namespace) -> dict[str, Any]:
    return _built(size, options, "index", on_disk=False)


def build_lists(size: int, options: argparse.Namespace) -> dict[str, Any]:
    return _built(size, options, "lists", on_disk=True)


def open(size: int, options: argparse.Namespace) -> dict[str, Any]:
    return _opened(options, "index")


def open_lists(size: int, options: argparse.Namespace) -> dict[str, Any]:
    return _opened(options, "lists")


def move(size: int, options: argparse.Namespace) -> dict[str, Any]:
    return _moved(options, "index")


def move_lists(size: int, options: argparse.Namespace) -> dict[str, Any]:
    return _moved(options, "lists")


def ask(size: int, options: argparse.Namespace) -> dict[str, Any]:
    index = ImageIndex.open(options.folder / "index", verify=False)
    _, rows = index.search(queries(size, options.noise, options.exact_queries), K)
    torch.save(rows, options.folder / "nearest.pt")
    return {"queries": options.exact_queries}


def ask_lists(size: int, options: argparse.Namespace) -> dict[str, Any]:
    index = ImageIndex.open(options.folder / "lists", verify=False)
    exact = torch.load(options.folder / "nearest.pt", weights_only=True)
    given, found = queries(size, options.noise, options.queries), {}
    for nprobe in options.nprobe:
        searched = ImageIndex(**{**vars(index), "settings": settings_with(index.settings, nprobe)})
        started = time.process_time()
        _, rows = searched.search(given, K)
        seconds = time.process_time() - started
        rows = rows[: len(exact)]
        recall = float((rows[:, :, None] == exact[:, None, :]).any(dim=2).float().mean())
        found[f"nprobe {nprobe}:"] = f"{seconds:.1f} s of CPU, recall {recall:.3f}"
    return {"queries": options.queries, **found}


def settings_with(settings: Settings, nprobe: int) -> Settings:
    return Settings(**{**vars(settings), "nprobe": nprobe})


# --- on paper


def extrapolated(results: dict[int, dict[str, Any]]) -> None:
    """What a billion would take at the rates of the largest size that was measured."""
    size, billion = max(results), 1_000_000_000
    found, factor = results[size], billion / size
    print(f"a billion, computed from the rates of {size} (not measured):")
    for step, each in found.items():
        if step.startswith(("build", "move", "open")):
            size_told = f", {each['bytes'] * factor / 1e9:.0f} GB on the disk" if each.get("bytes") else ""
            print(f"    {step}: {each['cpu_seconds'] * factor / 3600:.1f} hours of CPU{size_told}")
    if (smaller := min(results)) < size:
        more = (found["open"]["own_mb"] - results[smaller]["open"]["own_mb"]) / (size - smaller)
        print(f"    own memory of what is open, by what {size} take more than {smaller}: {more * billion / 1e3:.0f} GB")


if __name__ == "__main__":
    main()
