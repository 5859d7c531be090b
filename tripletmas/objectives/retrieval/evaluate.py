"""Score how well queries find their class in a gallery.

Shapes: q queries, g gallery vectors, k ranks, dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from tripletmas.index.base import queries_per_block, unit
from tripletmas.index.clustering import cluster
from tripletmas.index.exact import ExactIndex
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives import metrics

_FIRST = 10  # ranks that MTEB looks at


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """What `evaluate` found; `scores["recall@1"]` is short for `scores.values["recall@1"]`.

    Args:
        values: metric -> mean over the queries that have something relevant to find; nan if none has.
        per_query: metric -> (q,) float64, nan for queries without anything relevant.
        num_queries: all queries, with or without.
        num_without_relevant: the queries whose gallery held nothing of their class; no mean counts them.
        nearest: (q,) int64, where in the gallery each query's nearest other item is; -1 where there is none, and for
            the queries without anything relevant, which are not searched.
    """

    values: dict[str, float]
    per_query: dict[str, Tensor]
    num_queries: int
    num_without_relevant: int
    nearest: Tensor

    def __getitem__(self, metric: str) -> float:
        return self.values[metric]


def scores_by_part(per_query: dict[str, Tensor], nearest: Tensor, sizes: Sequence[int]) -> list[RetrievalScores]:
    """The scores of queries from what is known of each; in several parts, so many queries each, one after the other."""
    names, table = tuple(per_query), torch.stack(tuple(per_query.values()))
    parts = zip(table.split(sizes, dim=1), nearest.split(sizes), strict=True)
    return [_scores_of(names, values, found) for values, found in parts]


def _scores_of(names: Sequence[str], table: Tensor, nearest: Tensor) -> RetrievalScores:
    """Of the values of each query, (metrics, q), all of which are nan where nothing is relevant."""
    answered = ~table[0].isnan()
    without = len(nearest) - int(answered.sum())
    means = _means(table[:, answered] if without else table)
    rows = dict(zip(names, table.unbind(), strict=True))
    return RetrievalScores(dict(zip(names, means, strict=True)), rows, len(nearest), without, nearest)


def _means(table: Tensor) -> list[float]:
    """Of each row, as if it were alone: to the bit in one call where torch adds it up by one thread."""
    return table.mean(dim=1).tolist() if table.shape[1] < 2**15 else [float(row.mean()) for row in table]


def evaluate(
    queries: Embeddings,
    gallery: Embeddings | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    self_positions: Tensor | None = None,
    clustering: bool = False,
    progress: bool = False,
) -> RetrievalScores:
    """How well the queries find items of their class in the gallery by cosine: recall@k, R-precision, MAP@R, MRR, nDCG.

    A query never counts as its own neighbour; it is left out by its position in the gallery, so duplicates do not
    matter. All metrics are exact: nothing is cut off at a search depth. recall@k is the share of queries with at least
    one item of their class among the k nearest (see `metrics`); mrr@10 and ndcg@10 are what MTEB calls so. Items of
    equal scores (duplicates of another class, an embedding that collapsed) are ordered by their position in the
    gallery, smallest first (see `ExactIndex`): the values are the same on every machine, but with ties they depend on
    the gallery's order.

    One search of the gallery serves all metrics, in blocks of queries, as deep as R of each block asks.

    Args:
        gallery: None: the queries are the gallery, each query itself left out.
        self_positions: (q,) int64, where in the gallery each query is, -1 where it is not. None: no query is in the
            gallery (or, without a gallery, each at its own position).
        clustering: add "nmi" and "ami", the normalised (by the arithmetic mean) and the adjusted mutual information of
            the queries' labels and their clusters, by k-means on their unit vectors with as many clusters as they have
            classes (see `cluster`; seed 0). They are of all queries together, so `per_query` has none.
        progress: show a bar, if the output is a terminal.

    Raises:
        ValueError: if the dimensions differ; if a position lies outside the gallery or points to an item of another
            class; for a gallery that is the queries themselves without positions: each query would find itself.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be one or more ranks >= 1, got {tuple(ks)}")
    gallery, self_positions = _gallery_of(queries, gallery, self_positions)
    num_relevant = count_relevant(queries.labels, gallery.labels) - (self_positions >= 0).long()
    index = ExactIndex.over(unit(gallery.vectors).contiguous())
    search = _Search(index, queries, gallery.labels, self_positions, num_relevant)
    (found,) = scores_by_part(*_per_query(search, ks, progress), [len(queries)])
    return replace(found, values=found.values | _clustering(queries)) if clustering else found


def unanswered(ks: Sequence[int], num_queries: int) -> dict[str, Tensor]:
    """metric -> (q,) nan, of all metrics of retrieval."""
    names = [*(f"recall@{k}" for k in ks), "r_precision", "map@r", "mrr", f"mrr@{_FIRST}", f"ndcg@{_FIRST}"]
    return metrics.unanswered(names, num_queries)


def least_depth(ks: Sequence[int]) -> int:
    """How many ranks `values_of` needs, whatever R is; it needs R, too."""
    return max(*ks, _FIRST)


def values_of(relevant: Tensor, num_relevant: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """metric -> value of each query, of ranked lists; all but mrr, which may need a deeper one."""
    return {
        **{f"recall@{k}": metrics.recall_at_k(relevant, num_relevant, k) for k in ks},
        "r_precision": metrics.r_precision(relevant, num_relevant),
        "map@r": metrics.map_at_r(relevant, num_relevant),
        f"mrr@{_FIRST}": metrics.reciprocal_rank_at_k(relevant, num_relevant, _FIRST),
        f"ndcg@{_FIRST}": metrics.ndcg_at_k(relevant, num_relevant, _FIRST),
    }


def _per_query(search: _Search, ks: Sequence[int], progress: bool) -> tuple[dict[str, Tensor], Tensor]:
    """(metric -> value of each query, position of its nearest item)."""
    size, num_relevant = len(search.queries), search.num_relevant
    per_query = unanswered(ks, size)
    nearest = torch.full((size,), -1)

    # Sorted by R, so that one large class does not deepen the search for everybody.
    rows = (num_relevant > 0).nonzero().flatten()
    rows = rows[num_relevant[rows].argsort(stable=True)]
    pending = [rows[:0]]
    least = least_depth(ks)
    with tqdm(desc="search", total=len(rows), leave=False, disable=None if progress else True) as bar:
        for block in _blocks(rows, num_relevant[rows].clamp_min(least) + 1):
            count = num_relevant[block]
            relevant, nearest[block] = search.ranked(block, max(least, int(count.max())))
            for name, values in values_of(relevant, count, ks).items():
                per_query[name][block] = values
            found = relevant.any(dim=1)
            per_query["mrr"][block[found]] = metrics.reciprocal_rank(relevant[found], count[found])
            pending.append(block[~found])
            bar.update(len(block))

        # A query whose first relevant item lies deeper is counted, not ranked: the gallery is never sorted whole.
        deeper = torch.cat(pending)
        bar.reset(len(deeper))
        bar.set_description("deeper ranks")
        for block in deeper.split(queries_per_block(max(len(search.index), 1))):
            per_query["mrr"][block] = 1 / search.first_relevant_rank(block).double()
            bar.update(len(block))
    return per_query, nearest


@dataclass(frozen=True, eq=False)
class _Search:
    """Ranked lists of some of the queries, without the queries themselves; ids are positions in the gallery.

    Whether an item is relevant is asked of the labels of those that were found: a truth of all pairs (q, g) is never
    made.
    """

    index: ExactIndex
    queries: Embeddings
    gallery_labels: Tensor
    self_positions: Tensor
    num_relevant: Tensor

    def ranked(self, rows: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """(whether the item at each rank is of the query's class (rows, depth), position of the first item (rows,)).

        Where the gallery ended, an item is not of the class, and its position -1.
        """
        _, positions = self.index.search(self.queries.vectors[rows], depth + 1)
        itself = (positions == self.self_positions[rows, None]) & (positions >= 0)
        # Among duplicates a query may rank below depth + 1, or not be in the gallery at all: then nothing moves up.
        positions = metrics.without(positions, itself, depth)
        relevant = self.gallery_labels[positions.clamp_min(0)] == self.queries.labels[rows, None]
        return relevant.logical_and_(positions >= 0), positions[:, 0]

    def first_relevant_rank(self, rows: Tensor) -> Tensor:
        """The rank, from 1, of the nearest item of each query's class; every query has one."""
        queries, itself = self.queries.vectors[rows], self.self_positions[rows]
        target, score = self._nearest_relevant(rows)
        ranks = self.index.rank(queries, target)
        inside = (itself >= 0).nonzero().flatten()  # the query itself does not count, if it comes before the target
        own = self.index.pair_scores(queries, inside, itself[inside])
        before = (own > score[inside]) | ((own == score[inside]) & (itself[inside] < target[inside]))
        ranks[inside[before]] -= 1
        return ranks

    def _nearest_relevant(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(position of the nearest item of each query's class (rows,), its exact score (rows,))."""
        by_label, sorted_labels = self._by_label
        labels = self.queries.labels[rows]
        start = torch.searchsorted(sorted_labels, labels)
        count = torch.searchsorted(sorted_labels, labels, right=True) - start
        # Pairs (number of the query in the block, position of an item of its class), query after query.
        number = torch.arange(len(rows)).repeat_interleave(count)
        skipped = (count.cumsum(0) - count).repeat_interleave(count)
        positions = by_label[start[number] + torch.arange(len(number)) - skipped]
        others = positions != self.self_positions[rows[number]]
        number, positions = number[others], positions[others]
        scores = self.index.pair_scores(self.queries.vectors[rows], number, positions)
        best = torch.full((len(rows),), -torch.inf, dtype=torch.float64).scatter_reduce(0, number, scores, "amax")
        first = torch.where(scores == best[number], positions, len(by_label))
        return torch.full((len(rows),), len(by_label)).scatter_reduce(0, number, first, "amin"), best

    @cached_property
    def _by_label(self) -> tuple[Tensor, Tensor]:
        """(positions in the gallery by their labels, these labels)."""
        by_label = self.gallery_labels.argsort(stable=True)
        return by_label, self.gallery_labels[by_label]


def _blocks(rows: Tensor, depths: Tensor) -> Iterator[Tensor]:
    """The rows, sorted by the depth that each needs, in pieces whose ranked lists fit in memory."""
    start = 0
    while start < len(rows):
        end = start + queries_per_block(int(depths[start]))
        # A block is as deep as its last row: take as many as fit at that depth.
        end = start + max(queries_per_block(int(depths[min(end, len(rows)) - 1])), 1)
        yield rows[start:end]
        start = end


def _clustering(queries: Embeddings) -> dict[str, float]:
    if not len(queries):
        return {"nmi": float("nan"), "ami": float("nan")}
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    clusters = cluster(unit(queries.vectors), len(queries.labels.unique())).numpy()
    labels = queries.labels.numpy()
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ami": float(adjusted_mutual_info_score(labels, clusters)),
    }


def count_relevant(query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """How often each query's label occurs in the gallery, (q,); integers are compared as integers."""
    if not len(gallery_labels):
        return torch.zeros_like(query_labels)
    classes, counts = gallery_labels.unique(return_counts=True)
    slots = torch.searchsorted(classes, query_labels).clamp_max(len(classes) - 1)
    return torch.where(classes[slots] == query_labels, counts[slots], 0)


def _gallery_of(
    queries: Embeddings, gallery: Embeddings | None, self_positions: Tensor | None
) -> tuple[Embeddings, Tensor]:
    """What is searched, and where in it each query is; checked."""
    if gallery is None:
        if self_positions is not None:
            raise ValueError("self_positions needs a gallery; without one, each query is left out at its own position")
        gallery, self_positions = queries, torch.arange(len(queries))
    elif self_positions is None:
        if gallery is queries:
            raise ValueError("the gallery is the queries themselves: leave gallery out, or give self_positions")
        self_positions = torch.full((len(queries),), -1)
    if queries.labels.ndim > 1 or gallery.labels.ndim > 1:
        raise ValueError("these samples have several labels each (facts); this search takes samples of one class")
    if queries.vectors.shape[1] != gallery.vectors.shape[1]:
        raise ValueError(f"queries of dim {queries.vectors.shape[1]}, but a gallery of dim {gallery.vectors.shape[1]}")
    _check_positions(self_positions, queries, gallery)
    return gallery, self_positions


def _check_positions(self_positions: Tensor, queries: Embeddings, gallery: Embeddings) -> None:
    if self_positions.shape != (len(queries),) or self_positions.dtype != torch.int64:
        raise ValueError(
            f"self_positions must be int64 of shape ({len(queries)},), "
            f"got {self_positions.dtype} of {tuple(self_positions.shape)}"
        )
    inside = self_positions >= 0
    if ((self_positions < -1) | (self_positions >= len(gallery))).any():
        raise ValueError(f"self_positions must lie in [-1, {len(gallery)}), where the gallery ends")
    wrong = (gallery.labels[self_positions[inside]] != queries.labels[inside]).nonzero()
    if len(wrong):
        query = int(inside.nonzero()[wrong[0]])
        raise ValueError(
            f"self_positions[{query}] = {int(self_positions[query])} points to an item of label "
            f"{int(gallery.labels[self_positions[query]])}, but query {query} has label {int(queries.labels[query])}"
        )
