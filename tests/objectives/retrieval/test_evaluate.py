"""Evaluating retrieval: the literal twins, pytorch-metric-learning, and hard cases."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor, nn

from tripletmas import index
from tripletmas.index import base
from tripletmas.index.exact import ExactIndex
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.retrieval.evaluate import evaluate

KS = (1, 2, 4, 8)
METRICS = ["recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r", "mrr", "mrr@10", "ndcg@10"]


def random_embeddings(size: int, classes: int, *, dim: int = 4, seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (size,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    return Embeddings(centres[labels] + torch.randn(size, dim, generator=generator), labels)


def assert_agrees_with_oracle(queries: Embeddings, gallery: Embeddings, self_positions: Tensor, result) -> None:
    """Each value of each query lies between its worst and its best under ties; without ties these are one."""
    counted = 0
    for q in range(len(queries)):
        worst, best = (
            oracles.retrieval_metrics(
                oracles.ranked_relevance(
                    queries.vectors[q].tolist(),
                    int(queries.labels[q]),
                    gallery.vectors.tolist(),
                    gallery.labels.tolist(),
                    int(self_positions[q]),
                    best=order,
                ),
                KS,
            )
            for order in (False, True)
        )
        counted += not math.isnan(best["mrr"])
        for name in METRICS:
            value = float(result.per_query[name][q])
            assert math.isnan(value) == math.isnan(best[name])
            if not math.isnan(value):
                assert worst[name] - 1e-9 <= value <= best[name] + 1e-9, (name, q)
    assert result.num_queries == len(queries)
    assert result.num_without_relevant == len(queries) - counted
    for name in METRICS:
        column = result.per_query[name]
        expected = column[~column.isnan()].mean() if counted else torch.tensor(math.nan)
        assert result[name] == pytest.approx(float(expected), nan_ok=True)
        assert result[name] is result.values[name]


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 8), st.floats(0, 0.9), st.integers(0, 2**31))
def test_own_gallery_equals_the_oracle(size: int, classes: int, duplicated: float, seed: int):
    found = random_embeddings(size, classes, seed=seed)
    copies = int(duplicated * size)  # the last ones repeat the first: of the same class or of another
    found.vectors[size - copies :] = found.vectors[:copies].clone()
    assert_agrees_with_oracle(found, found, torch.arange(size), evaluate(found))


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 25), st.integers(1, 6), st.integers(0, 2**31))
def test_gallery_that_holds_some_queries_equals_the_oracle(num_queries: int, others: int, classes: int, seed: int):
    everything = random_embeddings(num_queries + others, classes, seed=seed)
    queries = Embeddings(everything.vectors[:num_queries], everything.labels[:num_queries])
    inside = torch.arange(num_queries) % 3 != 0  # the other queries are not in the gallery
    order = torch.randperm(num_queries + others, generator=torch.Generator().manual_seed(seed))
    order = order[~torch.isin(order, torch.arange(num_queries)[~inside])]
    gallery = Embeddings(everything.vectors[order], everything.labels[order])
    positions = torch.full((num_queries,), -1)
    for place, item in enumerate(order.tolist()):
        if item < num_queries:
            positions[item] = place
    result = evaluate(queries, gallery, self_positions=positions)
    assert_agrees_with_oracle(queries, gallery, positions, result)


def test_small_blocks_and_deep_searches_equal_the_oracle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "_BLOCK_QUERIES", (7, 7))
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.zeros(60), torch.arange(1, 61).repeat_interleave(2)]).long()
    found = Embeddings(torch.randn(180, 4, generator=generator), labels)  # pairs lost among noise: late first ranks
    result = evaluate(found)
    assert float(result.per_query["mrr"].min()) < 1 / 100
    assert_agrees_with_oracle(found, found, torch.arange(180), result)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(number of queries, depth) of each search."""
    calls: list[tuple[int, int]] = []
    search = ExactIndex.search
    monkeypatch.setattr(
        ExactIndex, "search", lambda self, queries, k: calls.append((len(queries), k)) or search(self, queries, k)
    )
    return calls


def test_the_gallery_is_never_ranked_whole(searches: list[tuple[int, int]]):
    # 199 items on one side of the plane in pairs, and item 199 of the first pair's class on the other side.
    angle = torch.linspace(0, 1, 199)
    vectors = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.cat([torch.tensor([0]), torch.arange(1, 100).repeat_interleave(2), torch.tensor([0])])
    result = evaluate(Embeddings(torch.cat([vectors, -vectors[:1]]), labels))
    # Item 0 sees its partner last (rank 199); the partner sees the far end first and item 0 last.
    assert result.per_query["mrr"][[0, 199]].tolist() == pytest.approx([1 / 199, 1 / 199])
    assert searches == [(200, 11)]  # 10 ranks and the query itself; what lies deeper is counted


def test_one_large_class_does_not_deepen_the_search_for_all(
    searches: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(base, "_BLOCK_QUERIES", (30, 30))
    # 30 items of one class, R = 29, between 15 pairs, R = 1: each class in a direction of its own, so nothing is deep.
    labels = torch.cat([torch.arange(15), torch.full((30,), 99), torch.arange(15)])
    assert evaluate(Embeddings(nn.functional.one_hot(labels).float(), labels))["map@r"] == 1
    assert searches == [(30, 11), (30, 30)]


def test_gallery_order_and_lengths_do_not_matter():
    found = random_embeddings(200, 12)
    generator = torch.Generator().manual_seed(1)
    order, lengths = torch.randperm(200, generator=generator), torch.rand(200, 1, generator=generator).add(0.1) * 7
    shuffled = evaluate(Embeddings((found.vectors * lengths)[order], found.labels[order]))
    plain = evaluate(found)
    for name in METRICS:
        torch.testing.assert_close(shuffled.per_query[name], plain.per_query[name][order])


def test_many_duplicates_do_not_count_a_query_as_its_own_neighbour():
    # 40 equal vectors of 40 classes, each class once more far away: rank 1 is always a duplicate of another class.
    near, far = torch.tensor([1.0, 0.0]).expand(40, 2), torch.tensor([-1.0, 0.0]).expand(40, 2)
    labels = torch.arange(40).repeat(2)
    result = evaluate(Embeddings(torch.cat([near, far]), labels))
    assert [result[f"recall@{k}"] for k in KS] == [0, 0, 0, 0]
    assert result["r_precision"] == 0
    # The relevant item lies behind the 39 duplicates, among 40 equal ones.
    assert ((result.per_query["mrr"] <= 1 / 40) & (result.per_query["mrr"] >= 1 / 79)).all()


def test_labels_beyond_float_precision_are_told_apart():
    # 2**24 and 2**24 + 1 are one number in float32, 2**53 and 2**53 + 1 in float64.
    base = torch.tensor([2**24, 2**24 + 1, 2**53, 2**53 + 1])
    found = random_embeddings(80, 4)
    large = Embeddings(found.vectors, base[found.labels])
    assert evaluate(large).values == evaluate(found).values
    pair = Embeddings(torch.eye(2), base[2:])
    assert evaluate(pair).num_without_relevant == 2
    absent = Embeddings(torch.eye(2)[:1], base[:1])  # its label is missing from the gallery by one
    assert evaluate(absent, Embeddings(torch.eye(2)[:1], base[1:2])).num_without_relevant == 1


def test_class_of_one_member_is_left_out_and_counted():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    result = evaluate(Embeddings(vectors, torch.tensor([5, 5, 7])))
    assert (result.num_queries, result.num_without_relevant) == (3, 1)
    assert result.values == dict.fromkeys(METRICS, 1.0)
    assert math.isnan(result.per_query["recall@1"][2])


def test_nothing_relevant_gives_nan():
    queries = random_embeddings(6, 2)
    other = Embeddings(queries.vectors, queries.labels + 10)
    empty = Embeddings(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for gallery in (other, empty):
        result = evaluate(queries, gallery)
        assert list(result.values) == METRICS
        assert all(math.isnan(value) for value in result.values.values())
        assert result.num_without_relevant == result.num_queries == 6
    assert evaluate(empty).num_queries == 0


def test_values_by_hand():
    # On a line of angles 0, 10, 25, 45, 100 degrees, classes a b a b b, each query without itself:
    # a0: b a b b -> mrr 1/2, R=1.    b10: a a b b -> the first b at rank 3, R=2.
    # a25: b(15) b(20) a(25) b -> rank 3, R=1.   b45: a(20) b(35) a(45) b(55), R=2: rank 2, one of two.
    # b100: b(55) a(75) b(90) a(100), R=2: rank 1, one of two.
    angles = torch.deg2rad(torch.tensor([0.0, 10, 25, 45, 100]))
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    result = evaluate(Embeddings(vectors, torch.tensor([0, 1, 0, 1, 1])))
    assert result.per_query["mrr"].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 3, 1 / 2, 1])
    assert result["recall@1"] == pytest.approx(1 / 5)
    assert result["recall@2"] == pytest.approx(3 / 5)
    assert result["recall@4"] == 1
    assert result.per_query["r_precision"].tolist() == pytest.approx([0, 0, 0, 1 / 2, 1 / 2])
    assert result.per_query["map@r"].tolist() == pytest.approx([0, 0, 0, (1 / 2) / 2, 1 / 2])


@pytest.mark.parametrize("separate_gallery", [False, True])
def test_agrees_with_pytorch_metric_learning(separate_gallery: bool):
    queries = random_embeddings(300, 15, dim=8)
    gallery = random_embeddings(500, 18, dim=8, seed=0) if separate_gallery else None
    result = evaluate(queries, gallery)
    # k="max_bin_count" and not None, which builds the whole gallery for each query. It takes the vectors as they come
    # and ranks by Euclidean distance: on normalised vectors that is the order of the cosines.
    theirs = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
    ).get_accuracy(
        nn.functional.normalize(queries.vectors),
        queries.labels,
        None if gallery is None else nn.functional.normalize(gallery.vectors),
        None if gallery is None else gallery.labels,
    )
    assert result["recall@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert result["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert result["map@r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


FOUND, POSITIONS = random_embeddings(10, 2), torch.arange(10)
CLASSES = Embeddings(FOUND.vectors, torch.arange(10))
SEVERAL = Embeddings(FOUND.vectors, torch.ones(10, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("queries", "gallery", "options", "message"),
    [
        (FOUND, FOUND, {}, "leave gallery out"),
        (FOUND, None, {"self_positions": POSITIONS}, "self_positions needs a gallery"),
        (FOUND, FOUND, {"self_positions": POSITIONS + 1}, r"must lie in \[-1, 10\)"),
        (FOUND, FOUND, {"self_positions": POSITIONS[:3]}, r"int64 of shape \(10,\)"),
        (
            CLASSES,
            CLASSES,
            {"self_positions": POSITIONS.roll(-1)},
            r"\[0\] = 1 points to an item of label 1, but query 0",
        ),
        (FOUND, None, {"ks": (0, 1)}, "ks must be"),
        (FOUND, Embeddings(torch.ones(4, 3), torch.zeros(4).long()), {}, "queries of dim 4, but a gallery of dim 3"),
        (SEVERAL, None, {}, "several labels each"),
    ],
)
def test_what_would_give_a_wrong_number_is_refused(queries, gallery, options, message: str):
    with pytest.raises(ValueError, match=message):
        evaluate(queries, gallery, **options)


@pytest.mark.parametrize("separate_gallery", [False, True])
def test_nearest_is_the_nearest_other_item(separate_gallery: bool):
    queries = random_embeddings(60, 12, dim=3)
    queries.labels[7] = 99  # nothing relevant: not searched
    gallery = random_embeddings(80, 12, dim=3, seed=1) if separate_gallery else None
    result = evaluate(queries, gallery)
    vectors = index.unit((gallery or queries).vectors).tolist()
    for q, row in enumerate(index.unit(queries.vectors).tolist()):
        order = oracles.nearest(row, vectors, "inner_product", 2)[1]
        expected = next(item for item in order if separate_gallery or item != q)
        assert int(result.nearest[q]) == (expected if float(result.per_query["mrr"][q]) >= 0 else -1)
    assert result.nearest[7] == -1


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("own", [True, False])
def test_ties_are_ordered_by_position(own: bool, backend: str, monkeypatch: pytest.MonkeyPatch):
    """Whole numbers: many equal cosines, and late first ranks. Every value equals that of the ranking by the twin."""
    if backend == "torch":
        monkeypatch.setattr("sys.platform", "darwin")
    generator = torch.Generator().manual_seed(0)
    everything = torch.randint(-1, 2, (260, 3), generator=generator).float()
    labels = torch.randint(0, 40, (260,), generator=generator)
    gallery = Embeddings(everything[:200], labels[:200])
    queries, positions = (gallery, torch.arange(200)) if own else (Embeddings(everything[200:], labels[200:]), None)
    result = evaluate(queries) if own else evaluate(queries, gallery)
    vectors = index.unit(gallery.vectors).tolist()
    for q, row in enumerate(index.unit(queries.vectors).tolist()):
        order = oracles.nearest(row, vectors, "inner_product", 200)[1]
        ranking = [bool(gallery.labels[i] == queries.labels[q]) for i in order if positions is None or i != q]
        expected = oracles.retrieval_metrics(ranking, KS)
        for name in METRICS:
            assert float(result.per_query[name][q]) == pytest.approx(expected[name], nan_ok=True), (name, q)


def test_one_very_large_class_and_a_collapsed_embedding():
    # 3000 of one class and 40 pairs, all in one place: the order is that of the gallery, itself left out.
    labels = torch.cat([torch.zeros(3000), torch.arange(1, 41).repeat_interleave(2)]).long()
    result = evaluate(Embeddings(torch.full((3080, 4), 0.7), labels))
    assert result.per_query["r_precision"][:3000].tolist() == pytest.approx([1.0] * 3000)
    # A query of a pair sees the 3000 first, then the pairs before its own, then its partner.
    first = 3000 + torch.arange(40).repeat_interleave(2) * 2 + 1
    assert result.per_query["mrr"][3000:].tolist() == pytest.approx((1 / first.double()).tolist())
    assert result.nearest.tolist() == [1, *[0] * 3079]


def test_clustering_adds_what_scikit_learn_computes():
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    found = random_embeddings(200, 5, dim=6)
    plain, result = evaluate(found), evaluate(found, clustering=True)
    clusters = index.cluster(index.unit(found.vectors), 5)
    assert result["nmi"] == pytest.approx(normalized_mutual_info_score(found.labels, clusters))
    assert result["ami"] == pytest.approx(adjusted_mutual_info_score(found.labels, clusters))
    assert {name: result[name] for name in plain.values} == plain.values
    assert set(result.values) - set(plain.values) == {"nmi", "ami"}
    apart = Embeddings(torch.eye(4)[torch.arange(40) % 4], torch.arange(40) % 4)
    assert 0.5 < evaluate(apart, clustering=True)["nmi"] <= 1 + 1e-9
    nothing = Embeddings(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert math.isnan(evaluate(nothing, clustering=True)["nmi"])


def test_progress_is_silent_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]):
    found = random_embeddings(50, 5)
    assert evaluate(found, progress=True).values == evaluate(found).values
    assert capfd.readouterr().err == ""
