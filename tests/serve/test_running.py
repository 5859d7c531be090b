"""The command, as a process of its own: started, asked, ended; and what stops it at its start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from commands import failed

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def started(*words: object) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process, and its address."""
    line = [sys.executable, "-m", "tripletmas", "serve", *map(str, words)]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        assert process.stdout
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, (said, process.communicate())
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_ends_cleanly(number, made):
    with started(made / "shop.index", "--port", 0, "--device", "cpu") as (process, address):
        picture = (made / "shop" / "mug" / "2.png").read_bytes()
        answer = httpx.post(f"{address}/query?k=1", content=picture, headers={"content-type": "image/png"})
        assert answer.json()["queries"][0]["neighbours"][0]["path"] == str(made / "shop/mug/2.png")
        assert "server" not in answer.headers
        port = address.rpartition(":")[2]
        other = [sys.executable, "-m", "tripletmas", "serve", str(made / "shop.index"), "--port", port]
        done = subprocess.run(other, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 2
        assert f"--port {port}: another program listens there already; choose another --port" in done.stderr
        assert "Traceback" not in done.stderr
        process.send_signal(number)
        said, complaint = process.communicate(timeout=20)
        assert (process.returncode, said, complaint) == (0, "", "")


@pytest.mark.slow
def test_it_asks_for_its_token_where_others_can_come(made, tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    options = ("--host", "0.0.0.0", "--port", 0, "--token-file", token, "--device", "cpu")
    with started(made / "shop.index", *options) as (_, address):
        port = address.rpartition(":")[2]
        assert httpx.get(f"http://127.0.0.1:{port}/info").status_code == 401
        headers = {"authorization": "Bearer 0123456789abcdef", "host": "shop.example"}
        assert httpx.get(f"http://127.0.0.1:{port}/info", headers=headers).status_code == 200


def test_what_cannot_be_served_is_told_in_a_sentence(made, call, tmp_path):
    index = made / "shop.index"
    failed(call("serve", tmp_path / "none.index"), "no such index file: .*none.index")
    (tmp_path / "broken.index").write_bytes(index.read_bytes()[:500])
    failed(call("serve", tmp_path / "broken.index", "--check"), "broken.index")
    failed(call("serve", index, "--host", "0.0.0.0"), "can be reached by others, so a token is needed")
    failed(call("serve", index, "--token-file", tmp_path / "none"), "none cannot be read")
    (tmp_path / "short").write_text("abc\n")
    failed(call("serve", index, "--token-file", tmp_path / "short"), "token of at least 16 letters and digits")
    failed(call("serve", index, "--port", 70000), "--port must be from 0 to 65535, got 70000")
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    elsewhere = call("serve", index, "--host", "192.0.2.1", "--token-file", tmp_path / "token")
    failed(elsewhere, "--host 192.0.2.1 --port 8000: .*; choose another --host")
    failed(call("serve", index, "--queue", 0, "--check"), "queue must be > 0, got 0")
    failed(call("serve", index, "--allow-origin", "*", "--check"), "an origin is a scheme and a host")
    failed(call("serve", index, "--move-queries", "cubic", "--check"), "the map must be one of")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        failed(call("serve", index, "--port", taken.getsockname()[1]), "another program listens there already")
    status, printed, _ = call("serve", index, "--check")
    assert (status, printed) == (0, f"{index} can be served\n")


def test_without_its_packages_it_says_what_to_install(made, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "tripletmas.serve.running", raising=False)
    failed(call("serve", made / "shop.index"), r'serving needs uvicorn: pip install "tripletmas\[serve\]"')
