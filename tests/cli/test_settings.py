"""Settings of a run hold in every command that embeds or measures, not only while it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tripletmas.cli.main import main
from tripletmas.data.dataset import LabelledDataset

BATCH, WORKERS = 7, 3
COMMANDS = [
    "evaluate RUN",
    "evaluate RUN --gallery fresh,stale",
    "evaluate RUN --compatibility",
    "forecast RUN",
    "export RUN --embeddings all.npz",
    "importance RUN --images photos",
    "index build RUN --images photos --out a.index",
]
FACTS = ["query FACTS images/0.png", "query FACTS --fact circle", "query FACTS --fact circle --gallery images"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_images) -> Path:
    """Runs with these settings, on folders and on facts, and what the commands are given."""
    folder = tmp_path_factory.mktemp("settings")
    settings = ("--training.num_workers", str(WORKERS), "--training.eval_batch_size", str(BATCH))
    small = (*settings, "--training.epochs", "1", "--report", "false")
    for number in range(4):
        write_images(folder / "photos" / str(number), seed=number)
    (folder / "images").mkdir()
    for number in range(24):
        Image.new("RGB", (16, 16), (9 * number, 0, 255 - 9 * number)).save(folder / "images" / f"{number}.png")
    rows = [f"{number}.png,{'circle' if number % 2 else 'square'},," for number in range(24)]
    (folder / "images" / "facts.csv").write_text("\n".join(["image,subject,predicate,object", *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelledDataset, "loader", loaders([]))
        data = (
            "--data",
            "folder",
            "--data.root",
            str(folder / "photos"),
            "--data.size",
            "8",
            "--model",
            "mlp",
            "--data.tasks",
            "2",
        )
        assert main(["train", *data, "--out", str(folder / "run"), *small]) == 0
        data = ("--data", "facts", "--data.csv", str(folder / "images" / "facts.csv"), "--data.size", "16")
        assert main(["train", *data, "--data.tasks", "1", "--out", str(folder / "facts"), *small]) == 0
    return folder


def loaders(seen: list[tuple[int, int]]):
    """`LabelledDataset.loader` that starts no process, and notes what it was asked for."""
    real = LabelledDataset.loader

    def loader(self, batch_size=256, *, batches=None, num_workers=0, seed=None):
        seen.append((batch_size if batches is None else BATCH, num_workers))
        return real(self, batch_size, batches=batches, seed=seed)

    return loader


@pytest.mark.parametrize("command", COMMANDS + FACTS)
def test_every_command_reads_images_as_the_run_is_set(command, place, monkeypatch):
    monkeypatch.chdir(place)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(LabelledDataset, "loader", loaders(seen))
    assert main(command.replace("RUN", "run").replace("FACTS", "facts").split()) == 0
    assert set(seen) == {(BATCH, WORKERS)}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["l2", "mas"])
def test_a_search_of_the_strength_reads_images_as_it_is_set(strategy, place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(LabelledDataset, "loader", loaders(seen))
    data = ("--data", "folder", "--data.root", "photos", "--data.size", "8", "--model", "mlp", "--data.tasks", "2")
    settings = ("--training.num_workers", str(WORKERS), "--training.eval_batch_size", str(BATCH))
    given = (*data, *settings, "--training.epochs", "1", "--search.most", "1", "--strategy", strategy)
    assert main(["search", *given, "--out", str(tmp_path / "search")]) == 0
    measured = 256  # importance is measured on batches of its own size
    assert set(seen) <= {(BATCH, WORKERS), (measured, WORKERS)}
