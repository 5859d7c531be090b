"""What every engine must do, whichever it is."""

from __future__ import annotations

import pytest
import torch
from oracles import nearest
from store_engines import COUNT, DIM, ENGINES, LABELS, columns, fill, note, points

from tripletmas.stores.identity import read_notes
from tripletmas.stores.opening import created, opened
from tripletmas.stores.store import NoCollection, VectorField, field_of

IDS = [3 * (row + 1) for row in range(COUNT)]
WANTED = list(columns())


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


@pytest.fixture
def url(engine, tmp_path):
    url = engine.url(tmp_path)
    fill(url)
    return url


@pytest.fixture
def store(url):
    with opened(url) as store:
        yield store


def everything(store, name="vector"):
    """(ids, vectors, columns) of all points."""
    blocks = list(store.scan(name, columns=WANTED))
    ids = [each for block in blocks for each in block.ids]
    vectors = torch.cat([block.vectors for block in blocks])
    return ids, vectors, {key: [each for block in blocks for each in block.columns[key]] for key in WANTED}


def assert_as_filled(store, name="vector"):
    """Nothing of the user's points has changed."""
    ids, vectors, found = everything(store, name)
    assert ids == IDS
    assert torch.allclose(vectors, points(), atol=1e-7, rtol=0)
    assert found == columns()
    assert len(store) == COUNT


@pytest.mark.slow
def test_it_holds_what_was_put_into_it(store):
    assert_as_filled(store)
    assert set(store.columns()) >= set(WANTED)
    assert field_of(store).name == "vector"
    assert field_of(store).dim == DIM


def test_points_are_read_in_the_order_of_their_ids_in_blocks(store):
    blocks = list(store.scan("vector", size=7))
    assert [len(block.ids) for block in blocks] == [7] * 7 + [1]
    assert [each for block in blocks for each in block.ids] == IDS
    assert [each for block in store.scan("vector", size=7, after=IDS[9]) for each in block.ids] == IDS[10:]
    assert [each for block in store.scan("vector", after=31) for each in block.ids] == IDS[10:], "31 is not there"
    assert not list(store.scan("vector", after=IDS[-1]))


def test_ids_that_are_texts_are_ordered_by_their_utf8(engine, tmp_path):
    if not engine.names:
        pytest.skip("its ids cannot be any texts")
    names = ["b", "a", "Z", "é", "10", "9", "a'b", "𝄞", "ﬀ"]
    with created(engine.url(tmp_path), VectorField("vector", DIM, "cosine"), {"label": str}, ids=str) as store:
        store.insert("vector", names, points()[: len(names)], {"label": names})
    with opened(engine.url(tmp_path)) as store:
        blocks = list(store.scan("vector", size=2, columns=["label"]))
        assert [each for block in blocks for each in block.ids] == sorted(names, key=str.encode)
        assert all(block.columns["label"] == block.ids for block in blocks)
        assert [each for block in store.scan("vector", after="a'b") for each in block.ids] == ["b", "é", "ﬀ", "𝄞"]
        assert store.read("vector", ["a'b", "no", "𝄞"]).ids == ["a'b", "𝄞"]
        store.add_field(VectorField("second", 2, "cosine"))
        store.write("second", ["a'b"], torch.tensor([[1.0, 0.0]]))
        assert store.read("second", ["a'b"]).vectors.tolist() == [[1, 0]]


def test_points_are_read_by_their_ids_in_the_order_asked(store):
    block = store.read("vector", [30, 3, 4, 150], columns=["path"])
    assert block.ids == [30, 3, 150]
    assert torch.allclose(block.vectors, points()[[9, 0, 49]], atol=1e-7, rtol=0)
    assert block.columns == {"path": [columns()["path"][row] for row in (9, 0, 49)]}
    assert torch.allclose(store.read("vector", [3, 15, 9]).vectors, points()[[0, 4, 2]], atol=1e-7, rtol=0)
    assert store.read("vector", [4]).ids == []
    assert store.read("vector", []).vectors.shape == (0, DIM)


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_it_finds_the_nearest(engine, tmp_path, metric):
    if metric not in engine.metrics:
        pytest.skip(f"it does not compare by {metric}")
    url = engine.url(tmp_path)
    fill(url, metric=metric)
    queries = points(seed=5)[:4] * 2
    with opened(url) as store:
        found = store.search("vector", queries, 5, metric=metric, columns=WANTED)
        # the cosine of queries is that of their unit vectors; points are of length 1
        asked = queries / 2 if metric == "cosine" else queries
        how = "l2" if metric == "l2" else "inner_product"
        expected = [nearest(query, points().tolist(), how, 5) for query in asked.tolist()]
        assert [[hit.id for hit in hits] for hits in found] == [[IDS[row] for row in rows] for _, rows in expected]
        scores = [scores for scores, _ in expected]
        assert [[hit.score for hit in hits] for hits in found] == [pytest.approx(each, abs=1e-5) for each in scores]
        hit = found[0][0]
        assert hit.columns == {key: columns()[key][IDS.index(hit.id)] for key in WANTED}


def test_it_finds_among_those_with_a_value_alone(store):
    for label in LABELS:
        hits = store.search("vector", points(seed=5)[:1], COUNT, metric="cosine", where={"label": label})[0]
        assert sorted(hit.id for hit in hits) == [IDS[row] for row in range(COUNT) if columns()["label"][row] == label]
    assert store.search("vector", points()[:1], 3, metric="cosine", where={"label": "' OR 1=1 --"}) == [[]]


def test_a_second_vector_stands_beside_the_first(store):
    new = VectorField("second", 3, "cosine")
    store.add_field(new)
    store.add_field(new)
    assert store.fields()["second"].dim == 3
    assert bool(next(iter(store.scan("second"))).without_vector().all())
    vectors = torch.nn.functional.normalize(torch.arange(1.0, 10).view(3, 3))
    store.write("second", [9, 3, 4], vectors)  # there is no 4
    store.write("second", [9, 3, 4], vectors)
    ids, found, _ = everything(store, "second")
    assert ids == IDS
    assert torch.allclose(found[[2, 0]], vectors[:2], atol=1e-7)
    assert int(found.isnan().all(dim=1).sum()) == COUNT - 2
    assert [hit.id for hit in store.search("second", vectors[:1], 5, metric="cosine")[0]] == [9, 3], "others have none"
    assert_as_filled(store)
    store.drop_field("second")
    store.drop_field("second")
    assert set(store.fields()) == {"vector"}
    assert_as_filled(store)


def test_what_is_written_is_there_when_it_is_opened_again(url):
    with opened(url) as store:
        store.add_field(VectorField("second", 3, "cosine"))
        store.write("second", [3], torch.tensor([[0.0, 1, 0]]))
        before = store.notes()
        note(store, "second", 3)
        noted = store.notes()
    with opened(url) as store:
        assert store.read("second", [3]).vectors.tolist() == [[0, 1, 0]]
        assert store.notes() == noted != before
        assert read_notes(store).identities["second"].dim == 3
        store.set_notes(before)
        assert store.notes() == before
        store.drop_field("second")
        assert_as_filled(store)


def test_a_switch_and_back(engine, url):
    second = points(seed=7, dim=4)
    with opened(url) as store:
        store.add_field(VectorField("second", 4, "cosine"))
        store.write("second", IDS, second)
        note(store, "second", 4)
        switched = store.switch("vector", "second", "former")
        assert bool(switched.say) != engine.renames
        if engine.renames:
            assert switched == ("vector", "former", "")
        assert store.switch("vector", "second", "former")[:2] == switched[:2], "a second call changes nothing"
    with opened(url) as store:
        assert torch.allclose(everything(store, switched.active)[1], second, atol=1e-7)
        assert_as_filled(store, switched.kept)
        back = store.switch(switched.active, switched.kept, "second")
        assert store.switch(switched.active, switched.kept, "second")[:2] == back[:2]
        assert back.active == "vector"
    with opened(url) as store:
        assert_as_filled(store)
        assert torch.allclose(everything(store, back.kept)[1], second, atol=1e-7)
        store.drop_field(back.kept)
        assert set(store.fields()) == {"vector"}
        assert_as_filled(store)


def test_after_a_switch_the_old_vectors_can_go(url):
    second = points(seed=7, dim=4)
    with opened(url) as store:
        store.add_field(VectorField("second", 4, "cosine"))
        store.write("second", IDS, second)
        note(store, "second", 4)
        switched = store.switch("vector", "second", "former")
        store.drop_field(switched.kept)
        assert set(store.fields()) == {switched.active}
        ids, vectors, found = everything(store, switched.active)
        assert (ids, found) == (IDS, columns())
        assert torch.allclose(vectors, second, atol=1e-7)


def test_a_point_that_is_inserted_again_is_replaced(engine, store):
    if not engine.inserts:
        pytest.skip("points come into it by other commands")
    store.insert("vector", [3], points()[1:2], {"label": ["new"], "path": ["p"]})
    assert len(store) == COUNT
    block = store.read("vector", [3], columns=WANTED)
    assert block.columns == {"label": ["new"], "path": ["p"]}
    assert torch.allclose(block.vectors, points()[1:2], atol=1e-7)


def test_bad_input_is_a_sentence_and_changes_nothing(engine, url, tmp_path):
    with opened(url) as store:
        for wrong in (
            lambda: store.write("vector", [3], torch.zeros(1, DIM + 1)),
            lambda: store.write("vector", [3, 6], torch.tensor([[0.5] * DIM, [float("nan")] * DIM])),
            lambda: store.write("nothing", [3], torch.zeros(1, DIM)),
            lambda: store.insert("vector", [3], torch.full((1, DIM), torch.inf), {"label": ["a"], "path": ["b"]}),
            lambda: store.search("vector", torch.zeros(1, DIM + 1), 3, metric="cosine"),
            lambda: store.search("vector", points()[:1], 0, metric="cosine"),
            lambda: store.search("vector", points()[:1], 3, metric="euclid"),
            lambda: store.search("vector", points()[:1] * torch.nan, 3, metric="cosine"),
            lambda: store.search("nothing", points()[:1], 3, metric="cosine"),
            lambda: next(iter(store.scan("nothing"))),
            lambda: store.read("nothing", [3]),
            lambda: field_of(store, "vectr"),
        ):
            with pytest.raises(ValueError) as told:
                wrong()
            assert "\n" not in str(told.value)
        assert_as_filled(store)
    with pytest.raises(ValueError, match="already"), created(url, VectorField("vector", DIM), {}):
        pass
    if "://" not in url:
        return
    scheme, _, rest = url.partition("://")
    where, _, name = rest.partition("#")
    with pytest.raises(NoCollection, match=f"did you mean '{name}'"), opened(f"{scheme}://{where}#{name}x"):
        pass
    with pytest.raises(ValueError, match=f"names no collection.*{name}"), opened(f"{scheme}://{where}"):
        pass
    with opened(url) as store:
        assert_as_filled(store)
