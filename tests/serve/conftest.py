"""A small shop that is served: a run, an index of its pictures, and one of texts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import restored_tables
from starlette.testclient import TestClient
from tiny_texts import rows_of, write_csv

from tripletmas.cli.main import main
from tripletmas.serve.making import make_app

LABELS = ("boot", "lamp", "mug", "vase")


def did(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="session")
def made(tmp_path_factory, write_images) -> Path:
    """A folder with pictures `shop`, a run `run` on them of two tasks, and `shop.index` of its present model."""
    folder = tmp_path_factory.mktemp("served")
    for number, label in enumerate(LABELS):
        write_images(folder / "shop" / label, seed=number)
    data = ("--data", "folder", "--data.root", folder / "shop", "--data.size", 8, "--data.channels", 1)
    small = ("--model", "mlp", "--model.dim", 8, "--training.epochs", 2, "--report", "false", "--device", "cpu")
    with restored_tables():
        did("train", *data, "--data.tasks", 2, *small, "--out", folder / "run")
        did("index", "build", folder / "run", "--images", folder / "shop", "--out", folder / "shop.index")
    return folder


@pytest.fixture
def shop(made, tmp_path) -> Path:
    """A copy of the index, to be changed; the folder that it lies in."""
    shutil.copy(made / "shop.index", tmp_path / "shop.index")
    return tmp_path


@pytest.fixture
def client(made) -> Iterator[TestClient]:
    """Asks an application over the index."""
    with serving(made / "shop.index") as client:
        yield client


@pytest.fixture(scope="session")
def texts(tmp_path_factory, tiny_encoder) -> Path:
    """A folder with `faq.index`, of texts."""
    folder = tmp_path_factory.mktemp("served-texts")
    write_csv(folder / "faq.csv", rows_of(8))
    options = ["--data", "csv", "--data.path", folder / "faq.csv", "--data.text", "question", "--data.label", "topic"]
    options += ["--data.tasks", 2, "--model", f"sentence-transformers:{tiny_encoder}", "--training.epochs", 1]
    options += ["--training.lr", 1e-3, "--report", "false", "--device", "cpu", "--strategy", "finetune"]
    with restored_tables():
        did("train", *options, "--out", folder / "run")
        of_texts = ("--csv", folder / "faq.csv", "--text", "question", "--label", "topic")
        did("index", "build", folder / "run", *of_texts, "--out", folder / "faq.index")
    return folder


def serving(path: Path, **options: object) -> TestClient:
    make: Callable = make_app
    app = make(str(path), device="cpu", **{"hosts": ["testserver"], **options})
    return TestClient(app, raise_server_exceptions=True)


@pytest.fixture(scope="session")
def served() -> Callable[..., TestClient]:
    """Makes a client of an application over an index; options as `make_app`."""
    return serving
