#!/usr/bin/env python3
"""What kinds of an index find, what a vector costs them, and how fast they are, beside hnswlib.

    tripletmas export RUN --embeddings vectors.npz
    .venv/bin/python scripts/bench_kinds.py --vectors vectors.npz          # or .npy: (n, dim)
    .venv/bin/python scripts/bench_kinds.py --clustered 100000 --dim 128   # no embeddings: points around centres
    .venv/bin/python scripts/bench_kinds.py --vectors vectors.npy --kinds SQ8 PQ48 RaBitQ --json kinds.json

All are built of the same unit vectors and asked by the same queries, which are left out of them, in one process with
one thread, in turns; shown is the median over the rounds. Recall is the share of the exact 10 nearest that is among the
10 found. A kind that can try harder (graphs: candidates kept; lists: lists looked into) tries as hard as it must for
`--recall`, in steps of 2, or as hard as it can. Bytes are of what is searched, a vector: of ours what faiss serialises,
ids among it, of hnswlib its file. An index file of ours has the vectors in float32 beside that, which are needed
to move them to another model. Where hnswlib is not installed, its row is left out, which is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor

from tripletmas.index.approximate import FaissIndex
from tripletmas.index.base import unit
from tripletmas.index.exact import ExactIndex

K = 10
EFFORTS = tuple(2**power for power in range(11))
LINKS, BUILDING = 16, 40  # of a graph, and candidates while it is built: what faiss has for HNSW16, given to all


class Built(NamedTuple):
    """An index that is whole.

    Attributes:
        search: queries (q, dim), effort or None -> ids (q, K).
        efforts: from the least on; empty where there is none.
    """

    search: Callable[[Tensor, int | None], Tensor]
    num_bytes: int
    efforts: tuple[int, ...] = ()


def ours(kind: str, gallery: Tensor) -> Built:
    if kind == "exact":
        exact = ExactIndex.over(gallery)
        return Built(lambda queries, _: exact.search(queries, K)[1], gallery.numel() * gallery.element_size())
    index = FaissIndex(gallery.shape[1], kind=kind)
    index.add(gallery)
    data = index.serialize()
    option = "ef_search" if "HNSW" in kind else "nprobe" if "IVF" in kind else ""

    def search(queries: Tensor, effort: int | None) -> Tensor:
        options: dict[str, Any] = {option: effort} if option else {}
        return FaissIndex(gallery.shape[1], kind=kind, data=data, **options).search(queries, K)[1]

    lists = [int(part[3:]) for part in kind.split(",") if part.startswith("IVF")]
    efforts = {"ef_search": _of_graph(), "nprobe": tuple(each for each in EFFORTS if each <= max(lists, default=0))}
    return Built(search, len(data), efforts.get(option, ()))


def by_hnswlib(gallery: Tensor) -> Built:
    import hnswlib  # pyright: ignore[reportMissingImports]

    index = hnswlib.Index(space="ip", dim=gallery.shape[1])
    index.init_index(max_elements=len(gallery), M=LINKS, ef_construction=BUILDING)
    index.set_num_threads(1)
    index.add_items(gallery.numpy())

    def search(queries: Tensor, effort: int | None) -> Tensor:
        index.set_ef(effort or K)
        return torch.from_numpy(index.knn_query(queries.numpy(), K, num_threads=1)[0].astype(np.int64))

    return Built(search, _size(index.save_index), _of_graph())


def _of_graph() -> tuple[int, ...]:
    return tuple(each for each in EFFORTS if each >= K)


def _size(save: Callable[[str], object]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save(f"{folder}/index")
        return Path(folder, "index").stat().st_size


OTHERS = {"hnswlib": by_hnswlib}


def default_kinds(size: int, dim: int) -> list[str]:
    """As many lists as four times the root of the size, about; codes of 8, 4, 2, 1, 1 and 4 bits a value, about."""
    lists = 2 ** round(np.log2(4 * size**0.5))
    finest, coarse = (next(m for m in range(dim // least, 0, -1) if dim % m == 0) for least in (4, 8))
    quantised = ("SQ8", "SQ4", f"PQ{finest}", f"PQ{coarse}", "RaBitQ", "RaBitQ4")
    lists_of = (f"IVF{lists},Flat", f"IVF{lists},SQ8", f"IVF{lists},RaBitQ4")
    has = (kind for kind in (*quantised, *lists_of) if is_known(kind, dim))
    return ["exact", *has, f"HNSW{LINKS}", f"HNSW{LINKS}_SQ8"]


def is_known(kind: str, dim: int) -> bool:
    """Whether this version of faiss has the kind."""
    try:
        faiss.index_factory(dim, kind)
    except RuntimeError:
        return False
    return True


def vectors_of(options: argparse.Namespace) -> Tensor:
    if options.vectors:
        found = np.load(options.vectors)
        return torch.from_numpy(np.ascontiguousarray(found if isinstance(found, np.ndarray) else found["vector"]))
    random = torch.Generator().manual_seed(0)
    size = options.clustered
    centres = torch.randn(size // 40 + 1, options.dim, generator=random)
    return centres[torch.arange(size) // 40] + 0.6 * torch.randn(size, options.dim, generator=random)


def measured(vectors: Tensor, options: argparse.Namespace) -> list[dict[str, Any]]:
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    everything = unit(vectors.float())[order].contiguous()
    queries, gallery = everything[: options.queries], everything[options.queries :].contiguous()
    truth = ExactIndex.over(gallery).search(queries, K)[1]
    kinds = options.kinds or default_kinds(len(gallery), gallery.shape[1])
    makers: dict[str, Callable[[Tensor], Built]] = {kind: lambda rows, kind=kind: ours(kind, rows) for kind in kinds}
    makers |= {name: make for name, make in OTHERS.items() if importlib.util.find_spec(name)}
    rows, searched = [], {}
    for name, make in makers.items():
        began = time.process_time()
        built = make(gallery)
        row = {"kind": name, "build_seconds": time.process_time() - began, "bytes": built.num_bytes / len(gallery)}
        for effort in built.efforts or (None,):
            row |= {"effort": effort, "recall": recall(built.search(queries, effort), truth)}
            if row["recall"] >= options.recall:
                break
        searched[name] = (built, row["effort"], [])
        rows.append(row)
    for _ in range(options.rounds):
        for built, effort, seconds in searched.values():
            began = time.process_time()
            built.search(queries, effort)
            seconds.append(time.process_time() - began)
    for row in rows:
        row["queries_a_second"] = len(queries) / statistics.median(searched[row["kind"]][2])
    return rows


def recall(found: Tensor, truth: Tensor) -> float:
    return float((truth[:, :, None] == found[:, None, :]).any(dim=2).float().mean())


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| kind | bytes a vector | recall | effort | queries a second | build, s |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        cells = [row["kind"], f"{row['bytes']:.0f}", f"{row['recall']:.3f}", row["effort"] or ""]
        cells += [f"{row['queries_a_second']:.0f}", f"{row['build_seconds']:.1f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--vectors", type=Path, help="(n, dim): .npy, or .npz with `vector`")
    given.add_argument("--clustered", type=int, metavar="N", help="in place of embeddings N points, 40 around a centre")
    parser.add_argument("--dim", type=int, default=128, help="of those points")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", help="in place of a choice for this number of vectors")
    parser.add_argument("--recall", type=float, default=0.95, help="for which a kind tries as hard as it must")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    vectors = vectors_of(options)
    if not 0 < options.queries < len(vectors):
        parser.error(f"--queries must lie between 1 and {len(vectors) - 1}, got {options.queries}")
    for name in OTHERS:
        if not importlib.util.find_spec(name):
            print(f"{name} is not installed: no row of it", file=sys.stderr)
    rows = measured(vectors, options)
    what = options.vectors.name if options.vectors else "points around centres"
    print(f"{len(vectors) - options.queries} x {vectors.shape[1]} of {what}, {options.queries} queries, {K} nearest\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
