"""docs/serve.md is true: its programs run against a server, and its options are those of the command."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from live_app import live

from tripletmas.cli.main import main
from tripletmas.serve.making import make_app

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S)


def test_its_client_finds_neighbours(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "shop" / "mug" / "4.png", "photo.jpg")
    with live(make_app(str(made / "shop.index"), device="cpu")) as address:
        exec(compile(PYTHON[0].replace("http://127.0.0.1:8000", address), "docs/serve.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 + 2
    assert lines[0].startswith("1 ")
    assert lines[0].endswith(f"mug {made / 'shop/mug/4.png'} 16")
    assert re.fullmatch("[0-9a-f]{64}", lines[-1])


def test_its_application_is_one(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "shop.index", "shop.index")
    names: dict = {}
    exec(compile(PYTHON[1], "docs/serve.md", "exec"), names)
    assert names["app"].state.editions.now.facts.size == 24


def test_its_options_are_those_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    elsewhere = [
        "data",
        "model",
        "out",
        "images",
        "on-disk",
        "vectors",
        "seconds",
        "rounds",
        "callers",
    ]  # of other commands
    named = set(re.findall(r"--[a-z][\w-]+", TEXT)) - {f"--{each}" for each in elsewhere}
    assert len(named) >= 11
    assert named <= known
