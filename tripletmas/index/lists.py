"""The lists of an inverted index of faiss (IVF) where they lie in a file: what is searched need not fit into memory.

trained      (bytes,) uint8, what faiss serialised of the index without vectors: centroids, quantizers, rotations
sizes        (lists,) int64, how many vectors are in each list
content      (g * (code_size + 8),) uint8: list after list, of each the codes of its vectors, then their ids, int64

That is how faiss lays out lists on a disk (`OnDiskInvertedLists`), which read them from wherever they are told to. In a
list, vectors stand in the order of their ids, as they do where faiss adds them in memory.

Shapes: g gallery vectors, q queries, k ranks, dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from tripletmas.basics.mapped import is_large, release
from tripletmas.basics.progress import told
from tripletmas.basics.tensor_stream import Room
from tripletmas.index import approximate, base

_IDS = 8  # bytes of an id
_TRAINING = 64  # vectors a list that centroids are learned from; faiss warns below 39 and takes 256 at most
_TRAINING_BYTES = 2**29  # of all of them, unless there must be one for each list


class Writable(Protocol):
    """A place of bytes, as `basics.tensor_stream.Filled`."""

    def write(self, at: int, content: Tensor) -> None:
        """Write a tensor's bytes so many bytes from the start on."""
        ...


class MappedLists:
    """An index of lists that are read where they lie. It can be searched, and is changed by writing it anew.

    Scores and what is found are, to the bit, those of a `FaissIndex` with the same centroids.

    Args:
        kind: a factory string of faiss that ends in lists: "IVF4096,Flat", "OPQ16,IVF4096,PQ16", "IVF4096,SQ8".
        nprobe: how many lists are looked into; None: what faiss has, 1.
        trained, sizes, content: as in the head of this module; None for an empty index.

    Raises:
        ValueError: for a kind without such lists, an unknown one, or lists that do not fit each other.
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: str,
        metric: str = "inner_product",
        normalize: bool = True,
        nprobe: int | None = None,
        trained: Tensor | None = None,
        sizes: Tensor | None = None,
        content: Tensor | None = None,
    ):
        base.check_settings(dim, metric)
        self.dim, self.kind, self.metric, self.normalize = dim, kind, metric, normalize
        if kind == "exact":
            raise _without_lists(kind)
        empty = approximate.empty_index(dim, kind, metric)
        expected = _core_of(empty, kind)
        approximate.set_efforts(empty, kind, {"nprobe": nprobe, "ef_search": None})
        self._size, self._entry = 0, expected.code_size + _IDS
        if trained is not None and sizes is not None and content is not None:
            self._index = approximate.read(trained, kind, name="trained")
            self._sizes, self._content = sizes.contiguous(), content.contiguous()
            self._take_lists(expected, nprobe)

    def _take_lists(self, expected: Any, nprobe: int | None) -> None:
        """Have faiss read the lists where they lie, if they are those of the expected core."""
        core = _core_of(self._index, self.kind)
        about = [(type(each), each.metric_type, each.nlist, each.code_size) for each in (core, expected)]
        fits = self._index.d == self.dim and about[0] == about[1] and len(self._sizes) == core.nlist
        self._size = int(self._sizes.sum())
        if self._size:
            approximate.check_trained(self._index)
        if not fits or int(self._sizes.min()) < 0 or len(self._content) != self._size * self._entry:
            told = f"{len(self._sizes)} lists with {len(self._content)} bytes"
            raise ValueError(f"{told} are not those of the index {self.kind!r}")
        approximate.set_efforts(self._index, self.kind, {"nprobe": nprobe, "ef_search": None})
        _put_lists(core, self, self._sizes, self._content)
        for layer in approximate.layers(self._index):
            layer.ntotal = self._size

    def __len__(self) -> int:
        return self._size

    @property
    def ids(self) -> Tensor:
        """(g,) int64 of the vectors, list after list."""
        found, at = [], 0
        for size in self._sizes.tolist() if self._size else ():
            end = at + size * self._entry
            found.append(self._content[end - size * _IDS : end].clone().view(torch.int64))
            at = end
        return torch.cat([torch.empty(0, dtype=torch.int64), *found])

    def add(self, vectors: Tensor, ids: Tensor | None = None) -> None:
        """Raises ValueError: lists in a file are written anew, by `ImageIndex.save`."""
        raise ValueError("lists in a file do not change: add to the image index, and save it")

    def remove(self, ids: Tensor) -> int:
        """Raises ValueError, as `add`."""
        raise ValueError("lists in a file do not change: remove from the image index, and save it")

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Index.search`; ids are -1 also where fewer than k are found."""

        def best(block: Tensor, found: int) -> tuple[Tensor, Tensor]:
            with approximate.clean_errors(f"the index {self.kind!r} cannot search"):
                scores, ids = map(torch.from_numpy, self._index.search(block.numpy(), found))
            if is_large(self._content):
                release(self._content)
            return (-scores if self.metric == "l2" else scores).masked_fill(ids < 0, -torch.inf), ids

        return base.search_in_blocks(self, queries, k, best)


@dataclass(frozen=True)
class Listing:
    """What makes lists of vectors that come in blocks: trained, and knowing how long all is, before it begins.

    Args:
        count: of the vectors.
    """

    kind: str
    trained: Tensor
    num_lists: int
    code_size: int
    count: int

    @classmethod
    def of(
        cls,
        dim: int,
        kind: str,
        metric: str,
        *,
        blocks: Callable[[], Iterator[Tensor]],
        count: int,
        trained: Tensor | None = None,
    ) -> Listing:
        """For vectors (count, dim) as they are compared.

        Args:
            trained: what is trained already; None: it is trained on some of the vectors, 64 a list, evenly spaced, of
                at most half a gigabyte.

        Raises:
            ValueError: for a kind without lists, or if there are fewer vectors than lists.
        """
        if trained is None:
            index = approximate.empty_index(dim, kind, metric)
            lists = _core_of(index, kind).nlist
            most = max(lists, min(_TRAINING * lists, _TRAINING_BYTES // (4 * dim)))
            approximate.train(index, kind, _some(blocks(), count, most).numpy())
            trained = torch.from_numpy(base.import_faiss("an index").serialize_index(index))
        core = _core_of(approximate.read(trained, kind), kind)
        return cls(kind, trained, core.nlist, core.code_size, count)

    @property
    def length(self) -> int:
        """Bytes of the content of the lists."""
        return self.count * (self.code_size + _IDS)

    def rooms(self) -> dict[str, Tensor | Room]:
        """What a file holds of it, by name: what it has learned, and room for the rest."""
        sizes, content = Room(torch.int64, (self.num_lists,)), Room(torch.uint8, (self.length,))
        return {"index": self.trained, "list_sizes": sizes, "lists": content}

    def fill(self, blocks: Callable[[], Iterator[Tensor]], ids: Tensor, content: Writable) -> Tensor:
        """Write the content of the lists; gives their sizes, (lists,) int64.

        Args:
            blocks: of the vectors: called once to see which list each belongs to, then to put them there.
            ids: (count,), ascending.
        """
        index = approximate.read(self.trained, self.kind)
        core = _core_of(index, self.kind)
        list_of, at = np.empty(self.count, np.int32), 0
        for block in _shown(blocks(), "vectors given to lists", self.count):
            rows = _transformed(index, block)
            list_of[at : at + len(rows)] = core.quantizer.search(rows, 1)[1][:, 0]
            at += len(rows)
        sizes = np.bincount(list_of, minlength=self.num_lists)
        entry = self.code_size + _IDS
        codes_at = np.concatenate([[0], sizes.cumsum()[:-1]]) * entry
        ids_at = codes_at + sizes * self.code_size
        at = 0
        for block in _shown(blocks(), "vectors put into lists", self.count):
            chosen = list_of[at : at + len(block)]
            order = chosen.argsort(kind="stable")
            codes = _encoded(core, _transformed(index, block), chosen)[order]
            own = ids[at : at + len(block)].numpy()[order]
            numbers, starts, counts = np.unique(chosen[order], return_index=True, return_counts=True)
            for number, start, count in zip(numbers.tolist(), starts.tolist(), counts.tolist(), strict=True):
                content.write(int(codes_at[number]), torch.from_numpy(codes[start : start + count]))
                content.write(int(ids_at[number]), torch.from_numpy(own[start : start + count]))
                codes_at[number] += count * self.code_size
                ids_at[number] += count * _IDS
            at += len(block)
        return torch.from_numpy(sizes)


class InMemory:
    """A place of bytes in memory."""

    def __init__(self, length: int):
        self.content = torch.zeros(length, dtype=torch.uint8)

    def write(self, at: int, content: Tensor) -> None:
        """Write a tensor's bytes so many bytes from the start on."""
        plain = content.contiguous().reshape(-1).view(torch.uint8)
        self.content[at : at + len(plain)] = plain


def _core_of(index: Any, kind: str) -> Any:
    """The core of an index, if it has lists that can lie in a file, after any rotations.

    Raises:
        ValueError: for another one.
    """
    faiss = base.import_faiss("an index")
    *outer, core = approximate.layers(index)
    known = ("IndexIVFFlat", "IndexIVFPQ", "IndexIVFScalarQuantizer", "IndexIVFRaBitQ")
    if type(core).__name__ not in known or not all(isinstance(each, faiss.IndexPreTransform) for each in outer):
        raise _without_lists(kind)
    return core


def _without_lists(kind: str) -> ValueError:
    return ValueError(
        "an index on the disk has lists of vectors, plain or compressed (IVF4096,Flat, IVF4096,SQ8, "
        f"OPQ16,IVF4096,PQ16), and the kind {kind!r} has none: choose such a --kind"
    )


def _put_lists(core: Any, owner: object, sizes: Tensor, content: Tensor) -> None:
    """Have the core of an index read its lists from a tensor, as long as the owner lives."""
    faiss = base.import_faiss("an index")
    lists = faiss.OnDiskInvertedLists(len(sizes), core.code_size, "")
    lists.read_only, lists.prefetch_nthread = True, 0  # no thread may read when the tensor is gone
    plain = sizes.numpy().astype(np.uint64)
    lists.set_all_lists_sizes(faiss.swig_ptr(plain))
    lists.totsize, lists.ptr = len(content), faiss.cast_integer_to_uint8_ptr(content.data_ptr())
    core.replace_invlists(lists, False)
    lists.this.disown()  # it would unmap what is not its own
    finalize(owner, _forget, lists, content)


def _forget(lists: Any, content: Tensor) -> None:
    """Free faiss's lists without the bytes that they were read from, which are kept until then."""
    lists.ptr = None
    lists.this.own(True)
    del content


def _transformed(index: Any, block: Tensor) -> np.ndarray:
    """The vectors as the core of the index is given them."""
    faiss, rows = base.import_faiss("an index"), np.ascontiguousarray(block.numpy())
    for layer in approximate.layers(index)[:-1]:
        for number in range(layer.chain.size()):
            rows = faiss.downcast_VectorTransform(layer.chain.at(number)).apply(rows)
    return rows


def _encoded(core: Any, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The codes (b, code_size) uint8 of vectors that belong to these lists."""
    faiss = base.import_faiss("an index")
    codes, numbers = np.empty((len(rows), core.code_size), np.uint8), chosen.astype(np.int64)
    core.encode_vectors(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(numbers), faiss.swig_ptr(codes))
    return codes


def _some(blocks: Iterator[Tensor], count: int, most: int) -> Tensor:
    """At most so many of the vectors, evenly spaced."""
    step, at, found = -(-count // most), 0, []
    for block in blocks:
        found.append(block[-at % step :: step].clone())
        at += len(block)
    return torch.cat(found)


def _shown(blocks: Iterator[Tensor], what: str, count: int) -> Iterator[Tensor]:
    return told(blocks, what, count, size=len)
