"""What has to be known of faiss's own index types: wrapping for ids, training, search settings, ids, bytes.

An index here is an object of faiss. Its layers: transforms (OPQ, PCA) and tables of ids around a refining index around
the core, which is flat, compressed, a graph or lists (IVF).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tripletmas.index.base import import_faiss


def make(dim: int, kind: str, metric: str) -> Any:
    """An empty index that takes ids with its vectors.

    Raises:
        ValueError: if faiss does not know the factory string, or does not have it for the metric.
    """
    faiss = import_faiss(f"an index of kind {kind!r}")
    number = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    problem = f"kind must be 'exact' or a factory string of faiss for dim {dim} and metric {metric!r}, got {kind!r}"
    with clean_errors(problem):
        index = faiss.index_factory(dim, kind, number)
    # Only lists and tables of ids take ids; a refining index around lists does not.
    takes_ids = any(isinstance(layer, faiss.IndexIDMap) for layer in _layers(index))
    outer = faiss.downcast_index(index)
    if isinstance(outer, faiss.IndexPreTransform):
        outer = faiss.downcast_index(outer.index)
    if not takes_ids and not isinstance(outer, faiss.IndexIVF):
        index = faiss.IndexIDMap2(index)
    return index


def set_search(index: Any, kind: str, *, nprobe: int | None, ef_search: int | None) -> None:
    """How hard a search tries, where the kind has it.

    Raises:
        ValueError: if the kind does not have it, or the number is below 1.
    """
    core = _layers(index)[-1]
    for name, value, owner, field in (
        ("nprobe", nprobe, core, "nprobe"),
        ("ef_search", ef_search, getattr(core, "hnsw", None), "efSearch"),
    ):
        if value is None:
            continue
        if getattr(owner, field, None) is None:
            has = {"nprobe": "lists (IVF)", "ef_search": "a graph (HNSW)"}[name]
            raise ValueError(f"kind {kind!r} has no {name}, which belongs to {has}; leave it out")
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
        setattr(owner, field, value)


def train(index: Any, kind: str, rows: np.ndarray) -> None:
    """Train the index on these rows (g, dim).

    Raises:
        ValueError: if there are fewer rows than lists, or than codes of a product quantizer.
    """
    faiss = import_faiss("training")
    core = _layers(index)[-1]
    quantizer = getattr(core, "pq", None)
    needs = [("lists", core.nlist, core.cp)] if isinstance(core, faiss.IndexIVF) else []
    if quantizer is not None:
        needs.append(("codes of each quantizer", quantizer.ksub, quantizer.cp))
    for what, count, settings in needs:
        if len(rows) < count:
            raise ValueError(
                f"{len(rows)} vectors cannot train the index {kind!r}, which has {count} {what}: the first add must "
                f"bring at least {count} vectors, better 40 times as many; or choose a kind with fewer"
            )
        settings.min_points_per_centroid = 1  # below 39 faiss prints a warning for every clustering
    for layer in _layers(index):
        if isinstance(layer, faiss.IndexPreTransform):
            for number in range(layer.chain.size()):
                transform = faiss.downcast_VectorTransform(layer.chain.at(number))
                if isinstance(transform, faiss.OPQMatrix):
                    # The rotation is fitted by a quantizer of its own, which is given here only to be silenced.
                    bits = 8 if quantizer is None else quantizer.nbits
                    quiet = faiss.ProductQuantizer(transform.d_out, transform.M, bits)
                    quiet.cp.min_points_per_centroid = 1
                    transform.pq = quiet
    with clean_errors(f"{len(rows)} vectors cannot train the index {kind!r}; the first add must bring more"):
        index.train(rows)


def stored_ids(index: Any) -> np.ndarray:
    """The ids of all vectors in the index, int64."""
    faiss = import_faiss("an index")
    for layer in _layers(index):
        if isinstance(layer, faiss.IndexIDMap):
            return faiss.vector_to_array(layer.id_map)
    lists = _layers(index)[-1].invlists
    sizes = [(number, lists.list_size(number)) for number in range(lists.nlist)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in sizes if size]
    return np.concatenate([np.empty(0, np.int64), *parts])


def to_bytes(index: Any) -> np.ndarray:
    """The index in faiss's own format, uint8."""
    return import_faiss("an index").serialize_index(index)


def from_bytes(data: np.ndarray, metric: str, *, copy: bool = False) -> Any:
    """The index that `to_bytes` gave; unless `copy`, faiss (since 1.11) reads codes and graphs from where they are.

    Raises:
        ValueError: if faiss cannot read the data, or the index has another metric.
    """
    faiss = import_faiss("an index")
    reader = getattr(faiss, "ZeroCopyIOReader", None)
    with clean_errors("the data are no index of faiss"):
        if reader is None or copy:
            index = faiss.deserialize_index(data)
        else:
            index = faiss.read_index(reader(faiss.swig_ptr(data), data.size))
    number = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if index.metric_type != number:
        raise ValueError(f"the index has another metric than {metric!r}")
    return index


@contextmanager
def clean_errors(problem: str) -> Iterator[None]:
    """Errors of faiss as one ValueError: the problem, and what faiss says without its C++ function and file."""
    try:
        yield
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        reason = lines[-1].rsplit(": ", 1)[-1] if lines else "no reason given"
        raise ValueError(f"{problem} ({reason})") from error


def _layers(index: Any) -> list[Any]:
    """The index and what it wraps, from outside to the core."""
    faiss = import_faiss("an index")
    layers = [faiss.downcast_index(index)]
    while True:
        outer = layers[-1]
        if isinstance(outer, faiss.IndexPreTransform | faiss.IndexIDMap):
            layers.append(faiss.downcast_index(outer.index))
        elif isinstance(outer, faiss.IndexRefine):
            layers.append(faiss.downcast_index(outer.base_index))
        else:
            return layers
