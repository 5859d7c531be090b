"""Indexes that need not fit into memory: lists in the file, and changes that go into the next file in blocks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import pytest
import torch
from torch import Tensor

from tripletmas.basics import mapped
from tripletmas.index import file as index_file
from tripletmas.index import lists, streamed
from tripletmas.index.changes import add_images, all_replaced, move_parts, remove_images, replace_vectors, with_ids
from tripletmas.index.exact import ExactIndex
from tripletmas.index.images import ImageIndex, Part, Settings, Transform
from tripletmas.index.streamed import Streamed

DIM, COUNT = 16, 500
OLD, NEW = Part("a" * 64, 0, "a" * 64), Part("b" * 64, 1, "b" * 64)
LISTS = Settings(DIM, Transform((4, 4), 1), kind="IVF8,Flat", nprobe=2, on_disk=True)
EXACT = Settings(DIM, Transform((4, 4), 1))
KINDS = ("IVF8,Flat", "IVF8,SQ8", "IVF8,PQ4x4", "OPQ4,IVF8,PQ4x4", "PCA8,IVF8,Flat", "IVF8_HNSW4,Flat", "IVF8,RaBitQ4")


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def names(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number:04d}.png" for number in range(count)]


def in_blocks(vectors: Tensor, rows: int = 70) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(vectors.split(rows))


def grown(settings: Settings, count: int = COUNT) -> ImageIndex:
    """Of an old model and a new one."""
    first = add_images(ImageIndex.empty(settings), drawn(count), names(count), ["x", None] * (count // 2), OLD)
    return add_images(first, drawn(50, 1), names(50, "new"), ["y"] * 50, NEW)


def literal(index: ImageIndex) -> faiss.Index:
    """What faiss holds in memory of the same centroids and the same vectors."""
    assert index.serialized is not None
    found = faiss.deserialize_index(index.serialized.numpy().copy())
    found.add_with_ids(index.vectors.numpy(), index.ids.numpy())
    faiss.extract_index_ivf(found).nprobe = index.settings.nprobe or 1
    return found


def opened(index: ImageIndex | Streamed, path: Path) -> ImageIndex:
    index.save(path)
    return ImageIndex.open(path)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that there are several of them."""
    monkeypatch.setattr(mapped, "BLOCK", 4096)
    monkeypatch.setattr(index_file, "BLOCK", 4096)


# --- lists in the file


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_lists_in_the_file_find_what_faiss_finds_in_memory(kind, metric, tmp_path):
    """To the bit, also after removing and adding, which change no centroid; an id of a removed image is not used."""
    settings = replace(LISTS, kind=kind, metric=metric, normalize=False)
    index = opened(
        add_images(ImageIndex.empty(settings), drawn(COUNT), names(COUNT), [None] * COUNT, OLD), tmp_path / "i"
    )
    learned = index.serialized
    for step in (
        lambda each: each,
        lambda each: remove_images(each, torch.arange(0, COUNT, 3)),
        lambda each: add_images(each, drawn(60, 2), names(60, "b"), [None] * 60, NEW),
        lambda each: streamed.removed(each, torch.arange(100)),
    ):
        index = opened(step(index), tmp_path / "i")
        asked = drawn(40, 3)
        scores, ids = literal(index).search(asked.numpy(), 10)
        found, rows = index.search(asked, 10)
        there = torch.from_numpy(ids) >= 0
        assert torch.equal(index.ids[rows[there]], torch.from_numpy(ids)[there])
        assert bool((rows[~there] == -1).all())
        expected = torch.from_numpy(scores)[there]
        expected = -expected if metric == "l2" else expected
        if kind.startswith("PCA"):  # a product of matrices rounds by how many rows it has
            torch.testing.assert_close(found[there], expected)
        else:
            assert torch.equal(found[there], expected)
        searched = index.searchable()
        assert isinstance(searched, lists.MappedLists)
        assert searched.ids.sort().values.tolist() == index.ids.tolist()
        assert index.serialized is not None
        assert learned is not None
        assert torch.equal(index.serialized, learned)


def test_an_index_is_the_one_that_faiss_trains_itself(tmp_path):
    """Of no more than 64 vectors a list all are learned from, as in memory."""
    vectors = drawn(COUNT)
    both = []
    for on_disk in (True, False):
        settings = replace(LISTS, on_disk=on_disk, normalize=False)
        both.append(add_images(ImageIndex.empty(settings), vectors, names(COUNT), [None] * COUNT, OLD))
    there, here = opened(both[0], tmp_path / "i"), both[1]
    for one, other in zip(there.search(drawn(30, 5), 7), here.search(drawn(30, 5), 7), strict=True):
        assert torch.equal(one, other)


def test_what_was_not_saved_yet_is_searched_as_well(tmp_path):
    index = grown(LISTS)
    for one, other in zip(
        index.search(drawn(9, 5), 4), opened(index, tmp_path / "i").search(drawn(9, 5), 4), strict=True
    ):
        assert torch.equal(one, other)


def test_few_of_many_vectors_are_learned_from(monkeypatch):
    monkeypatch.setattr(lists, "_TRAINING", 4)
    seen = []
    train = lists.approximate.train
    monkeypatch.setattr(lists.approximate, "train", lambda *given: (seen.append(given[2]), train(*given)))
    vectors = drawn(COUNT)
    lists.Listing.of(DIM, "IVF8,Flat", "l2", blocks=in_blocks(vectors), count=COUNT)
    assert torch.equal(torch.from_numpy(seen[0]), vectors[::16])  # 500 / (4 * 8), rounded up


def test_an_empty_index_of_lists(tmp_path):
    empty = opened(ImageIndex.empty(LISTS), tmp_path / "i")
    assert (len(empty), empty.search(drawn(1), 2)[1].tolist()) == (0, [[-1, -1]])
    index = opened(grown(LISTS), tmp_path / "i")
    for gone in (remove_images(index, torch.arange(len(index))), streamed.removed(index, torch.arange(len(index)))):
        assert opened(gone, tmp_path / "j").search(drawn(1), 2)[1].tolist() == [[-1, -1]]


def test_an_index_on_the_disk_lies_in_any_folder(tmp_path):
    index = grown(LISTS)
    index.save(tmp_path / "here")
    (tmp_path / "there").mkdir()
    shutil.move(tmp_path / "here", tmp_path / "there" / "other")
    found = ImageIndex.open(tmp_path / "there" / "other")
    (tmp_path / "there" / "other").unlink()  # what is opened stays
    for one, other in zip(index.search(drawn(9, 5), 4), found.search(drawn(9, 5), 4), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("exact", "has lists of vectors.*'exact' has none"),
        ("HNSW8", "has lists of vectors.*'HNSW8' has none"),
        ("IVF8,PQ4x4fs", "has lists of vectors"),
        ("IVF8,Flat,RFlat", "has lists of vectors"),
        ("IDMap2,Flat", "has lists of vectors"),
        ("IVF8,Nothing", "a factory string of faiss"),
    ],
)
def test_kinds_without_lists_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        ImageIndex.empty(replace(LISTS, kind=kind, nprobe=None))
    with pytest.raises(ValueError, match="no ef_search"):
        ImageIndex.empty(replace(LISTS, ef_search=4))


def test_lists_in_a_file_are_not_changed_in_place(tmp_path):
    found = opened(grown(LISTS), tmp_path / "i").searchable()
    with pytest.raises(ValueError, match="do not change"):
        found.add(drawn(1))
    with pytest.raises(ValueError, match="do not change"):
        found.remove(torch.tensor([1]))


# --- block after block


def both_ways(index: ImageIndex) -> dict[str, tuple[ImageIndex, Streamed]]:
    """Each change in memory, and in blocks."""
    more, labels = drawn(60, 4) * 3, ["x", "z", None] * 20
    gone = torch.tensor([0, 3, 4, 70, 71, 499, 510])
    drifts = {0: lambda vectors: vectors + 0.1}
    return {
        "added": (
            add_images(index, more, names(60, "b"), labels, NEW, root="shop"),
            streamed.added(index, in_blocks(more, 11), names(60, "b"), labels, NEW, root="shop"),
        ),
        "removed": (remove_images(index, gone), streamed.removed(index, gone)),
        "moved": (
            move_parts(index, drifts, NEW.model, ("linear",)),
            streamed.moved(index, drifts, NEW.model, ("linear",)),
        ),
    }


@pytest.mark.parametrize("settings", [EXACT, LISTS, replace(EXACT, normalize=False, metric="l2")])
@pytest.mark.parametrize("change", ["added", "removed", "moved"])
def test_a_change_in_blocks_is_the_same_file(change, settings, tmp_path):
    index = opened(grown(settings), tmp_path / "before")
    for where, each in zip(("whole", "blocks"), both_ways(index)[change], strict=True):
        each.save(tmp_path / where)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "blocks").read_bytes()
    assert (tmp_path / "whole").read_bytes() != (tmp_path / "before").read_bytes()


@pytest.mark.parametrize("settings", [EXACT, LISTS])
def test_an_index_is_built_of_blocks(settings, tmp_path):
    vectors = drawn(COUNT)
    streamed.built(tmp_path / "blocks", settings, in_blocks(vectors), names(COUNT), OLD, run="runs/x", root="shop")
    whole = ImageIndex.empty(settings, "runs/x")
    add_images(whole, vectors, names(COUNT), [None] * COUNT, OLD, root="shop").save(tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "blocks").read_bytes()


def test_an_index_is_written_over_by_its_own_change(tmp_path):
    index = opened(grown(LISTS), tmp_path / "i")
    streamed.moved(index, {0: lambda vectors: -vectors, 1: lambda vectors: -vectors}, "c" * 64, ("none",)).save(
        tmp_path / "i"
    )
    after = ImageIndex.open(tmp_path / "i")
    assert torch.allclose(after.vectors, -index.vectors)
    assert after.search(-index.vectors[:30], 1)[1].flatten().tolist() == list(range(30))
    assert after.stale("c" * 64) == ()


def test_images_that_are_embedded_anew_are_found(tmp_path):
    index = opened(grown(LISTS), tmp_path / "i")
    after = opened(replace_vectors(index, torch.arange(20), drawn(20, 9), NEW), tmp_path / "i")
    assert after.search(drawn(20, 9), 1)[1].flatten().tolist() == list(range(20))


def test_other_vectors_and_other_ids_make_other_lists(tmp_path):
    index = opened(grown(LISTS), tmp_path / "i")
    other = all_replaced(index, drawn(COUNT + 50, 9), LISTS, NEW, run="runs/new")
    numbered = with_ids(index, index.ids * 3 + 1)
    for each, asked in ((other, drawn(30, 9)), (numbered, index.vectors[:30])):
        for found in (each, opened(each, tmp_path / "j")):
            assert found.search(asked, 1)[1].flatten().tolist() == list(range(30))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (drawn(49), "49 vectors came for 50 images"),
        (drawn(51), "51 vectors .*for 50"),
        (torch.randn(50, DIM + 1), r"must have shape \(n, 16\), got \(50, 17\)"),
        (
            drawn(50).masked_fill(torch.arange(50)[:, None] == 33, float("nan")),
            "1 vectors hold NaN or infinity, of: shop/",
        ),
    ],
)
def test_blocks_that_do_not_fit_leave_the_old_file(vectors, message, tmp_path):
    path = tmp_path / "i"
    grown(EXACT).save(path)
    before = path.read_bytes()
    for settings in (EXACT, LISTS):
        with pytest.raises(ValueError, match=message):
            streamed.built(path, settings, in_blocks(vectors, 60), names(50), OLD, root="shop")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["i"]


def test_fewer_vectors_than_lists(tmp_path):
    message = "7 vectors cannot train the index 'IVF8,Flat', which has 8 lists"
    with pytest.raises(ValueError, match=message):
        streamed.built(tmp_path / "i", LISTS, in_blocks(drawn(7)), names(7), OLD)
    with pytest.raises(ValueError, match=message):
        add_images(ImageIndex.empty(LISTS), drawn(7), names(7), [None] * 7, OLD).save(tmp_path / "i")
    assert not list(tmp_path.iterdir())


def test_what_faiss_holds_in_memory_does_not_come_in_blocks():
    index = grown(replace(LISTS, on_disk=False))
    with pytest.raises(ValueError, match="faiss holds an index of kind 'IVF8,Flat' in memory"):
        streamed.removed(index, torch.tensor([1]))


# --- exact, and larger than what may stay in memory


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_an_exact_search_of_a_large_file_finds_the_same(metric, backend, tmp_path, monkeypatch):
    """Also where many vectors are equal, which needs all stages of the search."""
    vectors = torch.cat([drawn(300), drawn(1, 8).expand(200, DIM), drawn(100, 9)]).contiguous()
    settings = replace(EXACT, normalize=False, metric=metric)
    empty = ImageIndex.empty(settings)
    index = opened(add_images(empty, vectors, names(600), [None] * 600, OLD), tmp_path / "i")
    asked = torch.cat([drawn(20, 5), vectors[:3], vectors[300:303]])
    here = ExactIndex.over(vectors, metric=metric, normalize=False, backend=backend)
    expected = [here.search(asked, k) for k in (1, 7, 150, 600)]
    ranks = here.rank(asked, torch.arange(26) * 20)
    monkeypatch.setattr(mapped, "LARGE", 10_000)
    given_back = []
    release = mapped.release
    monkeypatch.setattr(mapped, "release", lambda tensor: (given_back.append(len(tensor)), release(tensor)))
    there = ExactIndex.over(index.vectors, metric=metric, normalize=False, backend=backend)
    for k, (scores, positions) in zip((1, 7, 150, 600), expected, strict=True):
        found, where = there.search(asked, k)
        assert torch.equal(where, positions)
        torch.testing.assert_close(found, scores)
    assert torch.equal(there.rank(asked, torch.arange(26) * 20), ranks)
    assert len(given_back) > 10


# --- damage


def test_a_damaged_list_is_one_sentence(tmp_path):
    """Of each part of the file a byte; and without the checksums, lists that do not fit."""
    path = tmp_path / "i"
    index = opened(grown(LISTS), path)
    whole = path.read_bytes()
    for at in range(len(whole) - 1, 0, -len(whole) // 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"i (cannot be read|is damaged)"):
            ImageIndex.open(path)
    for cut in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="i cannot be read"):
            ImageIndex.open(path)
    assert index.list_sizes is not None
    assert index.lists is not None
    assert index.serialized is not None
    for damage in (
        {"list_sizes": index.list_sizes[:-1]},
        {"list_sizes": index.list_sizes + torch.tensor([1] + [0] * 7)},
        {"list_sizes": torch.tensor([-1, int(index.list_sizes.sum()) + 1] + [0] * 6)},
        {"lists": index.lists[:-1]},
        {"lists": None},
        {"serialized": index.serialized[:-9]},
        {"settings": replace(LISTS, kind="IVF4,Flat")},
        {"settings": replace(LISTS, kind="IVF8,SQ8")},
        {"settings": replace(LISTS, metric="l2")},
    ):
        changed = replace(index, **damage)
        index_file.write_index_file(path, changed._tensors(), index.paths, changed._header())
        with pytest.raises(ValueError, match=r"i is damaged \(.*restore it from a copy, or build it anew"):
            ImageIndex.open(path)


def test_an_earlier_version_does_not_take_it_for_an_index_without_lists(tmp_path, monkeypatch):
    path = tmp_path / "i"
    grown(LISTS).save(path)
    monkeypatch.setattr(index_file, "ON_DISK", 1)  # what it reads
    with pytest.raises(ValueError, match="of format 1, with lists on the disk, and this version of tripletmas reads"):
        ImageIndex.open(path)


def test_a_file_of_an_exact_index_is_one_that_earlier_versions_read(tmp_path):
    grown(EXACT).save(tmp_path / "i")
    header = index_file.read_index_file(tmp_path / "i")[2]
    assert header["format"] == 1
    assert "on_disk" not in header["settings"]


def test_a_full_disk_leaves_the_old_index(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "i"
    index = opened(grown(LISTS), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        for _, change in both_ways(index).values():
            with pytest.raises(OSError, match="File too large"):
                change.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["i"]


_SLOW_CHANGE = """
import sys, time, torch
from tripletmas.index import streamed
from tripletmas.index.file import locked
from tripletmas.index.images import ImageIndex
def slowly(vectors):
    print("moving", flush=True)
    time.sleep(60)
with locked(sys.argv[1]):
    streamed.moved(ImageIndex.open(sys.argv[1]), {0: slowly}, "c" * 64, ("none",)).save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_change_that_is_killed_leaves_the_old_index_and_can_be_made_again(tmp_path):
    path = tmp_path / "i"
    index = opened(grown(LISTS), path)
    before = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", _SLOW_CHANGE, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "moving\n"
        with pytest.raises(ValueError, match="is being changed by another process"), index_file.locked(path):
            pass
        os.kill(child.pid, signal.SIGKILL)
    assert path.read_bytes() == before
    with index_file.locked(path):
        streamed.moved(index, {0: lambda vectors: -vectors}, "c" * 64, ("none",)).save(path)
    assert {each.name for each in tmp_path.iterdir()} <= {"i", "i.lock"}
    assert torch.allclose(ImageIndex.open(path).vectors[:COUNT], -index.vectors[:COUNT])
