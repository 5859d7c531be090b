"""One contract over all kinds of indexes, the exact one and those of faiss's factory strings; and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import pytest
import torch
from torch import Tensor

from tripletmas.index import base
from tripletmas.index.approximate import FaissIndex
from tripletmas.index.base import Index, unit
from tripletmas.index.clustering import cluster
from tripletmas.index.exact import ExactIndex
from tripletmas.index.making import make_index, recall_against


class Kind(NamedTuple):
    recall: float  # at 10, against the exact index: a floor a little below what the data below give
    removes: bool = True
    settings: dict[str, int] = {}  # noqa: RUF012  # never changed


KINDS = {
    "exact": Kind(1.0),
    "Flat": Kind(1.0),
    "IDMap2,Flat": Kind(1.0),
    "HNSW16": Kind(0.95, removes=False),
    "IVF8,Flat": Kind(1.0, settings={"nprobe": 8}),
    "IVF16,Flat": Kind(0.35),
    "IVF8,PQ4x4": Kind(0.3, settings={"nprobe": 8}),
    "IVF8_HNSW8,Flat": Kind(0.9, settings={"nprobe": 7}),
    "PQ4x4": Kind(0.3),
    "PQ4x5": Kind(0.5),
    "SQ8": Kind(0.95),
    "SQ4": Kind(0.6),
    "HNSW16_SQ8": Kind(0.9, removes=False),
    "RaBitQ": Kind(0.1),
    "RaBitQ4": Kind(0.3),
    "RR8,RaBitQ4": Kind(0.3),
    "IVF8,RaBitQ4": Kind(0.3, settings={"nprobe": 8}),
    "PCA6,Flat": Kind(0.4),
    "OPQ4,PQ4x4": Kind(0.3),
    "OPQ4,IVF8,PQ4x4": Kind(0.3, settings={"nprobe": 8}),
    "IVF8,PQ4x4,RFlat": Kind(0.25, removes=False, settings={"nprobe": 8}),
}
METRICS = ("inner_product", "l2")


def is_known(kind: str) -> bool:
    """Older versions of faiss have no RaBitQ."""
    try:
        faiss.index_factory(8, kind)
    except RuntimeError:
        return False
    return True


KINDS = {name: kind for name, kind in KINDS.items() if "RaBitQ" not in name or is_known(name)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GALLERY, QUERIES = random(700, 8), random(40, 8, seed=1)


def make(kind: str, metric: str = "inner_product", **changed) -> Index:
    return make_index(8, kind=kind, metric=metric, **{**KINDS[kind].settings, **changed})


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_contract(kind: str, metric: str, capfd: pytest.CaptureFixture[str]):
    index, exact = make(kind, metric), ExactIndex(8, metric=metric)
    assert index.search(QUERIES, 2)[1].tolist() == [[-1, -1]] * 40  # empty
    index.add(GALLERY[:600])  # trained on the way
    index.add(GALLERY[600:], torch.arange(100) + 5000)
    exact.add(GALLERY, torch.cat([torch.arange(600), torch.arange(100) + 5000]))
    assert (len(index), index.dim, index.kind, index.metric, index.normalize) == (700, 8, kind, metric, True)
    assert index.search(torch.zeros(0, 8), 2)[1].shape == (0, 2)

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
    assert torch.equal(scores == -torch.inf, ids == -1)

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


def serializable(kind: str, metric: str = "inner_product", **changed) -> FaissIndex:
    index = make(kind, metric, **changed)
    assert isinstance(index, FaissIndex)
    return index


REFUSED = [
    (
        lambda index: index.add(GALLERY[:2], torch.tensor([7000, 5])),
        "the index already holds the id 5; remove it first",
    ),
    (lambda index: index.add(GALLERY[:2], torch.tensor([8, 8])), "ids must be unique; 8 is given more than once"),
    (lambda index: index.add(GALLERY[:2], torch.tensor([8, -2])), "ids must be >= 0, got -2"),
    (
        lambda index: index.add(GALLERY[:2], torch.tensor([8])),
        r"ids must be int64 of shape \(2,\), got torch.int64 of \(1,\)",
    ),
    (lambda index: index.add(GALLERY[:2], torch.tensor([1.0, 2.0])), "ids must be int64"),
    (lambda index: index.remove(torch.tensor([1.5])), "ids must be int64"),
    (lambda index: index.add(torch.zeros(2, 9)), r"vectors must have shape \(n, 8\), got \(2, 9\)"),
    (lambda index: index.add(torch.zeros(2, 8, dtype=torch.int64)), "vectors must be floating point, got torch.int64"),
    (lambda index: index.search(torch.zeros(3), 1), r"queries must have shape \(n, 8\), got \(3,\)"),
    (
        lambda index: index.search(torch.zeros(1, 8), 0),
        "k must lie between 1 and 1048576 for an index of .* vectors, got 0",
    ),
]
REFUSED += [
    (lambda index, x=x, do=do: do(index, x), f"{what} must be finite in float32; row 7 holds NaN or infinity")
    for x in (torch.nan, torch.inf, -torch.inf, 1e39)
    for what, do in (
        ("vectors", lambda index, x: index.add(random(9, 8).double().index_fill(0, torch.tensor([7]), x))),
        ("queries", lambda index, x: index.search(random(9, 8).double().index_fill(0, torch.tensor([7]), x), 1)),
    )
]


@pytest.mark.parametrize("kind", ["exact", "Flat", "HNSW16", "IVF8,Flat"])
def test_what_is_refused_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "_BLOCK_QUERIES", (2, 2))  # rows are counted over all blocks
    index = make(kind)
    index.add(GALLERY[:100])
    for attempt, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            attempt(index)
    assert len(index) == 100
    index.add(GALLERY[:1])
    assert index.search(GALLERY[:1], 2)[1].sort().values.tolist() == [[0, 100]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "exact"])
def test_bytes_give_the_same_index(kind: str, metric: str):
    index = serializable(kind, metric)
    index.add(GALLERY, torch.arange(700) * 3)
    data = index.serialize()
    assert data.dtype == torch.uint8
    before = data.clone()
    other = serializable(kind, metric, data=data)
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


@pytest.mark.slow
def test_codes_are_learned_without_what_faiss_adds_for_another_search():
    """Its polysemous training gives the codes another order, for a filter that is off, and takes a hundred times as
    long as the codes themselves: what is found is the same."""
    index, rows = serializable("PQ4x5"), unit(GALLERY).numpy()
    index.add(GALLERY)
    other: Any = faiss.index_factory(8, "PQ4x5", faiss.METRIC_INNER_PRODUCT)
    assert other.do_polysemous_training
    other.train(rows)
    other.add(rows)
    expected, _ = other.search(unit(QUERIES).numpy(), 9)
    torch.testing.assert_close(index.search(QUERIES, 9)[0], torch.from_numpy(expected))


def test_bytes_may_be_mapped(tmp_path):
    index = serializable("HNSW16")
    index.add(GALLERY)
    data = index.serialize()
    (tmp_path / "index").write_bytes(data.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "index"), shared=False, size=len(data), dtype=torch.uint8)
    other = FaissIndex(8, kind="HNSW16", data=mapped)
    del mapped  # the index keeps what it reads from
    assert torch.equal(other.search(QUERIES, 9)[1], index.search(QUERIES, 9)[1])


def test_bytes_that_are_no_index_are_refused():
    index = serializable("Flat")
    index.add(GALLERY)
    data = index.serialize()
    for dim, metric in ((8, "l2"), (9, "inner_product")):
        with pytest.raises(ValueError, match=f"another dimension than {dim}, or another metric than '{metric}'"):
            FaissIndex(dim, kind="Flat", metric=metric, data=data)
    for wrong in (data[:50], random(99).byte()):
        with pytest.raises(ValueError, match="the data are no index of faiss"):
            FaissIndex(8, kind="Flat", data=wrong)
    with pytest.raises(ValueError, match="data must be uint8"):
        FaissIndex(8, kind="Flat", data=random(99))


@pytest.mark.parametrize(
    ("kind", "few", "many"),
    [("IVF16,Flat", {"nprobe": 1}, {"nprobe": 12}), ("HNSW16", {"ef_search": 10}, {"ef_search": 200})],
)
def test_more_effort_finds_more(kind: str, few: dict[str, Any], many: dict[str, Any]):
    exact, index = ExactIndex(8), serializable(kind, **few)
    exact.add(GALLERY)
    index.add(GALLERY)
    harder = serializable(kind, **many, data=index.serialize())
    assert recall_against(exact, index, QUERIES, 10) < recall_against(exact, harder, QUERIES, 10)
    assert recall_against(exact, harder, QUERIES, 10) >= 0.99
    harder.add(GALLERY[:0])
    harder.add(-GALLERY[:1])  # of its own from now on, and as hard
    exact.add(-GALLERY[:1])
    assert recall_against(exact, harder, QUERIES, 10) >= 0.99


def test_recall_against_the_exact_index():
    exact, other = ExactIndex(2), ExactIndex(2)
    exact.add(torch.eye(2))
    other.add(torch.eye(2)[:1])
    # The exact two are 0 and 1, of which the other finds one; the third rank exists in neither.
    assert recall_against(exact, other, torch.ones(1, 2), 3) == 0.5
    assert recall_against(exact, exact, torch.ones(1, 2), 3) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be >= 1, got 0"),
        ({"metric": "cosine"}, "metric must be one of inner_product, l2, got 'cosine'"),
        ({"nprobe": 4}, "kind 'exact' has no nprobe, got 4"),
        ({"data": torch.zeros(3).byte()}, "kind 'exact' has no serialized data"),
        ({"kind": "Flat", "metric": "cosine"}, "metric must be one of inner_product, l2, got 'cosine'"),
        ({"kind": "HNSW16", "nprobe": 4}, r"kind 'HNSW16' has no nprobe, which belongs to lists \(IVF\); leave it out"),
        ({"kind": "IVF8,Flat", "ef_search": 4}, r"'IVF8,Flat' has no ef_search, which belongs to a graph \(HNSW\)"),
        ({"kind": "IVF8,Flat", "nprobe": 0}, "nprobe must be >= 1, got 0"),
        ({"kind": "Nonsense"}, r"kind must be 'exact' or a factory string of faiss for dim 8 .*'Nonsense'"),
        ({"kind": "LSH"}, "for dim 8 and metric 'inner_product', got 'LSH'"),
        ({"kind": "PQ3"}, "got 'PQ3'"),  # 8 is no multiple of 3
        (
            {"kind": "HNSW8_PQ4"},
            "faiss has no index of kind 'HNSW8_PQ4' for the metric 'inner_product': choose another",
        ),
        # each of these ended the process, or never ended, when it was filled
        *(
            ({"kind": kind}, "its numbers must be >= 1, the links of a graph >= 2")
            for kind in ("HNSW0", "HNSW1", "HNSW0_PQ4", "IVF2_HNSW1,Flat", "NSG0", "NSG3,Flat", "RQ1x0", "OPQ0,PQ1")
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        make_index(**{"dim": 8, **options}).add(GALLERY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "has"),
    [("IVF32,Flat", "32 lists"), ("PQ2x5", "32 codes of each quantizer"), ("OPQ4,IVF8,PQ4x5", "32 codes")],
)
def test_too_few_vectors_to_train_on(kind: str, has: str, capfd: pytest.CaptureFixture[str]):
    index = FaissIndex(8, kind=kind)
    problem = f"20 vectors cannot train the index '{kind}', which has {has}.*: .* at least 32 vectors"
    with pytest.raises(ValueError, match=problem):
        index.add(GALLERY[:20])
    assert len(index) == 0
    index.add(GALLERY)
    assert len(index) == 700
    assert capfd.readouterr().err == ""


def test_clusters_are_silent(capfd: pytest.CaptureFixture[str]):
    assert cluster(GALLERY, 100).max() == 99
    assert capfd.readouterr().err == ""
