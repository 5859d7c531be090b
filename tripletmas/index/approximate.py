"""Any index of faiss, by its factory string.

Shapes: g gallery vectors, q queries, k ranks, dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tripletmas.index import base, faiss_kinds


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

    Raises:
        ValueError: if faiss does not know the factory string or is not installed; if the kind has no nprobe or no
            ef_search.
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
    ):
        base.check_settings(dim, metric)
        self._take(faiss_kinds.make(dim, kind, metric), kind, metric, normalize, nprobe, ef_search)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def ids(self) -> Tensor:
        """(g,) int64 of the vectors, in no particular order."""
        if self._ids is None:
            self._ids = torch.from_numpy(faiss_kinds.stored_ids(self._index))
        return self._ids

    def add(self, vectors: Tensor, ids: Tensor | None = None) -> None:
        """Append vectors (g, dim) with their ids; all of them, or none if one is refused.

        Args:
            ids: (g,) int64, unique, >= 0; None counts on from the largest so far: positions, if none were ever given.

        Raises:
            ValueError: naming the row of a value that is not finite, or an id that is given twice; if the dimension or
                the type does not fit; if there are too few vectors to train the index on.
        """
        rows = base.prepare(vectors, self.dim, "vectors", normalize=self.normalize)
        new = base.new_ids(ids, len(rows), self.ids)
        if not len(rows):
            return
        if not self._index.is_trained:
            faiss_kinds.train(self._index, self.kind, rows.numpy())
        self._own()
        with faiss_kinds.clean_errors(f"the index {self.kind!r} cannot take these vectors"):
            self._index.add_with_ids(rows.numpy(), new.numpy())
        self._ids = torch.cat([self.ids, new])

    def remove(self, ids: Tensor) -> int:
        """Remove the vectors of these ids, and say how many there were; ids that the index does not hold count not.

        Raises:
            ValueError: if vectors of this kind cannot be removed (HNSW): build it anew from those that stay.
        """
        ids = base.check_removed(ids).unique()
        problem = f"vectors cannot be removed from an index of kind {self.kind!r}; rebuild it from those that stay"
        self._own()
        with faiss_kinds.clean_errors(problem):
            removed = int(self._index.remove_ids(ids.numpy()))
        self._ids = self.ids[~torch.isin(self.ids, ids)]
        return removed

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k vectors of largest score that the index finds for each query, best first, in blocks of queries.

        Where the gallery ends before rank k, or the index finds fewer, ids are -1 and scores -inf.

        Returns: scores (q, k) float32 and ids (q, k) int64.
        Raises:
            ValueError: naming the row of a value that is not finite; if the dimension or the type does not fit.
        """
        base.check_k(k)
        base.check_rows(queries, self.dim, "queries")
        scores, ids = torch.full((len(queries), k), -torch.inf), torch.full((len(queries), k), -1)
        found = min(k, len(self))
        if not found:
            return scores, ids
        step = base.queries_per_block(found)
        for start in range(0, len(queries), step):
            block = base.prepare(
                queries[start : start + step], self.dim, "queries", normalize=self.normalize, first_row=start
            )
            with faiss_kinds.clean_errors(f"the index {self.kind!r} cannot search"):
                block_scores, block_ids = self._index.search(block.numpy(), found)
            block_scores = torch.from_numpy(block_scores)
            scores[start : start + step, :found] = -block_scores if self.metric == "l2" else block_scores
            ids[start : start + step, :found] = torch.from_numpy(block_ids)
        return scores.masked_fill_(ids < 0, -torch.inf), ids

    def serialize(self) -> Tensor:
        """The index in faiss's own format, (bytes,) uint8; the settings beside it are for the caller to keep."""
        return torch.from_numpy(faiss_kinds.to_bytes(self._index))

    @classmethod
    def deserialize(
        cls,
        data: Tensor,
        *,
        kind: str,
        metric: str,
        normalize: bool,
        nprobe: int | None = None,
        ef_search: int | None = None,
    ) -> FaissIndex:
        """The index that `serialize` gave.

        faiss reads the data where they lie (ZeroCopyIOReader, since faiss 1.11): the codes of flat kinds, which PQ and
        SQ8 are too, and the links of HNSW stay in a memory-mapped tensor and are not copied, so the data must not
        change; what is added later, or removed, needs a copy of its own. Lists of IVF and tables of ids are always read
        into memory, and older faiss copies all.

        Args:
            data: (bytes,) uint8 on the CPU.
            kind, metric, normalize: of the index that was serialized.

        Raises:
            ValueError: if faiss cannot read the data, or the index has another metric.
        """
        if data.dtype != torch.uint8 or data.ndim != 1 or data.device.type != "cpu":
            raise ValueError(f"data must be uint8 of shape (bytes,), got {data.dtype} of {tuple(data.shape)}")
        base.check_settings(1, metric)
        data = data.contiguous()
        index = cls.__new__(cls)
        index._take(faiss_kinds.from_bytes(data.numpy(), metric), kind, metric, normalize, nprobe, ef_search)
        index._data = data
        return index

    def _take(
        self, index: Any, kind: str, metric: str, normalize: bool, nprobe: int | None, ef_search: int | None
    ) -> None:
        faiss_kinds.set_search(index, kind, nprobe=nprobe, ef_search=ef_search)
        self._index, self.dim = index, int(index.d)
        self.kind, self.metric, self.normalize = kind, metric, normalize
        self._search_settings = {"nprobe": nprobe, "ef_search": ef_search}
        self._ids: Tensor | None = None  # read from the index when they are asked for
        self._data: Tensor | None = None  # from where faiss reads as long as the index is not changed

    def _own(self) -> None:
        """Take what faiss reads from elsewhere into its own memory, before the index changes."""
        if self._data is not None:
            self._index = faiss_kinds.from_bytes(self._data.numpy(), self.metric, copy=True)
            faiss_kinds.set_search(self._index, self.kind, **self._search_settings)
            self._data = None
