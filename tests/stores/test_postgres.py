"""What is peculiar to a table of PostgreSQL: types, names, indexes, what depends on a column, locks, passwords."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import uuid

import postgres_server
import psycopg
import pytest
import torch
from psycopg import sql

from tripletmas.stores.opening import opened
from tripletmas.stores.store import VectorField

URL = "postgresql://someone:s3cret%2F@127.0.0.1:1/base#points"  # nothing listens there
MORE = "stock int DEFAULT 3, made timestamptz DEFAULT '2026-01-02 03:04+00', tags text[] DEFAULT '{a,b}', extra jsonb"


@pytest.fixture
def url(tmp_path):
    return postgres_server.url(tmp_path)


@pytest.fixture
def user(url):
    """The user's own session, in the schema of the test."""
    with psycopg.connect(url.partition("#")[0], autocommit=True) as session:
        yield session


def make(user, columns="id int PRIMARY KEY, v vector(3), label text", rows=20):
    """A table of points i = 1, 2, ... whose vectors are (i, 1, 0), with more columns of the user's."""
    user.execute(f"CREATE TABLE points ({columns}, {MORE})")
    user.execute(
        "INSERT INTO points (id, v, label) SELECT i, ARRAY[i, 1, 0]::vector, 'l' || i %% 2 "
        "FROM generate_series(1, %s) i",
        [rows],
    )


def users_own(user):
    """All that is the user's, but for what we add."""
    return user.execute("SELECT id, label, stock, made, tags, extra FROM points ORDER BY id").fetchall()


def upgraded(store, old="v"):
    """Vectors (1, i) beside, as `second`, for all points."""
    store.add_field(VectorField("second", 2, "cosine"))
    for block in store.scan(old):
        store.write("second", block.ids, torch.stack([torch.ones(len(block.ids)), block.vectors[:, 0]], dim=1))


def test_a_switch_takes_the_index_and_not_null_along(url, user):
    make(user, "id int PRIMARY KEY, v vector(3) NOT NULL, label text", 300)
    before = users_own(user)
    user.execute("CREATE INDEX mine ON points USING hnsw (v vector_l2_ops) WITH (m = 8, ef_construction = 40)")
    user.execute("CREATE INDEX part ON points USING ivfflat (v vector_l2_ops) WITH (lists = 2) WHERE v IS NOT NULL")
    with opened(url) as store:
        assert store.fields() == {"v": VectorField("v", 3, "l2")}
        upgraded(store)
        store.switch("v", "second", "former")
        assert users_own(user) == before
        definitions = [
            row[0] for row in user.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema")
        ]
        for wanted in ("hnsw (v vector_l2_ops) WITH (m='8', ef_construction='40')", "lists='2') WHERE (v IS NOT NULL)"):
            assert sum(each.endswith(wanted) for each in definitions) == 1
        user.execute("SET enable_seqscan = off")
        query = "SELECT id FROM points ORDER BY v <-> '[1, 7.1]' LIMIT 3"
        assert user.execute(query).fetchall() == [(7,), (8,), (6,)]
        assert "Index Scan" in "".join(row[0] for row in user.execute(f"EXPLAIN {query}"))
        user.execute("INSERT INTO points (id, v, label) VALUES (1000, '[1, 2]', 'x')")
        with pytest.raises(psycopg.errors.NotNullViolation):
            user.execute("INSERT INTO points (id, label) VALUES (1001, 'x')")
        with pytest.raises(ValueError, match="1 points have no vector 'former', and 'v' is NOT NULL"):
            store.switch("v", "former", "second")
        user.execute("DELETE FROM points WHERE id = 1000")
        store.switch("v", "former", "second")
        store.drop_field("second")
        assert [each.declared for each in store._columns().values()][1] == "vector(3)"
        assert store._columns()["v"].required
        rows = user.execute("SELECT count(*) FROM pg_indexes WHERE schemaname = current_schema").fetchone()
        assert rows == (3,), "the key, and the two of the user's"
        assert users_own(user) == before


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("CREATE VIEW w AS SELECT id, v FROM points", "rule _RETURN on view w"),
        ("ALTER TABLE points ADD n float8 GENERATED ALWAYS AS (vector_norm(v)) STORED", "column n of table points"),
        ("ALTER TABLE points ADD CONSTRAINT c CHECK (v <> '[0,0,0]')", "constraint c on table points"),
        ("CREATE INDEX e ON points USING hnsw ((v::halfvec(3)) halfvec_l2_ops)", "index e"),
        (
            "CREATE INDEX e ON points USING hnsw (v vector_l2_ops) WHERE vector_norm(v) > 1",
            "the index 'e' speaks of 'v'",
        ),
    ],
)
def test_what_depends_on_the_old_column_is_told_before_a_switch(url, user, statement, told):
    make(user)
    user.execute(statement)
    with opened(url) as store:
        upgraded(store)
        with pytest.raises(ValueError, match=told):
            store.switch("v", "second", "former")
        assert list(store.fields()) == ["v", "second"]


def test_a_wide_vector_cannot_have_the_index_of_a_narrow_one(url, user):
    make(user)
    user.execute("CREATE INDEX mine ON points USING hnsw (v vector_l2_ops)")
    with opened(url) as store:
        store.add_field(VectorField("second", 2001))
        with pytest.raises(ValueError, match="'mine' cannot be had over 2001 dims, 2000 at most"):
            store.switch("v", "second", "former")


def test_an_index_that_was_cut_short_is_built_again(url, user):
    make(user)
    user.execute("CREATE INDEX mine ON points USING hnsw (v vector_l2_ops)")
    with opened(url) as store:
        upgraded(store)
        user.execute("CREATE INDEX cut ON points USING hnsw (second vector_l2_ops)")
        user.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'cut'::regclass")
        store.switch("v", "second", "former")
        assert store.fields()["v"] == VectorField("v", 2, "l2")
        assert user.execute("SELECT to_regclass('cut')").fetchone() == (None,)


def test_names_are_only_names(user, url):
    table, vector, key = 'Ta"ble.%s; DROP TABLE x;--', "Vec 'tor\"%", "I D"
    names = [sql.Identifier(each) for each in (table, key, vector, "La%(bel)s")]
    user.execute(sql.SQL("CREATE TABLE {} ({} text PRIMARY KEY, {} vector(2), {} text)").format(*names))
    user.execute(sql.SQL("INSERT INTO {} VALUES ('a%s', '[1,2]', 'x'), ('b', '[3,4]', 'y')").format(names[0]))
    place = url.partition("#")[0]
    typed = f"{place}#{table.replace('%', '%25')}"
    with opened(typed) as store:
        store.add_field(VectorField('se"cond%', 2))
        store.write('se"cond%', ["a%s"], torch.tensor([[5.0, 6]]))
        store.set_notes({"a": 1})
        store.insert(vector, ["c"], torch.tensor([[7.0, 8]]), {"La%(bel)s": ["%s"]})
        assert store.search(vector, torch.tensor([[7.0, 8]]), 1, metric="l2", where={"La%(bel)s": "%s"})[0][0].id == "c"
        assert [each.ids for each in store.scan(vector, after="a%s", columns=["La%(bel)s"])] == [["b", "c"]]
        store.switch(vector, 'se"cond%', "k%")
        assert store.read(vector, ["a%s", "b"]).vectors[0].tolist() == [5, 6]
        assert store.notes() == {"a": 1}
        store.drop_field("k%")
        with pytest.raises(ValueError, match="behind 63 bytes"):
            store.add_field(VectorField("é" * 32, 2))
    with pytest.raises(ValueError, match="did you mean"), opened(f"{place}#{table[:-1].replace('%', '%25')}"):
        pass


def test_a_table_of_another_schema(url, user, tmp_path):
    other = postgres_server.url(tmp_path / "other")
    make(user)
    schema = url.rpartition("%3D")[2].partition("%2C")[0]
    with opened(f"{other.partition('#')[0]}#{schema}.points") as store:
        assert len(store) == 20
    with pytest.raises(ValueError, match=f"{schema}.points"), opened(other):
        pass


def test_ids_can_be_uuids(url, user):
    ids = [str(uuid.UUID(int=17 * number)) for number in (3, 2**120, 1)]
    user.execute("CREATE TABLE points (id uuid PRIMARY KEY, v vector(2))")
    for each in ids:
        user.execute("INSERT INTO points VALUES (%s, '[1,2]')", [each])
    with opened(url) as store:
        assert [each for block in store.scan("v", size=2) for each in block.ids] == sorted(ids)
        assert store.read("v", [ids[1]]).ids == [ids[1]]
        store.write("v", [ids[1]], torch.tensor([[3.0, 4]]))
        assert store.read("v", ids).vectors.tolist() == [[1, 2], [3, 4], [1, 2]]
        with pytest.raises(ValueError, match="invalid input syntax for type uuid"):
            store.read("v", ["no uuid"])


def test_the_column_of_ids(url, user):
    make(user, "id int, b int NOT NULL UNIQUE, v vector(3), label text DEFAULT 'x', PRIMARY KEY (id, label)", 0)
    user.execute("INSERT INTO points (id, b, v) VALUES (1, 7, '[1,2,3]')")
    with pytest.raises(ValueError, match=r"the primary key id, label: \?id=COLUMN names one .*of b"), opened(url):
        pass
    with opened(f"{url}?id=b") as store:
        assert store.read("v", [7]).ids == [7]
        assert "id" in store.columns()
    for column, told in (("stock", "may be null"), ("bb", "did you mean 'b'")):
        with pytest.raises(ValueError, match=told), opened(f"{url}?id={column}"):
            pass
    user.execute("ALTER TABLE points ALTER b TYPE numeric(4, 1)")
    with pytest.raises(ValueError, match=r"ids are numbers or texts, and the column 'b' is numeric\(4,1\)"):
        next(opened(f"{url}?id=b").gen)


def test_types_of_vectors(url, user):
    user.execute(
        "CREATE TABLE points (id int PRIMARY KEY, half halfvec(2), bits bit(8), few sparsevec(9), any_dim vector,"
        " later vector)"
    )
    user.execute("INSERT INTO points VALUES (1, '[0.1, 65504]', B'00001111', '{1:2}/9', '[1,2,3]')")
    with opened(url) as store:
        assert store.fields() == {"half": VectorField("half", 2), "any_dim": VectorField("any_dim", 3)}
        # 0.1 is 1638.4 / 2**14, and half precision has no digits behind the point there
        assert store.read("half", [1]).vectors.tolist() == [[1638 / 2**14, 65504]]
        assert store.search("half", torch.tensor([[0.0, 0]]), 1, metric="inner_product")[0][0].score == 0
        for name, told in (("bits", r"of type bit\(8\)"), ("few", r"sparsevec\(9\)"), ("later", "no declared width")):
            with pytest.raises(ValueError, match=told):
                store.read(name, [1])
        user.execute("INSERT INTO points (id, any_dim) VALUES (2, '[1,2]')")
        with pytest.raises(ValueError, match=r"'any_dim' of point 2 has dim 2, and others have 3"):
            list(store.scan("any_dim"))


def test_values_of_columns_that_json_knows_are_read_as_they_are(url, user):
    make(user, rows=1)
    user.execute("""UPDATE points SET extra = '{"a": 1}'""")
    with opened(url) as store:
        found = store.read("v", [1], columns=["stock", "made", "tags", "extra", "label"]).columns
        assert found["stock"] == [3]
        assert found["tags"] == ["{a,b}"]
        assert found["extra"] == ['{"a": 1}']
        assert found["made"][0].startswith("2026-01-02")
        assert store.search("v", torch.ones(1, 3), 5, metric="l2", where={"stock": "3"})[0][0].id == 1


def test_an_update_that_would_change_more_is_refused(url, user):
    make(user)
    user.execute(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.made = now(); RETURN NEW; END'"
    )
    user.execute("CREATE TRIGGER touched BEFORE UPDATE ON points FOR EACH ROW EXECUTE FUNCTION touch()")
    before = users_own(user)
    with opened(url) as store:
        with pytest.raises(ValueError, match='DISABLE TRIGGER "touched"'):
            store.add_field(VectorField("second", 2))
        user.execute("ALTER TABLE points DISABLE TRIGGER touched")
        upgraded(store)
    assert users_own(user) == before


def test_the_users_comments_stay_and_the_notes_go(url, user):
    make(user)
    user.execute("COMMENT ON COLUMN points.v IS 'mine'")
    with opened(url) as store:
        store.set_notes({"a": 1})
        assert user.execute("SELECT to_regclass('tripletmas_notes') IS NULL").fetchone() == (False,)
        store.set_notes({})
    assert user.execute("SELECT to_regclass('tripletmas_notes') IS NULL").fetchone() == (True,)
    assert user.execute("SELECT col_description('points'::regclass, 2)").fetchone() == ("mine",)


def test_an_index_gives_as_many_as_are_asked_for(url, user):
    make(user, rows=500)
    user.execute("CREATE INDEX mine ON points USING hnsw (v vector_l2_ops)")
    user.execute("ALTER ROLE postgres SET enable_seqscan = off")
    try:
        with opened(url) as store:
            assert len(store.search("v", torch.ones(1, 3), 120, metric="l2")[0]) == 120
            odd = store.search("v", torch.ones(1, 3), 60, metric="l2", where={"label": "l1"})[0]
            assert [hit.id for hit in odd] == list(range(1, 120, 2))
    finally:
        user.execute("ALTER ROLE postgres RESET enable_seqscan")
    with opened(url) as store, pytest.raises(ValueError, match="compares 'v' by l2, and cosine was asked for"):
        store.search("v", torch.ones(1, 3), 3, metric="cosine")


def test_a_table_that_another_session_has_locked(url, user):
    make(user)
    with opened(url.replace("&options=", "&options=-clock_timeout%3D200ms%20")) as store:
        with user.transaction():
            user.execute("LOCK TABLE points")
            with pytest.raises(ValueError, match="another session has locked the table, so nothing was changed"):
                store.add_field(VectorField("second", 2))
        assert list(store.fields()) == ["v"]
        upgraded(store)


def test_no_server_no_table_no_pgvector_no_password(url, user):
    with pytest.raises(ValueError) as told, opened(URL):
        pass
    assert "someone:***@127.0.0.1:1" in str(told.value)
    assert "refused" in str(told.value)
    for wrong, said in (
        (URL.replace("#", "?metrik=l2#"), "metrik"),
        (URL.replace("s3cret%2F", "s3cret/x"), "port"),
        (URL.replace("s3cret%2F", "s3cret#x"), "in a password # is written %23"),
        (f"{URL}?vector=", "vector= is empty"),
        (url.replace("#points", ""), "names no collection"),
        (url.replace("/postgres?", "/nowhere?"), 'database "nowhere" does not exist'),
    ):
        with pytest.raises(ValueError, match=said) as told, opened(wrong):
            pass
        assert "s3cret" not in str(told.value)
        assert "\n" not in str(told.value)
    user.execute("CREATE VIEW points AS SELECT 1 AS id")
    with pytest.raises(ValueError, match="is a view"), opened(url):
        pass
    user.execute("CREATE DATABASE plain")
    with pytest.raises(ValueError, match="has no pgvector: its owner says CREATE EXTENSION vector"):
        next(opened(url.replace("/postgres?", "/plain?")).gen)


def test_a_server_that_ends_meanwhile_is_told_of(url, user):
    make(user)
    with opened(url) as store:
        scanned = store.scan("v", size=5)
        assert next(scanned).ids == [1, 2, 3, 4, 5]
        user.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tripletmas'")
        with pytest.raises(ValueError, match=r"terminating connection|closed"):
            next(scanned)


@pytest.mark.slow
def test_a_kill_between_two_writes_loses_none_and_halves_none(url, user):
    make(user, rows=2000)
    child = f"""
        import torch
        from tripletmas.stores.opening import opened
        with opened({url!r}) as store:
            for block in store.scan("v", size=100):
                store.write("second", block.ids, block.vectors[:, :2])
                print(block.ids[-1], flush=True)
    """
    with opened(url) as store:
        store.add_field(VectorField("second", 2))
        for wanted in (3, 8, 15):
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(child)], stdout=subprocess.PIPE, text=True
            )
            said = [int(process.stdout.readline()) for _ in range(wanted)]
            process.kill()
            process.communicate()
            blocks = list(store.scan("second", size=100))
            have = [int((~block.without_vector()).sum()) for block in blocks]
            assert set(have) <= {0, 100}
            assert have[: said[-1] // 100] == [100] * wanted
