"""After the power went at any moment, a run goes on to the same end, and an index is the old one or the new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from power_cut import states_of

from tripletmas.data.batches import seed_everything
from tripletmas.data.tasks import Stream
from tripletmas.index.changes import add_images, remove_images
from tripletmas.index.images import ImageIndex, Part, Settings, Transform
from tripletmas.models.making import make_model
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.mas import MAS


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs a file system in memory, /dev/shm")
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def train(stream: Stream, path: Path) -> None:
    run = RunDirectory.create(path, {"seed": 3})
    seed_everything(3)
    model = make_model("mlp", stream[0].train.sample_shape, options={"hidden": (8,), "dim": 4})
    config = TrainConfig(batch_size=8, samples_per_class=2, seed=3, epochs=2)
    train_stream(model, stream, MAS(strength=1.0), make_loss("triplet", dim=4, num_classes=6), config, run)


def result(path: Path) -> dict[str, object]:
    """All that a run has come to, without how long it took."""
    run = RunDirectory(path)
    state = run.load_checkpoint()
    assert state is not None
    found: dict[str, object] = {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.parent.parent.name != "checkpoint" and file.name != "metrics.jsonl"
    }
    records = [{key: value for key, value in each.items() if key != "seconds"} for each in run.records()]
    for each in records:
        each.pop("reembed", None)
    return found | {"records": records, "state": {name: value.tolist() for name, value in state.model.items()}}


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "seeds"), [(60, 1), pytest.param(1, 3, marks=pytest.mark.long)])
def test_a_run_goes_on_to_the_same_end(stride, seeds, tiny_stream, scratch):
    stream = tiny_stream[:2]
    states = states_of(
        scratch, lambda: train(stream, scratch / "disk/run"), scratch / "disk", stride=stride, seeds=seeds
    )
    expected = result(scratch / "disk/run")
    for state in states:
        train(stream, state / "run")
        assert result(state / "run") == expected, state.name
        shutil.rmtree(state)


@pytest.mark.parametrize(("stride", "seeds"), [(1, 2), pytest.param(1, 100, marks=pytest.mark.long)])
def test_an_index_is_the_old_one_or_the_new_one(stride, seeds, scratch):
    vectors = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    part, names = Part("m", 0, "m"), ["a.png", "b.png", "c.png", "d.png"]
    empty = ImageIndex.empty(Settings(dim=4, transform=Transform(8, 1), kind="HNSW4"))
    first = add_images(empty, vectors, names, [None] * 4, part)
    second = remove_images(first, torch.tensor([1]))
    root, path = scratch / "disk", scratch / "disk" / "shop.index"
    root.mkdir()
    first.save(path)
    for state in states_of(scratch, lambda: second.save(path), root, stride=stride, seeds=seeds):
        found = ImageIndex.open(state / "shop.index")
        expected = {4: first, 3: second}[len(found)]
        assert found.paths == expected.paths
        assert torch.equal(found.vectors, expected.vectors)
        second.save(state / "shop.index")  # the next command works
        assert len(ImageIndex.open(state / "shop.index")) == 3


def test_the_harness_sees_what_is_not_synced(scratch):
    """A file that is written over in place, or renamed before it is synced, has a third state."""

    def careless() -> None:
        path = scratch / "disk" / "x"
        path.write_text("new")
        os.replace(path, path.with_name("y"))

    (scratch / "disk").mkdir()
    (scratch / "disk" / "y").write_text("old")
    states = states_of(scratch, careless, scratch / "disk", stride=1, seeds=30)
    found = {(state / "y").read_text() for state in states}
    assert {"old", "new", ""} <= found
