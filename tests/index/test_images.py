"""An index of images: what it knows, how it changes, and its file."""

from __future__ import annotations

import errno
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tripletmas.index import file as index_file
from tripletmas.index.base import unit
from tripletmas.index.changes import add_images, move_parts, relocate_images, remove_images, replace_vectors
from tripletmas.index.drift import fit_drift
from tripletmas.index.file import locked
from tripletmas.index.images import ImageIndex, Part, Settings, Transform

DIM = 8
OLD, NEW = Part("a" * 64, 0, "a" * 64), Part("b" * 64, 1, "b" * 64)
SETTINGS = Settings(DIM, Transform(4, 1))
KINDS = ["exact", "IVF4,Flat", "HNSW8", "SQ8", "PQ8x6", "RaBitQ4", "IVF4,SQ8"]


def drawn(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)) * 3


def grown(index: ImageIndex, count: int, part: Part, *, root: str, seed: int = 0) -> ImageIndex:
    """With `count` more images, whose classes are x, y, none in turn."""
    classes = ["x", "y", None]
    names = [f"{number:03d}.png" for number in range(count)]
    return add_images(index, drawn(count, seed), names, [classes[i % 3] for i in range(count)], part, root=root)


def filled(settings: Settings = SETTINGS) -> ImageIndex:
    """An index of 150 images by an old model and 30 by a new one."""
    first = grown(ImageIndex.empty(settings, "runs/mas"), 150, OLD, root="shop")
    return grown(first, 30, NEW, root="more", seed=1)


def same(one: ImageIndex, other: ImageIndex) -> bool:
    names = ("vectors", "ids", "part", "labels")
    facts = ("settings", "paths", "parts", "class_names", "roots", "run", "next_id")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names) and all(
        getattr(one, name) == getattr(other, name) for name in facts
    )


# --- what it holds


def test_an_index_knows_of_each_vector_who_made_it_and_where_its_image_lies():
    index = filled()
    assert len(index) == 180
    assert torch.allclose(index.vectors, unit(torch.cat([drawn(150), drawn(30, 1)])))
    assert (index.parts, index.class_names, index.roots) == ((OLD, NEW), ("x", "y"), ("shop", "more"))
    assert index.part.tolist() == [0] * 150 + [1] * 30
    assert [index.label_of(row) for row in (0, 1, 2, 150)] == ["x", "y", None, "x"]
    assert (index.paths[3], index.name_of(3)) == ("shop/003.png", "003.png")
    assert index.stale("b" * 64) == (0,)
    assert index.stale("c" * 64) == (0, 1)
    assert index.of_parts([1]).tolist() == list(range(150, 180))


def test_the_name_of_an_image_is_below_the_longest_root_it_lies_in():
    index = ImageIndex.empty(SETTINGS)
    for root, name in (("shop", "a/1.png"), ("shop/b", "2.png"), ("shop/b/c.zip", "d/3.png")):
        index = add_images(index, drawn(1), [name], [None], OLD, root=root)
    assert [index.name_of(row) for row in range(3)] == ["a/1.png", "2.png", "d/3.png"]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_search_gives_rows_by_the_metric_of_the_index(metric, normalize):
    index = filled(replace(SETTINGS, metric=metric, normalize=normalize))
    queries = drawn(5, 7)
    stored, asked = (unit(each) if normalize else each for each in (torch.cat([drawn(150), drawn(30, 1)]), queries))
    expected = asked @ stored.T if metric == "inner_product" else -torch.cdist(asked, stored).square()
    scores, rows = index.search(queries, 4)
    best = expected.topk(4, dim=1)
    assert torch.equal(rows, best.indices)
    assert torch.allclose(scores, best.values, atol=1e-4)
    scores, rows = index.search(queries, 200)
    assert (rows[:, 180:] == -1).all()
    assert (scores[:, 180:] == -torch.inf).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_removed_is_not_found_and_its_id_is_not_used_again(kind):
    index = filled(replace(SETTINGS, kind=kind))
    smaller = remove_images(index, torch.tensor([0, 5, 179]))
    assert (len(smaller), len(index)) == (177, 180)
    assert "shop/005.png" not in smaller.paths
    _, rows = smaller.search(index.vectors[[0, 5, 7, 179]], 1)
    assert smaller.paths[int(rows[2])] == "shop/007.png"
    assert smaller.ids.max() == 178
    again = grown(smaller, 2, NEW, root="again", seed=3)
    assert again.ids[-2:].tolist() == [180, 181]
    _, rows = again.search(drawn(2, 3), 1)
    assert rows.flatten().tolist() == [177, 178]


def test_a_part_without_vectors_is_forgotten():
    index = remove_images(filled(), torch.arange(150))
    assert index.parts == (NEW,)
    assert index.part.tolist() == [0] * 30
    empty = remove_images(index, torch.arange(30))
    assert (len(empty), empty.parts, empty.search(drawn(1), 1)[1].tolist()) == (0, (), [[-1]])
    assert grown(empty, 3, OLD, root="shop").parts == (OLD,)


def test_images_of_one_model_are_one_part():
    index = grown(filled(), 3, OLD, root="third", seed=4)
    assert index.parts == (OLD, NEW)
    assert index.of_parts([0]).tolist() == [*range(150), 180, 181, 182]


# --- what is refused


def test_images_that_are_there_already_are_named_and_counted():
    index = filled()
    with pytest.raises(ValueError, match=r"3 of 3 images are in the index already, the first is shop/000\.png"):
        grown(index, 3, NEW, root="shop", seed=5)
    with pytest.raises(ValueError, match=r"1 of 2 images are in the index already, the first is new/1\.png"):
        add_images(index, drawn(2), ["1.png", "1.png"], [None, None], OLD, root="new")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_vectors_that_are_not_finite_are_named(bad):
    vectors = drawn(3)
    vectors[1, 2] = bad
    index = filled()
    with pytest.raises(ValueError, match=r"1 vectors hold NaN or infinity, of: new/b\.png"):
        add_images(index, vectors, ["a.png", "b.png", "c.png"], [None] * 3, OLD, root="new")
    with pytest.raises(ValueError, match=r"1 vectors hold NaN or infinity, of: shop/001\.png"):
        replace_vectors(index, torch.arange(3), vectors, NEW)
    with pytest.raises(ValueError, match="150 vectors hold NaN or infinity"):
        move_parts(index, {0: lambda rows: rows * bad}, NEW.model, ("linear",))


@pytest.mark.parametrize(
    ("settings", "vectors", "message"),
    [
        ({"kind": "nonsense"}, drawn(2), "nonsense"),
        ({"metric": "cosine"}, drawn(2), "metric must be one of"),
        ({"nprobe": 3}, drawn(2), "kind 'exact' has no nprobe"),
        ({}, torch.ones(2, 5), r"vectors must have shape \(n, 8\), got \(2, 5\)"),
        ({"kind": "IVF64,Flat"}, drawn(2), "IVF64,Flat"),  # fewer vectors than lists
    ],
)
def test_what_does_not_fit_is_refused(settings, vectors, message):
    with pytest.raises(ValueError, match=message):
        add_images(ImageIndex.empty(replace(SETTINGS, **settings)), vectors, ["a", "b"], [None] * 2, OLD)


@pytest.mark.parametrize("kind", ["IVF64,Flat", "IVF4,PQ2x4", "PQ2x6"])
def test_a_trained_index_needs_no_training_to_remove(kind):
    """30 vectors stay, which could not train 64 lists or codes."""
    smaller = remove_images(filled(replace(SETTINGS, kind=kind)), torch.arange(150))
    assert len(smaller) == 30
    _, rows = smaller.search(smaller.vectors[:4], 1)
    assert (rows >= 0).all()
    assert remove_images(smaller, torch.arange(30)).serialized is None


# --- refreshing


@pytest.mark.parametrize(
    ("map_name", "kind"), [("sdc", "exact"), ("mlp", "exact"), *(("linear", kind) for kind in KINDS)]
)
def test_moved_vectors_are_those_that_the_drift_map_gives(map_name, kind):
    index = filled(replace(SETTINGS, kind=kind, nprobe=4 if kind.startswith("IVF") else None))
    turn = torch.linalg.qr(drawn(DIM, 9))[0]
    before = unit(drawn(60, 8))
    move = fit_drift(map_name, before, unit(before @ turn))
    moved = move_parts(index, {0: move}, NEW.model, (map_name,))
    assert torch.equal(moved.vectors[:150], unit(move(index.vectors[:150])))
    assert torch.equal(moved.vectors[150:], index.vectors[150:])
    assert moved.parts == (Part("a" * 64, 0, "b" * 64, (map_name,)), NEW)
    assert moved.stale("b" * 64) == ()
    if map_name == "linear":  # a rotation is linear: the images are found where the new model would put them
        scores, rows = moved.search(unit(drawn(150)[:5]) @ turn, 1)
        assert rows.flatten().tolist() == [0, 1, 2, 3, 4]
        assert (scores > 0.98).all()  # of compressed vectors
    again = move_parts(moved, {0: move, 1: move}, "c" * 64, ("sdc",))
    assert again.parts[0] == Part("a" * 64, 0, "c" * 64, (map_name, "sdc"))
    assert index.parts == (OLD, NEW)  # the old one is as it was


@pytest.mark.parametrize(("kind", "metric"), [("exact", "inner_product"), ("HNSW8", "l2")])
def test_each_part_is_asked_by_queries_of_its_own(kind, metric):
    """By brute force: every row against the query of its part; the best first, of equal scores the smaller row."""
    index = filled(replace(SETTINGS, kind=kind, metric=metric, normalize=metric == "inner_product"))
    index = grown(index, 5, Part("second", 1, "second"), root="/more", seed=5)
    queries = {number: drawn(3, seed=number) for number in range(len(index.parts))}
    scores, rows = index.search_parts(queries, 4)
    for query in range(3):
        found = []
        for row, part in enumerate(index.part.tolist()):
            asked, stored = queries[part][query], index.vectors[row]
            if index.settings.normalize:
                score = float(unit(asked[None])[0] @ stored)
            else:
                score = -float((asked - stored).square().sum())
            found.append((-score, row))
        expected = sorted(found)[:4]
        assert rows[query].tolist() == [row for _, row in expected]
        assert scores[query].tolist() == pytest.approx([-score for score, _ in expected], abs=1e-5)
    scores, rows = index.search_parts(queries, len(index) + 1)
    assert (rows[:, -1] == -1).all()
    assert (rows[:, :-1].sort().values == torch.arange(len(index))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_vectors_belong_to_the_model_that_made_them(kind):
    index = filled(replace(SETTINGS, kind=kind, nprobe=4 if kind.startswith("IVF") else None))
    fresh = replace_vectors(index, torch.arange(150), drawn(150, 12), NEW)
    assert fresh.parts == (NEW,)
    assert torch.allclose(fresh.vectors[:150], unit(drawn(150, 12)))
    assert (fresh.paths, fresh.ids.tolist()) == (index.paths, index.ids.tolist())
    assert fresh.search(drawn(150, 12)[:4], 1)[1].flatten().tolist() == [0, 1, 2, 3]


def test_images_can_lie_elsewhere():
    index = relocate_images(filled(), torch.tensor([0, 160]), "there")
    assert (index.paths[0], index.paths[1], index.paths[160]) == ("there/000.png", "shop/001.png", "there/010.png")
    assert index.name_of(0) == "000.png"
    with pytest.raises(ValueError, match="below there, several images of the index would have one path"):
        relocate_images(filled(), torch.tensor([0, 150]), "there")


# --- the file


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_the_same_after_it_was_saved(kind, tmp_path):
    index = filled(replace(SETTINGS, kind=kind, ef_search=20 if kind == "HNSW8" else None))
    index.save(tmp_path / "shop.index")
    opened = ImageIndex.open(tmp_path / "shop.index")
    assert same(opened, index)
    for one, other in zip(opened.search(drawn(20, 7), 9), index.search(drawn(20, 7), 9), strict=True):
        assert torch.equal(one, other)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_may_be_written_over_by_what_was_made_of_it(kind, tmp_path):
    path = tmp_path / "shop.index"
    filled(replace(SETTINGS, kind=kind)).save(path)
    with locked(path):
        larger = grown(ImageIndex.open(path), 5, NEW, root="third", seed=6)
        larger.save(path)
        remove_images(ImageIndex.open(path), torch.tensor([1])).save(path)
    opened = ImageIndex.open(path)
    assert opened.paths == (larger.paths[0], *larger.paths[2:])
    assert opened.search(drawn(5, 6), 1)[1].flatten().tolist() == [179, 180, 181, 182, 183]


def test_a_reader_keeps_the_index_that_it_opened(tmp_path):
    path = tmp_path / "shop.index"
    index = filled()
    index.save(path)
    opened = ImageIndex.open(path)
    remove_images(opened, torch.arange(100)).save(path)
    assert same(opened, index)


def test_names_in_any_script_are_kept(tmp_path):
    index = add_images(ImageIndex.empty(SETTINGS), drawn(2), ["кот.png", "猫.png"], ["кот", "猫"], OLD, root="été")
    index.save(tmp_path / "x.index")
    assert same(ImageIndex.open(tmp_path / "x.index"), index)


def test_vectors_are_not_read_when_an_index_is_opened(tmp_path):
    """100,000 vectors of dim 64 are 25.6 MB; the memory of mapped files grows by that only when they are used."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")

    def mapped() -> float:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["RssFile"].split()[0]) / 1024

    names, settings = [str(number) for number in range(100_000)], Settings(64, Transform(4, 1), normalize=False)
    index = add_images(ImageIndex.empty(settings), torch.randn(100_000, 64), names, [None] * len(names), OLD)
    index.save(tmp_path / "large.index")
    before = mapped()
    opened = ImageIndex.open(tmp_path / "large.index", verify=False)
    assert mapped() - before < 12
    opened.vectors.sum()
    assert mapped() - before > 20


def saved(path: Path) -> Path:
    filled().save(path)
    return path


def of_format(number: int, path: Path) -> None:
    tensors, paths, header = index_file.read_index_file(saved(path))
    index_file.write_index_file(path, tensors, paths, {**header, "format": number})


CUT = r"x\.index cannot be read .*cut short or another kind of file; restore it from a copy"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, r"no such index file: .*x\.index"),
        (lambda path: path.mkdir(), "no such index file"),
        *((lambda path, n=n: saved(path).write_bytes(path.read_bytes()[:n]), CUT) for n in (0, 4, 100, -1, -5000)),
        *((lambda path, c=c: path.write_bytes(c), CUT) for c in (b"hello", bytes(1000), b"PK\x03\x04" + bytes(99))),
        (lambda path: save_file({"vectors": torch.ones(2)}, path, {"tripletmas index": "{"}), CUT),
        (lambda path: save_file({"vectors": torch.ones(2)}, path, {"tripletmas index": "{}"}), "is damaged"),
        (lambda path: save_file({"weight": torch.ones(2)}, path), "but no index: tripletmas index build writes those"),
        (partial(of_format, 2), "is an index of format 2, and this version of tripletmas reads format 1"),
    ],
)
def test_a_file_that_is_no_whole_index_is_told(spoil, message, tmp_path):
    spoil(tmp_path / "x.index")
    with pytest.raises(ValueError, match=message):
        ImageIndex.open(tmp_path / "x.index")


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, header: tensors.pop("labels"),
        lambda tensors, header: tensors.update(labels=tensors["labels"] + 7),
        lambda tensors, header: tensors.update(ids=tensors["ids"][:-1]),
        lambda tensors, header: tensors.update(ids=tensors["ids"].flip(0)),
        lambda tensors, header: tensors.update(vectors=tensors["vectors"].double()),
        lambda tensors, header: tensors.update(part=tensors["part"] + 1),
        lambda tensors, header: header.update(dim=9),
        lambda tensors, header: header.update(next_id=-math.inf),
        lambda tensors, header: header.pop("parts"),
        lambda tensors, header: header.pop("settings"),
        lambda tensors, header: header["settings"].pop("transform"),
        lambda tensors, header: header.update(parts=[{"model": "a"}, {"model": "b"}]),
    ],
)
def test_contents_that_do_not_fit_each_other_are_told(damage, tmp_path):
    path = saved(tmp_path / "shop.index")
    tensors, paths, header = index_file.read_index_file(path)
    damage(tensors, header)
    index_file.write_index_file(path, {name: value.clone() for name, value in tensors.items()}, paths, header)
    with pytest.raises(ValueError, match=r"shop\.index is damaged \("):
        ImageIndex.open(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_is_full_leaves_the_old_index(step, tmp_path, monkeypatch):
    path = saved(tmp_path / "shop.index")
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match=r"no space left to write .*shop\.index; what was saved before is whole"):
        grown(ImageIndex.open(path), 5, NEW, root="third").save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["shop.index"]


def test_a_file_that_cannot_grow_while_tensors_are_written(tmp_path):
    """A limit on the size of files stands for a disk that is full. safetensors hides the system's error in its text."""
    resource = pytest.importorskip("resource")
    path = saved(tmp_path / "shop.index")
    before, index = path.read_bytes(), ImageIndex.open(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match="os error") as caught:
            index.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["shop.index"]


def test_a_link_stays_one_and_shares_the_lock_of_its_file(tmp_path):
    path, link = tmp_path / "disk" / "shop.index", tmp_path / "link.index"
    path.parent.mkdir()
    saved(path)
    link.symlink_to(path)
    with locked(link):
        remove_images(ImageIndex.open(link), torch.arange(100)).save(link)
        with pytest.raises(ValueError, match="is being changed by another process"), locked(path):
            pass
    assert link.is_symlink()
    assert len(ImageIndex.open(path)) == 80


@pytest.mark.slow
def test_another_process_waits_for_a_writer(tmp_path):
    path = saved(tmp_path / "shop.index")
    script = "import sys; from tripletmas.index.file import locked\nwith locked(sys.argv[1]): print('through')"
    with locked(path):
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert re.search("shop.index is being changed by another process.*: try again when that is done", done.stderr)
    assert "through" not in done.stdout


def test_a_new_index_is_locked_before_it_is_there(tmp_path):
    path = tmp_path / "new" / "shop.index"
    with pytest.raises(ValueError, match="no such index file"), locked(path):
        pass
    assert not list(tmp_path.iterdir())
    with locked(path, new=True):
        filled().save(path)
    with locked(path):
        pass
