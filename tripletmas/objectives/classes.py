"""Data of classes, for the kinds of task that learn them: what is read, how it becomes tasks, what its metrics are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tripletmas.basics.options import call
from tripletmas.data.sequences import READERS, sequence
from tripletmas.data.source import Source
from tripletmas.data.tasks import make_stream
from tripletmas.objectives.kind import Data

DATASETS = {**READERS, "sequence": sequence}
STREAM_OPTIONS = (make_stream,)
DEFINITIONS = {
    "recall@1": "the nearest item is of the query's class",
    "recall@2": "at least one of the 2 nearest is",
    "recall@4": "at least one of the 4 nearest is",
    "recall@8": "at least one of the 8 nearest is",
    "r_precision": "share of the class among the R nearest, R being its size",
    "map@r": "the same, weighted to the front: the mean of precision at each hit within R",
    "mrr": "one over the rank of the first item of the class",
    "mrr@10": "the same, and 0 where that is not among the 10 nearest",
    "ndcg@10": "how early items of the class come among the 10 nearest, of the best order: by 1 / log2(rank + 1)",
}


def class_data(source: Source, given: Mapping[str, Any]) -> Data:
    """The tasks of a data set of classes."""
    return Data(*call(make_stream, given, source))
