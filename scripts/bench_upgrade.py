"""How fast an upgrade goes through a store: bytes of old vectors a second, as a share of a plain copy of a file.

In one process, on the same bytes, in turns: a file of the vectors is copied and flushed; the map alone moves them in
memory; each engine gets its new vectors (`upgrading.apply_move`: the writing pass, and the pass that checks it).

    python scripts/bench_upgrade.py --points 50000 --dim 512 --engines file,lancedb --rounds 3
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from reproduce_kills import place

from tripletmas.index.changes import add_images
from tripletmas.index.fitting import fit_map
from tripletmas.index.images import ImageIndex, Part, Settings, Transform
from tripletmas.stores.identity import Identity
from tripletmas.stores.opening import created, opened
from tripletmas.stores.store import VectorField
from tripletmas.stores.upgrading import apply_move, begin, rollback

_ROWS = 10_000  # put into a store at once


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def copied(source: Path) -> None:
    target = source.with_suffix(".copy")
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    target.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--engines", default="file,lancedb")
    parser.add_argument("--map", default="linear", help="of index.drift: linear, procrustes, shrunk, mlp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    drawn = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(options.points, options.dim, generator=drawn))
    old = Identity("0123456789abcdef", Transform((8, 8), 1), options.dim, "inner_product", True, "old", 0)
    new = replace(old, model="fedcba9876543210", source="new", embedded_by=old.model)
    pairs = vectors[:1000]
    after = torch.nn.functional.normalize(pairs + 0.1 * torch.randn(pairs.shape, generator=drawn))
    move = fit_map(options.map, pairs, after, normalize=True)
    size = vectors.numel() * 4 / 2**20
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain = folder / "vectors.bin"
        vectors.numpy().tofile(plain)
        urls = {engine: place(engine, folder / engine) for engine in options.engines.split(",")}
        for engine, url in urls.items():
            (folder / engine).mkdir()
            _fill(url, vectors, old)
        for _ in range(options.rounds):
            seconds.setdefault("copy of a file, flushed", []).append(timed(lambda: copied(plain)))
            seconds.setdefault(f"the map {options.map} alone", []).append(
                timed(lambda: [move.apply(block) for block in vectors.split(16384)])
            )
            for engine, url in urls.items():
                work = folder / f"{engine}-work"
                with opened(url) as store:
                    begin(store, "bench", old="vector", was=old, becomes=new, directory=work)
                    seconds.setdefault(engine, []).append(timed(lambda store=store: apply_move(store, move)))
                    rollback(store)
    copy = statistics.median(seconds["copy of a file, flushed"])
    about = f"{options.points} x {options.dim} float32, {size:.0f} MiB"
    print(f"{about}, {options.threads} threads, {options.rounds} rounds\n")
    print("| | seconds | MiB a second | share of the copy |")
    print("| --- | ---: | ---: | ---: |")
    for name, each in seconds.items():
        middle = statistics.median(each)
        print(f"| {name} | {middle:.2f} | {size / middle:.0f} | {copy / middle:.3f} |")


def _fill(url: str, vectors: torch.Tensor, old: Identity) -> None:
    names = [f"{number:08}.jpg" for number in range(len(vectors))]
    if "://" not in url:
        empty = ImageIndex.empty(Settings(old.dim, old.shown), "old")
        part = Part(old.model, 0, old.model)
        add_images(empty, vectors, names, [None] * len(names), part).save(url)
        return
    with created(url, VectorField("vector", old.dim, "cosine"), {"path": str}) as store:
        for start in range(0, len(vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            store.insert("vector", range(len(vectors))[rows], vectors[rows], {"path": names[rows]})


if __name__ == "__main__":
    main()
