"""What is to be expected of a gallery after an upgrade, for each way in which it can be done, with intervals.

Of a part of the sample, which no map was fitted on, both models' vectors are known. Its points are queries, by the new
model, or by the old one where the gallery is left as it is:

- among all points of the store, as they lie there and as the map moves them: what is found first is known there, and so
  is its class, where the store has classes. That needs no model.
- among the sample alone, where it is known, too, what would be found if everything were embedded again.

A gallery of a thousand is easier than one of a million. What is known in the sample alone is therefore carried over to
the size of the store, in log-odds. Recall: by how much that of the old and of the moved vectors changes between the
two, which is known of both. The share of the ten nearest that stay: by the mean of two ways to tell. Once by how much
it changes in a search in which vectors are pretended to be embedded again: they are where they would be if the map had
missed them as it missed the nearest pair of the other part, which is known of the whole store. And once by how many
stay among as many of the nearest as are in the sample the same share of all: ten of ten thousand are one of a thousand.

An interval is that of 95 %: the middle, and 1.96 standard deviations of log-odds around it, found by drawing halves of
the part without replacement, as queries and as gallery (a point that is drawn twice, as a bootstrap does it, would be
its own nearest neighbour): the deviations over halves are those of the whole (McCarthy, balanced half-samples, 1969).
To them comes what the carrying over may be wrong by (`_MISSED`).

Shapes: m points of the part, k ranks, dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import NamedTuple

import torch
from torch import Tensor

from tripletmas.runs.upgrades.neighbours import NO_LABEL, RANKS, scores, shared

OLD = "old"  # the store as it is, searched by the old model
AS_IT_IS = "as it is"  # the same, searched by the new model
_HALVES = 100  # that are drawn
_WIDE = 1.96
_MISSED = 0.25  # of the change in log-odds between the sample and the store, one standard deviation


class Expected(NamedTuple):
    """The most likely value, and between what it lies in 95 of 100 cases; nan where it cannot be told."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, eq=False)
class Held:
    """What is known of the part of a sample that measures. A share is that of a gallery which is embedded again.

    Attributes:
        old, new: (m, dim) and (m, new_dim) by both models, as they are compared.
        pretended: share, from 0 to 1 -> (m, new_dim), those that would be embedded again where they are pretended to
            be, the others as the map moves them: for 0 all, for 1 none.
        again: share -> (m,) which of them would be embedded again.
        labels: (m,), NO_LABEL for none.
        right: 0, "old", "as it is" -> (m,) whether the nearest in the whole store is of the same class, nan where there
            is none to be found; {} where the store has no classes.
        same: a share, "old", "as it is" -> (m,) of the nearest in the whole store, the part that are also the nearest
            there: for a share, among vectors that are all pretended to be embedded again, for the others among moved
            ones.
        size: points of the store.
    """

    old: Tensor
    new: Tensor
    pretended: Mapping[float, Tensor]
    again: Mapping[float, Tensor]
    labels: Tensor
    right: Mapping[str | float, Tensor]
    same: Mapping[str | float, Tensor]
    size: int
    metric: str = "inner_product"


Key = tuple[str | float, str]  # "old", "as it is", or the share that is embedded again; "recall" or "overlap"
RECALL, OVERLAP = "recall", "overlap"


class _Odds(NamedTuple):
    """Log-odds of a share, and by how much at most they were changed to carry them over from sample to store."""

    value: float
    carried: float = 0.0


def expect(held: Held, *, seed: int = 0, halves: int = _HALVES) -> dict[Key, Expected]:
    """What is expected of leaving the store as it is, of moving it, of embedding some or all of it again.

    Where the store has no classes, but the sample has, recall is that in a gallery of the part that measures.

    Args:
        halves: that are drawn for the intervals.
    """
    random = torch.Generator().manual_seed(seed)
    m, searched = len(held.labels), _Searched(held)
    whole = searched.odds(torch.arange(m))
    drawn = [searched.odds(torch.randperm(m, generator=random)[: m // 2]) for _ in range(halves)]
    return {key: _interval(odds, [each[key] for each in drawn]) for key, odds in whole.items()}


def _interval(middle: _Odds, halves: Sequence[_Odds]) -> Expected:
    if math.isnan(middle.value):
        return Expected(math.nan, math.nan, math.nan)
    values = [each.value for each in halves if math.isfinite(each.value)]
    variance = pvariance(values) if len(values) > 1 else 0.0
    deviation = math.sqrt(variance + (_MISSED * middle.carried) ** 2)
    return Expected(*(_share(middle.value + side * _WIDE * deviation) for side in (-1, 0, 1)))


class _Searched:
    """Every search within the part of the sample, of which any points can be left out."""

    def __init__(self, held: Held):
        def among(queries: Tensor, gallery: Tensor) -> Tensor:
            return scores(queries, gallery, held.metric).fill_diagonal_(-torch.inf)

        self._held = held
        new, moved = among(held.new, held.new), among(held.new, held.pretended[0.0])
        self._actual = {share: torch.where(again, new, moved) for share, again in held.again.items()}
        self._pretended = {share: among(held.new, gallery) for share, gallery in held.pretended.items()}
        self._other = {OLD: among(held.old, held.old)}
        if AS_IT_IS in held.same:
            self._other[AS_IT_IS] = among(held.new, held.old)

    def odds(self, rows: Tensor) -> dict[Key, _Odds]:
        """Of these points as queries, which are also the gallery as far as that is known among the sample alone."""
        actual, pretended, other = (
            {name: _ranked(each[rows][:, rows]) for name, each in galleries.items()}
            for galleries in (self._actual, self._pretended, self._other)
        )
        result = dict(self._recall(actual | other, rows))
        for name, found in actual.items():
            like = shared(pretended[name][:, :RANKS], pretended[1.0][:, :RANKS])
            result[name, OVERLAP] = self._overlap(found, actual[1.0], self._held.same[name][rows], like)
        for name, found in other.items():
            like = shared(found[:, :RANKS], actual[0.0][:, :RANKS])
            result[name, OVERLAP] = self._overlap(found, actual[1.0], self._held.same[name][rows], like)
        return {**result, (1.0, OVERLAP): _Odds(math.inf)}

    def _overlap(self, found: Tensor, wanted: Tensor, outside: Tensor, inside: Tensor) -> _Odds:
        """The mean of two: carried over by how a like search changes, and by the same share of fewer of the nearest."""
        here = _log_odds(shared(found[:, :RANKS], wanted[:, :RANKS]))
        few = max(1, round(RANKS * len(found) / self._held.size))
        fewer = _log_odds(shared(found[:, :few], wanted[:, :few])) if few < RANKS else here
        ways = (_log_odds(outside) - _log_odds(inside), fewer - here)
        return _Odds(here + fmean(ways), max(map(abs, ways)))

    def _recall(self, found: Mapping[str | float, Tensor], rows: Tensor) -> Iterator[tuple[Key, _Odds]]:
        labels = self._held.labels[rows]
        here = {name: _log_odds(_right(each, labels)) for name, each in found.items()}
        known = {
            name: _log_odds(self._held.right[name][rows]) - here[name] for name in here if name in self._held.right
        }
        both = fmean(known[name] for name in (OLD, 0.0)) if known else 0.0
        for name, odds in here.items():
            if name in known:
                yield (name, RECALL), _Odds(odds + known[name])
            else:
                yield (name, RECALL), _Odds(odds + both, both)


def _ranked(found: Tensor) -> Tensor:
    return found.topk(min(RANKS, len(found) - 1), dim=1).indices


def _right(nearest: Tensor, labels: Tensor) -> Tensor:
    """(q,) whether the nearest is of the query's class; nan where the query has no class, or none is to be found."""
    same = labels[:, None] == labels[None, :]
    counted = (labels != NO_LABEL) & (same.sum(dim=1) > 1)
    return torch.where(counted, (labels[nearest[:, 0]] == labels).double(), torch.nan)


def _log_odds(values: Tensor) -> float:
    """Of their mean, those that are nan apart; half a case is added to either side, so that they are finite."""
    known = values[~values.isnan()]
    if not len(known):
        return math.nan
    hits = float(known.double().sum())
    return math.log((hits + 0.5) / (len(known) - hits + 0.5))


def _share(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
