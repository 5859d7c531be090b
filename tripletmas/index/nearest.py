"""The quick float32 search behind the exact index, by the bare kernels of faiss or by torch on any device.

Both return scores (r, m) float32, larger = nearer, best first, and positions (r, m) int64, on the CPU, for m <= g. The
order among scores that float32 cannot tell apart is their own; `ties` settles it.

Shapes: r queries, g gallery vectors, m candidates a query, dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tripletmas.index.base import import_faiss

_CELLS = 2**22  # (query, vector) cells of one product of matrices: 16 MB in float32


def nearest_by_faiss(queries: Tensor, vectors: Tensor, m: int, metric: str) -> tuple[Tensor, Tensor]:
    """By faiss.knn, which reads the vectors where they are: nothing is copied."""
    faiss = import_faiss("the backend 'faiss'")
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    scores, positions = faiss.knn(queries.numpy(), vectors.numpy(), m, kind)
    scores = torch.from_numpy(scores)
    return scores.neg_() if metric == "l2" else scores, torch.from_numpy(positions)


def nearest_by_torch(queries: Tensor, vectors: Tensor, m: int, metric: str) -> tuple[Tensor, Tensor]:
    """By products of blocks of the gallery, of which only the m best are kept."""
    queries = queries.to(vectors.device)
    scores = torch.empty(len(queries), 0, device=vectors.device)
    positions = torch.empty(len(queries), 0, dtype=torch.int64, device=vectors.device)
    step = max(_CELLS // max(len(queries), 1), m, 1024)
    for start in range(0, len(vectors), step):
        block = block_scores(queries, vectors[start : start + step], metric)
        best = block.topk(min(m, block.shape[1]), dim=1)
        scores = torch.cat([scores, best.values], dim=1)
        positions = torch.cat([positions, best.indices + start], dim=1)
        best = scores.topk(min(m, scores.shape[1]), dim=1)
        scores, positions = best.values, positions.gather(1, best.indices)
    return scores.cpu(), positions.cpu()


def block_scores(queries: Tensor, vectors: Tensor, metric: str) -> Tensor:
    """All scores (r, g) of queries (r, dim) and vectors (g, dim), in their own type."""
    with torch.autocast(queries.device.type, enabled=False):  # half precision would break the bound of rounding
        products = queries @ vectors.T
    if metric == "inner_product":
        return products
    products.mul_(2).sub_(vectors.square().sum(dim=1)).sub_(queries.square().sum(dim=1)[:, None])
    return products.clamp_max_(0)
