"""What is expected of an upgrade: searches against literal twins, intervals by how often they hold what is measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from tripletmas.index.fitting import fit_map
from tripletmas.runs.upgrades import expected
from tripletmas.runs.upgrades.expected import AS_IT_IS, OLD, OVERLAP, RECALL, expect
from tripletmas.runs.upgrades.fitted import Fitted, fit
from tripletmas.runs.upgrades.neighbours import NO_LABEL, Nearest, right_first, shared
from tripletmas.runs.upgrades.whole import Pairs, Points, search_whole


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- searches


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize("block", [1, 7, 100])
def test_nearest_in_blocks_is_what_sorting_finds(metric: str, block: int):
    """Queries 0 to 4 are points 0 to 4 themselves, which are left out; so is point 9, which has no vector."""
    gallery, labels = random(30, 4), torch.arange(30) % 3
    gallery[9] = torch.nan
    found = Nearest(gallery[:5], metric, own=torch.arange(5), k=6)
    for start in range(0, 30, block):
        rows = slice(start, start + block)
        found.add(gallery[rows], torch.arange(30)[rows], labels[rows])
    for query in range(5):
        others = [row for row in range(30) if row not in (query, 9)]
        wanted = sorted(others, key=lambda row: -_score(gallery[query], gallery[row], metric))[:6]
        assert found.numbers[query].tolist() == wanted
        assert found.labels[query].tolist() == [row % 3 for row in wanted]


def _score(one: torch.Tensor, other: torch.Tensor, metric: str) -> float:
    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    return -sum((a - b) ** 2 for a, b in pairs) if metric == "l2" else sum(a * b for a, b in pairs)


def test_where_a_gallery_ends_before_ten():
    found = Nearest(random(2, 3), "inner_product", own=torch.tensor([0, -1]))
    found.add(random(2, 3), torch.arange(2), torch.zeros(2, dtype=torch.int64))
    assert [(row >= 0).sum().item() for row in found.numbers] == [1, 2]
    assert shared(found.numbers, found.numbers).tolist() == [1, 1]


def test_what_is_shared_and_what_is_right():
    """Of 1 2 3 and 3 9 1 two are the same; -1 is nothing. Without a class, or others of it to be found, it is nan."""
    one, other = torch.tensor([[1, 2, 3], [4, -1, -1]]), torch.tensor([[3, 9, 1], [5, -1, -1]])
    assert shared(one, other).tolist() == pytest.approx([2 / 3, 0])
    found = Nearest(torch.eye(4), "inner_product", own=torch.full((4,), -1), k=1)
    found.add(torch.eye(4), torch.arange(4), torch.tensor([0, 1, 1, NO_LABEL]))
    labels, counts = torch.tensor([0, 2, 1, NO_LABEL]), torch.tensor([1, 2, 2])
    assert right_first(found, labels, counts).tolist() == pytest.approx([math.nan, 0, 1, math.nan], nan_ok=True)


# --- what the map misses


def test_what_is_missed_is_told_by_maps_that_had_not_seen_it():
    old, new = normalize(random(23, 5), dim=1), normalize(random(23, 5) @ random(5, 4, seed=1), dim=1)
    found = fit(old, new, kinds=("ridge",))
    for row in range(23):
        inside = [other for other in range(23) if 5 * other // 23 != 5 * row // 23]
        move = fit_map("ridge", old[inside], new[inside])
        torch.testing.assert_close(found.missed[row], new[row] - move.apply(old[[row]])[0], atol=1e-6, rtol=0)


def test_where_the_map_is_least_sure():
    """Pairs lie on the axes, and those of the second are missed by 1: a vector near that is off by 1, others by 0."""
    axes = torch.eye(3).repeat_interleave(10, dim=0)
    fitted = fit(axes, axes, kinds=("none",))
    missed = torch.zeros(30, 3)
    missed[10:20, 0] = 1.0
    fitted = Fitted(fitted.map, fitted.choice, fitted.old, missed)
    vectors = torch.tensor([[5.0, 1, 0], [1, 5, 0], [0, 0, 2]])
    assert fitted.uncertainty(vectors).tolist() == [0, 1, 0]
    moved = fitted.map.apply(vectors)
    wanted = torch.stack([moved[0], moved[1] + missed[10], moved[2]])
    torch.testing.assert_close(fitted.pretended(vectors, moved), normalize(wanted, dim=1))


# --- what is expected


def world(size: int, *, classes: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors of unit length by two models, (size, 12) and (size, 10), of points in classes that overlap; labels."""
    labels = torch.arange(size) % classes
    inner = random(classes, 12, seed=1)[labels] + 0.8 * random(size, 12, seed=seed + 2)
    old = inner + 0.1 * random(size, 12, seed=seed + 3)
    new = torch.relu(inner @ random(12, 10, seed=4)) + 0.2 * random(size, 10, seed=seed + 5)
    return normalize(old, dim=1), normalize(new, dim=1), labels


def told(old, new, labels, rows, *, shares=(), whole=None):
    """What is expected by points of which the first half fits a map; and the map."""
    half = len(rows) // 2
    fitted = fit(old[rows[:half]], new[rows[:half]], kinds=("ridge",))
    measuring = Pairs(torch.arange(len(old)), old, new, labels).rows(rows[half:])
    points = Points(torch.arange(len(old)), old, labels) if whole is None else whole
    counts = torch.bincount(labels)
    held = search_whole([points], measuring, fitted, metric="inner_product", counts=counts, shares=shares)
    return expect(held), fitted, measuring


def figures(queries, gallery, wanted, labels, rows) -> tuple[float, float]:
    """(recall@1, overlap with the ten nearest among the wanted), query after query."""
    hits, same = [], []
    for row in rows.tolist():
        lists = []
        for each in (gallery, wanted):
            scores = queries[row] @ each.T if each is gallery else wanted[row] @ wanted.T
            scores[row] = -math.inf
            lists.append(scores.topk(10).indices.tolist())
        hits.append(labels[lists[0][0]] == labels[row])
        same.append(len({*lists[0]} & {*lists[1]}) / 10)
    return sum(hits) / len(hits), sum(same) / len(same)


def test_where_the_store_is_the_sample_nothing_is_carried_over():
    """Expected is then what a search finds, with half a case added to either side."""
    old, new, labels = world(160)
    rows = torch.arange(160)
    fits, half = rows[:80], rows[80:]
    whole = Points(half, old[half], labels[half])
    found, fitted, _ = told(old, new, labels, rows, shares=(0.25,), whole=whole)
    moved = fitted.map.apply(old)
    again = fitted.uncertainty(old[half]) > fitted.uncertainty(old[half]).quantile(0.75)
    assert len(fits) == 80
    galleries = {0.0: moved[half], 0.25: torch.where(again[:, None], new[half], moved[half]), 1.0: new[half]}
    for share, gallery in galleries.items():
        recall, overlap = figures(new[half], gallery, new[half], labels[half], torch.arange(80))
        assert found[share, RECALL].middle == pytest.approx((80 * recall + 0.5) / 81)
        if share < 1:
            assert found[share, OVERLAP].middle == pytest.approx((80 * overlap + 0.5) / 81)
    assert found[1.0, OVERLAP] == (1, 1, 1)
    recall, _ = figures(old[half], old[half], new[half], labels[half], torch.arange(80))
    assert found[OLD, RECALL].middle == pytest.approx((80 * recall + 0.5) / 81)
    assert (AS_IT_IS, RECALL) not in found  # the dimensions differ


def test_without_classes_there_is_no_recall():
    old, new, _ = world(120)
    found, _, _ = told(old, new, torch.zeros(120, dtype=torch.int64) + torch.arange(120), torch.arange(120))
    assert all(math.isnan(found[key, RECALL].middle) for key in (OLD, 0.0, 1.0))
    assert 0 < found[0.0, OVERLAP].low < found[0.0, OVERLAP].high < 1


def test_an_interval_is_as_wide_as_a_binomial_one():
    """Queries of which each is right by chance, with p: the log-odds deviate by 1 / sqrt(n p (1 - p))."""
    right = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.7).double()
    draws = [torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:200] for seed in range(400)]
    middle = expected._Odds(expected._log_odds(right))
    found = expected._interval(middle, [expected._Odds(expected._log_odds(right[rows])) for rows in draws])
    share = float(right.mean())
    width = math.log(found.high / (1 - found.high)) - math.log(found.low / (1 - found.low))
    assert width == pytest.approx(2 * 1.96 / math.sqrt(400 * share * (1 - share)), rel=0.15)


@pytest.mark.slow
def test_intervals_hold_what_is_measured_afterwards():
    """By 12 samples of 200 points of 1500; it is measured by the 1300 others. Of 12 at least 9 must lie inside.

    Of intervals of 95 % fewer do with a chance of 0.002, for each of seven figures.
    """
    old, new, labels = world(1500)
    inside: dict[tuple, int] = {}
    off = []  # recall of embedding all again: it is 0.52 among 100 points, and 0.64 among 1500
    for seed in range(12):
        rows = torch.randperm(1500, generator=torch.Generator().manual_seed(seed))
        found, fitted, _ = told(old, new, labels, rows[:200], shares=(0.3,))
        moved, unsure = fitted.map.apply(old), fitted.uncertainty(old)
        mixed = torch.where((unsure > unsure.quantile(0.7))[:, None], new, moved)
        for share, gallery in ((0.0, moved), (0.3, mixed), (1.0, new)):
            for what, value in zip((RECALL, OVERLAP), figures(new, gallery, new, labels, rows[200:]), strict=True):
                low, _, high = found[share, what]
                inside[share, what] = inside.get((share, what), 0) + (low <= value <= high)
        off.append(float(found[1.0, RECALL].middle - figures(new, new, new, labels, rows[200:])[0]))
        for what, value in zip((RECALL, OVERLAP), _of_old(old, new, labels, rows[200:]), strict=True):
            low, _, high = found[OLD, what]
            inside[OLD, what] = inside.get((OLD, what), 0) + (low <= value <= high)
    assert min(inside.values()) >= 9, inside
    assert abs(sum(off) / len(off)) < 0.05


def _of_old(old, new, labels, rows) -> tuple[float, float]:
    hits, same = [], []
    for row in rows.tolist():
        lists = []
        for each in (old, new):
            scores = each[row] @ each.T
            scores[row] = -math.inf
            lists.append(scores.topk(10).indices.tolist())
        hits.append(labels[lists[0][0]] == labels[row])
        same.append(len({*lists[0]} & {*lists[1]}) / 10)
    return sum(hits) / len(hits), sum(same) / len(same)
