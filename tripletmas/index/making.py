"""An index by the name of its kind, and what an approximate one misses."""

from __future__ import annotations

from torch import Tensor

from tripletmas.index.approximate import FaissIndex
from tripletmas.index.base import Index
from tripletmas.index.exact import ExactIndex


def make_index(
    dim: int,
    *,
    kind: str = "exact",
    metric: str = "inner_product",
    normalize: bool = True,
    nprobe: int | None = None,
    ef_search: int | None = None,
    data: Tensor | None = None,
) -> Index:
    """An index of this kind, empty or of serialized data.

    Args:
        kind: "exact", which needs no faiss, or a factory string of faiss ("IVF64,Flat", "HNSW32", ...).
        metric: "inner_product", or "l2", whose scores are negative squared distances.
        nprobe, ef_search, data: see `FaissIndex`; an exact index has none of them.
    """
    if kind != "exact":
        return FaissIndex(
            dim, kind=kind, metric=metric, normalize=normalize, nprobe=nprobe, ef_search=ef_search, data=data
        )
    for name, value in (("nprobe", nprobe), ("ef_search", ef_search)):
        if value is not None:
            raise ValueError(f"kind 'exact' has no {name}, got {value}; leave it out")
    if data is not None:
        raise ValueError("kind 'exact' has no serialized data: its vectors are kept, see ExactIndex.over")
    return ExactIndex(dim, metric=metric, normalize=normalize)


def recall_against(exact: Index, approximate: Index, queries: Tensor, k: int) -> float:
    """The share of the exact k nearest that the approximate index finds among its k, mean over the queries.

    This is the recall of the index, not recall@k of `metrics`. Where the gallery holds fewer than k, of these.
    """
    truth, found = exact.search(queries, k)[1], approximate.search(queries, k)[1]
    there = truth >= 0
    hit = (truth[:, :, None] == found[:, None, :]).any(dim=2) & there
    return float(hit.sum()) / max(int(there.sum()), 1)
