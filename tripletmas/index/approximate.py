"""Any index of faiss, by its factory string.

Below `FaissIndex` is what has to be known of faiss's own index types. Their layers: transforms (OPQ, PCA) and tables of
ids around a refining index around the core, which is flat, compressed, a graph or lists (IVF).

Shapes: g gallery vectors, q queries, k ranks, dim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tripletmas.index import base

_TABLES = 2**31  # bytes: faiss computes tables of lists of product codes, of at most so many
_CANDIDATES = 2**20  # of a search in a graph, for which it makes room whatever the graph holds


class FaissIndex:
    """An index of faiss on the CPU. An approximate one can miss items; the order among equal scores is faiss's own.

    Scores are float32: inner products, or negative squared distances for the metric "l2"; see `Index`. A kind that
    compresses vectors (PQ, SQ8, ...) gives the scores of the compressed ones.

    Args:
        kind: a factory string of faiss ("IVF64,Flat", "HNSW32", "OPQ16,IVF64,PQ16", ...). What must be trained is
            trained on the vectors of the first `add`.
        normalize: whether vectors and queries are scaled to length 1; they are not changed in place.
        nprobe: how many lists an IVF kind looks into; more find more and take longer. None: what faiss has, 1.
        ef_search: how many candidates an HNSW kind keeps. None: what faiss has.
        data: (bytes,) uint8 on the CPU, what `serialize` of such an index gave; None for an empty one. faiss reads them
            where they lie (ZeroCopyIOReader, since faiss 1.11): the codes of flat kinds, which PQ and SQ8 are too, and
            the links of HNSW stay in a memory-mapped tensor and are not copied, so the data must not change; what is
            added later, or removed, needs a copy of its own. Lists of IVF and tables of ids are always read into
            memory, and older faiss copies all.

    Raises:
        ValueError: if faiss does not know the factory string or is not installed; if the kind has no nprobe or no
            ef_search; if faiss cannot read the data, or they have another metric or dimension.
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: str,
        metric: str = "inner_product",
        normalize: bool = True,
        nprobe: int | None = None,
        ef_search: int | None = None,
        data: Tensor | None = None,
    ):
        base.check_settings(dim, metric)
        self.dim, self.kind, self.metric, self.normalize = dim, kind, metric, normalize
        self._efforts = {"nprobe": nprobe, "ef_search": ef_search}
        self._ids: Tensor | None = None  # read from the index when they are asked for
        self._data = (
            None if data is None else data.contiguous()
        )  # from where faiss reads as long as the index is not changed
        self._index = empty_index(dim, kind, metric) if data is None else self._read(copy=False)
        set_efforts(self._index, kind, self._efforts)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def ids(self) -> Tensor:
        """(g,) int64 of the vectors, in no particular order."""
        if self._ids is None:
            self._ids = torch.from_numpy(_stored_ids(self._index))
        return self._ids

    def add(self, vectors: Tensor, ids: Tensor | None = None) -> None:
        """See `Index.add`; also raises ValueError if there are too few vectors to train the index on."""
        rows = base.prepare(vectors, self.dim, "vectors", normalize=self.normalize)
        new = base.new_ids(ids, len(rows), self.ids)
        if not len(rows):
            return
        if not self._index.is_trained:
            train(self._index, self.kind, rows.numpy())
        self._own()
        with clean_errors(f"the index {self.kind!r} cannot take these vectors"):
            self._index.add_with_ids(rows.numpy(), new.numpy())
        self._ids = torch.cat([self.ids, new])

    def remove(self, ids: Tensor) -> int:
        """See `Index.remove`; raises ValueError if vectors of this kind cannot be removed (HNSW)."""
        ids = base.check_removed(ids)
        self._own()
        with clean_errors(
            f"vectors cannot be removed from an index of kind {self.kind!r}; rebuild it from those that stay"
        ):
            removed = int(self._index.remove_ids(ids.numpy()))
        self._ids = self.ids[~torch.isin(self.ids, ids)]
        return removed

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Index.search`; ids are -1 also where fewer than k are found."""

        def best(block: Tensor, found: int) -> tuple[Tensor, Tensor]:
            with clean_errors(f"the index {self.kind!r} cannot search"):
                scores, ids = map(torch.from_numpy, self._index.search(block.numpy(), found))
            return (-scores if self.metric == "l2" else scores).masked_fill(ids < 0, -torch.inf), ids

        return base.search_in_blocks(self, queries, k, best)

    def serialize(self) -> Tensor:
        """The index in faiss's own format, (bytes,) uint8; the settings beside it are for the caller to keep."""
        return torch.from_numpy(base.import_faiss("an index").serialize_index(self._index))

    def _own(self) -> None:
        """Take what faiss reads from elsewhere into its own memory, before the index changes."""
        if self._data is not None:
            self._index, self._data = self._read(copy=True), None
            set_efforts(self._index, self.kind, self._efforts)

    def _read(self, *, copy: bool) -> Any:
        """The index in the data; unless `copy`, faiss (since 1.11) reads codes and graphs from where they are."""
        assert self._data is not None
        index = read(self._data, self.kind, copy=copy)
        if (index.d, index.metric_type) != (self.dim, _metric_number(self.metric)):
            raise ValueError(f"the index has another dimension than {self.dim}, or another metric than {self.metric!r}")
        if index.ntotal:
            check_trained(index)
        return index


def read(data: Tensor, kind: str, *, name: str = "data", copy: bool = True) -> Any:
    """The index of this kind that faiss has serialized, (bytes,) uint8 on the CPU, which `name` calls in an error.

    Args:
        copy: else faiss (since 1.11) reads codes and graphs where they lie: contiguous, as long as the index lives.

    Raises:
        ValueError: if the data are of another type, or not such an index.
    """
    if data.dtype != torch.uint8 or data.ndim != 1 or data.device.type != "cpu":
        raise ValueError(f"{name} must be uint8 of shape (bytes,), got {data.dtype} of {tuple(data.shape)}")
    faiss = base.import_faiss("an index")
    content = data.contiguous().numpy()
    reader = getattr(faiss, "ZeroCopyIOReader", None)
    with limited(content.size, kind), clean_errors("the data are no index of faiss"):
        if reader is None or copy:
            index = faiss.deserialize_index(content)
        else:
            index = faiss.read_index(reader(faiss.swig_ptr(content), content.size))
    _check_candidates(index)
    return index


_ENDLESS = re.compile(r"(?<![0-9])0+(?![0-9])|HNSW0*1(?![0-9])|NSG0*[123](?![0-9])")


def empty_index(dim: int, kind: str, metric: str) -> Any:
    """An empty index that takes ids with its vectors."""
    faiss = base.import_faiss(f"an index of kind {kind!r}")
    problem = f"kind must be 'exact' or a factory string of faiss for dim {dim} and metric {metric!r}, got {kind!r}"
    if not kind.isascii():  # what is no text in UTF-8 faiss takes for an argument of another type
        raise ValueError(problem)
    if _ENDLESS.search(kind):  # faiss makes such an index, and ends the whole process, or never, when it is filled
        raise ValueError(f"{problem}: its numbers must be >= 1, the links of a graph >= 2 (HNSW) or 4 (NSG)")
    with clean_errors(problem):
        index = faiss.index_factory(dim, kind, _metric_number(metric))
    if index.metric_type != _metric_number(metric):  # HNSW with product codes is made for distances, whatever is asked
        raise ValueError(f"faiss has no index of kind {kind!r} for the metric {metric!r}: choose another kind")
    # Only lists and tables of ids take ids; a refining index around lists does not.
    takes_ids = any(isinstance(layer, faiss.IndexIDMap) for layer in layers(index))
    outer = faiss.downcast_index(index)
    if isinstance(outer, faiss.IndexPreTransform):
        outer = faiss.downcast_index(outer.index)
    return index if takes_ids or isinstance(outer, faiss.IndexIVF) else faiss.IndexIDMap2(index)


def _metric_number(metric: str) -> int:
    faiss = base.import_faiss("an index")
    return faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT


def set_efforts(index: Any, kind: str, efforts: dict[str, int | None]) -> None:
    """How hard a search tries, where the kind has it."""
    core = layers(index)[-1]
    for name, owner, field, has, most in (
        ("nprobe", core, "nprobe", "lists (IVF)", 2**31 - 1),
        ("ef_search", getattr(core, "hnsw", None), "efSearch", "a graph (HNSW)", _CANDIDATES),
    ):
        value = efforts[name]
        if value is None:
            continue
        if getattr(owner, field, None) is None:
            raise ValueError(f"kind {kind!r} has no {name}, which belongs to {has}; leave it out")
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be {'>= 1' if value < 1 else f'<= {most}'}, got {value}")
        setattr(owner, field, value)


def _check_candidates(index: Any) -> None:
    """Whether what was read says of candidates, to search or to build with, what somebody may have set."""
    faiss = base.import_faiss("an index")
    found = layers(index)
    lists = getattr(found[-1], "quantizer", None)  # what finds the lists may be a graph, too
    owners = [*found, *([] if lists is None else [faiss.downcast_index(lists)])]
    graphs = [graph for each in owners for name in ("hnsw", "nsg") if (graph := getattr(each, name, None)) is not None]
    for name in ("k_factor", "efSearch", "efConstruction", "search_L"):
        for count in [getattr(each, name) for each in owners + graphs if hasattr(each, name)]:
            if not 1 <= count <= _CANDIDATES:
                raise ValueError(f"the data are no index of faiss: {name} is {count}, not 1 to {_CANDIDATES}")


def check_trained(index: Any) -> None:
    """Whether what was read, and holds vectors, says that it was trained, as faiss asks before each search.

    Raises:
        ValueError: if not.
    """
    if not all(each.is_trained for each in layers(index)):
        raise ValueError("the data are no index of faiss: it holds vectors, and says that it was not trained")


def train(index: Any, kind: str, rows: np.ndarray) -> None:
    """Train the index on these rows (g, dim).

    Raises:
        ValueError: if there are fewer rows than lists, or than codes of a product quantizer.
    """
    faiss = base.import_faiss("training")
    core = layers(index)[-1]
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
    if isinstance(core, faiss.IndexPQ):
        core.do_polysemous_training = False  # an order of the codes for a search that is never asked for, and slow
    for layer in layers(index):
        if isinstance(layer, faiss.IndexPreTransform):
            _silence_rotations(layer, 8 if quantizer is None else quantizer.nbits)
    with clean_errors(f"{len(rows)} vectors cannot train the index {kind!r}; the first add must bring more"):
        index.train(rows)


def _silence_rotations(layer: Any, bits: int) -> None:
    """Rotations (OPQ) are fitted by a quantizer of their own, which is given here only to be silenced."""
    faiss = base.import_faiss("training")
    for number in range(layer.chain.size()):
        transform = faiss.downcast_VectorTransform(layer.chain.at(number))
        if isinstance(transform, faiss.OPQMatrix):
            quiet = faiss.ProductQuantizer(transform.d_out, transform.M, bits)
            quiet.cp.min_points_per_centroid = 1
            transform.pq = quiet


def _stored_ids(index: Any) -> np.ndarray:
    """The ids of all vectors in the index, int64."""
    faiss = base.import_faiss("an index")
    for layer in layers(index):
        if isinstance(layer, faiss.IndexIDMap):
            return faiss.vector_to_array(layer.id_map)
    lists = layers(index)[-1].invlists
    sizes = [(number, lists.list_size(number)) for number in range(lists.nlist)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in sizes if size]
    return np.concatenate([np.empty(0, np.int64), *parts])


def layers(index: Any) -> list[Any]:
    """The index and what it wraps, from outside to the core."""
    faiss = base.import_faiss("an index")
    found = [faiss.downcast_index(index)]
    while True:
        outer = found[-1]
        if isinstance(outer, faiss.IndexPreTransform | faiss.IndexIDMap):
            found.append(faiss.downcast_index(outer.index))
        elif isinstance(outer, faiss.IndexRefine):
            found.append(faiss.downcast_index(outer.base_index))
        else:
            return found


@contextmanager
def limited(size: int, kind: str) -> Iterator[None]:
    """While faiss reads so many bytes of an index of this kind it makes nothing larger, whatever they say; before
    faiss 1.14 it may."""
    faiss = base.import_faiss("an index")
    limits = {"deserialization_loop_limit": size, "deserialization_vector_byte_limit": size + _tables(kind)}
    before = {name: getattr(faiss, f"get_{name}")() for name in limits if hasattr(faiss, f"set_{name}")}
    try:
        for name in before:
            getattr(faiss, f"set_{name}")(limits[name])
        yield
    finally:
        for name, was in before.items():
            getattr(faiss, f"set_{name}")(was)


def _tables(kind: str) -> int:
    """Bytes of a table that faiss computes as it reads product codes, between the codes or of each list, at most."""
    codes, lists = re.search(r"(?<!O)PQ(\d+)(?:x(\d+))?", kind), re.search(r"IVF(\d+)", kind)
    if codes is None:
        return 0
    size = 2 ** int(codes[2] or 8)
    return min(4 * int(codes[1]) * size * max(size, int(lists[1]) if lists else 0), _TABLES)


@contextmanager
def clean_errors(problem: str) -> Iterator[None]:
    """Errors of faiss as one ValueError: the problem, and what faiss says without its C++ function and file."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[-1].rsplit(": ", 1)[-1] if lines else "no reason given"
        raise ValueError(f"{problem} ({reason})") from error
