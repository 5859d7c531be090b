"""Stores of the user's, served: what is found in them is what the index finds that was pushed there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import failed

from tripletmas.cli.main import main
from tripletmas.serve.making import make_app
from tripletmas.stores.identity import Notes, read_notes, write_notes
from tripletmas.stores.opening import opened

PNG = {"content-type": "image/png"}


@pytest.fixture(params=["lancedb", "milvus", "qdrant-edge", "sqlite-vec", "chroma"])
def store(request, made, tmp_path) -> str:
    """The index in a store."""
    place = f"{request.param}://{tmp_path / 'data.db'}#products"
    assert main(["index", "push", str(made / "shop.index"), place]) == 0
    return place


@pytest.mark.slow
def test_a_store_is_served_as_the_index_is(store, made, client, served):
    picture = (made / "shop" / "lamp" / "4.png").read_bytes()
    with served(store) as other:
        for asked in ("k=5", "k=3&label=vase", "k=9&min_score=0.5"):
            expected = client.post(f"/query?{asked}", content=picture, headers=PNG).json()["queries"][0]["neighbours"]
            found = other.post(f"/query?{asked}", content=picture, headers=PNG).json()["queries"][0]["neighbours"]
            assert [each["path"] for each in found] == [each["path"] for each in expected]
            assert [each["label"] for each in found] == [each["label"] for each in expected]
            assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-4)
        by_id = other.post("/query?k=4", json={"id": 7}).json()["queries"][0]
        assert by_id["item"]["path"] == str(made / "shop/lamp/1.png")
        assert 7 not in [each["id"] for each in by_id["neighbours"]]
        assert other.get("/thumbnail/7").status_code == 200
        assert other.get("/thumbnail/99").status_code == 404
        assert other.post("/query", json={"id": "no number"}).status_code == 404
        info, of_index = other.get("/info").json(), client.get("/info").json()
        same = ("vectors", "dim", "metric", "normalized", "score", "model", "holds", "filters")
        assert {name: info[name] for name in same} == {name: of_index[name] for name in same}
        assert other.post("/query", json={"text": "a lamp"}).status_code == 422


@pytest.fixture
def other_run(made, tmp_path) -> Path:
    """Another run on the same pictures."""
    data = ("--data", "folder", "--data.root", made / "shop", "--data.size", 8, "--data.channels", 1)
    small = ("--model", "mlp", "--model.dim", 8, "--training.epochs", 1, "--report", "false", "--device", "cpu")
    words = ("train", *data, "--data.tasks", 2, *small, "--seed", 1, "--out", tmp_path / "other")
    assert main([str(word) for word in words]) == 0
    return tmp_path / "other"


@pytest.fixture
def lance(made, tmp_path) -> str:
    place = f"lancedb://{tmp_path / 'data'}#products"
    assert main(["index", "push", str(made / "shop.index"), place]) == 0
    return place


@pytest.mark.slow
def test_what_cannot_be_served_is_told(lance, made, other_run, call):
    failed(call("serve", f"{lance}s", "--check"), "productss")
    failed(
        call("serve", "lansedb://data#products", "--check"), "unknown kind of store 'lansedb'.*did you mean 'lancedb'"
    )
    failed(call("serve", f"{lance}?label=kind", "--check"), "no column 'kind', which \\?label= names")
    for option in ("--move-queries", "--allow-stale", "--force", "--after=0"):
        failed(call("serve", lance, option, "--check"), f"{option.partition('=')[0]} is for an index file")
    other = call("serve", lance, "--run", other_run, "--check")
    failed(other, "the vectors of .* are of the model .* not .*: --run names the model that made them")
    assert call("serve", lance, "--check")[:2] == (0, f"{lance} can be served\n")
    with opened(lance) as store:
        notes = read_notes(store)
        write_notes(store, Notes({}))
    failed(call("serve", lance, "--check"), "what made the vectors 'vector' of .* is not known")
    with opened(lance) as store:
        write_notes(store, notes)
    assert call("serve", lance, "--check")[0] == 0


@pytest.mark.slow
def test_a_store_that_goes_away_is_told_and_no_more(lance, served):
    with served(lance) as client:
        shutil.rmtree(Path(lance.removeprefix("lancedb://").partition("#")[0]))
        answer = client.post("/query", json={"id": 1})
        assert answer.status_code == 503
        assert answer.json() == {"error": "the gallery cannot be asked at this moment; the log of the server says why"}
        assert client.get("/health").status_code == 200


def test_another_model_in_the_notes_is_another_edition(lance, served):
    """As after `upgrade --switch`: the notes name the model that the vectors are of from now on."""
    app = make_app(lance, device="cpu", hosts=None)
    editions = app.state.editions
    assert not editions.renew()
    with opened(lance) as store:
        notes = read_notes(store)
        write_notes(store, Notes({}))
    assert editions.renew()
    assert "is not known" in editions.trouble
    with opened(lance) as store:
        write_notes(store, notes)
    assert editions.renew()
    assert (editions.now.number, editions.trouble) == (2, "")
    editions.close()
