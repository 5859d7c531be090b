"""k-means by faiss."""

from __future__ import annotations

import torch
from torch import Tensor

from tripletmas.index.base import import_faiss, prepare

_ITERATIONS = 20


def cluster(vectors: Tensor, num_clusters: int, *, seed: int = 0, spherical: bool = False) -> Tensor:
    """The cluster of each vector (n, dim) by k-means with squared Euclidean distances, (n,) int64.

    One start from vectors drawn by the seed, 20 iterations; faiss learns the centres from at most 256 vectors a cluster
    on average, drawn by the seed. The same seed gives the same clusters. A cluster can be empty.

    Args:
        spherical: scale the centres to length 1 after each iteration.

    Raises:
        ValueError: naming the row of a value that is not finite; if there are fewer vectors than clusters; where faiss
            is missing.
    """
    if vectors.ndim != 2:
        raise ValueError(f"vectors must have shape (n, dim), got {tuple(vectors.shape)}")
    if not 1 <= num_clusters <= len(vectors):
        raise ValueError(f"num_clusters must lie in [1, {len(vectors)}], the number of vectors, got {num_clusters}")
    faiss = import_faiss("clustering")
    rows = prepare(vectors, vectors.shape[1], "vectors", normalize=False).numpy()
    kmeans = faiss.Kmeans(
        rows.shape[1], num_clusters, niter=_ITERATIONS, seed=seed, spherical=spherical, min_points_per_centroid=1
    )
    kmeans.train(rows)
    _, nearest = kmeans.index.search(rows, 1)
    return torch.from_numpy(nearest[:, 0])
