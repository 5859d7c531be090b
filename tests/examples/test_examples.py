"""The examples run, on little, and are all run here."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest
from starlette.testclient import TestClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What an example writes, and what the command line remembers, goes into a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_plain_loop():
    found = example("plain_loop")["train"](True, epochs=1)
    assert 0.1 < found <= 1  # ten classes: by chance 0.1


@pytest.mark.slow
def test_own_strategy(capsys):
    example("own_strategy")["main"](epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["finetune", "mas", "anchored"]
    assert all(re.search(r"recall@1 0\.\d{3}, forgetting -?0\.\d{3}$", line) for line in lines)


@pytest.mark.filterwarnings("ignore")  # the framework's own, about what an example leaves out
@pytest.mark.slow
def test_with_lightning(capsys):
    example("with_lightning")["main"](epochs=1)
    assert capsys.readouterr().out.count("recall@1 on the first task") == 5
    assert Path("mas.safetensors").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_with_sentence_transformers(tiny_encoder, capsys):
    with warnings.catch_warnings():
        example("with_sentence_transformers")["main"](str(tiny_encoder))
    assert "learned 2 tasks" in capsys.readouterr().out
    assert Path("learned/protection.safetensors").exists()


@pytest.mark.slow
def test_serve():
    app = example("serve")["shop"]("--training.epochs=1", "--data.size=16", "--report=false", "--device=cpu")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        picture = Path("shop/month3/mug/000.jpg").read_bytes()
        found = client.post("/query?k=3", content=picture, headers={"content-type": "image/jpeg"}).json()
    assert found["queries"][0]["neighbours"][0]["path"].endswith("mug/000.jpg")


def test_each_has_a_test():
    tested = set(re.findall(r"^def test_(\w+)", Path(__file__).read_text(encoding="utf-8"), flags=re.M))
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
