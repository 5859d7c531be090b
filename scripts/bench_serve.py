#!/usr/bin/env python3
"""Requests a second, p50 and p99 of `tripletmas serve`, against a bare loop of Pillow, PyTorch and faiss.

    .venv/bin/python scripts/bench_serve.py products.index shop --vectors 100000
    .venv/bin/python scripts/bench_serve.py products.index shop --callers 1,4,16 --together 0,1,8,32 --json out.json

Both search the same vectors for the same pictures, whose bytes lie in memory, by the same weights; with `--vectors`
random ones are added until there are so many. The bare loop runs in this process: decode, resize, embed, search, one
after the other (`bare`), or so many together that the model is used best (`bare, 32 together`), which a server can only
do for callers that happen to ask at once. The server is a process of its own, and so are its callers (threads of this
one, each with a connection that is kept). Everything runs by turns in each round, so that the noise of the machine hits
all alike; shown are medians over the rounds. On a machine of few cores the callers take time from the server, and
where others work, several threads get more of it than one: `cpu ms`, the processor's time of the loop or of the server
for each picture, tells what is worked, whoever else works.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from tripletmas.data.images import find_images
from tripletmas.index.changes import add_images
from tripletmas.index.images import ImageIndex
from tripletmas.runs.indexed import model_of

Way = Callable[[float], list[float]]  # seconds to work for -> the seconds that each answer took
_K = 10
_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("pictures", help="a folder of what is asked with")
    parser.add_argument("--vectors", type=int, default=0, help="add random ones until there are so many")
    parser.add_argument("--callers", default="1,4,16")
    parser.add_argument(
        "--together", default="0,1", help="of the server: samples that are embedded at once; 0: as it finds best"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, here and in the server")
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    contents = [(Path(options.pictures) / name).read_bytes() for name in find_images(options.pictures)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        path = str(Path(folder) / "bench.index")
        index = larger(ImageIndex.open(options.index), options.vectors)
        index.save(path)
        ways = bare(index, contents)
        for together in map(int, options.together.split(",")):
            port, process = servers.enter_context(server(path, together, options.threads))
            for callers in map(int, options.callers.split(",")):
                ways[f"served, {callers} callers, {together or 'best'} together"] = (
                    asked(port, contents, callers),
                    process,
                )
        found = measured(ways, options.rounds, options.seconds)
    print(f"{len(index)} vectors of dim {index.settings.dim}, {len(contents)} pictures, torch {torch.__version__}")
    tell(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def measured(ways: dict[str, tuple[Way, int]], rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """way -> what is measured of it -> its value in each round."""
    found = {name: {"rate": [], "p50": [], "p99": [], "cpu": []} for name in ways}
    for way, _ in ways.values():
        way(0.3)  # warm
    for _ in range(rounds):
        for name, (way, process) in ways.items():
            for key, value in summed(way, process, seconds).items():
                found[name][key].append(value)
    return found


def tell(found: dict[str, dict[str, list[float]]]) -> None:
    """Print the medians over the rounds."""
    print(f"{'':34}{'a second':>10}{'p50 ms':>10}{'p99 ms':>10}{'of bare':>10}{'cpu ms':>10}")
    for name, of in found.items():
        ratio = statistics.median(map(lambda a, b: a / b, of["rate"], found["bare"]["rate"]))
        rate, p50, p99, cpu = (statistics.median(of[key]) for key in ("rate", "p50", "p99", "cpu"))
        print(f"{name:34}{rate:10.1f}{1000 * p50:10.2f}{1000 * p99:10.2f}{ratio:10.2f}{1000 * cpu:10.2f}")


def summed(way: Way, process: int, seconds: float) -> dict[str, float]:
    begun, worked = time.perf_counter(), processor_time(process)
    took = way(seconds)
    rate, cpu = len(took) / (time.perf_counter() - begun), (processor_time(process) - worked) / len(took)
    return {"rate": rate, "p50": float(np.quantile(took, 0.5)), "p99": float(np.quantile(took, 0.99)), "cpu": cpu}


def processor_time(process: int) -> float:
    """Seconds that a process has worked; nan where that is not told (elsewhere than on Linux)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def larger(index: ImageIndex, count: int) -> ImageIndex:
    """The index with random vectors."""
    missing = count - len(index)
    if missing <= 0:
        return index
    vectors = torch.randn(missing, index.settings.dim, generator=torch.Generator().manual_seed(0))
    names = [f"random/{number}.png" for number in range(missing)]
    return add_images(index, vectors, names, [None] * missing, index.parts[0])


def bare(index: ImageIndex, contents: list[bytes]) -> dict[str, tuple[Way, int]]:
    """The loop that one would write: Pillow, the network, IndexFlatIP."""
    model = model_of(index, device="cpu")
    network, shown = model.model.eval(), model.prepared
    height, width = shown.size
    searched = faiss.IndexFlatIP(index.settings.dim)
    searched.add(index.vectors.numpy())

    def pixels(content: bytes) -> torch.Tensor:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB" if shown.channels == 3 else "L")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        array = np.asarray(image).reshape(height, width, shown.channels)
        return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255

    def loop(together: int, seconds: float) -> list[float]:
        took, at, end = [], 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter()
            batch = torch.stack([pixels(contents[(at + i) % len(contents)]) for i in range(together)])
            with torch.inference_mode():
                vectors = functional.normalize(network(batch))
            searched.search(vectors.numpy(), _K)
            took += [time.perf_counter() - begun] * together
            at += together
        return took

    ways = {"bare": partial(loop, 1), f"bare, {_BATCH} together": partial(loop, _BATCH)}
    return {name: (way, os.getpid()) for name, way in ways.items()}


@contextmanager
def server(path: str, together: int, threads: int) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; its port, and the process."""
    line = [sys.executable, "-m", "tripletmas", "serve", path, "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    given = ["--together", str(together)] if together else []
    process = subprocess.Popen([*line, *given], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        found = re.search(r"http://\S+:(\d+)", process.stdout.readline())
        assert found, "the server did not start"
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.communicate(timeout=30)


def asked(port: int, contents: list[bytes], callers: int) -> Way:
    """So many callers, each with a connection of its own, who ask again as soon as they are answered."""

    def call(number: int, seconds: float, took: list[float]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        at, end = number, time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter()
            connection.request(
                "POST", f"/query?k={_K}", contents[at % len(contents)], {"Content-Type": "application/octet-stream"}
            )
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            took.append(time.perf_counter() - begun)
            at += callers
        connection.close()

    def way(seconds: float) -> list[float]:
        took: list[list[float]] = [[] for _ in range(callers)]
        threads = [threading.Thread(target=call, args=(number, seconds, took[number])) for number in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [each for own in took for each in own]

    return way


if __name__ == "__main__":
    main()
