"""The application over an index, asked as a client asks it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import struct
import time
import zipfile
import zlib
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tripletmas.cli.main import main
from tripletmas.index.images import ImageIndex
from tripletmas.serve.making import make_app
from tripletmas.serve.serving import Limits

PNG, JSON = {"content-type": "image/png"}, {"content-type": "application/json"}


def neighbours(answer) -> list[list[dict]]:
    assert answer.status_code == 200, answer.text
    return [each["neighbours"] for each in answer.json()["queries"]]


def refused(answer, status: int, sentence: str) -> None:
    """Whether it was refused with this status, in one sentence as JSON."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert re.search(sentence, answer.json()["error"]), answer.json()
    assert "\n" not in answer.json()["error"]
    assert "Traceback" not in answer.text


# --- what is found


@pytest.mark.slow
def test_it_finds_what_the_command_finds(client, made, tmp_path):
    picture = made / "shop" / "mug" / "3.png"
    assert main(["query", str(made / "shop.index"), str(picture), "-k", "5", "--json", str(tmp_path / "a")]) == 0
    (expected,) = json.loads((tmp_path / "a").read_text())["queries"]
    (found,) = neighbours(client.post("/query?k=5", content=picture.read_bytes(), headers=PNG))
    assert [each["path"] for each in found] == [each["path"] for each in expected["neighbours"]]
    assert [each["label"] for each in found] == [each["label"] for each in expected["neighbours"]]
    assert [each["rank"] for each in found] == [1, 2, 3, 4, 5]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected["neighbours"]])


def test_several_come_together_and_as_if_alone(client, made):
    pictures = [made / "shop" / "mug" / "0.png", made / "shop" / "boot" / "5.png", made / "shop" / "vase" / "2.png"]
    files = [("image", (each.name, each.read_bytes(), "image/png")) for each in pictures]
    together = client.post("/query?k=4", files=files)
    assert [each["query"] for each in together.json()["queries"]] == ["0.png", "5.png", "2.png"]
    for picture, found in zip(pictures, neighbours(together), strict=True):
        (alone,) = neighbours(client.post("/query?k=4", content=picture.read_bytes(), headers=PNG))
        assert [each["id"] for each in alone] == [each["id"] for each in found]
        assert found[0]["path"] == str(picture)


def test_label_score_and_id_agree_with_a_loop(client, made):
    """All pairs by hand: the product of unit vectors, largest first, equal ones by their ids."""
    index = ImageIndex.open(made / "shop.index")
    rows = range(len(index))
    for row, label, least in ((0, None, None), (7, "vase", None), (13, None, 0.4), (20, "lamp", 0.0)):
        scores = [sum(a * b for a, b in zip(*index.vectors[[row, other]].tolist(), strict=True)) for other in rows]
        expected = sorted((-score, int(index.ids[other]), other) for other, score in enumerate(scores) if other != row)
        expected = [
            (id, -score)
            for score, id, other in expected
            if label in (None, index.label_of(other)) and (least is None or -score >= least)
        ]
        asked = {"k": 9, **({"label": label} if label else {}), **({} if least is None else {"min_score": least})}
        (found,) = neighbours(client.post("/query", params=asked, json={"id": int(index.ids[row])}))
        assert [each["id"] for each in found] == [id for id, _ in expected[:9]]
        assert [each["score"] for each in found] == pytest.approx([score for _, score in expected[:9]], abs=1e-5)


def test_an_id_says_what_it_is(client, made):
    answer = client.post("/query?k=1", json={"ids": [7, "8"]}).json()
    assert [each["item"]["path"] for each in answer["queries"]] == [
        str(made / "shop/lamp/1.png"),
        str(made / "shop/lamp/2.png"),
    ]
    assert answer["score"] == "cosine"
    assert answer["edition"] == 1


def test_more_than_there_is_gives_all(client):
    (found,) = neighbours(client.post("/query?k=1000", json={"id": 0}))
    assert len(found) == 23
    assert len(neighbours(client.post("/query?k=1000", json={"id": 0}, params={"k": 1000, "label": "mug"}))[0]) == 6


@pytest.mark.slow
def test_texts_find_texts(served, texts):
    with served(texts / "faq.index") as client:
        index = ImageIndex.open(texts / "faq.index")
        answer = client.post("/query?k=3", json={"texts": [index.texts[5], "where is my parcel"]})
        first, second = neighbours(answer)
        assert first[0]["text"] == index.texts[5]
        assert first[0]["score"] == pytest.approx(1, abs=1e-5)
        assert len(second) == 3
        (by_form,) = neighbours(client.post("/query?k=3", files={"text": (None, index.texts[5])}))
        assert [each["id"] for each in by_form] == [each["id"] for each in first]
        (by_id,) = neighbours(client.post("/query?k=2", json={"id": first[0]["id"]}))
        assert [each["id"] for each in by_id] == [each["id"] for each in first[1:]]
        assert client.get("/info").json()["holds"] == "texts"
        refused(client.post("/query", content=b"x", headers=PNG), 422, "holds texts, which only texts and ids")
        refused(client.get("/thumbnail/0"), 404, "no picture")


# --- stale vectors


@pytest.fixture(scope="module")
def stale(made, tmp_path_factory) -> Path:
    """An index of which half the vectors are of the model after the first task."""
    path = tmp_path_factory.mktemp("stale") / "stale.index"
    build = ["index", "build", str(made / "run"), "--out", str(path), "--after", "0"]
    for label in ("boot", "mug"):
        shutil.copytree(made / "shop" / label, path.parent / f"of {label}" / label)
    assert main([*build, "--images", str(path.parent / "of boot")]) == 0
    assert main(["index", "add", str(path), "--images", str(path.parent / "of mug")]) == 0
    return path


@pytest.mark.slow
def test_stale_vectors_are_refused_searched_or_moved_to(stale, served, tmp_path):
    with pytest.raises(ValueError, match=r"6 of 12 vectors are stale.*--move-queries.*--allow-stale"):
        make_app(str(stale))
    picture = stale.parent / "of boot" / "boot" / "1.png"
    for option, named in (("--allow-stale", {"allow_stale": True}), ("--move-queries", {"move_queries": "run"})):
        assert main(["query", str(stale), str(picture), option, "--json", str(tmp_path / "a")]) == 0
        (expected,) = json.loads((tmp_path / "a").read_text())["queries"]
        with served(stale, **named) as client:
            answer = client.post("/query", content=picture.read_bytes(), headers=PNG)
            assert [each["path"] for each in neighbours(answer)[0]] == [each["path"] for each in expected["neighbours"]]
            assert "6 of 12 vectors are stale" in answer.json()["note"]
            (every,) = neighbours(client.post("/query?k=12", content=picture.read_bytes(), headers=PNG))
            for label in ("boot", "mug"):  # none of a label is lost, however near those of others are
                content = picture.read_bytes()
                (of_label,) = neighbours(client.post(f"/query?k=12&label={label}", content=content, headers=PNG))
                assert [each["id"] for each in of_label] == [each["id"] for each in every if each["label"] == label]
            info = client.get("/info").json()
            assert info["stale"] == {"vectors": 6, "share": 0.5}
            # an id is embedded anew where its vector lies in another space than others: it finds what its file finds
            row = ImageIndex.open(stale).paths.index(str(picture))
            (by_id,) = neighbours(client.post("/query?k=11", json={"id": row}))
            assert [each["path"] for each in by_id] == [
                each["path"] for each in expected["neighbours"] if each["path"] != str(picture)
            ] + [each["path"] for each in by_id[9:]]


# --- what is refused


@pytest.mark.parametrize(
    ("path", "given", "status", "sentence"),
    [
        ("/query?k=0", {"json": {"id": 1}}, 422, "k must be a whole number from 1 to 1000, got '0'"),
        ("/query?k=1e3", {"json": {"id": 1}}, 422, "k must be a whole number"),
        ("/query?k=2&k=3", {"json": {"id": 1}}, 422, "k is given 2 times"),
        ("/query?kk=2", {"json": {"id": 1}}, 422, "no parameter 'kk' .*did you mean 'k'"),
        ("/query?min_score=nan", {"json": {"id": 1}}, 422, "min_score must be a number, got 'nan'"),
        ("/query?label=mugg", {"json": {"id": 1}}, 404, "nothing in .* has the label 'mugg' .*did you mean 'mug'"),
        ("/query?label=", {"json": {"id": 1}}, 422, "label must have between"),
        ("/query", {"json": {"id": 99}}, 404, "nothing in .* has the id 99"),
        ("/query", {"json": {"id": -1}}, 404, "has the id -1"),
        ("/query", {"json": {"id": "../shop"}}, 404, "has the id"),
        ("/query", {"json": {"id": 10**30}}, 404, "has the id"),
        ("/query", {"json": {"id": True}}, 422, "an id must be a whole number or a string"),
        ("/query", {"json": {"id": 1, "ids": [2]}}, 422, "must have one of"),
        ("/query", {"json": {"ids": []}}, 422, "1 to 64 things, got 0"),
        ("/query", {"json": {"ids": [1] * 65}}, 422, "1 to 64 things, got 65"),
        ("/query", {"json": {"idd": 1}}, 422, "no key 'idd'"),
        ("/query", {"json": [1]}, 422, "must be an object"),
        ("/query", {"json": {"text": "a mug"}}, 422, "holds images, which only images and ids"),
        ("/query", {"json": {"text": " "}}, 422, "not empty"),
        ("/query", {"content": b'{"text": "\\ud800"}', "headers": JSON}, 422, "surrogate"),
        ("/query", {"content": b"{", "headers": JSON}, 400, "is no JSON"),
        ("/query", {"content": b"[" * 100_000, "headers": JSON}, 400, "is no JSON"),
        ("/query", {"content": b"", "headers": PNG}, 400, "body is empty"),
        ("/query", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "none of application/json"),
        ("/query", {"content": b"nothing", "headers": PNG}, 422, "image cannot be read: not an image"),
        ("/query", {"content": b"%!PS-Adobe-3.0 EPSF-3.0\n", "headers": PNG}, 422, "not an image"),
        ("/query", {"files": {"file": b"x"}}, 422, "has a field 'file'"),
        ("/query", {"files": {"image": ("a.png", b"")}}, 422, "a.png cannot be read: the file is empty"),
        ("/query", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form cannot be read"),
    ],
)  # fmt: skip
def test_bad_requests(path, given, status, sentence, client):
    refused(client.post(path, **given), status, sentence)


def test_other_addresses_and_methods(client):
    refused(client.get("/nothing"), 404, "nothing at this address")
    refused(client.get("/query"), 405, "GET is not answered here, but POST")
    assert client.get("/query").headers["allow"] == "POST"
    refused(client.get("/info?k=1"), 422, "no parameter 'k'")


def test_a_large_body_is_refused_by_its_length_and_by_what_comes(made, served):
    with served(made / "shop.index", limits=Limits(upload_bytes=1000)) as client:
        refused(client.post("/query", content=b"x" * 1001, headers=PNG), 413, "more than 1,000 bytes")
        refused(
            client.post("/query", content=iter([b"x" * 600, b"x" * 600]), headers=PNG), 413, "more than 1,000 bytes"
        )


@pytest.mark.parametrize(
    ("side", "sentence"), [(9_000, "9000 x 9000 pixels are more than 64,000,000"), (20_000, "bomb")]
)
def test_a_bomb_is_refused_by_its_header(side, sentence, client):
    """20,000 x 20,000 pixels of 8 bits would be 400 MB; the file has less than a hundred bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    refused(client.post("/query", content=bomb, headers=PNG), 422, sentence)


@pytest.mark.parametrize("form", [False, True])
def test_any_bytes_are_refused_or_answered(form, client, made):
    whole = (made / "shop" / "mug" / "0.png").read_bytes()

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=300), st.tuples(st.integers(0, len(whole) - 1), st.binary(max_size=9))))
    def asked(drawn):
        content = drawn if isinstance(drawn, bytes) else whole[: drawn[0]] + drawn[1] + whole[drawn[0] + 1 :]
        if form:
            answer = client.post("/query", content=content, headers={"content-type": "multipart/form-data; boundary=a"})
        else:
            answer = client.post("/query", content=content, headers=PNG)
        assert answer.status_code in (200, 400, 422)
        assert answer.status_code == 200 or set(answer.json()) == {"error"}

    asked()


# --- thumbnails


def test_a_thumbnail_is_the_centre_square_and_is_not_sent_twice(client):
    answer = client.get("/thumbnail/9")
    assert answer.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (8, 8)  # no larger than the picture
    assert client.get("/thumbnail/9", headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_a_thumbnail_is_of_nothing_but_the_index(client, made):
    for id in (
        "99",
        "-1",
        "x",
        "",
        "../run/config.yaml",
        "%2e%2e%2fshop.index",
        str(made / "shop/mug/0.png"),
        "1e0",
        "٣",
    ):
        refused(client.get(f"/thumbnail/{id}"), 404, "has the id|nothing at this address")


def test_a_thumbnail_of_what_is_gone_changed_or_in_an_archive(made, served, shop, tmp_path):
    archive = tmp_path / "shop.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(6):
            file.write(made / "shop" / "lamp" / f"{number}.png", f"lamp/{number}.png")
    moved = tmp_path / "pictures"
    moved.mkdir()
    for number in range(3):
        os.symlink(made / "shop" / "mug" / f"{number}.png", moved / f"{number}.png")
    for root in (archive, moved):
        assert main(["index", "add", str(shop / "shop.index"), "--images", str(root)]) == 0
    with served(shop / "shop.index") as client:
        info = ImageIndex.open(shop / "shop.index")
        assert info.paths[24].startswith(f"{archive}/lamp")
        assert client.get("/thumbnail/24").status_code == 200
        before = client.get("/thumbnail/30")  # a link, which the index names, is followed
        assert before.status_code == 200
        (moved / "0.png").unlink()
        refused(client.get("/thumbnail/30"), 404, "not there any more")
        (moved / "0.png").write_text("a secret that is no image")
        refused(client.get("/thumbnail/30"), 404, "or is no image")
        assert client.get("/thumbnail/30", headers={"if-none-match": before.headers["etag"]}).status_code == 404


# --- who may ask


@pytest.mark.slow
def test_hosts_origins_and_the_token(made, served):
    with served(made / "shop.index") as client:
        refused(client.get("/info", headers={"host": "evil.example"}), 403, "not called 'evil.example'")
        refused(client.get("/health", headers={"host": "testserver.evil.example"}), 403, "not called")
        assert client.get("/info", headers={"host": "TESTSERVER:8000"}).status_code == 200
        refused(client.get("/info", headers={"origin": "https://evil.example"}), 403, "may not ask")
        refused(client.get("/info", headers={"origin": "null"}), 403, "may not ask")
        answer = client.get("/info", headers={"origin": "http://testserver"})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
    token, shop = "0123456789abcdef", "https://shop.example"
    with served(made / "shop.index", token=token, hosts=None, allow_origins=[shop]) as client:
        for given in (None, "Bearer", f"Basic {token}", f"Bearer {token}x", "Bearer é"):
            headers = {} if given is None else {"authorization": given.encode()}
            for answer in (client.get("/info", headers=headers), client.get("/thumbnail/1", headers=headers)):
                refused(answer, 401, "asks for its token")
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        known = {"authorization": f"Bearer {token}"}
        assert client.get("/info", headers=known).status_code == 200
        answer = client.post("/query", json={"id": 1}, headers={**known, "origin": shop})
        assert answer.headers["access-control-allow-origin"] == shop
        asked = {"origin": shop, "access-control-request-method": "POST"}
        assert client.options("/query", headers=asked).status_code == 204
        refused(client.options("/query", headers={**asked, "origin": "https://evil.example"}), 403, "may not ask")
    for origin in ("*", "shop.example", "https://shop.example/", "null"):
        with pytest.raises(ValueError, match="an origin is a scheme and a host"):
            make_app(str(made / "shop.index"), allow_origins=[origin])


# --- limits


def body_that_waits(until: asyncio.Event, content: bytes):
    async def parts():
        yield content[:10]
        await until.wait()
        yield content[10:]

    return parts()


def test_too_many_are_told_to_come_again_and_health_answers_meanwhile(made):
    async def tried():
        app = make_app(str(made / "shop.index"), device="cpu", hosts=None, limits=Limits(queue=2))
        picture, rest = (made / "shop/mug/1.png").read_bytes(), asyncio.Event()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://a") as client:
            slow = [
                asyncio.create_task(client.post("/query", content=body_that_waits(rest, picture), headers=PNG))
                for _ in range(2)
            ]
            await asyncio.sleep(0.1)
            busy = await client.post("/query", json={"id": 1})
            assert (await client.get("/health")).json() == {"status": "ok"}
            assert (await client.get("/thumbnail/1")).status_code == 200
            rest.set()
            assert [(await each).status_code for each in slow] == [200, 200]
            after = await client.post("/query", json={"id": 1})
        return busy, after

    busy, after = asyncio.run(tried())
    refused(busy, 503, "too many others")
    assert int(busy.headers["retry-after"]) >= 1
    assert after.status_code == 200  # the places are free again


def test_one_alone_may_ask_with_more_than_the_queue_holds(made, served):
    with served(made / "shop.index", limits=Limits(queue=1)) as client:
        assert len(neighbours(client.post("/query", json={"ids": [1, 2, 3]}))) == 3
        assert client.post("/query", json={"ids": [1]}).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(made):
    async def tried():
        app = make_app(str(made / "shop.index"), device="cpu", hosts=None, limits=Limits(seconds=0.2))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://a") as client:
            return await client.post("/query", content=body_that_waits(asyncio.Event(), b"x" * 20), headers=PNG)

    refused(asyncio.run(tried()), 408, "did not arrive within 0.2 seconds")


# --- a gallery that changes


def test_a_changed_index_is_served_and_a_broken_one_is_not(made, served, shop):
    path = shop / "shop.index"
    whole = path.read_bytes()
    with served(path) as client:
        editions = client.app.state.editions
        assert not editions.renew()
        assert main(["index", "remove", str(path), str(made / "shop/mug")]) == 0
        assert client.get("/info").json()["edition"] == 1
        assert editions.renew()
        info = client.get("/info").json()
        assert (info["edition"], info["vectors"], info["trouble"]) == (2, 18, "")
        refused(client.post("/query?label=mug", json={"id": 1}), 404, "has the label 'mug'")
        path.write_bytes(whole[: len(whole) // 2])
        assert editions.renew()
        assert not editions.renew()  # one look at each broken file
        info = client.get("/info").json()
        assert (info["edition"], info["vectors"]) == (2, 18)
        assert "shop.index" in info["trouble"]
        assert client.post("/query", json={"id": 1}).status_code == 200
        path.unlink()
        assert editions.renew()
        assert "no such index file" in client.get("/info").json()["trouble"]
        path.write_bytes(whole)
        assert editions.renew()
        info = client.get("/info").json()
        assert (info["edition"], info["vectors"], info["trouble"]) == (3, 24, "")


def test_it_looks_by_itself(made, served, shop):
    path = shop / "shop.index"
    with served(path, limits=Limits(look_every=0.05)) as client:
        assert main(["index", "remove", str(path), str(made / "shop/mug")]) == 0
        for _ in range(200):
            if client.get("/info").json()["edition"] == 2:
                break
            time.sleep(0.02)
        assert client.get("/info").json()["vectors"] == 18
