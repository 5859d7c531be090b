"""What is peculiar to a collection of Chroma: collections beside it, two renames, metadata of many kinds, a server."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest
import torch
from chromadb.api.models.Collection import Collection
from chromadb.utils.embedding_functions import DefaultEmbeddingFunction

from tripletmas.stores import chroma_client
from tripletmas.stores.opening import created, opened
from tripletmas.stores.place import read_place
from tripletmas.stores.store import NoCollection, VectorField

METADATA = [{"label": "it's", "stock": 3, "new": True, "price": 0.5, "tags": ["a", "b"]}, None, {"label": "mug"}]


@pytest.fixture
def url(tmp_path):
    return f"chroma://{tmp_path}/base#points"


@contextmanager
def client(url):
    """The user's own; Chroma takes one set of settings for a folder and process, so it is made as ours is."""
    made = chroma_client.connect(read_place(url), create=True)
    try:
        yield made
    finally:
        chroma_client.close(made)


def make(url, **more):
    """Points id1, ... whose vectors are (i, 1, 0), with metadata, documents and URIs of the user's."""
    with client(url) as user:
        settings = {"hnsw": {"space": "l2", "ef_construction": 77, "max_neighbors": 9}}
        points = user.create_collection("points", **{"configuration": settings, "embedding_function": None, **more})
        for i, metadata in enumerate(METADATA * 4):
            words = {"documents": [f"text {i}"]} if i % 2 else {"uris": [f"file:{i}"]}
            points.upsert(ids=[f"id{i}"], embeddings=[[i, 1.0, 0]], metadatas=[metadata], **words)


def users_own(url, name="points"):
    """All that is the user's but for the vectors."""
    with client(url) as user:
        points = user.get_collection(name, embedding_function=None)
        found = points.get(include=["metadatas", "documents", "uris"])
        rows = zip(*(found[each] for each in ("ids", "metadatas", "documents", "uris")), strict=True)
        return sorted(rows, key=lambda row: row[0]), points.metadata, points.configuration_json


def names(url):
    with client(url) as user:
        return sorted(each.name for each in user.list_collections())


def content(file):
    """Of Chroma's tables, but for the one by which it finds out whether it may write."""
    with closing(sqlite3.connect(file)) as base:
        return [line for line in base.iterdump() if not line.startswith('INSERT INTO "acquire_write"')]


def upgraded(store):
    """Vectors (1, i) beside, as `second`."""
    store.add_field(VectorField("second", 2, "l2"))
    for block in store.scan("vector", size=5):
        store.write("second", block.ids, torch.stack([torch.ones(len(block.ids)), block.vectors[:, 0]], dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"metadata": {"hnsw:space": "l2", "mine": 1}, "configuration": None}])
def test_what_the_user_has_is_what_it_was_after_a_switch(url, more):
    make(url, **more)
    before = users_own(url)
    with opened(url) as store:
        assert store.fields() == {"vector": VectorField("vector", 3, "l2")}
        assert set(store.columns()) == {"label", "stock", "new", "price", "tags", "document", "uri"}
        upgraded(store)
        store.set_notes({"a": 1})
        store.switch("vector", "second", "former")
    assert users_own(url) == before
    with client(url) as user:
        points = user.get_collection("points", embedding_function=None)
        assert points.query(query_embeddings=[[1.0, 7.4]], n_results=2)["ids"] == [["id7", "id8"]]
    with opened(url) as store:
        assert store.notes() == {"a": 1}
        store.set_notes({})
        store.switch("vector", "former", "second")
        store.drop_field("second")
        assert store.read("vector", ["id7"], columns=["document"]).vectors.tolist() == [[7, 1, 0]]
    assert users_own(url) == before
    assert names(url) in (["points"], ["points", "points__tripletmas"])


@pytest.mark.slow
def test_a_switch_takes_along_what_changed_meanwhile(url):
    make(url)
    with opened(url) as store:
        upgraded(store)
        points = store._client.get_collection("points", embedding_function=None)
        points.delete(ids=["id4"])
        points.update(ids=["id3"], metadatas=[{"label": None, "stock": 8}])
        points.upsert(ids=["id90"], embeddings=[[9.0, 9, 9]], metadatas=[{"label": "late"}], documents=["d"])
        near = store.search("second", torch.tensor([[1.0, 4]]), 3, metric="l2")[0]
        assert "id4" not in [hit.id for hit in near]
        found = store.search("second", torch.tensor([[1.0, 4]]), 3, metric="l2", where={"stock": "8"}, columns=["new"])
        assert [(hit.id, hit.score, hit.columns) for hit in found[0]] == [("id3", -1, {"new": True})]
        assert store.search("second", torch.tensor([[1.0, 4]]), 3, metric="l2", where={"label": "x"}) == [[]]
    now = users_own(url)
    with opened(url) as store:
        store.switch("vector", "second", "former")
    assert users_own(url) == now
    with opened(url) as store:
        # a collection has no point without a vector: one that came meanwhile is kept, with zeros
        assert store.read("vector", ["id3", "id4", "id90"]).vectors.tolist() == [[1, 3], [0, 0]]
        assert store.read("former", ["id90"]).vectors.tolist() == [[9, 9, 9]]


@pytest.mark.slow
@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_switch_that_was_cut_short_is_completed_by_whoever_opens_it(url, renamed, monkeypatch):
    make(url)
    before = users_own(url)
    modify, done = Collection.modify, []

    def cut(self, name=None, **rest):
        if name is not None and len(done) == renamed:
            raise KeyboardInterrupt
        done.extend([name] if name else [])
        modify(self, name=name, **rest)
        if name is not None and len(done) == renamed == 2:
            raise KeyboardInterrupt

    with opened(url) as store:
        upgraded(store)
        monkeypatch.setattr(Collection, "modify", cut)
        with pytest.raises(KeyboardInterrupt):
            store.switch("vector", "second", "former")
        monkeypatch.undo()
    assert ("points" in names(url)) == (renamed != 1)
    with opened(url) as store:
        assert store.switch("vector", "second", "former") == ("vector", "former", "")
        assert {name: field.dim for name, field in store.fields().items()} == {"vector": 2, "former": 3}
    assert users_own(url) == before


@pytest.mark.slow
def test_nothing_embeds_a_text(url, monkeypatch):
    make(url, embedding_function=DefaultEmbeddingFunction(), configuration=None)
    monkeypatch.setattr(DefaultEmbeddingFunction, "__call__", lambda self, input: pytest.fail("a text is embedded"))
    before = users_own(url)
    assert before[2]["embedding_function"]["name"] == "default"
    with opened(url) as store:
        upgraded(store)
        said = store.switch("vector", "second", "former").say
        assert "embeds texts by 'default' no longer" in said
    assert "name" not in users_own(url)[2]["embedding_function"]
    with opened(url) as store:
        assert store.switch("vector", "former", "second").say == ""
    assert users_own(url) == before


@pytest.mark.slow
def test_values_are_asked_for_as_what_they_are(url):
    make(url)
    query = torch.tensor([[7.4, 1, 0]])
    with opened(url) as store:
        for where, ids in (
            ({"stock": "3"}, ["id6", "id9", "id3", "id0"]),
            ({"new": "true", "price": "0.5"}, ["id6", "id9", "id3", "id0"]),
            ({"label": "mug"}, ["id8", "id5", "id11", "id2"]),
            ({"label": "true"}, []),
        ):
            hits = store.search("vector", query, 9, metric="l2", where=where, columns=["uri", "tags"])[0]
            assert [hit.id for hit in hits] == ids
        assert hits == []
        hit = store.search("vector", query, 1, metric="l2", where={"stock": "3"}, columns=["uri", "tags"])[0][0]
        assert hit.columns == {"uri": "file:6", "tags": ["a", "b"]}
        with pytest.raises(ValueError, match="compares 'vector' by l2, and cosine was asked for"):
            store.search("vector", query, 3, metric="cosine")
        with pytest.raises(ValueError, match=r"no column 'lable'.*did you mean 'label'"):
            store.search("vector", query, 3, metric="l2", where={"lable": "x"})


@pytest.mark.slow
def test_what_is_not_ours_is_left_alone(url):
    make(url)
    with client(url) as user:
        user.create_collection("points__second", embedding_function=None)
        user.create_collection("empty", embedding_function=None)
    with opened(url) as store:
        with pytest.raises(ValueError, match="'points__second' of yours already"):
            store.add_field(VectorField("second", 2, "l2"))
        store.drop_field("second")
        with pytest.raises(ValueError, match="own vector, and stays"):
            store.drop_field("vector")
        assert list(store.fields()) == ["vector"]
    assert names(url) == ["empty", "points", "points__second"]
    with opened(f"{url.partition('#')[0]}#empty") as store:
        assert (store.fields(), len(store), store.columns()) == ({}, 0, [])
    for new, told in ((VectorField("v", 2, "l2"), "called 'vector', not 'v'"), (VectorField("vector", 2), "3-512")):
        with pytest.raises(ValueError, match=told), created(f"{url.partition('#')[0]}#a b", new, {}):
            pass
    assert names(url) == ["empty", "points", "points__second"]


def test_ids_that_were_to_be_numbers(url):
    with created(url, VectorField("vector", 2, "l2"), {}) as store:
        store.insert("vector", [10, 9, -3], torch.ones(3, 2), {})
        assert [block.ids for block in store.scan("vector", after=-3)] == [[9, 10]]
        store._client.get_collection("points", embedding_function=None).add(ids=["a"], embeddings=[[1.0, 2]])
        with pytest.raises(ValueError, match="made for ids that are numbers"):
            next(store.scan("vector"))


@pytest.mark.slow
def test_a_folder_that_is_none(url, tmp_path):
    with pytest.raises(NoCollection, match="there is no folder of Chroma"), opened(url):
        pass
    assert not (tmp_path / "base").exists()
    make(url)
    with pytest.raises(ValueError, match=r"no option 'tenent'.*did you mean 'tenant'"), opened(f"{url}?tenent=a"):
        pass
    file = tmp_path / "base" / "chroma.sqlite3"
    with closing(sqlite3.connect(file)) as base:  # as a version before the last change of the tables left it
        base.execute("DELETE FROM migrations WHERE dir = 'sysdb' AND version > 5")
        base.commit()
    before = content(file)
    with pytest.raises(ValueError, match="files are of another version of Chroma"), opened(url):
        pass
    assert content(file) == before
    file.write_bytes(b"something else" * 1000)
    with pytest.raises(ValueError, match=r"chroma\.sqlite3 is no database"), opened(url):
        pass


def test_a_server_that_is_not_there():
    with pytest.raises(ValueError, match="Could not connect") as told, opened("chroma://:s3cret@127.0.0.1:1#points"):
        pass
    assert "s3cret" not in str(told.value)
    with pytest.raises(ValueError, match="port of a server is a number"), opened("chroma://localhost:http#points"):
        pass


@pytest.mark.slow
def test_a_server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = "import sys; from chromadb.cli.cli import app; app()"
    command = [sys.executable, "-c", run, "run", "--path", str(tmp_path), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        url = f"chroma://127.0.0.1:{port}#points"
        with created(url, VectorField("vector", 3, "cosine"), {"label": str}, ids=str) as store:
            store.insert("vector", ["b", "a"], torch.tensor([[1.0, 0, 0], [0, 1, 0]]), {"label": ["x", None]})
        with opened(url) as store:
            store.add_field(VectorField("second", 2, "cosine"))
            store.write("second", ["a", "b", "c"], torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
            store.set_notes({"a": 1})
            store.switch("vector", "second", "former")
        with opened(url) as store:
            assert store.notes() == {"a": 1}
            block = next(store.scan("vector", columns=["label"]))
            assert (block.ids, block.vectors.tolist(), block.columns) == (
                ["a", "b"],
                [[1, 0], [0, 1]],
                {"label": [None, "x"]},
            )
            hits = store.search("former", torch.tensor([[1.0, 0, 0]]), 5, metric="cosine", where={"label": "x"})[0]
            assert [(hit.id, hit.score) for hit in hits] == [("b", 1)]
    finally:
        server.terminate()
        server.wait(30)
