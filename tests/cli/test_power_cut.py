"""After the power went during a command, what it changes is as before or as after; the same command ends the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from commands import SMALL
from power_cut import states_of

from tripletmas.basics.weights import Params
from tripletmas.cli.main import main
from tripletmas.index.images import ImageIndex
from tripletmas.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_images) -> Path:
    """A folder with a run, two folders of images, and an index of the first of them by an earlier model."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs a file system in memory, /dev/shm")
    folder = tmp_path_factory.mktemp("place")
    assert main(["train", "--strategy", "mas", "--report", "false", *SMALL, "--out", str(folder / "run")]) == 0
    for number, name in enumerate(("a", "b")):
        write_images(folder / name / "x", count=4, seed=number)
    index = ["index", "build", str(folder / "run"), "--images", str(folder / "a"), "--after", "0"]
    assert main([*index, "--out", str(folder / "shop.index")]) == 0
    return folder


@pytest.fixture
def scratch() -> Iterator[Path]:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def seen(index: Path) -> tuple[object, ...] | None:
    """What an index holds; None where there is none."""
    if not index.exists():
        return None
    found = ImageIndex.open(index)
    return found.paths, found.parts, found.vectors.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "index build RUN --images A --out DISK/new.index",
        "index add DISK/shop.index --images B",
        "index remove DISK/shop.index A/x/1.png",
        "index refresh DISK/shop.index --reembed",
        "index refresh DISK/shop.index --compensate",
    ],
)
@pytest.mark.parametrize(("stride", "seeds"), [(2, 1), pytest.param(1, 10, marks=pytest.mark.long)])
def test_an_index(line, stride, seeds, trained, scratch):
    def words(disk: Path) -> list[str]:
        places = {"RUN": trained / "run", "A": trained / "a", "B": trained / "b", "DISK": disk}
        return [str(places.get(word, word)) if "/" not in word else filled(word, places) for word in line.split()]

    def filled(word: str, places: dict[str, Path]) -> str:
        first, _, rest = word.partition("/")
        return str(places[first] / rest)

    disk = scratch / "disk"
    disk.mkdir()
    shutil.copy(trained / "shop.index", disk)
    path = Path(filled(next(word for word in line.split() if word.startswith("DISK")), {"DISK": disk}))
    before = seen(path)
    states = states_of(scratch, lambda: main(words(disk)), disk, stride=stride, seeds=seeds)
    after = seen(path)
    assert before != after
    for state in states:
        index = state / path.name
        found = seen(index)
        assert found in (before, after)
        status = main(words(state))
        # what is there already is not built or removed again
        assert status == 0 or (found == after and ("build" in line or "remove" in line))
        assert seen(index) == after


def importance_of(run: Path) -> Params:
    state = RunDirectory(run).load_checkpoint()
    assert state is not None
    kept, last = state.strategy, RunDirectory(run).importance().read(2)
    assert all(torch.equal(kept[f"importance/{name}"], value) for name, value in last.items())
    return last


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "seeds"), [(12, 1), pytest.param(1, 2, marks=pytest.mark.long)])
def test_importance_is_added_once(stride, seeds, trained, scratch):
    disk = scratch / "disk"
    shutil.copytree(trained / "run", disk / "run")

    def add(run: Path) -> Callable[[], int]:
        return lambda: main(["importance", str(run), "--images", str(trained / "a")])

    before = {name: value.clone() for name, value in importance_of(disk / "run").items()}
    states = states_of(scratch, add(disk / "run"), disk, stride=stride, seeds=seeds)
    expected = importance_of(disk / "run")
    assert not all(torch.equal(before[name], value) for name, value in expected.items())
    for state in states:
        assert add(state / "run")() == 0
        assert all(torch.equal(expected[name], value) for name, value in importance_of(state / "run").items())
        shutil.rmtree(state)
