"""What is at an edge: the limit itself, one of something, a default, what is put down for others to read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from fuzzing import peak
from other_device import NAME, other_device
from torch import Tensor

from tripletmas.basics.arrays import Unclear
from tripletmas.basics.weights import weight_hash
from tripletmas.index import drift, ties
from tripletmas.index.base import unit
from tripletmas.index.changes import add_images, with_ids
from tripletmas.index.choice import choose_drift, choose_map
from tripletmas.index.clustering import cluster
from tripletmas.index.drift import fit_drift, fit_mlp
from tripletmas.index.exact import ExactIndex
from tripletmas.index.file import read_index_file
from tripletmas.index.fitting import fit_map
from tripletmas.index.glance import read_glance
from tripletmas.index.images import ImageIndex, Part, Reading, Settings, Transform
from tripletmas.index.lists import MappedLists
from tripletmas.index.making import make_index
from tripletmas.index.maps import FittedMap
from tripletmas.index.streamed import added, built

PART = Part("m", 0, "m")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(count: int = 4, kind: str = "exact") -> ImageIndex:
    index = ImageIndex.empty(Settings(3, Transform(8, 1), kind=kind), run="/r")
    return add_images(index, random(count, 3), [f"{number}.png" for number in range(count)], [None] * count, PART)


# --- limits


@pytest.mark.parametrize("kind", ["exact", "Flat"])
def test_as_many_ranks_may_be_asked_for_as_are_said(kind: str):
    """2^20 for a small index: rank 2 and all after it are empty."""
    index = make_index(2, kind=kind)
    index.add(torch.eye(2)[:1])
    scores, ids = index.search(torch.eye(2)[:1], 2**20)
    assert (ids.shape, scores.shape) == ((1, 2**20), (1, 2**20))
    assert (int(ids[0, 0]), int(ids[0, 1:].max())) == (0, -1)
    for k in (0, 2**20 + 1):
        with pytest.raises(ValueError, match=f"k must lie between 1 and 1048576 for an index of 1 vectors, got {k}"):
            index.search(torch.eye(2)[:1], k)


@pytest.mark.parametrize("ids", [[0, 1, 2, 2], [-1, 0, 1, 2], [3, 2, 1, 0]])
def test_ids_are_ascending_numbers_from_zero(ids: list[int]):
    index = filled()
    with pytest.raises(ValueError, match=r"ids must be int64 of shape \(4,\), ascending and >= 0"):
        with_ids(index, torch.tensor(ids))


def test_after_the_last_id_the_next_one_counts_on():
    index = with_ids(filled(), torch.tensor([0, 5, 6, 40]))
    assert index.next_id == 41
    assert add_images(index, random(1, 3), ["new.png"], [None], PART).ids.tolist() == [0, 5, 6, 40, 41]
    assert with_ids(filled(0), torch.empty(0, dtype=torch.int64)).next_id == 0


@pytest.mark.parametrize("kind", ["\udce9", "é", "vectors"])
def test_a_kind_that_faiss_does_not_know_is_refused(kind: str):
    with pytest.raises(ValueError, match=r"kind must be .exact. or a factory string of faiss .* got "):
        make_index(3, kind=kind)


def test_all_vectors_may_be_one_cluster_and_each_its_own():
    vectors = random(5, 3)
    assert cluster(vectors, 1).tolist() == [0] * 5
    assert sorted(cluster(vectors, 5).tolist()) == [0, 1, 2, 3, 4]
    for number in (0, 6):
        with pytest.raises(ValueError, match=r"num_clusters must lie in \[1, 5\]"):
            cluster(vectors, number)


def test_of_two_pairs_one_is_held_out_in_turn(monkeypatch: pytest.MonkeyPatch):
    """Both move alike: what one shows is right for the other, and a rotation, which here moves nothing, is not."""
    monkeypatch.setattr(drift, "_STEPS", 5)
    before = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    choice = choose_drift(before, before + 5, normalize=False)
    assert choice.num_pairs == 2
    assert all(score == score for score in choice.scores.values())  # none is nan
    assert choose_map(before, before + 5, normalize=False).num_pairs == 2


def test_the_maps_between_two_models_are_those_of_their_dimensions(monkeypatch: pytest.MonkeyPatch):
    """As many pairs as dimensions of the new model, which are not those of the old one."""
    monkeypatch.setattr(drift, "_STEPS", 5)
    scores = choose_map(random(4, 6), random(4, 4, seed=1), kinds=None).scores
    assert list(scores) == ["procrustes", "linear", "ridge", "mlp"]


def test_whether_means_are_shifted_is_asked_once_of_all_pairs():
    """Of twelve pairs, which only move, it can be seen (of ten it can); of the nine that a fold leaves it cannot."""
    before = random(12, 2)
    choice = choose_map(before, before + 5, normalize=False, kinds=("none", "procrustes"))
    assert choice.scores["procrustes"] == pytest.approx(0, abs=1e-3)
    assert choice.scores["none"] == pytest.approx(-50, abs=1e-3)  # 5^2 + 5^2


def test_ten_pairs_are_enough_to_choose_a_ridge():
    """An exact affine map of one dimension: the least ridge of all finds it, the largest, 10, leaves most of it out."""
    for size, error in ((10, 1e-3), (9, 0.3)):
        before = random(size, 1)
        moved = fit_map("ridge", before, 3 * before + 1)(before)
        assert (float((moved - 3 * before - 1).abs().max()) < error) == (size == 10)


def test_what_few_pairs_hold_out_is_answered_as_by_the_matrix():
    """X^T (X X^T + held I)^-1 Y, asked for others, of fewer pairs than dimensions and of more."""
    for size in (3, 5, 9):
        x, y, asked = (random(*shape, seed=seed).double() for seed, shape in enumerate(((size, 5), (size, 4), (2, 5))))
        expected = asked @ drift._ridge_solution(x, y, 0.1)
        torch.testing.assert_close(drift._ridge_answers(x, y, 0.1, asked), expected)


def test_small_drifts_are_learned_as_large_ones(monkeypatch: pytest.MonkeyPatch):
    """A millionth of a drift: a millionth of what is learned."""
    monkeypatch.setattr(drift, "_STEPS", 30)
    before, change = random(20, 2).double(), random(20, 2, seed=1).double()
    large, small = (fit_mlp(before, before + scale * change)(before) - before for scale in (1.0, 1e-6))
    torch.testing.assert_close(1e6 * small, large, rtol=1e-3, atol=1e-3)
    assert float(large.norm()) > 0.1


def test_a_drift_of_unit_vectors_by_few_pairs_holds_to_what_alpha_says():
    """exp(-n / dim) of the identity stays, alpha = 1: n = dim = 2, all of which is turned by a right angle."""
    before = torch.eye(2).double()
    turned = fit_drift("shrunk", before, before.flip(1) * torch.tensor([1.0, -1.0]))(before)
    assert turned.diagonal().tolist() == pytest.approx([0.36788] * 2, abs=1e-3)


def test_no_seed_is_seed_nought(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drift, "_STEPS", 5)
    before, after = unit(random(20, 3)), unit(random(20, 3, seed=1))
    none, nought, one = (fit_map("mlp", before, after, **seed)(before) for seed in ({}, {"seed": 0}, {"seed": 1}))
    assert torch.equal(none, nought)
    assert not torch.equal(none, one)


# --- exactness where it is hard


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_small_distances_between_long_vectors_are_exact(backend: str):
    """Vectors 1000 long, 0.01 apart: a square of 0.0001 is far below the rounding of 1000^2 in float32, 0.06."""
    gallery = torch.full((200, 2), 1000.0)
    gallery[:, 1] += torch.arange(200) * 0.0625  # sixteenths are exact there
    index = ExactIndex(2, metric="l2", normalize=False, backend=backend)
    index.add(gallery)
    scores, positions = index.search(gallery[:3], 4)
    assert positions[0].tolist() == [0, 1, 2, 3]
    assert scores[0].tolist() == [0.0, -(0.0625**2), -(0.125**2), -(0.1875**2)]


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_a_small_distance_is_exact_where_all_others_are_far(backend: str):
    """One vector 1/16 from queries that are 1400 long, the others 50 and more: nothing is near it, and its score is a
    difference of squares whose rounding is 0.1. Thirty queries: of fewer faiss subtracts the vectors themselves."""
    gallery = torch.full((200, 2), 1000.0)
    gallery[:, 1] += 50 * torch.arange(200)
    gallery[0, 1] += 0.0625
    index = ExactIndex(2, metric="l2", normalize=False, backend=backend)
    index.add(gallery)
    scores, positions = index.search(torch.full((30, 2), 1000.0), 1)
    assert positions.unique().tolist() == [0]
    assert scores.unique().tolist() == [-(0.0625**2)]


def test_units_of_rounding_are_those_of_the_types():
    assert torch.finfo(torch.float32).eps / 2 == ties.FLOAT32
    assert torch.finfo(torch.float64).eps / 2 == ties.FLOAT64


# --- defaults, and which engine


def test_an_index_over_vectors_takes_them_as_unit_vectors():
    vectors = unit(random(5, 3))
    index = ExactIndex.over(vectors)
    assert index.normalize
    assert index.search(7 * vectors[:1], 1)[0].item() == pytest.approx(1)
    assert MappedLists(3, kind="IVF2,Flat").metric == "inner_product"
    assert not Transform(8, 1).invert


def test_the_engine_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.platform", "linux")
    vectors = unit(random(5, 3))
    assert ExactIndex.over(vectors).backend == ExactIndex(3).backend == "faiss"
    assert ExactIndex(3, backend="torch").backend == ExactIndex.over(vectors, backend="torch").backend == "torch"
    assert ExactIndex(3)._ordering()._nearest.__name__ == "nearest_by_faiss"
    assert ExactIndex(3, backend="torch")._ordering()._nearest.__name__ == "nearest_by_torch"


def test_vectors_of_another_device_are_searched_there_and_those_of_the_cpu_come_to_them():
    vectors, queries = unit(random(60, 3)), random(4, 3, seed=1)
    expected = ExactIndex.over(vectors).search(queries, 5)
    with other_device():
        there = vectors.to(NAME)
        assert ExactIndex.over(there).backend == "torch"
        with pytest.raises(ValueError, match="'faiss' searches on the CPU, got vectors on meta; use 'torch'"):
            ExactIndex.over(there, backend="faiss")
        grown = ExactIndex(3, backend="torch")
        grown.add(there[:20])
        grown.add(vectors[20:])
        assert grown.vectors.device.type == NAME
        for index in (ExactIndex.over(there), grown):
            scores, positions = index.search(queries, 5)
            assert torch.equal(positions, expected[1])
            torch.testing.assert_close(scores, expected[0])


@pytest.mark.parametrize(("name", "value"), [("nprobe", 3), ("ef_search", 9)])
def test_what_an_exact_index_has_not_is_named(name: str, value: int):
    with pytest.raises(ValueError, match=f"kind 'exact' has no {name}, got {value}; leave it out"):
        make_index(3, **{name: value})


@pytest.mark.parametrize(("dim", "metric"), [(0, "l2"), (3, "cosine")])
def test_an_index_of_lists_asks_for_a_dimension_and_a_metric_that_there_is(dim: int, metric: str):
    with pytest.raises(ValueError, match="dim must be >= 1, got 0" if not dim else "metric must be one of"):
        MappedLists(dim, kind="IVF2,Flat", metric=metric)


def test_lists_in_a_file_may_be_empty(tmp_path: Path):
    """Of vectors that are all one, all lie in one of the four lists."""
    settings = Settings(3, Transform(8, 1), kind="IVF4,Flat", on_disk=True)
    names = [f"{number}.png" for number in range(200)]
    vectors = torch.ones(200, 3)
    built(tmp_path / "index", settings, lambda: iter([vectors]), names, PART)
    _, rows = ImageIndex.open(tmp_path / "index").search(torch.ones(1, 3), 3)
    assert len(set(rows[0].tolist())) == 3


@pytest.mark.parametrize("other", ["IVF3,Flat", "IVF2,SQ8"])
def test_lists_of_another_kind_are_refused(other: str):
    first = make_index(3, kind=other)
    first.add(random(90, 3))
    trained, sizes = first.serialize(), torch.tensor([45, 45])
    with pytest.raises(ValueError, match="are not those of the index 'IVF2,Flat'"):
        MappedLists(3, kind="IVF2,Flat", trained=trained, sizes=sizes, content=torch.zeros(90 * 20, dtype=torch.uint8))


@pytest.mark.parametrize(("kind", "effort"), [("HNSW4", "ef_search"), ("IVF2,Flat", "nprobe")])
def test_numbers_that_faiss_cannot_hold_are_refused(kind: str, effort: str):
    most = 2**20 if kind == "HNSW4" else 2**31 - 1  # a search of a graph makes room for so many candidates
    for value, said in ((0, ">= 1"), (most + 1, f"<= {most}"), (10**18, f"<= {most}")):
        with pytest.raises(ValueError, match=f"{effort} must be {said}, got {value}"):
            make_index(3, kind=kind, **{effort: value})
    with pytest.raises(ValueError, match=r"dim must be below 2\^31, got 2147483648"):
        make_index(2**31, kind=kind)


@pytest.mark.parametrize(
    ("kind", "owner", "field", "value"),
    [
        ("HNSW4", "hnsw", "efSearch", 2**25),
        ("HNSW4", "hnsw", "efConstruction", 0),
        ("IVF2_HNSW4,Flat", "quantizer", "efSearch", 2**25),
        ("SQ4,RFlat", "", "k_factor", float("nan")),
        ("SQ4,RFlat", "", "k_factor", 1e9),
    ],
)
def test_bytes_that_ask_for_many_candidates_are_no_index(kind: str, owner: str, field: str, value: float):
    """A search would make room for them: 2^25 of 8 bytes are 256 MiB."""
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(3, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(random(90, 3).numpy())
    table = faiss.IndexIDMap2(index)
    changed = faiss.downcast_index(index)
    if owner:
        changed = getattr(changed, owner)
        changed = faiss.downcast_index(changed).hnsw if owner == "quantizer" else changed
    setattr(changed, field, value)
    with pytest.raises(ValueError, match=rf"the data are no index of faiss\W+{field} "):
        make_index(3, kind=kind, data=torch.from_numpy(faiss.serialize_index(table)))


def test_what_lists_have_learned_is_bytes():
    sizes, content = torch.tensor([45, 45]), torch.zeros(90 * 20, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"trained must be uint8 of shape \(bytes,\), got torch.bool of \(163,\)"):
        MappedLists(3, kind="IVF2,Flat", trained=torch.zeros(163, dtype=torch.bool), sizes=sizes, content=content)


@pytest.mark.parametrize("in_a_file", [False, True])
def test_what_holds_vectors_was_trained(in_a_file: bool):
    """faiss would say so at the first search, of no file."""
    faiss = pytest.importorskip("faiss")
    first = make_index(3, kind="IVF2,Flat")
    first.add(random(90, 3))
    index = faiss.deserialize_index(first.serialize().numpy())
    faiss.downcast_index(index).is_trained = False
    data, empty = torch.from_numpy(faiss.serialize_index(index)), torch.zeros(90 * 20, dtype=torch.uint8)
    lists = {"trained": data, "sizes": torch.tensor([45, 45]), "content": empty}
    made = partial(MappedLists, 3, **lists) if in_a_file else partial(make_index, 3, data=data)
    with pytest.raises(ValueError, match="holds vectors, and says that it was not trained"):
        made(kind="IVF2,Flat")


@pytest.mark.parametrize("kind", ["HNSW4", "IVF2,Flat"])
def test_bytes_that_ask_for_more_than_there_is_are_no_index(kind: str):
    """Each eight bytes in turn say 2^37: that many numbers would be 128 GiB and more, and are not asked for."""
    faiss = pytest.importorskip("faiss", "1.14")  # earlier ones have no limit
    assert faiss.get_deserialization_vector_byte_limit() == 2**40
    whole = make_index(3, kind=kind)
    whole.add(random(40, 3))
    content = whole.serialize()
    before, said = peak(), []
    for at in range(0, min(len(content) - 8, 400), 4):
        damaged = content.clone()
        damaged[at : at + 8] = torch.tensor([0, 0, 0, 0, 32, 0, 0, 0], dtype=torch.uint8)
        try:
            make_index(3, kind=kind, data=damaged)
        except ValueError as error:
            said.append(str(error))
    assert any("deserialization_vector_byte_limit" in each for each in said)
    assert not any("bad_alloc" in each for each in said)
    assert faiss.get_deserialization_vector_byte_limit() == 2**40
    assert peak() - before < 2**29


# --- files, and what comes in blocks


def test_a_flipped_bit_is_seen_unless_that_was_declined(tmp_path: Path):
    path = tmp_path / "x.index"
    filled().save(path)
    content = bytearray(path.read_bytes())
    content[content.find(filled().vectors.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.index cannot be read \(its checksum is wrong\)"):
        read_index_file(path)
    assert not torch.equal(read_index_file(path, verify=False)[0]["vectors"], filled().vectors)


def test_what_a_file_says_is_what_other_versions_look_for(tmp_path: Path):
    """Files of earlier versions have these names and numbers; another name would leave them unread."""
    filled().save(tmp_path / "index")
    about = told(tmp_path / "index")["tripletmas index"]
    assert about["format"] == 1
    fit_map("procrustes", random(5, 2), random(5, 2, seed=1), normalize=False).save(tmp_path / "map")
    about = told(tmp_path / "map")["map"]
    assert about == {"kind": "procrustes", "dim": 2, "new_dim": 2, "normalize": False}
    found = FittedMap.open(tmp_path / "map")
    assert not found.normalize
    assert found.identity == weight_hash({**found.tensors, "normalize": torch.tensor([2, 2, 0])})


def told(path: Path) -> dict[str, dict]:
    content = path.read_bytes()
    texts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    header = json.loads(texts["tripletmas"])["header"]
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in header.items()}


def test_an_index_whose_settings_are_none_is_damaged(tmp_path: Path):
    for name, value, said in (
        ("dim", 2**40, "vectors of dim 3, and settings of 1099511627776"),
        ("kind", False, "'kind' of its settings is False, not str"),
        ("kind", "vectors", "got 'vectors'"),
        ("metric", "cosine", "metric must be one of"),
    ):
        index = filled()
        object.__setattr__(index, "settings", replace(index.settings, **{name: value}))
        with monkeypatched_header(index, dim=3):
            index.save(tmp_path / "index")
        with pytest.raises(ValueError, match=rf"{tmp_path}/index is damaged \(.*{said}"):
            ImageIndex.open(tmp_path / "index").search(random(1, 3), 1)


@contextmanager
def monkeypatched_header(index: ImageIndex, dim: int) -> Iterator[None]:
    """Written with the dimension that its vectors have."""
    header = {**index._header(), "dim": dim}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageIndex, "_header", lambda self: header)
        yield


def test_a_pipe_is_no_index(tmp_path: Path):
    """It would be waited for."""
    os.mkfifo(tmp_path / "x.index")
    with pytest.raises(ValueError, match="no such index file"):
        ImageIndex.open(tmp_path / "x.index")
    with pytest.raises(Unclear, match="it is no regular file"):
        read_glance(tmp_path / "x.index")
    with pytest.raises(ValueError, match="it is no regular file"):
        FittedMap.open(tmp_path / "x.index")


def test_one_text_is_a_text(tmp_path: Path):
    index = ImageIndex.empty(Settings(3, Reading("0123", 16)))
    index = add_images(index, random(1, 3), ["0"], [None], PART, root="/t.csv", texts=["one"])
    assert index.glance().holds_texts


def test_what_comes_in_blocks_is_as_many_as_was_said(tmp_path: Path):
    index = filled(0)
    with pytest.raises(ValueError, match="2 vectors, 2 paths and 1 classes"):
        added(index, lambda: iter([random(2, 3)]), ["a.png", "b.png"], ["x"], PART)


def test_a_bad_vector_in_a_block_is_told_by_the_name_of_its_image(tmp_path: Path):
    blocks = [random(2, 3), torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.nan, 3.0]])]
    change = added(filled(0), lambda: iter(blocks), ["a.png", "b.png", "c.png", "d.png"], [None] * 4, PART)
    with pytest.raises(ValueError, match=r"d\.png"):
        change.save(tmp_path / "new.index")
    assert not (tmp_path / "new.index").exists()
    first = added(filled(0), lambda: iter([torch.full((1, 3), torch.nan)]), ["a.png"], [None], PART)
    with pytest.raises(ValueError, match=r"a\.png"):
        first.save(tmp_path / "new.index")
