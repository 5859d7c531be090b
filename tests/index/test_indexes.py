"""The exact index: order and scores against the literal twin with both backends, ids, padding, what it refuses."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tripletmas.index import base, ordering, ties
from tripletmas.index.base import are_one_vector, disagreement, unit
from tripletmas.index.clustering import cluster
from tripletmas.index.exact import ExactIndex
from tripletmas.index.making import make_index
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.retrieval.evaluate import evaluate

BACKENDS = ("faiss", "torch")
METRICS = ("inner_product", "l2")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(vectors: Tensor, **settings) -> ExactIndex:
    index = ExactIndex(vectors.shape[1], **settings)
    index.add(vectors[: len(vectors) // 3])
    index.add(vectors[len(vectors) // 3 :])
    return index


@pytest.mark.parametrize("length", [1.0, 1e-6, 1e6])
def test_vectors_that_float32_cannot_tell_apart_are_one(length: float):
    """(1, d) and (1, -d): mean squared distance from the mean d^2, of a mean squared length of 1 + d^2. One up to
    d^2 = 2^-23 = 1.19e-7, which is below 3.46e-4."""
    for distance, one in ((0.0, True), (3.4e-4, True), (3.5e-4, False), (1.0, False)):
        pair = length * torch.tensor([[1.0, distance], [1.0, -distance]])
        assert are_one_vector(pair) == are_one_vector(pair.repeat(3001, 1)) == one
    assert are_one_vector(torch.zeros(5, 2))
    assert not are_one_vector(torch.ones(1, 2))
    assert not are_one_vector(torch.ones(0, 2))


def assert_equals_the_twin(gallery: Tensor, queries: Tensor, k: int, metric: str, normalize: bool) -> None:
    """Positions exactly, scores to the rounding of float32; and the rank of what was found is where it was found."""
    vectors, rows = (unit(gallery), unit(queries)) if normalize else (gallery, queries)
    expected = [oracles.nearest(row, vectors.tolist(), metric, k) for row in rows.tolist()]
    longest = float(vectors.double().norm(dim=1).max())
    for backend in BACKENDS:
        index = filled(gallery, metric=metric, normalize=normalize, backend=backend)
        scores, positions = index.search(queries, k)
        found = min(k, len(gallery))
        assert positions[:, :found].tolist() == [order for _, order in expected], backend
        size = rows.double().norm(dim=1, keepdim=True) * longest
        rounding = 4e-6 * size  # of float32, in which a squared distance is a difference of terms of this size
        exact_scores = torch.tensor([values for values, _ in expected], dtype=torch.float64)
        difference = (scores[:, :found].double() - exact_scores).abs()
        assert (difference <= rounding + 1e-5 * exact_scores.abs() + 1e-44).all(), backend
        assert (positions[:, found:] == -1).all()
        assert (scores[:, found:] == -torch.inf).all()
        for rank in {0, found // 2, found - 1}:
            assert index.rank(queries, positions[:, rank]).tolist() == [rank + 1] * len(queries)


def whole_numbers(size: int, dim: int, seed: int) -> Tensor:
    return torch.randint(-1, 2, (size, dim), generator=torch.Generator().manual_seed(seed)).float()


def nearly_equal(size: int, dim: int, seed: int) -> Tensor:
    return random(1, dim, seed=3) + 1e-7 * random(size, dim, seed=seed)


def huge_and_tiny(size: int, dim: int, seed: int) -> Tensor:
    return random(size, dim, seed=seed) * torch.logspace(-20, 17, size)[:, None]


GALLERIES: dict[str, Callable[[int, int, int], Tensor]] = {
    "random": lambda size, dim, seed: random(size, dim, seed=seed),
    "ties": whole_numbers,
    "duplicates": lambda size, dim, seed: random(size // 9 + 1, dim, seed=seed).repeat(9, 1)[:size],
    "zeros": lambda size, dim, seed: random(size, dim, seed=seed) * (torch.arange(size) % 3 == 0)[:, None],
    "collapsed": lambda size, dim, seed: torch.ones(size, dim),
    "nearly collapsed": nearly_equal,
    "huge and tiny": huge_and_tiny,
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", GALLERIES)
def test_exact_search_equals_the_twin(name: str, metric: str, normalize: bool):
    gallery = GALLERIES[name](400, 6, 0)
    queries = torch.cat([GALLERIES[name](12, 6, 1), gallery[[0, 7, 399]], torch.zeros(1, 6)])
    for k in (1, 5, 60, 500):
        assert_equals_the_twin(gallery, queries, k, metric, normalize)


@pytest.mark.parametrize("num_better", [1, 4])
def test_the_last_rank_may_be_unsure_where_those_before_it_are_not(num_better: int):
    """A few long vectors, and as the last rank one of 300 whose products cancel to below the rounding of float32."""
    steps = torch.randint(0, 9, (300, 2), generator=torch.Generator().manual_seed(0))
    level = torch.tensor([1000.0, -1000.0]) + steps / 2**14
    better = torch.stack([3000.0 + torch.arange(num_better), torch.zeros(num_better)], dim=1)
    queries = torch.tensor([1 / 3, 0.7, 0.9])[:, None].expand(3, 2).contiguous()
    assert_equals_the_twin(torch.cat([level, better]), queries, num_better + 1, "inner_product", normalize=False)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(GALLERIES)),
    st.integers(1, 150),
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from(METRICS),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_exact_search_equals_the_twin(
    name: str, size: int, dim: int, k: int, metric: str, normalize: bool, seed: int
):
    gallery = GALLERIES[name](size, dim, seed)
    queries = torch.cat([GALLERIES[name](3, dim, seed + 1), gallery[:2]])
    assert_equals_the_twin(gallery, queries, k, metric, normalize)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 60), st.integers(1, 4), st.sampled_from(METRICS), st.booleans())
def test_any_small_numbers_equal_the_twin(data: st.DataObject, size: int, dim: int, metric: str, normalize: bool):
    number = st.floats(-8, 8, width=16)
    rows = st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=size, max_size=size)
    gallery = torch.tensor(data.draw(rows))
    assert_equals_the_twin(gallery, gallery[:3], 4, metric, normalize)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_tie_across_the_last_rank(metric: str, backend: str):
    # 3000 equal vectors between 100 better and 100 worse ones: the first of the equal ones follow the better ones.
    better, equal, worse = torch.tensor([[1.0, 0.1]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    gallery = torch.cat([worse.expand(100, 2), equal.expand(3000, 2), better.expand(100, 2)])
    index = filled(gallery, metric=metric, backend=backend)
    _, positions = index.search(torch.tensor([[1.0, 0.0]]), 150)
    assert positions.tolist() == [[*range(3100, 3200), *range(100, 150)]]
    assert index.rank(torch.tensor([[1.0, 0.0]]), torch.tensor([2099])).tolist() == [2100]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_collapsed_embedding_is_ordered_by_position(backend: str):
    index = filled(torch.full((5000, 8), 0.3), backend=backend)
    scores, positions = index.search(torch.full((300, 8), 2.0), 10)
    assert torch.equal(positions, torch.arange(10).expand(300, 10))
    torch.testing.assert_close(scores, torch.ones(300, 10))
    assert torch.equal(index.rank(torch.full((50, 8), 2.0), torch.arange(50)), torch.arange(50) + 1)


def test_every_stage_of_the_search_is_used(monkeypatch: pytest.MonkeyPatch):
    """What guards the tests above: they would prove little if everything were settled by one stage."""
    stages: list[str] = []
    for name in ("_by_float32", "_by_float64", "_exact_with_duplicates"):
        method = getattr(ordering.Gallery, name)
        monkeypatch.setattr(ordering.Gallery, name, lambda *args, _m=method, _n=name: (stages.append(_n), _m(*args))[1])
    filled(random(400, 6)).search(random(5, 6), 5)
    assert stages == ["_by_float32"]
    stages.clear()
    filled(whole_numbers(3000, 6, 0)).search(random(2, 6), 5)
    assert stages[0] == "_by_float32"
    stages.clear()
    filled(torch.ones(3000, 6)).search(torch.ones(2, 6), 5)
    assert stages == ["_by_float32", "_by_float32", "_by_float64", "_exact_with_duplicates"]


def test_torch_searches_in_blocks_of_the_gallery(monkeypatch: pytest.MonkeyPatch):
    gallery, queries = random(5000, 4), random(30, 4, seed=1)
    expected = filled(gallery, backend="torch").search(queries, 7)
    monkeypatch.setattr(ordering, "_CELLS", 1)
    found = filled(gallery, backend="torch").search(queries, 7)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shorter_type_of_products_changes_nothing(backend: str):
    gallery, queries = random(1000, 4), random(30, 4, seed=1)
    expected = filled(gallery, backend=backend).search(queries, 7)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = filled(gallery, backend=backend).search(queries, 7)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])


def test_the_exact_sum_is_that_of_fsum():
    terms = random(200, 37).double() * 10.0 ** (random(200, 37, seed=1).double() * 4)
    terms[:, 5] = -terms[:, :5].sum(dim=1)  # cancels
    rows, ones = terms.float(), torch.ones(1, 37)
    index = torch.arange(200)
    found = ties.pair_scores(rows, ones, index, index * 0, "inner_product", exact=True)
    assert found.tolist() == [math.fsum(row) for row in rows.tolist()]


def test_the_first_equal_row():
    rows = torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [-0.0, 1.0], [2.0, 1.0]])
    assert ties.first_equal(rows).tolist() == [0, 1, 0, 1, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_queries_give_what_one_call_gives(backend: str, monkeypatch: pytest.MonkeyPatch):
    index = filled(random(50, 4), backend=backend)
    queries = random(100, 4, seed=1)
    scores, positions = index.search(queries, 7)
    monkeypatch.setattr(base, "_BLOCK_QUERIES", (3, 9))
    block_scores, block_positions = index.search(queries, 7)
    assert torch.equal(block_positions, positions)
    torch.testing.assert_close(block_scores, scores)


def test_normalised_search_does_not_see_length():
    gallery, queries = random(20, 3), random(5, 3, seed=1)
    plain, scaled = ExactIndex(3), ExactIndex(3)
    plain.add(gallery)
    scaled.add(gallery * torch.logspace(-30, 30, 20)[:, None])  # squares of these overflow, or vanish, in float32
    scores, positions = plain.search(queries, 20)
    other_scores, other_positions = scaled.search(queries * 1e-25, 20)
    assert torch.equal(other_positions, positions)
    torch.testing.assert_close(other_scores, scores)


def test_lengths_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch):
    rows = random(50, 3)
    expected = unit(rows)
    monkeypatch.setattr(base, "_UNIT_ROWS", 7)
    torch.testing.assert_close(unit(rows), expected)


def test_vectors_of_zeros():
    gallery, query = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    scores, positions = filled(gallery).search(query, 3)
    assert (scores.tolist(), positions.tolist()) == ([[1.0, 0.0, -1.0]], [[1, 0, 2]])
    scores, positions = filled(gallery, metric="l2").search(query, 3)
    assert (scores.tolist(), positions.tolist()) == ([[0.0, -1.0, -4.0]], [[1, 0, 2]])


# --- ids, adding, removing


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_come_back_in_place_of_positions(backend: str):
    index = ExactIndex(2, backend=backend)
    index.add(torch.eye(2), torch.tensor([30, 10]))
    index.add(-torch.eye(2))  # counts on from the largest
    index.add(torch.eye(2)[:1], torch.tensor([5]))
    assert index.ids.tolist() == [30, 10, 31, 32, 5]
    # Equal scores are ordered by position in the gallery, not by id.
    assert index.search(torch.tensor([[1.0, 0.0]]), 3)[1].tolist() == [[30, 5, 10]]
    assert index.remove(torch.tensor([30, 10, 999])) == 2
    assert len(index) == 3
    assert index.search(torch.tensor([[1.0, 0.0]]), 4)[1].tolist() == [[5, 32, 31, -1]]
    index.add(torch.eye(2)[:1], torch.tensor([30]))
    assert index.search(torch.tensor([[1.0, 0.0]]), 2)[1].tolist() == [[5, 30]]


def test_an_index_after_removing_equals_one_without():
    gallery, queries = random(300, 4), random(9, 4, seed=1)
    index = filled(gallery)
    index.search(queries, 3)  # what was worked out for the larger gallery must not stay
    assert index.remove(torch.arange(0, 300, 2)) == 150
    other = ExactIndex(4)
    other.add(gallery[1::2], torch.arange(1, 300, 2))
    for found, expected in zip(index.search(queries, 20), other.search(queries, 20), strict=True):
        assert torch.equal(found, expected)


def test_an_index_over_vectors_uses_them_where_they_are():
    vectors = unit(random(100, 3))
    index = ExactIndex.over(vectors, ids=torch.arange(100) + 50)
    assert index.vectors.data_ptr() == vectors.data_ptr()
    queries = random(4, 3, seed=1)
    assert torch.equal(index.search(queries, 5)[1], filled(vectors).search(queries, 5)[1] + 50)
    before = vectors.clone()
    index.add(random(3, 3, seed=2))
    assert len(index) == 103
    index.remove(torch.tensor([50]))
    assert torch.equal(vectors, before)
    for wrong in (vectors.double(), vectors.T, vectors[0]):
        with pytest.raises(ValueError, match="vectors must be contiguous float32"):
            ExactIndex.over(wrong)


def test_an_index_over_a_mapped_file(tmp_path):
    vectors = unit(random(100, 3))
    (tmp_path / "vectors").write_bytes(vectors.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "vectors"), shared=False, size=300, dtype=torch.float32).view(100, 3)
    queries = random(4, 3, seed=1)
    assert torch.equal(ExactIndex.over(mapped).search(queries, 5)[1], filled(vectors).search(queries, 5)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted(dtype: torch.dtype):
    vectors = torch.tensor([[1.0, 2.0], [-2.0, 1.0], [0.5, -1.0]])  # exact in every type
    assert torch.equal(filled(vectors.to(dtype)).search(vectors.to(dtype), 3)[0], filled(vectors).search(vectors, 3)[0])


def test_inputs_are_not_changed():
    vectors = random(6, 3).requires_grad_()
    before = vectors.detach().clone()
    for normalize in (True, False):
        for metric in METRICS:
            index = filled(vectors, normalize=normalize, metric=metric)
            assert not index.search(vectors, 2)[0].requires_grad
    assert torch.equal(vectors, before)


def test_the_backend_is_faiss_and_torch_on_macos(monkeypatch: pytest.MonkeyPatch):
    assert ExactIndex(2).backend == "faiss"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ExactIndex(2).backend == "torch"
    with pytest.raises(ValueError, match="backend must be one of auto, faiss, torch, got 'numpy'"):
        ExactIndex(3, backend="numpy")


@pytest.mark.gpu
def test_an_index_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for metric in METRICS:
        gallery, queries = whole_numbers(5000, 6, 0), random(40, 6)
        expected = filled(gallery, metric=metric).search(queries, 9)
        index = filled(gallery.cuda(), metric=metric, backend="torch")
        assert index.vectors.is_cuda
        assert torch.equal(index.search(queries.cuda(), 9)[1], expected[1])
        assert torch.equal(index.rank(queries, expected[1][:, 3]), torch.full((40,), 4))


def test_without_faiss_the_exact_index_works_and_the_others_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    gallery = Embeddings(random(300, 5), torch.arange(300) % 20)
    with_faiss = (evaluate(gallery).values, filled(gallery.vectors).search(gallery.vectors, 4)[1])
    monkeypatch.setitem(sys.modules, "faiss", None)  # which makes `import faiss` fail
    index = make_index(5)
    index.add(gallery.vectors)
    assert isinstance(index, ExactIndex)
    assert index.backend == "torch"
    assert evaluate(gallery).values == with_faiss[0]
    assert torch.equal(index.search(gallery.vectors, 4)[1], with_faiss[1])
    for attempt, what in (
        (lambda: make_index(5, kind="HNSW32"), "an index of kind 'HNSW32'"),
        (lambda: ExactIndex(5, backend="faiss"), "the backend 'faiss'"),
        (lambda: cluster(gallery.vectors, 3), "clustering"),
    ):
        with pytest.raises(ValueError, match=f"^{what} needs faiss: pip install faiss-cpu$"):
            attempt()


# --- clustering


def test_clusters_are_those_of_the_seed():
    centres = torch.eye(4) * 10
    truth = torch.arange(200) % 4
    vectors = centres[truth] + random(200, 4) * 0.1
    found = cluster(vectors, 4, seed=1)
    assert found.shape == (200,)
    assert found.dtype == torch.int64
    assert torch.equal(found, cluster(vectors, 4, seed=1))
    assert not torch.equal(cluster(random(200, 4), 9, seed=1), cluster(random(200, 4), 9, seed=2))
    assert len(set(zip(truth.tolist(), cluster(vectors, 4, spherical=True).tolist(), strict=True))) >= 4
    with pytest.raises(ValueError, match=r"num_clusters must lie in \[1, 200\], the number of vectors, got 201"):
        cluster(vectors, 201)
    with pytest.raises(ValueError, match="row 3 holds NaN"):
        cluster(vectors.index_fill(0, torch.tensor([3]), torch.nan), 2)


def test_a_model_is_told_from_another_of_its_run_although_all_vectors_lie_close():
    """Vectors that differ by 0.01 about one direction have cosines of 0.9998, whoever made them."""
    drawn = torch.Generator().manual_seed(0)
    about = torch.zeros(8)
    about[0] = 1
    stored, other = (about + 0.01 * torch.randn(50, 8, generator=drawn) for _ in range(2))
    assert float((unit(stored) * unit(other)).sum(dim=1).median()) > 0.999
    assert disagreement(stored, stored * 3) < 1e-12, "lengths do not count"
    assert disagreement(stored, stored.half().float()) < 0.01
    assert disagreement(stored, other) > 1
    # by hand: (1, 0) and (0, 1) lie 1/2, squared, from their mean (1/2, 1/2), and 2, squared, from each other
    two = torch.tensor([[1.0, 0], [0, 1]])
    assert disagreement(two, two.flip(0)) == pytest.approx(2 / 0.5)
    assert math.isnan(disagreement(two[:1], two[:1]))


@pytest.mark.parametrize("dim", [1, 3, 128, 2000])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-18, 1e-9, 1.0, 1e14, 1e30])
def test_lengths_are_at_least_what_they_are(dim: int, size: float):
    """Bounds of rounding hang on them; in float32 squares of tiny and huge numbers are 0 and infinite."""
    rows = torch.randn(500, dim, generator=torch.Generator().manual_seed(0)) * size
    rows[::7, 0] = 1.0
    sums = [math.fsum(x**2 for x in row) for row in rows[:40].double().tolist()]
    true = torch.tensor(sums, dtype=torch.float64).sqrt()
    found = ordering._lengths(rows)[:40]
    assert bool((found >= true * (1 - 1e-14)).all())
    assert bool((found <= true * (1 + 3e-4)).all())
