"""What is peculiar to a vec0 table: tables beside it, renaming, kinds of columns, locks, files that are none."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import closing

import pytest
import torch

from tripletmas.stores import sqlite_vec_connection
from tripletmas.stores.opening import created, opened
from tripletmas.stores.place import read_place
from tripletmas.stores.store import NoCollection, VectorField

USERS = "shop text partition key, v float[3] distance_metric=l2, label text, stock integer, price float, +path text"


@pytest.fixture
def url(tmp_path):
    return f"sqlite-vec://{tmp_path}/shop.db#points"


@pytest.fixture
def user(url):
    """The user's own connection."""
    with closing(sqlite_vec_connection.connect(read_place(url))) as connection:
        yield connection


def blob(*values):
    return torch.tensor(values, dtype=torch.float32).numpy().tobytes()


def make(user, key="id integer primary key", rows=20):
    """A table of points i = 1, 2, ... whose vectors are (i, 1, 0)."""
    user.execute(
        f"CREATE VIRTUAL TABLE points USING vec0({key}{', ' if key else ''}{USERS.format(v='v')}, chunk_size=8)"
    )
    name = key.split(" ")[0] or "rowid"
    for i in range(rows, 0, -1):
        row = [f"k{i:02}" if "text" in key else i, blob(i, 1, 0), f"l{i % 2}", f"s{i % 3}", i, i / 2, f"{i}.jpg"]
        columns = f"{name}, v, label, shop, stock, price, path"
        user.execute(f"INSERT INTO points ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def users_own(user, key="id"):
    """All that is the user's but for the vectors, as a table of theirs reads it."""
    return user.execute(f"SELECT {key}, label, shop, stock, price, path FROM points ORDER BY {key}").fetchall()


def upgraded(store):
    """Vectors (1, i) beside, as `second`."""
    store.add_field(VectorField("second", 2, "l2"))
    for block in store.scan("v", size=7):
        store.write("second", block.ids, torch.stack([torch.ones(len(block.ids)), block.vectors[:, 0]], dim=1))


@pytest.mark.parametrize("key", ["id integer primary key", "id text primary key", ""])
def test_what_the_user_has_is_what_it_was_after_a_switch(url, user, key):
    make(user, key)
    name = key.split(" ")[0] or "rowid"
    user.execute(f"CREATE VIEW seen AS SELECT {name} AS id, length(v) AS bytes FROM points")
    before = users_own(user, name)
    nearest = f"SELECT {name} FROM points WHERE v MATCH ? AND k = 2 AND label = 'l1' ORDER BY distance"
    with opened(url) as store:
        seven, nine = store.scan("v").__next__().ids[6:9:2]
        assert user.execute(nearest, [blob(7.4, 1, 0)]).fetchall() == [(seven,), (nine,)]
        upgraded(store)
        assert users_own(user, name) == before
        store.switch("v", "second", "former")
        # another connection, which has read the table before, finds the new vectors by the same query
        assert user.execute(nearest, [blob(1, 7.4)]).fetchall() == [(seven,), (nine,)]
        assert user.execute("SELECT DISTINCT bytes FROM seen").fetchall() == [(8,)]
        assert users_own(user, name) == before
        row = ["x" if "text" in key else 99, blob(1, 2)]
        user.execute(f"INSERT INTO points ({name}, v, label, shop, stock, price) VALUES (?, ?, 'a', 'b', 1, 1.0)", row)
        user.execute("DELETE FROM points WHERE label = 'a'")
        assert store.switch("v", "former", "second").kept == "second"
        store.drop_field("second")
        assert user.execute(nearest, [blob(7.4, 1, 0)]).fetchall() == [(seven,), (nine,)]
        assert users_own(user, name) == before
    names = [row[0] for row in user.execute("SELECT name FROM sqlite_master WHERE name LIKE '%\\_\\_%' ESCAPE '\\'")]
    assert not names, "nothing of ours stays"
    assert user.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_switch_takes_along_what_changed_meanwhile(url, user):
    make(user)
    with opened(url) as store:
        upgraded(store)
        user.execute("UPDATE points SET label = 'new', path = 'q.jpg' WHERE id = 3")
        user.execute("DELETE FROM points WHERE id IN (4, 5)")
        for row in ((50, blob(9, 9, 9), "l", "s", 1, 2.0, "p"), (5, blob(9, 9, 9), "l", "z", 1, 2.0, None)):
            user.execute(
                "INSERT INTO points (id, v, label, shop, stock, price, path) VALUES (?, ?, ?, ?, ?, ?, ?)", row
            )
        now = users_own(user)
        assert store.search("second", torch.tensor([[1.0, 4]]), 1, metric="l2")[0][0].id in (3, 5), "4 is gone"
        found = store.search("second", torch.tensor([[1.0, 9]]), 20, metric="l2", where={"label": "new"})[0]
        assert [(hit.id, hit.score) for hit in found] == [(3, -36)]
        assert store.read("second", [3, 4, 50], columns=["label"]).columns == {"label": ["new", "l"]}
        store.switch("v", "second", "former")
        assert users_own(user) == now
        # a vec0 table has no point without a vector: one that came meanwhile is kept, with zeros
        assert store.read("v", [3, 5, 50]).vectors.tolist() == [[1, 3], [1, 5], [0, 0]]
        assert store.read("former", [50, 5]).vectors.tolist() == [[9, 9, 9], [9, 9, 9]]


def test_it_goes_through_in_whole_or_not_at_all(url, user, monkeypatch):
    make(user)
    with opened(url) as store:
        upgraded(store)
        before, tables = users_own(user), user.execute("SELECT * FROM sqlite_master").fetchall()
        renames = []

        def fails(connection, old, new):
            renames.append(old)
            if len(renames) == 2:
                connection.execute("no statement")
            return rename(connection, old, new)

        from tripletmas.stores.sqlite_vec_table import rename

        monkeypatch.setattr("tripletmas.stores.sqlite_vec.rename", fails)
        with pytest.raises(ValueError, match="syntax error"):
            store.switch("v", "second", "former")
        assert user.execute("SELECT * FROM sqlite_master").fetchall() == tables
        assert users_own(user) == before
        monkeypatch.undo()
        store.switch("v", "second", "former")
        assert store.fields()["former"] == VectorField("former", 3, "l2")


def test_what_vec0_does_not_filter_by_is_compared_one_by_one(url, user):
    make(user)
    query = torch.tensor([[7.4, 1, 0]])
    with opened(url) as store:
        for where in ({"label": "l1"}, {"shop": "s1"}, {"label": "l1", "shop": "s1"}):
            hits = store.search("v", query, 3, metric="l2", where=where, columns=["path"])[0]
            slow = store.search("v", query, 5000, metric="l2", where=where, columns=["path"])[0][:3]
            assert [(hit.id, hit.columns) for hit in hits] == [(hit.id, hit.columns) for hit in slow]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in slow])
        said = []
        store._connection.set_trace_callback(said.append)
        assert store.search("v", query, 1, metric="l2", where={"label": "l0"})[0][0].id == 8
        store._connection.set_trace_callback(None)
        assert any(" MATCH " in each for each in said), "vec0 itself is asked wherever it can"
        assert [hit.id for hit in store.search("v", query, 3, metric="l2", where={"path": "9.jpg"})[0]] == [9]
        assert [hit.id for hit in store.search("v", query, 3, metric="l2", where={"stock": "9"})[0]] == [9]
        with pytest.raises(ValueError, match="compares 'v' by l2, and cosine was asked for"):
            store.search("v", query, 3, metric="cosine")


def test_what_cannot_be_moved_is_told(url, user, tmp_path):
    user.execute("CREATE VIRTUAL TABLE points USING vec0(a float[2], b int8[2], c bit[8])")
    user.execute("CREATE TABLE plain (id integer primary key, v blob)")
    with opened(url) as store:
        assert list(store.fields()) == ["a"]
        for name, kind in (("b", "int8"), ("c", "bit")):
            with pytest.raises(ValueError, match=f"'{name}' is {kind}, and vectors of float32 alone"):
                store.read(name, [1])
        with pytest.raises(ValueError, match="several vectors"):
            store.add_field(VectorField("second", 2, "l2"))
    with pytest.raises(NoCollection, match=r"no vec0 table 'plain'.*there are points"), opened(url[:-6] + "plain"):
        pass
    for new, told in (
        (VectorField("v", 2, "inner_product"), "cosine or l2"),
        (VectorField("v w", 2), "letters, digits"),
    ):
        with pytest.raises(ValueError, match=told), created(url[:-6] + "other", new, {}):
            pass
    with pytest.raises(ValueError, match="letters"), created(url[:-6] + "other", VectorField("v", 2), {"a, b": str}):
        pass
    assert user.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'other%'").fetchone() == (0,)
    with pytest.raises(ValueError, match="there is no folder"), created(f"sqlite-vec://{tmp_path}/no/a.db#x", new, {}):
        pass


def test_names_are_only_names(user, url):
    name = "a'b\"; DROP TABLE x;--"
    with created(f"{url[:-6]}{name}", VectorField("v", 2, "l2"), {"path": str}) as store:
        store.insert("v", [1, 2], torch.tensor([[1.0, 2], [3, 4]]), {"path": ["'", '"']})
        store.add_field(VectorField('se"co;nd', 2, "l2"))
        store.write('se"co;nd', [1], torch.tensor([[5.0, 6]]))
        store.set_notes({"a": 1})
        store.switch("v", 'se"co;nd', "former'")
        assert store.read("v", [1, 2]).vectors.tolist() == [[5, 6], [0, 0]]
        assert store.read("former'", [1, 2], columns=["path"]).columns == {"path": ["'", '"']}
        assert store.notes() == {"a": 1}
        store.drop_field("former'")
        assert list(store.fields()) == ["v"]
        with pytest.raises(ValueError, match="own vector, and stays"):
            store.drop_field("v")


def test_a_file_that_another_process_is_writing_to(url, user, monkeypatch):
    make(user)
    monkeypatch.setattr(sqlite_vec_connection, "_SECONDS", 0.1)
    with opened(url) as store:
        user.execute("BEGIN IMMEDIATE")
        user.execute("UPDATE points SET stock = 7 WHERE id = 1")
        for wrong in (
            lambda: store.add_field(VectorField("second", 2, "l2")),
            lambda: store.write("v", [1], torch.ones(1, 3)),
            lambda: store.set_notes({"a": 1}),
        ):
            with pytest.raises(ValueError, match="another process is writing to it, so nothing was changed"):
                wrong()
        assert len(store) == 20
        user.execute("COMMIT")
        store.add_field(VectorField("second", 2, "l2"))
        user.execute("DROP TABLE points")
        with pytest.raises(ValueError, match="is gone"):
            store.fields()


def test_a_file_that_is_none(url, tmp_path):
    with pytest.raises(NoCollection, match="there is no file"), opened(url):
        pass
    assert not (tmp_path / "shop.db").exists()
    (tmp_path / "shop.db").write_bytes(b"something else" * 1000)
    with pytest.raises(ValueError, match="this is no file of SQLite"), opened(url):
        pass
    with pytest.raises(ValueError, match="no option 'metrik'"), opened(f"{url}?metrik=l2"):
        pass


@pytest.mark.slow
def test_a_kill_between_two_writes_loses_none_and_halves_none(url, user):
    make(user, rows=2000)
    child = f"""
        from tripletmas.stores.opening import opened
        with opened({url!r}) as store:
            for block in store.scan("v", size=100):
                store.write("second", block.ids, block.vectors[:, :2])
                print(block.ids[-1], flush=True)
    """
    with opened(url) as store:
        store.add_field(VectorField("second", 2, "l2"))
        for wanted in (3, 8, 15):
            command = [sys.executable, "-c", textwrap.dedent(child)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            said = [int(process.stdout.readline()) for _ in range(wanted)]
            process.kill()
            process.communicate()
            have = [int((~block.without_vector()).sum()) for block in store.scan("second", size=100)]
            assert set(have) <= {0, 100}
            assert have[: said[-1] // 100] == [100] * wanted
        assert user.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
