"""What is peculiar to Qdrant: ids, payloads, the cosine, vectors that are none for us; locked and broken stores."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from uuid import UUID

import pytest
import qdrant_edge as edge
import torch
from qdrant_client import QdrantClient, models

from tripletmas.stores.opening import created, opened
from tripletmas.stores.place import read_place
from tripletmas.stores.qdrant import ClientPoints
from tripletmas.stores.qdrant_edge import ShardPoints
from tripletmas.stores.store import VectorField

LENGTHS = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.5, 0.0], [1.0, 1.0]])
UNIT = torch.nn.functional.normalize(LENGTHS)
UUIDS = [str(UUID(int=each)) for each in (3, 7)]


@pytest.fixture(params=["qdrant", "qdrant-edge"])
def url(request, tmp_path):
    return f"{request.param}://{tmp_path}/base#points"


def put(url, ids, payloads, vectors=LENGTHS, *, name="vector", metric="cosine"):
    """A collection with points as a user makes them, with any payload."""
    with created(url, VectorField(name, vectors.shape[1], metric), {}) as store:
        names = {key for each in payloads for key in each}
        columns = {key: [each.get(key) for each in payloads] for key in names}
        store.insert(name, ids, vectors[: len(ids)], columns)


def test_under_the_cosine_directions_are_read_whoever_opens_it(url):
    with created(url, VectorField("vector", 2, "cosine"), {}) as store:
        store.insert("vector", [1, 2, 3, 4], LENGTHS, {})
        assert torch.allclose(store.read("vector", [1, 2, 3, 4]).vectors, UNIT)
    with opened(url) as store:  # the local mode has the raw vectors on its disk
        assert torch.allclose(store.read("vector", [1, 2, 3, 4]).vectors, UNIT)
        store.add_field(VectorField("second", 2, "cosine"))
        store.write("second", [1], torch.tensor([[0.0, 9.0]]))
        assert store.read("second", [1]).vectors.tolist() == [[0, 1]]
    with opened(url) as store:
        assert store.read("second", [1]).vectors.tolist() == [[0, 1]]
        assert torch.allclose(next(store.scan("vector")).vectors, UNIT)


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_under_other_metrics_lengths_stay(url, metric):
    put(url, [1, 2, 3, 4], [{}] * 4, metric=metric)
    with opened(url) as store:
        assert torch.equal(store.read("vector", [1, 2, 3, 4]).vectors, LENGTHS)


def test_numbers_come_before_uuids_and_no_block_holds_both(url):
    large = 2**64 - 1
    put(url, [UUIDS[1], large, UUIDS[0], 5], [{"at": each} for each in "abcd"])
    with opened(url) as store:
        blocks = list(store.scan("vector", columns=["at"]))
        assert [block.ids for block in blocks] == [[5, large], UUIDS]
        assert [block.columns["at"] for block in blocks] == [["d", "b"], ["c", "a"]]
        assert [block.ids for block in store.scan("vector", after=large)] == [UUIDS]
        assert [block.ids for block in store.scan("vector", after=UUIDS[0])] == [[UUIDS[1]]]
        assert store.read("vector", [UUIDS[1].upper(), "not an id", -1, 5]).ids == [UUIDS[1], 5]
        store.write("vector", ["not an id", 77, 5], torch.eye(2)[[0, 0, 1]])
        assert store.read("vector", [5]).vectors.tolist() == [[0, 1]]
        assert len(store) == 4
        with pytest.raises(ValueError, match=r"from 0 to .* or a UUID, not 'shoe-1'"):
            store.insert("vector", ["shoe-1"], LENGTHS[:1], {})


def test_payload_keys_of_any_name_and_depth(url):
    meta = {"source": "/photos/a.jpg", "page": 3}
    payloads = [{"metadata": meta, "a b": "x", "x.y": 1, "ü": "7"}, {"n": 7, "ü": 7}, {}, {"n": 8, "list": [1, 2]}]
    put(url, [1, 2, 3, 4], payloads)
    with opened(url) as store:
        assert store.columns() == ["a b", "list", "metadata", "n", "x.y", "ü"]
        names = ["metadata.source", "a b", "x.y", "n"]
        block = next(store.scan("vector", columns=names))
        assert block.columns == {
            "metadata.source": ["/photos/a.jpg", None, None, None],
            "a b": ["x", None, None, None],
            "x.y": [1, None, None, None],
            "n": [None, 7, None, 8],
        }

        def found(**where):
            return sorted(hit.id for hit in store.search("vector", UNIT[:1], 9, metric="cosine", where=where)[0])

        assert found(n="7") == [2]
        assert found(**{"metadata.page": "3"}) == [1]
        assert found(**{"a b": "x"}) == [1]
        assert found(ü="7") == [1, 2], "the text and the number"
        with pytest.raises(ValueError, match=r"no column 'metadta' \(did you mean 'metadata'"):
            found(metadta="x")
        with pytest.raises(ValueError, match=r"no column 'metadata\.souce'"):
            next(store.scan("vector", columns=["metadata.souce"]))


def test_a_column_that_only_late_points_have_is_found(url):
    put(url, range(300), [{"late": "yes"} if each == 299 else {} for each in range(300)], torch.ones(300, 2))
    with opened(url) as store:
        assert store.columns() == []
        hits = store.search("vector", UNIT[:1], 9, metric="cosine", where={"late": "yes"}, columns=["late"])
        assert [(hit.id, hit.columns) for hit in hits[0]] == [(299, {"late": "yes"})]


@pytest.mark.slow
def test_the_vector_without_a_name(url):
    put(url, [1, 2, 3, 4], [{"n": each} for each in range(4)], name="unnamed")
    with opened(url) as store:
        assert list(store.fields()) == ["unnamed"]
        store.add_field(VectorField("second", 3, "inner_product"))
        store.write("second", [2], torch.tensor([[1.0, 2.0, 3.0]]))
        store.write("unnamed", [4], torch.tensor([[0.0, -2.0]]))
        assert store.search("unnamed", UNIT[:1], 1, metric="cosine")[0][0].id == 1
        assert store.switch("unnamed", "second", "kept").say.endswith("write using='second' for no using=")
    with opened(url) as store:
        assert next(store.scan("second")).vectors[1].tolist() == [1, 2, 3]
        assert store.read("unnamed", [4, 1]).vectors.tolist() == [[0, -1], [pytest.approx(0.6), pytest.approx(0.8)]]
        store.drop_field("unnamed")
        assert list(store.fields()) == ["second"]
        assert next(store.scan("second", columns=["n"])).columns == {"n": [0, 1, 2, 3]}


def make_odd_local(folder):
    client = QdrantClient(path=folder)
    multi = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    vectors = {
        "vector": models.VectorParams(size=2, distance=models.Distance.DOT),
        "many": models.VectorParams(size=2, distance=models.Distance.DOT, multivector_config=multi),
        "city": models.VectorParams(size=2, distance=models.Distance.MANHATTAN),
        "bytes": models.VectorParams(size=2, distance=models.Distance.DOT, datatype=models.Datatype.UINT8),
    }
    client.create_collection("points", vectors, sparse_vectors_config={"words": models.SparseVectorParams()})
    sparse = models.SparseVector(indices=[1, 7], values=[0.5, 1.5])
    vector = {"vector": [3.0, 4.0], "many": [[1.0, 2.0]], "city": [1.0, 2.0], "words": sparse, "bytes": [1.0, 2.0]}
    client.upsert("points", [models.PointStruct(id=1, vector=vector, payload={"n": 1})])
    client.close()


def make_odd_shard(folder):
    dot, multi = edge.Distance.Dot, edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    vectors = {
        "vector": edge.EdgeVectorParams(2, dot),
        "many": edge.EdgeVectorParams(2, dot, multivector_config=multi),
        "city": edge.EdgeVectorParams(2, edge.Distance.Manhattan),
        "bytes": edge.EdgeVectorParams(2, dot, datatype=edge.VectorStorageDatatype.Uint8),
    }
    (folder / "points").mkdir(parents=True)
    config = edge.EdgeConfig(vectors=vectors, sparse_vectors={"words": edge.EdgeSparseVectorParams()})
    shard = edge.EdgeShard.create(str(folder / "points"), config)
    sparse = edge.SparseVector([1, 7], [0.5, 1.5])
    vector = {"vector": [3.0, 4.0], "many": [[1.0, 2.0]], "city": [1.0, 2.0], "words": sparse, "bytes": [1.0, 2.0]}
    shard.update(edge.UpdateOperation.upsert_points([edge.Point(1, vector, {"n": 1})]))
    shard.close()


@pytest.mark.slow
def test_vectors_that_are_none_for_us_are_refused_and_left_alone(url, tmp_path):
    local = url.startswith("qdrant:")
    (make_odd_local if local else make_odd_shard)(tmp_path / "base")
    why = {
        "many": "several vectors a point",
        "city": "compared by Manhattan",
        "bytes": "holds bytes",
        "words": "is sparse",
    }
    with opened(url) as store:
        assert list(store.fields()) == ["vector"]
        for name, said in why.items():
            for use in (
                lambda name=name: store.read(name, [1]),
                lambda name=name: store.write(name, [1], torch.ones(1, 2)),
                lambda name=name: store.add_field(VectorField(name, 2, "cosine")),
            ):
                with pytest.raises(ValueError, match=f"the vector '{name}' .*{said}"):
                    use()
        store.add_field(VectorField("second", 2, "l2"))
        store.write("second", [1], torch.tensor([[5.0, 6.0]]))
        store.drop_field("second")
        assert store.read("vector", [1]).vectors.tolist() == [[3, 4]]
    if local:
        client = QdrantClient(path=tmp_path / "base")
        vector = client.retrieve("points", [1], with_vectors=True)[0].vector
        client.close()
    else:
        shard = edge.EdgeShard.load(str(tmp_path / "base" / "points"))
        vector = shard.retrieve([1], True, True)[0].vector
        shard.close()
    assert sorted(vector) == ["bytes", "city", "many", "vector", "words"]
    assert list(vector["words"].values) == [0.5, 1.5]


def test_notes_stand_beside_the_metadata_of_the_user(tmp_path):
    client = QdrantClient(path=tmp_path / "base")
    params = models.VectorParams(size=2, distance=models.Distance.DOT)
    client.create_collection("points", params, metadata={"mine": {"a": 1}})
    client.close()
    with opened(f"qdrant://{tmp_path}/base#points") as store:
        store.set_notes({"fields": {"a": 1}})
        store.set_notes({"fields": {"b": 2}})
        assert store.notes() == {"fields": {"b": 2}}, "put in its place, not merged"
        store.set_notes({})
    client = QdrantClient(path=tmp_path / "base")
    assert client.get_collection("points").config.metadata == {"mine": {"a": 1}}
    client.update_collection("points", metadata={"tripletmas": "{"})
    client.close()
    with opened(f"qdrant://{tmp_path}/base#points") as store, pytest.raises(ValueError, match=r"notes .* are damaged"):
        store.notes()


def test_points_that_go_between_look_and_write_are_left_out(url, monkeypatch):
    """The engine refuses a request of which one point is gone; what is there is written."""
    put(url, [1, 2, 3, 4], [{}] * 4)
    engine = ClientPoints if url.startswith("qdrant:") else ShardPoints
    asked = []

    def update(self, name, ids, rows, *, really=engine.update):
        asked.append(list(ids))
        return really(self, name, ids, rows)

    monkeypatch.setattr(engine, "update", update)
    with opened(url) as store:
        store.write("vector", [1, 9, 4], torch.eye(2)[[0, 0, 1]])
        assert asked == [[1, 9, 4], [1, 4]]
        assert store.read("vector", [1, 4]).vectors.tolist() == [[1, 0], [0, 1]]


def test_a_large_block_is_asked_for_in_parts(url, monkeypatch):
    monkeypatch.setattr("tripletmas.stores.qdrant_points._NUMBERS", 6)  # three points of two numbers
    vectors = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    put(url, range(20), [{}] * 20, vectors, metric="l2")
    engine, asked = (ClientPoints if url.startswith("qdrant:") else ShardPoints), []

    def retrieve(self, name, ids, keys, *, really=engine.retrieve):
        asked.append(len(ids))
        return really(self, name, ids, keys)

    monkeypatch.setattr(engine, "retrieve", retrieve)
    with opened(url) as store:
        assert [len(block.ids) for block in store.scan("vector", size=8)] == [8, 8, 4]
        assert torch.equal(store.read("vector", range(20)).vectors, vectors)
        assert asked == [3] * 6 + [2]
        found = store.search("vector", vectors, 1, metric="l2")
        assert [hits[0].id for hits in found] == list(range(20))
        store.write("vector", range(20), vectors.flip(0))
        assert torch.equal(torch.cat([block.vectors for block in store.scan("vector")]), vectors.flip(0))


def test_a_store_that_another_holds_open(url):
    put(url, [1], [{}])
    with (
        opened(url) as store,
        pytest.raises(ValueError, match="is open in another process: close it there"),
        opened(url),
    ):
        pass
    with opened(url) as store:
        assert len(store) == 1


def test_stores_that_are_not_there_or_broken(tmp_path):
    for scheme in ("qdrant", "qdrant-edge"):
        with pytest.raises(ValueError, match="no such folder"), opened(f"{scheme}://{tmp_path}/no#points"):
            pass
        assert not (tmp_path / "no").exists(), "to look makes nothing"
        with pytest.raises(ValueError, match="has no option 'pth'"), opened(f"{scheme}://{tmp_path}#points?pth=x"):
            pass
        put(f"{scheme}://{tmp_path}/{scheme}#points", [1], [{}])
        with (
            pytest.raises(ValueError, match=r"ids of their own: leave away \?id=key"),
            opened(f"{scheme}://{tmp_path}/{scheme}#points?id=key"),
        ):
            pass
    (tmp_path / "qdrant" / "collection" / "points" / "storage.sqlite").write_bytes(b"no database" * 1000)
    with (
        pytest.raises(ValueError, match="file is not a database") as told,
        opened(f"qdrant://{tmp_path}/qdrant#points"),
    ):
        pass
    assert "\n" not in str(told.value)
    (tmp_path / "qdrant" / "meta.json").write_text("")
    with (
        pytest.raises(ValueError, match="qdrant#points: Expecting value"),
        opened(f"qdrant://{tmp_path}/qdrant#points"),
    ):
        pass
    for broken in (tmp_path / "qdrant-edge" / "points" / "segments").rglob("segment.json"):
        broken.write_text("{")
    with pytest.raises(ValueError) as told, opened(f"qdrant-edge://{tmp_path}/qdrant-edge#points"):
        pass
    assert "\n" not in str(told.value)


def test_a_block_is_one_transaction_of_the_local_mode(tmp_path):
    """Its own writing waits for the disk once a point."""
    url = f"qdrant://{tmp_path}/base#points"
    put(url, [1, 2, 3, 4], [{}] * 4)
    with opened(url) as store:
        done = []
        store._points._client._client.collections["points"].storage.storage.set_trace_callback(done.append)
        for write in (
            lambda: store.insert("vector", [5, 6, 7], LENGTHS[:3], {}),
            lambda: store.write("vector", [1, 2, 3], LENGTHS[:3]),
            lambda: store.add_field(VectorField("second", 2, "cosine")),
            lambda: store.write("second", [1, 2, 3], LENGTHS[:3]),
            lambda: store.drop_field("second"),
        ):
            done.clear()
            write()
            assert sum(each == "COMMIT" for each in done) == (1 if done else 0)
            assert sum(each.startswith("INSERT OR REPLACE") for each in done) == (3 if done else 0)
        assert done
        done.clear()
        store.write("vector", [1, 9], LENGTHS[:2])  # one that is gone: what was written before the error is kept
        assert sum(each == "COMMIT" for each in done) == 2
    with opened(url) as store:
        assert store.read("vector", [1]).vectors.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
        assert list(store.fields()) == ["vector"]


def test_a_folder_may_be_said_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("qdrant://data/shop#points", "qdrant-edge://data/shards#points"):
        put(url, [1], [{}])
        with opened(url) as store:
            assert len(store) == 1
    assert (tmp_path / "data" / "shop" / "meta.json").exists()
    with pytest.raises(ValueError, match=r"no such folder .*: qdrant\.example\.com \(a server is HOST:PORT\)"):
        opened("qdrant://qdrant.example.com#points").__enter__()


def test_a_server_that_is_not_there():
    with (
        pytest.raises(ValueError, match=r"qdrant://127.0.0.1:1#points does not answer .*does a server"),
        opened("qdrant://127.0.0.1:1/points?https=true&api_key=secret"),
    ):
        pass
    with pytest.raises(ValueError, match="has no option 'key'"), opened("qdrant://127.0.0.1:1/#points?key=x"):
        pass
    assert "secret" not in str(read_place("qdrant://127.0.0.1:1/#points?api_key=secret"))


@pytest.mark.slow
def test_a_shard_that_has_an_index_gets_a_second_vector(tmp_path):
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(8, edge.Distance.Dot, datatype=edge.VectorStorageDatatype.Float16),
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
    )
    shard = edge.EdgeShard.create(str(tmp_path), config)
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).half().float()
    points = [edge.Point(number, row, {"n": number}) for number, row in enumerate(vectors.tolist())]
    shard.update(edge.UpdateOperation.upsert_points(points))
    assert shard.optimize()
    shard.close()
    with opened(f"qdrant-edge://{tmp_path}") as store:
        assert torch.equal(next(store.scan("unnamed")).vectors, vectors)
        store.add_field(VectorField("second", 2, "cosine"))
        store.write("second", range(200), torch.eye(2).repeat(100, 1))
    shard = edge.EdgeShard.load(str(tmp_path))
    shard.optimize()
    shard.close()
    with opened(f"qdrant-edge://{tmp_path}") as store:
        block = next(store.scan("second", columns=["n"]))
        assert block.ids == block.columns["n"] == list(range(300))
        assert torch.equal(block.vectors[:200], torch.eye(2).repeat(100, 1))
        assert bool(block.vectors[200:].isnan().all())
        assert torch.equal(next(store.scan("unnamed")).vectors, vectors)


def test_a_shard_on_a_full_disk_is_not_written_to(tmp_path, monkeypatch):
    """The engine would not raise: it maps its files, and a page without room ends the process (SIGBUS)."""
    url = f"qdrant-edge://{tmp_path}/base#points"
    put(url, [1, 2], [{}, {}])
    monkeypatch.setattr("tripletmas.stores.qdrant_edge._SPARE", 1 << 70)
    with opened(url) as store:
        for write in (
            lambda: store.write("vector", [1], torch.ones(1, 2)),
            lambda: store.add_field(VectorField("second", 2, "cosine")),
        ):
            with pytest.raises(ValueError, match="MB are left on its disk: make room"):
                write()
        assert torch.allclose(next(store.scan("vector")).vectors, UNIT[:2])
        assert list(store.fields()) == ["vector"]


WRITER = """
import os, sys, torch
from tripletmas.stores.opening import opened
with opened(sys.argv[1]) as store:
    for start in range(0, 10**9, 10):
        ids = list(range(start % 500, start % 500 + 10))
        store.write("vector", ids, torch.tensor([[float(each), start // 500 + 1] for each in ids]))
        os.write(1, b"%d\\n" % start)
"""


@pytest.mark.slow
def test_what_was_written_outlives_a_kill(url):
    put(url, range(500), [{"n": each} for each in range(500)], torch.zeros(500, 2), metric="l2")
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said = [writer.stdout.readline() for _ in range(7)]
        writer.send_signal(signal.SIGKILL)
        rest, errors = writer.communicate()
        assert errors == b""
        last = int((b"".join(said) + rest).split(b"\n")[-2])
        with opened(url) as store:
            block = next(store.scan("vector", columns=["n"]))
            assert block.ids == block.columns["n"] == list(range(500))
            for start in range(0, last + 1, 10):
                assert block.vectors[start % 500, 1] >= start // 500 + 1
            there = block.vectors[:, 1] > 0
            assert torch.equal(block.vectors[there, 0], torch.arange(500.0)[there])


@pytest.mark.parametrize(("scheme", "module"), [("qdrant", "qdrant_client"), ("qdrant-edge", "qdrant_edge")])
def test_a_missing_package_is_named(scheme, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"tripletmas.stores.{scheme.replace('-', '_')}", raising=False)
    with pytest.raises(ValueError, match=rf'pip install "tripletmas\[{scheme}\]"'), opened(f"{scheme}://{tmp_path}#x"):
        pass


def test_nothing_is_said_on_the_terminal(url, capfd):
    put(url, [1, 2, 3, 4], [{}] * 4)
    with opened(url) as store:
        store.add_field(VectorField("second", 2, "cosine"))
        store.write("second", [1, 9], torch.eye(2))
        store.search("second", UNIT, 2, metric="cosine")
        store.set_notes(json.loads("{}"))
        store.drop_field("second")
    assert capfd.readouterr() == ("", "")
