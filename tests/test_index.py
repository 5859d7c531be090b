"""The faiss index: exact search against sorting by cosine, padding, and what it refuses."""

from __future__ import annotations

import doctest

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tripletmas import index as index_module
from tripletmas.index import FaissIndex


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 35), st.booleans(), st.integers(0, 2**31))
def test_exact_search_equals_sorting(size: int, dim: int, k: int, normalize: bool, seed: int):
    gallery, queries = random(size, dim, seed=seed), random(3, dim, seed=seed + 1)
    index = FaissIndex(dim, normalize=normalize)
    index.add(gallery[: size // 2])
    index.add(gallery[size // 2 :])
    assert len(index) == size
    scores, positions = index.search(queries, k)
    assert scores.shape == positions.shape == (3, k)
    for query, row_scores, row_positions in zip(queries.tolist(), scores, positions, strict=True):
        if normalize:
            exact = [oracles.cosine(query, vector) for vector in gallery.tolist()]
        else:
            exact = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in gallery.tolist()]
        found = row_positions[row_positions >= 0].tolist()
        assert len(found) == len(set(found)) == min(k, size)
        assert row_scores[: len(found)].tolist() == pytest.approx(sorted(exact, reverse=True)[:k], abs=2e-5)
        assert [exact[i] for i in found] == pytest.approx(row_scores[: len(found)].tolist(), abs=2e-5)
        assert row_positions[len(found) :].tolist() == [-1] * (k - len(found))
        assert row_scores[len(found) :].tolist() == [-torch.inf] * (k - len(found))


def test_blocks_of_queries_give_what_one_call_gives(monkeypatch: pytest.MonkeyPatch):
    index = FaissIndex(4)
    index.add(random(50, 4))
    queries = random(100, 4, seed=1)
    scores, positions = index.search(queries, 7)
    monkeypatch.setattr(index_module, "_BLOCK_QUERIES", (3, 9))
    block_scores, block_positions = index.search(queries, 7)
    assert torch.equal(block_positions, positions)
    torch.testing.assert_close(block_scores, scores)


def test_normalised_search_does_not_see_length():
    gallery, queries = random(20, 3), random(5, 3, seed=1)
    plain, scaled = FaissIndex(3), FaissIndex(3)
    plain.add(gallery)
    scaled.add(gallery * torch.logspace(-30, 30, 20)[:, None])  # squares of these overflow, or vanish, in float32
    scores, positions = plain.search(queries, 20)
    other_scores, other_positions = scaled.search(queries * 1e-25, 20)
    assert torch.equal(other_positions, positions)
    torch.testing.assert_close(other_scores, scores)


def test_vectors_of_zeros_score_zero():
    index = FaissIndex(2)
    index.add(torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    scores, positions = index.search(torch.tensor([[1.0, 0.0]]), 3)
    assert positions.tolist() == [[1, 0, 2]]
    assert scores.tolist() == [[1.0, 0.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted(dtype: torch.dtype):
    vectors = torch.tensor([[1.0, 2.0], [-2.0, 1.0], [0.5, -1.0]])  # exact in every type
    index, other = FaissIndex(2), FaissIndex(2)
    index.add(vectors)
    other.add(vectors.to(dtype))
    assert torch.equal(other.search(vectors.to(dtype), 3)[0], index.search(vectors, 3)[0])


def test_inputs_are_not_changed():
    vectors = random(6, 3).requires_grad_()
    before = vectors.detach().clone()
    for normalize in (True, False):
        index = FaissIndex(3, normalize=normalize)
        index.add(vectors)
        index.search(vectors, 2)
    assert torch.equal(vectors, before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused_with_their_row(value: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index_module, "_BLOCK_QUERIES", (2, 2))
    index = FaissIndex(3)
    index.add(random(4, 3))
    vectors = random(9, 3)
    vectors[7, 1] = value
    with pytest.raises(ValueError, match="vectors must be finite in float32; row 7"):
        index.add(vectors)
    assert len(index) == 4
    with pytest.raises(ValueError, match="queries must be finite in float32; row 7"):
        index.search(vectors, 1)


def test_what_does_not_fit_is_refused():
    index = FaissIndex(3)
    with pytest.raises(ValueError, match=r"vectors must have shape \(n, 3\), got \(2, 4\)"):
        index.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"queries must have shape \(n, 3\), got \(3,\)"):
        index.search(torch.zeros(3), 1)
    with pytest.raises(ValueError, match=r"floating point, got torch.int64"):
        index.add(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        index.search(torch.zeros(1, 3), 0)
    with pytest.raises(ValueError, match="dim must be >= 1"):
        FaissIndex(0)
    with pytest.raises(ValueError, match="got 'Nonsense'"):
        FaissIndex(3, kind="Nonsense")


def test_empty_gallery_and_no_queries():
    index = FaissIndex(3)
    index.add(torch.zeros(0, 3))
    scores, positions = index.search(random(2, 3), 2)
    assert positions.tolist() == [[-1, -1], [-1, -1]]
    assert scores.tolist() == [[-torch.inf, -torch.inf]] * 2
    index.add(random(2, 3))
    assert index.search(torch.zeros(0, 3), 2)[1].shape == (0, 2)


def test_factory_strings():
    gallery = functional.normalize(random(400, 8))
    exact, approximate = FaissIndex(8), FaissIndex(8, kind="IVF4,Flat")
    exact.add(gallery)
    approximate.add(gallery)  # trained on the way
    assert torch.equal(approximate.search(gallery, 1)[1], exact.search(gallery, 1)[1])
    # Probing one of four cells finds only its items; what is missing is padding, not item -1.
    found_scores, found = approximate.search(gallery, 400)
    assert (found == -1).any(dim=1).all()
    assert torch.equal(found_scores == -torch.inf, found == -1)
    with pytest.raises(ValueError, match="3 vectors cannot train the index 'IVF4,Flat'"):
        FaissIndex(8, kind="IVF4,Flat").add(gallery[:3])


def test_docstring_examples():
    result = doctest.testmod(index_module)
    assert result.attempted >= 1
    assert result.failed == 0
