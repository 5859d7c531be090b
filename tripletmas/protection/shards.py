"""Which samples of a data set the batches of one process have, where several processes share it.

Samplers that share a data set over processes repeat samples at its end, so that all have equally many. What is measured
is a mean over samples: each must count once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler
from tqdm import tqdm

from tripletmas.basics.sentences import with_article


class Places(NamedTuple):
    """Where in the order of the whole data set the samples of a batch stand that count, its first ones; and whether
    others may come after them, which are repeated."""

    own: range
    has_repeated: bool


PlacesOf = Callable[[int], Places]  # of the batch with this number

# whose samplers deal out samples as torch's own: rank r of n has r, r + n, r + 2 n, ...
_KNOWN = ("torch.", "lightning.", "pytorch_lightning.", "transformers.")


def places_of(batches: Any) -> PlacesOf | None:
    """Where the samples of each batch stand, for a DataLoader that shares its data set by torch's DistributedSampler
    (as Lightning does) or by accelerate; None for everything else, of which every sample counts as it comes."""
    if isinstance(batches, tqdm):
        return places_of(batches.iterable)
    if not isinstance(batches, DataLoader):
        return None
    grouped: Any = batches.batch_sampler
    sampler = getattr(grouped, "sampler", None)
    if type(grouped).__name__ == "BatchSamplerShard":
        if _is_plain(grouped.batch_sampler):
            return _dealt_in_batches(grouped)
        return _warn_of(grouped, grouped.even_batches)
    if not isinstance(sampler, DistributedSampler):
        return None
    known = f"{type(sampler).__module__}.".startswith(_KNOWN) and _is_plain(grouped)
    if not known or not getattr(batches, "in_order", True):
        return _warn_of(sampler, sampler.total_size > _size(sampler))
    return _dealt_in_turn(sampler, grouped.batch_size)


def _is_plain(grouped: Any) -> bool:
    """Whether samples are batched in the order in which they come; Lightning wraps such a one to predict."""
    kind = type(grouped)
    return getattr(kind, "__iter__", None) is BatchSampler.__iter__ or kind.__name__ == "_IndexBatchSamplerWrapper"


def _size(sampler: Any) -> int:
    return len(sampler.dataset)


def _dealt_in_turn(sampler: Any, size: int) -> PlacesOf:
    total, step = _size(sampler), sampler.num_replicas

    def of(number: int) -> Places:
        first, after = (sampler.rank + step * size * each for each in (number, number + 1))
        return Places(range(first, min(after, total), step), after - step >= total)

    return of


def _dealt_in_batches(shard: Any) -> PlacesOf:
    total, size = len(shard.batch_sampler.sampler), shard.batch_size
    whole = size if shard.split_batches else size * shard.num_processes  # of all processes together
    part = whole // shard.num_processes

    def of(number: int) -> Places:
        first = number * whole + shard.process_index * part
        return Places(range(first, min(first + part, total)), shard.even_batches and first + part > total)

    return of


def _warn_of(sampler: Any, repeats: bool) -> None:
    if repeats:
        warnings.warn(
            f"{with_article(type(sampler).__name__)} may repeat samples at its end, to give all processes equally "
            "many, and they cannot be told apart here: they count twice; measure with torch's DistributedSampler",
            stacklevel=4,
        )
