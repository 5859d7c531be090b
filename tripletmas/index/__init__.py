"""Nearest-neighbour search: exact, or by any index of faiss, under one protocol. faiss is imported nowhere else.

Scores are always larger for what is nearer: inner products, or *negative squared* distances for the metric "l2".
"""

from tripletmas.index.approximate import FaissIndex
from tripletmas.index.base import Index, queries_per_block, unit
from tripletmas.index.clustering import cluster
from tripletmas.index.exact import ExactIndex
from tripletmas.index.making import make_index, recall_against

__all__ = [
    "ExactIndex",
    "FaissIndex",
    "Index",
    "cluster",
    "make_index",
    "queries_per_block",
    "recall_against",
    "unit",
]
