"""What is peculiar to Milvus: copies that are true and follow, a switch that is killed, its types, its server."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from milvus_lite.adapter.grpc.server import start_server_in_thread
from pymilvus import DataType, Function, FunctionType, MilvusClient

from tripletmas.stores.milvus_client import told
from tripletmas.stores.opening import created, opened
from tripletmas.stores.place import read_place
from tripletmas.stores.store import VectorField

KEYS = ["b", "a", "Z", "é", 'q"q', "a'b", "𝄞", "ﬀ", "back\\slash", "new\nline", "{x}", "10"]
COUNT = len(KEYS)
VECTORS = torch.nn.functional.normalize(torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0)))
NEW = torch.nn.functional.normalize(torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "base.db")


@pytest.fixture
def url(file):
    return f"milvus://{file}#points"


class Owner:
    """The user's own client of a folder, while no store of ours is open."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        self.client = MilvusClient(self.file)
        return self.client

    def __exit__(self, *error):
        from milvus_lite.server_manager import server_manager_instance

        self.client.close()
        server_manager_instance.release_server(self.file)


def everything(client, name="points"):
    client.load_collection(name)
    rows = client.query(name, filter='pk >= ""', output_fields=["*"])
    return {row["pk"]: row for row in rows}


def fill(file):
    """A collection with fields of every type that Milvus Lite has, made as a user makes it."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("vec", DataType.FLOAT_VECTOR, dim=4)
    schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_field("label", DataType.VARCHAR, max_length=64, nullable=True)
    schema.add_field("number", DataType.INT8)
    schema.add_field("real", DataType.FLOAT)
    schema.add_field("double", DataType.DOUBLE)
    schema.add_field("flag", DataType.BOOL)
    schema.add_field(
        "list", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=8, max_length=20, nullable=True
    )
    schema.add_field("json", DataType.JSON, nullable=True)
    schema.add_field("place", DataType.GEOMETRY, nullable=True)
    schema.add_field("time", DataType.TIMESTAMPTZ, nullable=True)
    rows = [
        {
            "pk": key,
            "vec": VECTORS[row].tolist(),
            "words": {1: 0.5, 7 + row: 1.5},
            "label": None if row == 2 else key,
            "number": row - 3,
            "real": 0.1 * row,
            "double": 0.1 * row,
            "flag": bool(row % 2),
            "list": None if row == 1 else ["x", key],
            "json": {"deep": [1, {"ü": None}], "real": 1.5},
            "place": "POINT (1 2)",
            "time": "2026-01-01T00:00:00Z",
            "seen": row,
            "a b": "7" if row % 2 else 7,
        }
        for row, key in enumerate(KEYS)
    ]
    del rows[3]["seen"], rows[4]["json"]
    with Owner(file) as client:
        client.create_collection("points", schema=schema, properties={"mine": "1"})
        indexes = client.prepare_index_params()
        indexes.add_index("vec", "HNSW", metric_type="COSINE", params={"M": 8, "efConstruction": 40})
        indexes.add_index("words", "SPARSE_INVERTED_INDEX", metric_type="IP")
        indexes.add_index("label", "INVERTED")
        client.create_index("points", indexes, sync=False)
        client.insert("points", rows)
        return everything(client)


def write_second(store, ids=KEYS, rows=NEW):
    store.add_field(VectorField("second", 3, "inner_product"))
    store.write("second", ids, rows)


def without(rows, name="vec"):
    return {key: {each: value for each, value in row.items() if each != name} for key, row in rows.items()}


@pytest.mark.slow
def test_a_copy_has_all_that_the_user_keeps_and_takes_the_name(file, url):
    before = fill(file)
    with opened(url) as store:
        write_second(store)
        assert store.fields() == {
            "vec": VectorField("vec", 4, "cosine"),
            "second": VectorField("second", 3, "inner_product"),
        }
        store.set_notes({"of": "ours"})
        assert store.switch("vec", "second", "former") == ("vec", "former", "")
        assert store.fields() == {
            "vec": VectorField("vec", 3, "inner_product"),
            "former": VectorField("former", 4, "cosine"),
        }
    with Owner(file) as client:  # whose queries are as they were
        after = everything(client)
        assert without(after) == without(before)
        assert torch.allclose(torch.tensor([after[key]["vec"] for key in KEYS]), NEW)
        assert {
            each: client.describe_index("points", each)["index_type"] for each in client.list_indexes("points")
        } == {
            "vec": "HNSW",
            "words": "SPARSE_INVERTED_INDEX",
            "label": "INVERTED",
        }
        hit = client.search("points", [NEW[5].tolist()], anns_field="vec", limit=1, filter="number == 2")[0][0]
        assert hit["pk"] == KEYS[5]
    with opened(url) as store:
        assert store.notes() == {"of": "ours"}
        store.switch("vec", "former", "second")
        store.set_notes({})
        store.drop_field("second")
    with Owner(file) as client:
        assert everything(client) == before
        assert client.list_collections() == ["points"]
        assert client.describe_collection("points")["properties"] == {"mine": "1"}


@pytest.mark.slow
def test_a_copy_follows_what_the_user_does_meanwhile(file, url):
    fill(file)
    with opened(url) as store:
        write_second(store)
    with Owner(file) as client:
        client.load_collection("points")
        client.upsert("points", [{"pk": "a", "label": "changed", "new key": [1]}], partial_update=True)
        client.delete("points", ids=["Z", "10"])
        added = {
            "pk": "late",
            "vec": [0.5] * 4,
            "words": {1: 1.0},
            "label": "l",
            "number": 1,
            "real": 1.0,
            "double": 1.0,
        }
        client.insert("points", [{**added, "flag": True, "list": None}])
        expected = everything(client)
    with opened(url) as store:
        ids = [each for block in store.scan("second", size=5) for each in block.ids]
        assert ids == sorted(expected, key=str.encode)
        assert bool(store.read("second", ["late"]).vectors.isnan().all())
        store.switch("vec", "second", "former")
        assert bool(store.read("vec", ["late"]).vectors.isnan().all()), "it is there, with zeros for a vector"
    with Owner(file) as client:
        after = everything(client)
        assert without(after) == without(expected)
        assert after["late"]["vec"] == [0, 0, 0]
        assert torch.allclose(torch.tensor(after["a"]["vec"]), NEW[KEYS.index("a")])


@pytest.mark.slow
def test_a_switch_that_is_killed_anywhere_is_finished_or_was_not_begun(file, url, tmp_path, monkeypatch):
    before = fill(file)
    with opened(url) as store:
        write_second(store)
        store.set_notes({"of": "ours"})
    with Owner(file) as client:
        client.create_alias("points", "shop")
    shutil.copytree(file, tmp_path / "saved.db")

    states = []
    for killed_at in range(20):
        shutil.rmtree(file)
        shutil.copytree(tmp_path / "saved.db", file)
        calls = []

        def counted(name, killed_at=killed_at, calls=calls):
            really = getattr(MilvusClient, name)

            def call(self, *given, **options):
                calls.append(name)
                if len(calls) == killed_at + 1:
                    raise KeyboardInterrupt
                return really(self, *given, **options)

            return call

        with monkeypatch.context() as patch:
            names = ("rename_collection", "alter_collection_properties", "drop_collection_properties", "alter_alias")
            for name in names:
                patch.setattr(MilvusClient, name, counted(name))
            with opened(url) as store:
                try:
                    store.switch("vec", "second", "former")
                    break
                except KeyboardInterrupt:
                    pass
        with opened(url) as store:
            states.append(sorted(store.fields()))
            assert store.notes() == {"of": "ours"}
            assert len(store) == COUNT
            assert store.switch("vec", "second", "former") == ("vec", "former", "")
        with Owner(file) as client:
            assert without(everything(client)) == without(before)
            assert everything(client, "shop") == everything(client), "an alias follows"
            assert everything(client, "points__former") == before
            assert client.list_collections() == ["points", "points__former"]
    assert killed_at == len(calls) == 7
    assert states == [["second", "vec"]] * 2 + [["former", "vec"]] * 5


def test_columns_and_filters_of_all_types(file, url):
    fill(file)
    with opened(url) as store:

        def found(**where):
            hits = store.search("vec", VECTORS[:1], 99, metric="cosine", where=where, columns=["label"])[0]
            return {KEYS.index(hit.id) for hit in hits}

        assert store.columns()[-2:] == ["a b", "seen"]
        assert found(label='q"q') == {4}
        assert found(label='x" or number < 99 or label == "') == set()
        assert found(number="-2") == {1}
        assert found(flag="TRUE") == set(range(1, COUNT, 2))
        assert found(double="0.0") == {0}
        assert found(seen="5") == {5}
        assert found(**{"a b": "7"}) == set(range(COUNT)), "the text and the number"
        assert found(**{"a b": "7", "flag": "false"}) == set(range(0, COUNT, 2))
        for column, value in (("number", "two"), ("flag", "yes"), ("json", "{}"), ("place", "POINT (1 2)")):
            with pytest.raises(ValueError, match=rf"the column '{column}' has type [A-Z0-9]+, never"):
                found(**{column: value})
        with pytest.raises(ValueError, match=r"no column 'lable' \(did you mean 'label'"):
            found(lable="x")
        with pytest.raises(ValueError, match="'words' has type SPARSE_FLOAT_VECTOR, and embeddings are FLOAT_VECTOR"):
            store.read("words", ["a"])
        with pytest.raises(ValueError, match="has a column 'label' already"):
            store.add_field(VectorField("label", 2))
        with pytest.raises(ValueError, match="cannot take the vector 'vec'"):
            store.drop_field("vec")
        write_second(store)
        with pytest.raises(ValueError, match="come into it by their vector 'vec', not by 'second'"):
            store.insert("second", ["a"], NEW[:1], {})
        with pytest.raises(ValueError, match="ids are texts, and not 3"):
            store.insert("vec", [3], VECTORS[:1], {})
        with pytest.raises(ValueError, match="is no vector that can take the place"):
            store.switch("vec", "nothing", "former")
        with pytest.raises(ValueError, match="has a vector 'second' already"):
            store.switch("vec", "second", "second")
    with (
        pytest.raises(ValueError, match="ids are the primary key, 'pk', and not 'label'"),
        opened(f"{url}?id=label"),
    ):
        pass


def make(file, *, auto_id=False, partition="", partition_key=False, words=False, vectors=("vec",)):
    with Owner(file) as client:
        schema = MilvusClient.create_schema(auto_id=auto_id)
        schema.add_field("id", DataType.INT64, is_primary=True)
        for name in vectors:
            schema.add_field(name, DataType.FLOAT_VECTOR, dim=2)
        schema.add_field("text", DataType.VARCHAR, max_length=99, is_partition_key=partition_key, enable_analyzer=words)
        if words:
            schema.add_field("bm25", DataType.SPARSE_FLOAT_VECTOR)
            schema.add_function(Function("f", FunctionType.BM25, ["text"], ["bm25"]))
        client.create_collection("points", schema=schema)
        if partition:
            client.create_partition("points", partition)
        rows = [{**{name: [1.0, each] for name in vectors}, "text": f"t{each}"} for each in range(3)]
        client.insert("points", [row if auto_id else {**row, "id": each} for each, row in enumerate(rows)])


def test_ids_that_milvus_makes_are_kept_and_the_end_of_that_is_said(file, url):
    make(file, auto_id=True)
    with opened(url) as store:
        block = next(store.scan("vec", columns=["text"]))
        store.add_field(VectorField("second", 3, "l2"))
        store.write("second", block.ids, torch.eye(3))
        assert "need an id from now on" in store.switch("vec", "second", "former").say
        after = next(store.scan("vec", columns=["text"]))
        assert (after.ids, after.columns) == (block.ids, block.columns)
        assert torch.equal(after.vectors, torch.eye(3))
        assert store.switch("vec", "former", "second").say == ""
    with Owner(file) as client:
        assert client.describe_collection("points")["auto_id"]


def test_a_partition_key_is_copied_and_partitions_are_refused(file, url, tmp_path):
    make(file, partition_key=True)
    with opened(url) as store:
        store.add_field(VectorField("second", 3, "cosine"))
        store.write("second", [0, 1, 2], torch.eye(3))
        store.switch("vec", "second", "former")
        assert torch.equal(next(store.scan("vec")).vectors, torch.eye(3))
    with Owner(file) as client:
        assert [each["name"] for each in client.describe_collection("points")["fields"] if each.get("is_partition_key")]
    for name, what, why in (
        ("a.db", {"partition": "winter"}, "has partitions _default, winter"),
        ("b.db", {"words": True}, "by functions"),
    ):
        make(str(tmp_path / name), **what)
        with opened(f"milvus://{tmp_path}/{name}#points") as store:
            with pytest.raises(ValueError, match=f"{why}.*copy"):
                store.add_field(VectorField("second", 3, "cosine"))
            assert list(store.fields()) == ["vec"]


def test_of_several_vectors_one_is_named(file, url):
    make(file, vectors=("image", "words"))
    with (
        opened(url) as store,
        pytest.raises(ValueError, match=r"has vectors image, words: name .* by \?vector=NAME"),
    ):
        store.add_field(VectorField("second", 3, "cosine"))
    with opened(f"{url}?vector=image") as store:
        store.write("words", [1], torch.tensor([[7.0, 8.0]]))
        store.add_field(VectorField("second", 3, "cosine"))
        store.write("second", [0, 1, 2], torch.eye(3))
        with pytest.raises(ValueError, match="no vector that can take the place of 'words'"):
            store.switch("words", "second", "former")
        store.switch("image", "second", "former")
        assert torch.equal(next(store.scan("image")).vectors, torch.eye(3))
        assert next(store.scan("words")).vectors.tolist() == [[1, 0], [7, 8], [1, 2]]


HOLDER = """
import sys, time
from pymilvus import MilvusClient
MilvusClient(sys.argv[1])
print("open", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_folder_that_another_process_holds(file, url, capfd):
    make(file)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, file], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(ValueError, match="is open in another process: close it there"), opened(url):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with opened(url) as store:
        assert len(store) == 3
    assert capfd.readouterr() == ("", "")


def test_two_stores_of_one_process_share_a_folder(file, url):
    make(file)
    with opened(url) as store:
        with opened(url) as other:
            other.add_field(VectorField("second", 3, "cosine"))
        assert "second" in store.fields()
    with opened(url) as store:
        assert "second" in store.fields()


def test_folders_that_are_not_there_or_broken(file, url, tmp_path, capfd):
    for place, why in (
        (url, "no such folder of Milvus Lite"),
        (f"milvus://{tmp_path}#points", "has a name that ends with .db"),
        (f"{url}?pth=x", "has no option 'pth'"),
    ):
        with pytest.raises(ValueError, match=why), opened(place):
            pass
    assert not os.path.exists(file)
    (tmp_path / "old.db").write_bytes(b"SQLite format 3")
    with pytest.raises(ValueError, match=r"a file of Milvus Lite before 3\.0"), opened(f"milvus://{tmp_path}/old.db#x"):
        pass
    make(file)
    (tmp_path / "base.db" / "collections" / "points" / "schema.json").write_text("{")
    with pytest.raises(ValueError) as error, opened(url):
        pass
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_server(tmp_path):
    """Of Milvus Lite, over its port, as another process would be asked."""
    server, base, port = start_server_in_thread(str(tmp_path / "data"))
    url = f"milvus://127.0.0.1:{port}/#points"
    try:
        with created(url, VectorField("vector", 2, "l2"), {"label": str}) as store:
            store.insert("vector", [1, 2], torch.tensor([[3.0, 4.0], [1.0, 0.0]]), {"label": ["x", None]})
        with opened(url.replace("#", "")) as store:
            block = next(store.scan("vector", columns=["label"]))
            assert (block.ids, block.columns) == ([1, 2], {"label": ["x", None]})
            hits = store.search("vector", torch.tensor([[3.0, 5.0]]), 2, metric="l2")[0]
            assert [(hit.id, hit.score) for hit in hits] == [(1, -1), (2, pytest.approx(-29))]
            store.add_field(VectorField("second", 1, "l2"))
            store.write("second", [1, 2], torch.ones(2, 1))
            store.switch("vector", "second", "former")
            assert next(store.scan("vector")).vectors.tolist() == [[1], [1]]
        with pytest.raises(ValueError, match="did you mean 'points'"), opened(url.replace("points", "pionts")):
            pass
        with pytest.raises(ValueError, match="has no option 'tokn'"), opened(f"{url}?tokn=x"):
            pass
    finally:
        server.stop(0)
        base.close()
    with (
        pytest.raises(ValueError, match=r"127\.0\.0\.1:1/#points: Fail connecting"),
        opened("milvus://127.0.0.1:1/#points"),
    ):
        pass


WRITER = """
import os, sys, torch
from tripletmas.stores.opening import opened
with opened(sys.argv[1]) as store:
    for start in range(0, 10**9, 10):
        ids = list(range(start % 500, start % 500 + 10))
        store.write("second", ids, torch.tensor([[float(each), start // 500 + 1] for each in ids]))
        os.write(1, b"%d\\n" % start)
"""


@pytest.mark.slow
def test_what_was_written_outlives_a_kill(url):
    with created(url, VectorField("vector", 2, "l2"), {"at": int}) as store:
        store.insert("vector", range(500), torch.zeros(500, 2), {"at": range(500)})
        store.add_field(VectorField("second", 2, "l2"))
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said = [writer.stdout.readline() for _ in range(7)]
        writer.send_signal(signal.SIGKILL)
        rest, errors = writer.communicate()
        assert errors == b""
        last = int((b"".join(said) + rest).split(b"\n")[-2])
        with opened(url) as store:
            block = next(store.scan("second", columns=["at"]))
            assert block.ids == block.columns["at"] == list(range(500))
            for start in range(0, last + 1, 10):
                assert block.vectors[start % 500, 1] >= start // 500 + 1
            there = block.vectors[:, 1] > 0
            assert torch.equal(block.vectors[there, 0], torch.arange(500.0)[there])


def test_a_missing_package_is_named(monkeypatch, url):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    for name in ("milvus", "milvus_client", "milvus_copies"):
        monkeypatch.delitem(sys.modules, f"tripletmas.stores.{name}", raising=False)
    with pytest.raises(ValueError, match=r'pip install "tripletmas\[milvus\]"'), opened(url):
        pass


def test_keys_in_no_order_are_told_of(file, url, monkeypatch):
    """What Milvus Lite gives without the paging of an iterator."""
    fill(file)
    really = MilvusClient.query

    def query(self, name, **options):
        return really(self, name, **{key: each for key, each in options.items() if key != "iterator"})

    monkeypatch.setattr(MilvusClient, "query", query)
    with opened(url) as store, pytest.raises(ValueError, match="gives rows in no order"):
        next(store.scan("vec"))


def test_what_the_client_would_print_is_in_the_error_alone(file, url):
    make(file)
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).addHandler(handler)
    try:
        with opened(url) as store, pytest.raises(ValueError, match=r"#points: .*'text' value length 200 exceeds"):
            store.insert("vec", [1], torch.ones(1, 2), {"text": ["x" * 200]})
    finally:
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).removeHandler(handler)
    assert records == []


def test_loggers_are_as_they_were(url):
    logging.getLogger("pymilvus").setLevel(logging.INFO)
    with pytest.raises(ValueError, match="x"), told(read_place(url)):
        raise OSError("x")
    assert logging.getLogger("pymilvus").level == logging.INFO


def test_it_filters_although_faiss_was_changed_by_others(file, url):
    """pytorch-metric-learning imports what replaces the searches of faiss by some that know of no parameters."""
    import faiss
    import faiss.contrib.torch_utils

    fill(file)
    with opened(f"{url}?vector=vec&id=pk") as store:
        whole = store.search("vec", VECTORS[:1], COUNT, metric=store.fields()["vec"].metric, columns=["label"])[0]
        label = next(hit.columns["label"] for hit in whole if hit.columns["label"])
        some = store.search(
            "vec", VECTORS[:1], COUNT, metric=store.fields()["vec"].metric, where={"label": label}, columns=["label"]
        )[0]
        assert [hit.id for hit in some] == [hit.id for hit in whole if hit.columns["label"] == label]
    flat = faiss.IndexFlatIP(4)
    flat.add(VECTORS)  # what the module is for: tensors
    assert flat.search(VECTORS[:1], 1)[1].tolist() == [[0]]
    chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch([1, 2]))
    assert set(flat.search(VECTORS[:1].numpy(), 2, params=chosen)[1][0].tolist()) == {1, 2}
