"""What every index has in common: the protocol, checking and preparing vectors and ids, importing faiss.

Shapes: g gallery vectors, q queries, k ranks, dim.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

METRICS = ("inner_product", "l2")

_BLOCK_CELLS = 2**22  # (query, rank) cells in one call: faiss keeps a few copies of each, so about 100 MB
_MOST_RANKS = 2**20  # that are asked for although the index ends before: each is stored
_BLOCK_QUERIES = (32, 4096)  # at least and at most; with fewer than 20 queries faiss leaves BLAS and gets slow
_UNIT_ROWS = 2**16  # normalised at once: a gallery is not copied several times over
_JUDGED = 1000


class Index(Protocol):
    """A gallery of vectors that can be searched, each known by an id.

    A score is larger for what is nearer: the inner product, or for the metric "l2" the *negative squared* Euclidean
    distance. With `normalize`, vectors and queries are scaled to length 1 (a vector of zeros stays), so that the inner
    product is the cosine, and both metrics give one order.
    """

    dim: int
    kind: str
    metric: str
    normalize: bool

    def __len__(self) -> int: ...

    def add(self, vectors: Tensor, ids: Tensor | None = None) -> None:
        """Append vectors (g, dim) with their ids; all of them, or none if one is refused.

        Args:
            ids: (g,) int64, unique, >= 0; None counts on from the largest so far: positions, if none were ever given.

        Raises:
            ValueError: naming the row of a value that is not finite, or an id that is given twice; if the dimension or
                the type does not fit.
        """
        ...

    def remove(self, ids: Tensor) -> int:
        """Remove the vectors of these ids, and say how many there were; ids that the index does not hold count not."""
        ...

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k vectors of largest score for each query (q, dim), best first, found in blocks of queries.

        Where the gallery ends before rank k, ids are -1 and scores -inf.

        Returns: scores (q, k) float32 and ids (q, k) int64, on the CPU.
        Raises:
            ValueError: naming the row of a value that is not finite; if the dimension or the type does not fit.
        """
        ...


def queries_per_block(k: int) -> int:
    """How many queries to search at once, so that their ranked lists of k fit in about 100 MB."""
    smallest, largest = _BLOCK_QUERIES
    return min(max(_BLOCK_CELLS // k, smallest), largest)


def unit(rows: Tensor) -> Tensor:
    """The rows divided by their lengths; a row of zeros stays."""
    if len(rows) > _UNIT_ROWS and not rows.requires_grad:
        result = torch.empty_like(rows)
        for start in range(0, len(rows), _UNIT_ROWS):
            result[start : start + _UNIT_ROWS] = unit(rows[start : start + _UNIT_ROWS])
        return result
    # Divided by the largest entry first: the square of a huge entry would overflow, that of a tiny one vanish.
    largest = rows.abs().amax(dim=1, keepdim=True)
    return functional.normalize(rows / largest.masked_fill(largest == 0, 1.0), dim=1)


def are_one_vector(vectors: Tensor) -> bool:
    """Whether several vectors (n, dim) are one but for rounding: float32 cannot tell their scores apart.

    Their `relative_spread` is below its resolution.
    """
    return relative_spread(vectors) <= torch.finfo(torch.float32).eps


def relative_spread(vectors: Tensor) -> float:
    """The mean squared distance of vectors (n, dim) from their mean, divided by their mean squared length.

    0 for vectors of zeros, nan for fewer than two. Of a thousand of them, where there are more.
    """
    some = vectors[:: -(-len(vectors) // _JUDGED) or 1].double()
    if len(some) < 2:
        return math.nan
    spread = (some - some.mean(dim=0)).square().sum(dim=1).mean()
    return float(spread / some.square().sum(dim=1).mean()) if bool(spread > 0) else 0.0


def disagreement(stored: Tensor, made: Tensor) -> float:
    """How far vectors (n, dim) that are stored are from those that a model makes of the same things: 0 for the same.

    The median over them of ||s_i - m_i||^2, by the median of ||s_i - s||^2 about their mean s, both of unit vectors: 1
    and more for another model. A cosine would not do: vectors of a model that has learned little lie so close to each
    other that those of any other task of its run seem the same. nan for vectors that are all one.
    """
    have, now = unit(stored.double()), unit(made.double())
    spread = (have - have.mean(dim=0)).square().sum(dim=1).median()
    return float((have - now).square().sum(dim=1).median() / spread) if bool(spread > 0) else math.nan


def check_settings(dim: int, metric: str) -> None:
    if not 1 <= dim < 2**31:
        raise ValueError(f"dim must be >= 1, got {dim}" if dim < 1 else f"dim must be below 2^31, got {dim}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")


def check_rows(vectors: Tensor, dim: int, what: str) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"{what} must have shape (n, {dim}), got {tuple(vectors.shape)}")
    if not vectors.is_floating_point():
        raise ValueError(f"{what} must be floating point, got {vectors.dtype}")


def search_in_blocks(
    index: Index, queries: Tensor, k: int, best: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """What `Index.search` gives; `best(block, k)` finds scores and ids for prepared queries and k <= g."""
    most = max(len(index), _MOST_RANKS)
    if not 1 <= k <= most:
        raise ValueError(f"k must lie between 1 and {most} for an index of {len(index)} vectors, got {k}")
    check_rows(queries, index.dim, "queries")
    scores, ids = torch.full((len(queries), k), -torch.inf), torch.full((len(queries), k), -1)
    found = min(k, len(index))
    if found:
        step = queries_per_block(found)
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            block = prepare(queries[rows], index.dim, "queries", normalize=index.normalize, first_row=start)
            scores[rows, :found], ids[rows, :found] = best(block, found)
    return scores, ids


def prepare(
    vectors: Tensor, dim: int, what: str, *, normalize: bool, device: torch.device | str = "cpu", first_row: int = 0
) -> Tensor:
    """The vectors as an index holds and compares them: finite, float32, of length 1 if asked, contiguous.

    Raises:
        ValueError: naming the row (counted from `first_row`) of a value that is not finite in float32; if the
            dimension or the type does not fit.
    """
    check_rows(vectors, dim, what)
    rows = vectors.detach().to(device, torch.float32)
    if not math.isfinite(float(rows.sum())):  # the sum, one pass, tells almost always
        bad = (~rows.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise ValueError(f"{what} must be finite in float32; row {first_row + int(bad[0])} holds NaN or infinity")
    return (unit(rows) if normalize else rows).contiguous()


def new_ids(ids: Tensor | None, count: int, taken: Tensor) -> Tensor:
    """The ids that `count` new vectors get, (count,) int64 on the CPU; None counts on from the largest one taken."""
    if ids is None:
        first = int(taken.max()) + 1 if len(taken) else 0
        return torch.arange(first, first + count)
    if ids.dtype != torch.int64 or ids.shape != (count,):
        raise ValueError(f"ids must be int64 of shape ({count},), got {ids.dtype} of {tuple(ids.shape)}")
    ids = ids.detach().to("cpu", copy=True)
    if (ids < 0).any():
        raise ValueError(f"ids must be >= 0, got {int(ids.min())}")
    values, counts = ids.unique(return_counts=True)
    if len(values) < count:
        raise ValueError(f"ids must be unique; {int(values[counts > 1][0])} is given more than once")
    there = ids[torch.isin(ids, taken)]
    if len(there):
        raise ValueError(f"the index already holds the id {int(there[0])}; remove it first")
    return ids


def check_removed(ids: Tensor) -> Tensor:
    """The ids to remove, on the CPU."""
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise ValueError(f"ids must be int64 of shape (n,), got {ids.dtype} of {tuple(ids.shape)}")
    return ids.detach().cpu()


def import_faiss(purpose: str) -> Any:
    """The module faiss, which is imported only when it is needed.

    Raises:
        ValueError: where it is not installed, saying what for and how to install it.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError(f"{purpose} needs faiss: pip install faiss-cpu") from error
    return faiss


def give_back_parameters() -> None:
    """Let faiss take `params=` in a search again, where `faiss.contrib.torch_utils` has taken that away.

    Whoever imports that module, as pytorch-metric-learning does, replaces `search` of every index by one that knows of
    no parameters, for the whole process: Milvus Lite then cannot search with a filter. Nothing, where nobody has.
    """
    if "faiss.contrib.torch_utils" not in sys.modules:
        return
    for each in vars(import_faiss("a search")).values():
        if isinstance(each, type) and getattr(vars(each).get("search"), "__name__", "") == "torch_replacement_search":
            each.search = _with_parameters(each.search)  # pyright: ignore[reportAttributeAccessIssue] - any class


def _with_parameters(search: Callable[..., Any]) -> Callable[..., Any]:
    """A search of `faiss.contrib.torch_utils` that hands arrays with parameters to the one that it replaced."""

    def searched(index: Any, x: Any, k: int, *given: Any, params: Any = None, **named: Any) -> Any:
        if params is None:
            return search(index, x, k, *given, **named)
        return index.search_numpy(x, k, *given, params=params, **named)

    return searched
