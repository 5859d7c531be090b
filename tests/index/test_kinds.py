"""Indexes by faiss's factory strings: one contract over a table of kinds, and what is refused."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tripletmas.index.approximate import FaissIndex
from tripletmas.index.clustering import cluster
from tripletmas.index.exact import ExactIndex
from tripletmas.index.making import make_index, recall_against


class Kind(NamedTuple):
    recall: float  # at 10, against the exact index: a floor a little below what the data below give
    removes: bool = True
    settings: dict[str, int] = {}  # noqa: RUF012  # never changed


KINDS = {
    "Flat": Kind(1.0),
    "IDMap2,Flat": Kind(1.0),
    "HNSW16": Kind(0.95, removes=False),
    "IVF8,Flat": Kind(1.0, settings={"nprobe": 8}),
    "IVF16,Flat": Kind(0.35),
    "IVF8,PQ4x4": Kind(0.3, settings={"nprobe": 8}),
    "IVF8_HNSW8,Flat": Kind(0.9, settings={"nprobe": 7}),
    "PQ4x4": Kind(0.3),
    "PQ4x6": Kind(0.5),
    "SQ8": Kind(0.95),
    "PCA6,Flat": Kind(0.4),
    "OPQ4,PQ4x4": Kind(0.3),
    "OPQ4,IVF8,PQ4x4": Kind(0.3, settings={"nprobe": 8}),
    "IVF8,PQ4x4,RFlat": Kind(0.25, removes=False, settings={"nprobe": 8}),
}
METRICS = ("inner_product", "l2")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GALLERY, QUERIES = random(700, 8), random(40, 8, seed=1)


def make(kind: str, metric: str = "inner_product", **changed) -> FaissIndex:
    index = make_index(8, kind=kind, metric=metric, **{**KINDS[kind].settings, **changed})
    assert isinstance(index, FaissIndex)
    return index


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_contract(kind: str, metric: str, capfd: pytest.CaptureFixture[str]):
    index, exact = make(kind, metric), ExactIndex(8, metric=metric)
    assert index.search(QUERIES, 2)[1].tolist() == [[-1, -1]] * 40  # empty
    index.add(GALLERY[:600])  # trained on the way
    index.add(GALLERY[600:], torch.arange(100) + 5000)
    exact.add(GALLERY, torch.cat([torch.arange(600), torch.arange(100) + 5000]))
    assert (len(index), index.dim, index.kind, index.metric, index.normalize) == (700, 8, kind, metric, True)
    assert sorted(index.ids.tolist()) == exact.ids.tolist()

    scores, ids = index.search(QUERIES, 10)
    assert (scores.shape, scores.dtype, ids.shape, ids.dtype) == ((40, 10), torch.float32, (40, 10), torch.int64)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert torch.isin(ids[ids >= 0], exact.ids).all()
    assert torch.equal(scores == -torch.inf, ids == -1)
    assert recall_against(exact, index, QUERIES, 10) >= KINDS[kind].recall
    if metric == "l2":
        assert (scores[ids >= 0] < 0.2).all()  # negative squares, but for what compression adds
    scores, ids = index.search(QUERIES, 800)
    assert (ids[:, 700:] == -1).all()
    assert (scores[:, 700:] == -torch.inf).all()

    with pytest.raises(ValueError, match="already holds the id 5000"):
        index.add(GALLERY[:2], torch.tensor([7000, 5000]))
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        index.add(torch.tensor([[1.0], [torch.nan]]).expand(2, 8))
    assert len(index) == 700
    if KINDS[kind].removes:
        assert index.remove(torch.tensor([5000, 3, 3, 9999])) == 2
        assert len(index) == 698
        assert not torch.isin(index.search(QUERIES, 698)[1], torch.tensor([5000, 3])).any()
        index.add(GALLERY[:1], torch.tensor([5000]))
        assert len(index) == 699
    else:
        with pytest.raises(ValueError, match=f"cannot be removed from an index of kind '{kind}'; rebuild it"):
            index.remove(torch.tensor([3]))
        assert len(index) == 700
    assert capfd.readouterr().err == ""  # faiss warns of few vectors to train on by itself


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_give_the_same_index(kind: str, metric: str):
    index = make(kind, metric)
    index.add(GALLERY, torch.arange(700) * 3)
    data = index.serialize()
    assert data.dtype == torch.uint8
    before = data.clone()
    other = make(kind, metric, data=data)
    for found, expected in zip(other.search(QUERIES, 9), index.search(QUERIES, 9), strict=True):
        assert torch.equal(found, expected)
    assert sorted(other.ids.tolist()) == (torch.arange(700) * 3).tolist()
    for changed in (index, other):
        changed.add(QUERIES)
        if KINDS[kind].removes:
            assert changed.remove(torch.tensor([3, 6])) == 2
    for found, expected in zip(other.search(QUERIES, 9), index.search(QUERIES, 9), strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.equal(data, before)


def test_bytes_may_be_mapped(tmp_path):
    index = make("HNSW16")
    index.add(GALLERY)
    data = index.serialize()
    (tmp_path / "index").write_bytes(data.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "index"), shared=False, size=len(data), dtype=torch.uint8)
    other = FaissIndex(8, kind="HNSW16", data=mapped)
    del mapped  # the index keeps what it reads from
    assert torch.equal(other.search(QUERIES, 9)[1], index.search(QUERIES, 9)[1])


def test_bytes_that_are_no_index_are_refused():
    index = make("Flat")
    index.add(GALLERY)
    data = index.serialize()
    for other, options in ((data, {"metric": "l2"}), (data, {"dim": 9})):
        with pytest.raises(ValueError, match=r"another dimension than \d, or another metric than"):
            FaissIndex(**{"dim": 8, "kind": "Flat", "data": other, **options})
    for wrong in (data[:50], random(99).byte()):
        with pytest.raises(ValueError, match="the data are no index of faiss"):
            FaissIndex(8, kind="Flat", data=wrong)
    with pytest.raises(ValueError, match="data must be uint8"):
        FaissIndex(8, kind="Flat", data=random(99))


def test_more_effort_finds_more():
    exact = ExactIndex(8)
    exact.add(GALLERY)
    for kind, option, few, many in (("IVF16,Flat", "nprobe", 1, 12), ("HNSW16", "ef_search", 10, 200)):
        recalls = []
        for value in (few, many):
            index = make(kind, **{option: value})
            index.add(GALLERY)
            recalls.append(recall_against(exact, index, QUERIES, 10))
        assert recalls[0] < recalls[1]
        assert recalls[1] >= 0.99


def test_recall_against_the_exact_index():
    exact, other = ExactIndex(2), ExactIndex(2)
    exact.add(torch.eye(2))
    other.add(torch.eye(2)[:1])
    # The exact two are 0 and 1, of which the other finds one; the third rank exists in neither.
    assert recall_against(exact, other, torch.ones(1, 2), 3) == 0.5
    assert recall_against(exact, exact, torch.ones(1, 2), 3) == 1


def test_what_a_kind_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"kind 'HNSW16' has no nprobe, which belongs to lists \(IVF\); leave it out"):
        FaissIndex(8, kind="HNSW16", nprobe=4)
    with pytest.raises(ValueError, match=r"kind 'IVF8,Flat' has no ef_search, which belongs to a graph \(HNSW\)"):
        FaissIndex(8, kind="IVF8,Flat", ef_search=4)
    with pytest.raises(ValueError, match="nprobe must be >= 1, got 0"):
        FaissIndex(8, kind="IVF8,Flat", nprobe=0)
    with pytest.raises(ValueError, match=r"kind must be 'exact' or a factory string of faiss for dim 8 .*'Nonsense'"):
        FaissIndex(8, kind="Nonsense")
    with pytest.raises(ValueError, match="for dim 8 and metric 'inner_product', got 'LSH'"):
        FaissIndex(8, kind="LSH")
    with pytest.raises(ValueError, match="got 'PQ3'") as caught:  # 8 is no multiple of 3
        FaissIndex(8, kind="PQ3").add(GALLERY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (
            "IVF256,Flat",
            "100 vectors cannot train the index 'IVF256,Flat', which has 256 lists: .* at least 256 vectors",
        ),
        ("PQ2x7", "100 vectors cannot train the index 'PQ2x7', which has 128 codes of each quantizer"),
        ("OPQ4,IVF8,PQ4x7", "100 vectors cannot train the index 'OPQ4,IVF8,PQ4x7', which has 128 codes"),
    ],
)
def test_too_few_vectors_to_train_on(kind: str, problem: str, capfd: pytest.CaptureFixture[str]):
    index = FaissIndex(8, kind=kind)
    with pytest.raises(ValueError, match=problem):
        index.add(GALLERY[:100])
    assert len(index) == 0
    index.add(GALLERY)
    assert len(index) == 700
    assert capfd.readouterr().err == ""


def test_clusters_are_silent(capfd: pytest.CaptureFixture[str]):
    assert cluster(GALLERY, 100).max() == 99
    assert capfd.readouterr().err == ""
