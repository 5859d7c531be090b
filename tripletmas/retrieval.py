"""Embed a data set, and score how well queries find their class in a gallery.

Shapes: n samples, q queries, g gallery vectors, k ranks, dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tripletmas import metrics
from tripletmas.data import LabelledDataset
from tripletmas.index import FaissIndex, Index, queries_per_block, unit


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Raw embeddings of n samples, (n, dim) float32 on the CPU, all finite, and their labels, (n,) int64."""

    vectors: Tensor
    labels: Tensor

    def __post_init__(self):
        vectors, labels = self.vectors, self.labels
        if vectors.ndim != 2 or vectors.dtype != torch.float32 or vectors.device.type != "cpu":
            raise ValueError(
                "vectors must be float32 of shape (n, dim) on the CPU, "
                f"got {vectors.dtype} of {tuple(vectors.shape)} on {vectors.device}"
            )
        # No conversion: labels that went through a float on their way here may already have collided.
        if labels.shape != vectors.shape[:1] or labels.dtype != torch.int64 or labels.device.type != "cpu":
            raise ValueError(
                f"labels must be int64 of shape ({len(vectors)},) on the CPU, "
                f"got {labels.dtype} of {tuple(labels.shape)} on {labels.device}"
            )
        bad = (~vectors.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise ValueError(f"vectors must be finite; row {int(bad[0])} holds NaN or infinity")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """What `evaluate` found; `scores["recall@1"]` is short for `scores.values["recall@1"]`.

    Args:
        values: metric -> mean over the queries that have something relevant to find; nan if none has.
        per_query: metric -> (q,) float64, nan for queries without anything relevant.
        num_queries: all queries, with or without.
        num_without_relevant: the queries whose gallery held nothing of their class; no mean counts them.
    """

    values: dict[str, float]
    per_query: dict[str, Tensor]
    num_queries: int
    num_without_relevant: int

    def __getitem__(self, metric: str) -> float:
        return self.values[metric]


def embed(
    model: nn.Module,
    dataset: LabelledDataset,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> Embeddings:
    """The raw embeddings of all samples, in their order, by the model in eval mode.

    Samples are read as the data set gives them: a data set that augments is to be passed as `dataset.plain()`.
    Afterwards every submodule is back in the mode it was in.

    Args:
        device: where the samples are moved; the model is not moved. None: where the model's parameters are.
        progress: show a bar, if the output is a terminal.

    Raises:
        ValueError: naming the sample (and its file) whose embedding is not finite; if the data set is empty; if the
            model does not return one vector a sample.
    """
    if not len(dataset):
        raise ValueError("an empty data set has no embeddings")
    if device is None:
        first = next(model.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    pieces, start = [], 0
    try:
        batches = dataset.loader(batch_size, num_workers=num_workers)
        for samples, _ in tqdm(batches, desc="embed", leave=False, disable=None if progress else True):
            with torch.inference_mode():
                vectors = model(samples.to(device))
            if vectors.ndim != 2 or len(vectors) != len(samples):
                raise ValueError(
                    f"the model must return embeddings of shape (batch, dim): for {len(samples)} samples "
                    f"it returned {tuple(vectors.shape)}"
                )
            pieces.append(vectors.to("cpu", torch.float32))
            bad = (~pieces[-1].isfinite().all(dim=1)).nonzero()
            if len(bad):
                sample = start + int(bad[0])
                file = f" ({dataset.paths[sample]})" if dataset.paths is not None else ""
                raise ValueError(f"the embedding of sample {sample}{file} holds NaN or infinity")
            start += len(samples)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Embeddings(torch.cat(pieces), dataset.labels)


def evaluate(
    queries: Embeddings,
    gallery: Embeddings | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    self_positions: Tensor | None = None,
) -> RetrievalScores:
    """How well the queries find items of their class in the gallery by cosine: recall@k, R-precision, MAP@R and MRR.

    A query never counts as its own neighbour; it is left out by its position in the gallery, so duplicates do not
    matter. All metrics are exact: nothing is cut off at a search depth. recall@k is the share of queries with at least
    one item of their class among the k nearest (see `metrics`). Where items have equal scores (duplicates of another
    class, an embedding that collapsed), their order is the index's and the values depend on it.

    Args:
        gallery: None: the queries are the gallery, each query itself left out.
        self_positions: (q,) int64, where in the gallery each query is, -1 where it is not. None: no query is in the
            gallery (or, without a gallery, each at its own position).

    Raises:
        ValueError: if the dimensions differ; if a position lies outside the gallery or points to an item of another
            class; for a gallery that is the queries themselves without positions: each query would find itself.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be one or more ranks >= 1, got {tuple(ks)}")
    if gallery is None:
        if self_positions is not None:
            raise ValueError("self_positions needs a gallery; without one, each query is left out at its own position")
        gallery, self_positions = queries, torch.arange(len(queries))
    elif self_positions is None:
        if gallery is queries:
            raise ValueError("the gallery is the queries themselves: leave gallery out, or give self_positions")
        self_positions = torch.full((len(queries),), -1)
    if queries.vectors.shape[1] != gallery.vectors.shape[1]:
        raise ValueError(f"queries of dim {queries.vectors.shape[1]}, but a gallery of dim {gallery.vectors.shape[1]}")
    _check_positions(self_positions, queries, gallery)

    num_relevant = _count_relevant(queries.labels, gallery.labels) - (self_positions >= 0).long()
    index = FaissIndex(gallery.vectors.shape[1])
    index.add(gallery.vectors)
    search = _Search(index, queries, gallery.labels, self_positions)
    names = [*(f"recall@{k}" for k in ks), "r_precision", "map@r", "mrr"]
    per_query = {name: torch.full((len(queries),), torch.nan, dtype=torch.float64) for name in names}

    # Sorted by R, so that one large class does not deepen the search for everybody.
    rows = (num_relevant > 0).nonzero().flatten()
    rows = rows[num_relevant[rows].argsort()]
    deepest = max(max(ks), int(num_relevant.max()) if len(rows) else 0)
    pending = []
    for block in _blocks(rows, deepest):
        depth = max(max(ks), int(num_relevant[block].max()))
        relevant, count = search.relevant(block, depth), num_relevant[block]
        for k in ks:
            per_query[f"recall@{k}"][block] = metrics.recall_at_k(relevant, count, k)
        per_query["r_precision"][block] = metrics.r_precision(relevant, count)
        per_query["map@r"][block] = metrics.map_at_r(relevant, count)
        found = relevant.any(dim=1)
        per_query["mrr"][block[found]] = metrics.reciprocal_rank(relevant[found], count[found])
        pending.append(block[~found])

    # A query whose first relevant item lies deeper is counted, not ranked: the gallery is never sorted for everybody.
    deeper = torch.cat([rows[:0], *pending])
    per_query["mrr"][deeper] = 1 / _first_relevant_rank(deeper, queries, gallery, self_positions).double()

    counted = num_relevant > 0
    values = {name: float(value[counted].mean()) for name, value in per_query.items()}
    return RetrievalScores(values, per_query, len(queries), int((~counted).sum()))


@dataclass(frozen=True, eq=False)
class _Search:
    """Ranked lists of some of the queries, without the queries themselves."""

    index: Index
    queries: Embeddings
    gallery_labels: Tensor
    self_positions: Tensor

    def relevant(self, rows: Tensor, depth: int) -> Tensor:
        """(rows, depth) bool: whether the item at each rank is of the query's class; False where the gallery ended."""
        _, positions = self.index.search(self.queries.vectors[rows], depth + 1)
        exists = positions >= 0
        same_class = self.gallery_labels[positions.clamp_min(0)] == self.queries.labels[rows, None]
        relevant = same_class & exists
        itself = (positions == self.self_positions[rows, None]) & exists
        # From the query's own rank on, the list moves up by one. Among duplicates a query may rank below depth + 1, or
        # not be in the gallery at all: then the list just ends one rank earlier.
        return torch.where(itself.cumsum(dim=1)[:, :-1] > 0, relevant[:, 1:], relevant[:, :-1])


def _first_relevant_rank(rows: Tensor, queries: Embeddings, gallery: Embeddings, self_positions: Tensor) -> Tensor:
    """The rank, from 1, of the nearest item of each query's class: one more than the items with a larger score."""
    ranks = [torch.empty(0, dtype=torch.int64)]
    vectors = unit(gallery.vectors)
    for block in _blocks(rows, len(gallery)):
        scores = unit(queries.vectors[block]) @ vectors.T
        inside = self_positions[block] >= 0
        scores[inside.nonzero().flatten(), self_positions[block][inside]] = -torch.inf
        relevant = queries.labels[block, None] == gallery.labels
        nearest = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append((scores > nearest).sum(dim=1) + 1)
    return torch.cat(ranks)


def _blocks(rows: Tensor, depth: int) -> Sequence[Tensor]:
    """The rows in pieces whose ranked lists of this depth fit in memory."""
    return rows.split(queries_per_block(depth)) if len(rows) else ()


def _count_relevant(query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """How often each query's label occurs in the gallery, (q,); integers are compared as integers."""
    if not len(gallery_labels):
        return torch.zeros_like(query_labels)
    classes, counts = gallery_labels.unique(return_counts=True)
    slots = torch.searchsorted(classes, query_labels).clamp_max(len(classes) - 1)
    return torch.where(classes[slots] == query_labels, counts[slots], 0)


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
