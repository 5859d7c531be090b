"""Vectors of a new model beside the old ones: written, checked, switched to, taken back, in every engine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
import torch
from store_engines import COUNT, DIM, ENGINES, columns, fill, points

from tripletmas.index.images import Transform
from tripletmas.stores.identity import Identity, active_field, read_notes, write_notes
from tripletmas.stores.opening import opened
from tripletmas.stores.upgrading import (
    apply_move,
    begin,
    changing,
    drop_old,
    rollback,
    switch,
    write_anew,
)

NEW_DIM = 5
IDS = [3 * (row + 1) for row in range(COUNT)]
OLD = Identity("0123456789abcdef", Transform((8, 8), 1), DIM, "inner_product", True, "runs/old", 2)
NEW = replace(OLD, model="fedcba9876543210", dim=NEW_DIM, source="runs/new", embedded_by=OLD.model)


@dataclass
class Projection:
    """Unit vectors of a product with a fixed matrix; counts its calls, and fails after some."""

    calls: int = 0
    fail_after: int = 10**9

    def apply(self, vectors):
        if self.calls == self.fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        matrix = torch.randn(DIM, NEW_DIM, generator=torch.Generator().manual_seed(9))
        return torch.nn.functional.normalize(vectors @ matrix)


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


@pytest.fixture
def url(engine, tmp_path):
    url = engine.url(tmp_path)
    fill(url)
    return url


def start(store, tmp_path, name="first"):
    return begin(store, name, old="vector", was=OLD, becomes=NEW, directory=tmp_path / "work")


def all_of(store, name):
    """(ids, vectors, columns), as bytes can be compared."""
    blocks = list(store.scan(name, columns=list(columns())))
    found = {key: [each for block in blocks for each in block.columns[key]] for key in columns()}
    return [each for block in blocks for each in block.ids], torch.cat([block.vectors for block in blocks]), found


@pytest.mark.slow
def test_from_beginning_to_end(engine, url, tmp_path):
    with opened(url) as store:
        before = all_of(store, "vector")
        upgrade = start(store, tmp_path)
        assert active_field(store, read_notes(store)) == "vector"
        with pytest.raises(ValueError, match="not every point"):
            switch(store)
        with pytest.raises(ValueError, match="old vectors can go after"):
            drop_old(store)
        done = apply_move(store, Projection(), size=7)
        assert (done.points, done.written, done.found, done.without, done.unusable) == (COUNT, COUNT, 0, 0, 0)
        again = apply_move(store, Projection(), size=7)
        assert (again.points, again.written) == (COUNT, 0)
        moved = Projection().apply(points())
        ids, vectors, found = all_of(store, upgrade.new)
        assert (ids, found) == (IDS, columns())
        assert torch.allclose(vectors, moved, atol=1e-6)
        switched = switch(store)
    with opened(url) as store:
        notes = read_notes(store)
        assert notes.upgrade == switched
        assert notes.identities == {switched.active: NEW, switched.kept: OLD}
        assert active_field(store, notes) == switched.active
        assert switched.active == ("vector" if engine.renames else upgrade.new)
        hit = store.search(switched.active, moved[4:5], 1, metric="cosine")[0][0]
        assert hit.id == IDS[4]
        drop_old(store)
        with pytest.raises(ValueError, match="no upgrade under way"):
            rollback(store)
    with opened(url) as store:
        assert set(store.fields()) == {switched.active}
        notes = read_notes(store)
        assert (notes.identities, notes.upgrade) == ({switched.active: NEW}, None)
        ids, vectors, found = all_of(store, switched.active)
        assert (ids, found) == (before[0], before[2])
        assert torch.allclose(vectors, moved, atol=1e-6)


@pytest.mark.parametrize("how_far", ["begun", "half", "applied", "switched"])
def test_it_can_be_taken_back_at_any_time(url, tmp_path, how_far):
    with opened(url) as store:
        before, fields, told = all_of(store, "vector"), store.fields(), store.notes()
        write_notes(store, read_notes(store).with_identity("vector", OLD))
        start(store, tmp_path)
        if how_far == "half":
            with pytest.raises(KeyboardInterrupt):
                apply_move(store, Projection(fail_after=3), size=7)
        if how_far in ("applied", "switched"):
            apply_move(store, Projection(), size=7)
        if how_far == "switched":
            switch(store)
    with opened(url) as store:
        assert rollback(store) == 0
    with opened(url) as store:
        assert store.fields() == fields
        after = all_of(store, "vector")
        assert (after[0], after[2]) == (before[0], before[2])
        assert torch.equal(after[1], before[1])
        assert read_notes(store).identities == {"vector": OLD}
        write_notes(store, read_notes(store).with_identity("vector", None))
        assert store.notes() == told
        assert not (tmp_path / "work" / "progress.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fail_after", [0, 1, 4, 7])
def test_interrupted_it_goes_on_to_the_same_bytes(url, tmp_path, fail_after, monkeypatch):
    monkeypatch.setattr("tripletmas.stores.writing._SECONDS", 0)
    with opened(url) as store:
        upgrade = start(store, tmp_path)
        whole = apply_move(store, Projection(), size=7)
        expected = all_of(store, upgrade.new)
        rollback(store)
        start(store, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            apply_move(store, Projection(fail_after=fail_after), size=7)
    with opened(url) as store:
        start(store, tmp_path)
        rest = apply_move(store, Projection(), size=1000)  # the size of the interrupted one counts
        assert rest.written == whole.written - 7 * fail_after
        after = all_of(store, upgrade.new)
        assert (after[0], after[2]) == (expected[0], expected[2])
        assert torch.equal(after[1], expected[1])


@pytest.mark.slow
def test_points_that_come_or_change_meanwhile_are_found(engine, url, tmp_path):
    if not engine.inserts:
        pytest.skip("points come into it by other commands")
    extra = points(seed=3)
    with opened(url) as store:
        upgrade = start(store, tmp_path)

        @dataclass
        class Meddling(Projection):
            def apply(self, vectors):
                if self.calls == 3:  # behind the first blocks
                    more = {key: values[:2] for key, values in columns().items()}
                    store.insert("vector", [1, 1000], extra[:2], more)
                    store.write("vector", [IDS[0]], extra[2:3])
                return super().apply(vectors)

        done = apply_move(store, Meddling(), size=7)
        assert done.points == COUNT + 2
        assert done.found >= 2
        moved = store.read(upgrade.new, [1, 1000, IDS[0]]).vectors
        assert torch.allclose(moved, Projection().apply(extra[:3]), atol=1e-6)
        assert not bool(torch.cat([block.vectors for block in store.scan(upgrade.new)]).isnan().any())


@pytest.mark.slow
def test_points_that_were_embedded_anew_keep_their_vector(url, tmp_path):
    anew = points(seed=4, dim=NEW_DIM)[:2]
    with opened(url) as store:
        upgrade = start(store, tmp_path)
        apply_move(store, Projection(), size=7)
        write_anew(store, upgrade, [6, 150], anew)
        assert apply_move(store, Projection(), size=7).written == 0
        assert torch.allclose(store.read(upgrade.new, [6, 150]).vectors, anew, atol=1e-6)


def test_a_point_without_a_vector_gets_none(url, tmp_path):
    with opened(url) as store:
        store.add_field(replace(store.fields()["vector"], name="other"))
        store.write("other", IDS[:40], points()[:40])
        upgrade = begin(store, "it", old="other", was=OLD, becomes=NEW, directory=tmp_path / "work")
        done = apply_move(store, Projection(), size=7)
        assert (done.written, done.without) == (40, 10)
        assert bool(store.read(upgrade.new, IDS[40:]).vectors.isnan().all())
        rollback(store)
        assert set(store.fields()) == {"vector", "other"}


def test_points_that_came_after_the_switch_are_told_before_it_is_taken_back(engine, url, tmp_path):
    if not engine.inserts:
        pytest.skip("points come into it by other commands")
    with opened(url) as store:
        start(store, tmp_path)
        apply_move(store, Projection())
        switched = switch(store)
        store.insert(switched.active, [1000], Projection().apply(points(3)[:1]), {"label": ["mug"], "path": ["p"]})
        with pytest.raises(ValueError, match=r"1 points of .* have no old vector"):
            rollback(store)
        assert read_notes(store).upgrade == switched
        assert rollback(store, force=True) == 1
        assert set(store.fields()) == {"vector"}


def test_points_that_came_after_it_was_applied_are_not_left_behind_by_the_switch(engine, url, tmp_path):
    if not engine.inserts:
        pytest.skip("points come into it by other commands")
    with opened(url) as store:
        upgrade = start(store, tmp_path)
        apply_move(store, Projection())
        write_anew(store, upgrade, [IDS[1]], points(seed=4, dim=NEW_DIM)[:1])
        more = {key: values[:2] for key, values in columns().items()}
        store.insert("vector", [1000, IDS[1]], points(seed=3)[:2], more)  # a new one, and one that is replaced
        lost = int(store.read(upgrade.new, [1000, IDS[1]]).vectors.isnan().all(dim=1).sum())
        with pytest.raises(ValueError, match=rf"{lost} points of .* came after --apply .*: --apply once more"):
            switch(store)
        assert apply_move(store, Projection()).found == lost
        assert not bool(torch.cat([block.vectors for block in store.scan(upgrade.new)]).isnan().any())
        switch(store)


def test_a_plan_of_other_vectors_is_refused(url, tmp_path):
    with opened(url) as store:
        start(store, tmp_path)
        apply_move(store, Projection())
        rollback(store)
        write_notes(store, read_notes(store).with_identity("vector", replace(OLD, model="other", source="runs/other")))
        said = store.notes()
        if read_notes(store).identities["vector"].model == "other":  # an index file knows its own
            with pytest.raises(ValueError, match=r"are by other \(runs/other\), and the upgrade is from .*plan anew"):
                start(store, tmp_path)
        with pytest.raises(ValueError, match=f"are of dim {DIM}, and the upgrade is from .* of dim 9"):
            begin(store, "x", old="vector", was=replace(OLD, dim=9), becomes=NEW, directory=tmp_path)
        assert store.notes() == said


def test_what_a_former_upgrade_left_in_the_folder_is_forgotten(url, tmp_path):
    with opened(url) as store:
        upgrade = start(store, tmp_path)
        apply_move(store, Projection())
        write_anew(store, upgrade, IDS[:3], points(seed=4, dim=NEW_DIM)[:3])
        left = {each: each.read_bytes() for each in (tmp_path / "work").iterdir()}
        rollback(store)
        for each, content in left.items():  # as where the store is put back from a copy of before
            each.write_bytes(content)
        start(store, tmp_path)
        assert apply_move(store, Projection()).written == COUNT
        assert torch.allclose(all_of(store, upgrade.new)[1], Projection().apply(points()), atol=1e-6)


def test_a_vector_that_cannot_be_moved_takes_nothing_back_that_was_there(engine, url, tmp_path):
    if not engine.inserts:
        pytest.skip("points come into it by other commands")
    with opened(url) as store:
        upgrade = start(store, tmp_path)
        apply_move(store, Projection())
        store.insert("vector", [1000], torch.zeros(1, DIM), {key: values[:1] for key, values in columns().items()})
        if not bool((store.read("vector", [1000]).vectors == 0).all()):
            pytest.skip("no zero vectors in this engine")
        with pytest.raises(ValueError, match=r"of point 1000 is zero: --leave-unusable .*, --rollback takes back"):
            apply_move(store, Projection())
        assert upgrade.new in store.fields()
        assert apply_move(store, Projection(), leave_unusable=True).unusable == 1
        switch(store)


@pytest.mark.parametrize(("stage", "step"), [("switching", "--switch"), ("returning", "--rollback")])
def test_between_two_models_nothing_is_searched(url, tmp_path, stage, step):
    with opened(url) as store:
        upgrade = start(store, tmp_path)
        write_notes(store, replace(read_notes(store), upgrade=replace(upgrade, stage=stage)))
        with pytest.raises(ValueError, match=f"is between two models: .* {step} finishes it"):
            active_field(store, read_notes(store))


def test_points_that_never_had_a_vector_are_not_said_to_have_come_after_the_switch(url, engine, tmp_path):
    if not engine.inserts:
        pytest.skip("an index has a vector of each")
    with opened(url) as store:
        store.add_field(replace(store.fields()["vector"], name="other"))
        store.write("other", IDS[:40], points()[:40])
        begin(store, "it", old="other", was=OLD, becomes=NEW, directory=tmp_path / "work")
        apply_move(store, Projection())
        if engine is ENGINES["milvus"]:  # a second vector is a copy there, and stays one
            with pytest.raises(ValueError, match="no vector that can take the place of 'other'"):
                switch(store)
            assert read_notes(store).upgrade.stage == "applied", "not between two models"
        else:
            switch(store)
        assert rollback(store) == 0
        assert torch.allclose(store.read("other", IDS[:40]).vectors, points()[:40], atol=1e-6)


def test_two_at_once_are_refused(url, tmp_path):
    with opened(url) as store:
        start(store, tmp_path)
        with pytest.raises(ValueError, match="another upgrade under way"):
            start(store, tmp_path, name="second")
        with (
            changing(store, tmp_path / "work"),
            pytest.raises(ValueError, match="being changed by another process"),
            changing(store, tmp_path / "work"),
        ):
            pass
        assert start(store, tmp_path) == read_notes(store).upgrade


def test_notes_of_another_version_are_no_notes(url):
    with opened(url) as store:
        store.set_notes({"format": 99, "fields": {"other": {}}})
        with pytest.raises(ValueError, match="format 99"):
            read_notes(store)
        store.set_notes({"format": 1, "fields": {"other": {"model": 3}}})
        with pytest.raises(ValueError, match="damaged"):
            read_notes(store)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system reserves no room of a file")
def test_room_for_all_new_vectors_of_an_index_file_is_there_before_one_is_written(tmp_path):
    fill(f"{tmp_path}/points.index")
    with opened(f"{tmp_path}/points.index") as store:
        store.add_field(replace(store.fields()["vector"], name="wide", dim=4096))
        store.write("wide", IDS[-1:], torch.ones(1, 4096))
    about = (tmp_path / "points.index.wide.vectors").stat()
    assert about.st_blocks * 512 >= about.st_size == (3 * COUNT + 1) * 4096 * 4  # a hole would take no block
