"""Slow, literal twins of the metrics of facts: Python loops over the definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations

Vector = Sequence[float]


def average_precision(relevant: Sequence[bool], count: int) -> float:
    """Of a list that holds all `count` relevant items."""
    return _sum_of_precisions(relevant) / count


def average_precision_at_k(relevant: Sequence[bool], count: int, k: int) -> float:
    return _sum_of_precisions(relevant[:k]) / min(count, k)


def sherlock_average_precision_at_k(relevant: Sequence[bool], k: int) -> float:
    hits = sum(relevant[:k])
    return _sum_of_precisions(relevant[:k]) / hits if hits else 0.0


def top_k_detection(ranks: Sequence[int], num_true: int, k: int) -> float:
    """Ranks, from 1, of the true facts that are averaged over."""
    return sum(rank <= k + num_true - 1 for rank in ranks) / len(ranks)


def mean_average_precision_of_all_orders(size: int, count: int) -> Fraction:
    """Over all permutations of `size` images of which the first `count` are relevant."""
    total, number = Fraction(0), 0
    for order in permutations(range(size)):
        number += 1
        hits = 0
        for rank, item in enumerate(order, start=1):
            if item < count:
                hits += 1
                total += Fraction(hits, rank * count)
    return total / number


def score(image: Vector, fact: Sequence[Vector], mask: Sequence[bool]) -> float:
    """The mean over the fact's parts of the cosine; parts of a fact have unit length."""
    dim = len(fact[0])
    cosines = []
    for part in range(3):
        if mask[part]:
            own = image[part * dim : (part + 1) * dim]
            length = math.sqrt(math.fsum(x * x for x in own))
            product = math.fsum(x * y for x, y in zip(own, fact[part], strict=True))
            cosines.append(product / length if length else 0.0)
    return sum(cosines) / len(cosines)


def score_facts(
    scores: Sequence[Sequence[float]],
    truth: Sequence[Sequence[bool]],
    orders: Sequence[int],
    asked: Sequence[bool],
    candidates: Sequence[bool],
    of_images: Sequence[bool],
) -> dict[str, float]:
    """All values, from the scores (n, f); equal scores by position."""
    n, f = len(truth), len(orders)
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for fact in range(f):
        count = sum(truth[image][fact] for image in range(n))
        if not asked[fact] or not count:
            continue
        ranking = sorted(range(n), key=lambda image: (-scores[image][fact], image))
        relevant = [truth[image][fact] for image in ranking]
        for suffix in ("", f"_{orders[fact]}"):
            add(f"map{suffix}", average_precision(relevant, count))
            for k in (10, 100):
                add(f"map@{k}{suffix}", average_precision_at_k(relevant, count, k))
                add(f"sherlock_map@{k}{suffix}", sherlock_average_precision_at_k(relevant, k))

    for image in range(n):
        true = [fact for fact in range(f) if truth[image][fact] and asked[fact]]
        if not of_images[image] or not true:
            continue
        ranking = [
            fact
            for fact in sorted(range(f), key=lambda fact: (-scores[image][fact], fact))
            if candidates[fact] and (asked[fact] or not truth[image][fact])
        ]
        rank = {fact: ranking.index(fact) + 1 for fact in true}
        add("hit@1", float(min(rank.values()) == 1))
        add("mrr", 1 / min(rank.values()))
        for k in (1, 5, 10):
            add(f"top@{k}", top_k_detection(list(rank.values()), len(true), k))
            for order in (1, 2, 3):
                own = [rank[fact] for fact in true if orders[fact] == order]
                if own:
                    add(f"top@{k}_{order}", top_k_detection(own, len(true), k))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _sum_of_precisions(relevant: Sequence[bool]) -> float:
    total, hits = 0.0, 0
    for rank, hit in enumerate(relevant, start=1):
        if hit:
            hits += 1
            total += hits / rank
    return total
