"""Every file of a run is whole, unchanged, its own and of its time, or refused by name; so is an index."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import earlier_version
from safetensors.torch import load_file, save_file
from torch import Tensor

from tripletmas.basics.files import checksum
from tripletmas.index.changes import add_images
from tripletmas.index.images import ImageIndex, Part, Settings, Transform
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import run_experiment

CONFIG = {
    "data": {"name": "digits", "tasks": [5, 5]},
    "model": {"name": "mlp", "hidden": [8], "dim": 4},
    "loss": {"name": "triplet"},
    "strategy": {"name": "mas"},
    "training": {"epochs": 1},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run_experiment({**CONFIG, "seed": seed}, folder / f"run{seed}")
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A finished run, to be spoilt; beside it lies `run1`, of another seed."""
    shutil.copytree(trained / "run1", tmp_path / "run1")
    return Path(shutil.copytree(trained / "run0", tmp_path / "run0"))


def plain(content: Any) -> Any:
    """The same, such that it can be compared."""
    if isinstance(content, Tensor):
        return content.dtype, content.shape, content.reshape(-1).view(torch.uint8).tolist()
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    return content


def files_of(run: Path) -> list[str]:
    return sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file() and p.stat().st_size)


def everything(path: Path) -> Any:
    """All that commands read of a run."""
    run = RunDirectory(path)
    state = run.load_checkpoint()
    found: dict[str, Any] = {"config": run.config(), "records": run.records(), "state": plain(vars(state))}
    for name in files_of(path):
        if name.endswith(".safetensors") and not name.startswith("checkpoint"):
            found[name] = plain(run.read_tensors(name))
        elif name.endswith(".json") and not name.startswith("checkpoint"):
            found[name] = run.read_json(name)
    run.check_records(state)
    return found


def an_index(path: Path) -> Path:
    """Five vectors of two classes, of which two were added later, searched by faiss."""
    index = ImageIndex.empty(Settings(dim=4, transform=Transform(8, 1), kind="HNSW4"), run="runs/mas")
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate((["a.png", "b.png", "c.png"], ["d.png", "e.png"])):
        vectors, part = (
            torch.randn(len(names), 4, generator=generator),
            Part(f"model{number}", number, f"model{number}"),
        )
        index = add_images(index, vectors, names, ["7", "6", None][: len(names)], part, root=f"/photos/{number}")
    index.save(path)
    return path


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """(what is read, "") or (None, the complaint)."""
    try:
        return read(), ""
    except ValueError as error:
        return None, str(error)


def count_accepted(paths: list[Path], read: Callable[[], Any], flips: int, seed: int) -> tuple[int, int]:
    """(how many flipped bits were refused, how many changed nothing); one that changes what is read is a failure."""
    chosen, expected = random.Random(seed), read()
    refused = harmless = 0
    for _ in range(flips):
        path = chosen.choice(paths)
        whole = path.read_bytes()
        bit = chosen.randrange(8 * len(whole))
        flip(path, bit)
        found, complaint = attempt(read)
        if complaint:
            assert path.name in complaint or path.parent.name in complaint, complaint
            refused += 1
        else:
            assert found == expected, f"bit {bit} of {path}"
            harmless += 1
        path.write_bytes(whole)
    return refused, harmless


@pytest.mark.slow
@pytest.mark.parametrize("flips", [60, pytest.param(1500, marks=pytest.mark.long)])
def test_a_flipped_bit_of_a_run_is_refused_or_harmless(flips, run):
    paths = [run / name for name in files_of(run)]
    assert len(paths) > 15  # weights, importance, objective, gallery, shown, index, checkpoint, records, scores
    refused, harmless = count_accepted(paths, lambda: everything(run), flips, seed=0)
    print(f"{flips} flips: {refused} refused, {harmless} harmless")
    assert harmless < flips / 10  # the spaces of JSON; the padding of a header


@pytest.mark.slow
@pytest.mark.parametrize("flips", [200, pytest.param(2000, marks=pytest.mark.long)])
def test_a_flipped_bit_of_an_index_is_refused_or_harmless(flips, tmp_path):
    path = an_index(tmp_path / "shop.index")
    refused, harmless = count_accepted([path], lambda: plain(vars(ImageIndex.open(path))), flips, seed=1)
    print(f"{flips} flips: {refused} refused, {harmless} harmless")
    assert harmless < flips / 10


# --- another file in its place


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("weights/task00.safetensors", "run0/weights/task01.safetensors", r"another file of the run, weights/task01"),
        ("weights/task01.safetensors", "run1/weights/task01.safetensors", "it belongs to another run"),
        ("importance/task01.safetensors", "run1/importance/task01.safetensors", "it belongs to another run"),
        ("shown/grid.json", "run1/shown/grid.json", "it belongs to another run"),
        ("scores.json", "run1/scores.json", "it belongs to another run"),
        ("index/final.json", "run0/scores.json", r"another file of the run, scores\.json"),
        ("metrics.jsonl", "run1/metrics.jsonl", "line 1 is no record of this run"),
    ],
)
def test_another_file_in_its_place_is_refused(name, other, message, run):
    shutil.copy(run.parent / other, run / name)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.* .*{message}"):
        everything(run)


def test_a_checkpoint_of_another_run_is_refused(run):
    shutil.rmtree(run / "checkpoint")
    shutil.copytree(run.parent / "run1" / "checkpoint", run / "checkpoint")
    with pytest.raises(ValueError, match="it belongs to another run"):
        RunDirectory(run).load_checkpoint()


def test_a_part_of_another_checkpoint_is_refused(run):
    directory = RunDirectory(run)
    state = directory.load_checkpoint()
    assert state is not None
    old = next((run / "checkpoint").iterdir())
    shutil.copytree(old, run.parent / "old")
    directory.save_checkpoint(state)  # at the same place, as `tripletmas importance` does
    new = next((run / "checkpoint").iterdir())
    for part in ("model.safetensors", "optimizer.pt"):
        whole = (new / part).read_bytes()
        shutil.copy(run.parent / "old" / part, new / part)
        if (new / part).read_bytes() != whole:  # between tasks there is no optimizer: both are the same
            with pytest.raises(ValueError, match=f"{part} cannot be read .it is another file of the run"):
                directory.load_checkpoint()
        (new / part).write_bytes(whole)
    assert directory.load_checkpoint() is not None


def test_an_older_file_is_refused(run):
    """importance/task01 as it was before more was added to it; the index of searches as it was after task 0."""
    directory = RunDirectory(run)
    name = directory.importance().file(1)
    older = (run / name).read_bytes()
    directory.append({"kind": "importance"}, files=[name])
    assert directory.is_behind(name)
    directory.importance().write(1, load_file(run / name))
    assert not directory.is_behind(name)
    RunDirectory(run).importance().read(1)
    (run / name).write_bytes(older)
    with pytest.raises(ValueError, match=r"task01\.safetensors cannot be read .it is older than the run's other files"):
        RunDirectory(run).importance().read(1)


def test_a_file_without_a_checksum_is_refused(run):
    path = run / "weights" / "task01.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match=r"task01\.safetensors cannot be read .it bears no checksum"):
        everything(run)


def test_records_that_were_taken_out_or_put_in_are_noticed(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for changed, message in (
        (lines[:-1], "bytes of"),
        ([lines[0], lines[0], *lines[2:]], "not what it was when the latest checkpoint was written|bytes of"),
        ([*lines[1:], lines[0]], "not what it was when the latest checkpoint was written"),
        ([*lines[:-1], lines[-1][:-1] + "J"], "does not end as it was written"),
    ):
        path.write_text("".join(changed))
        with pytest.raises(ValueError, match=rf"metrics\.jsonl.* .*({message})"):
            everything(run)


# --- of an earlier version


def test_a_run_of_an_earlier_version_is_read(run):
    expected = RunDirectory(run).records()
    found = RunDirectory(earlier_version(run))
    assert found.identity == ""
    assert found.records() == expected
    scores = json.loads((run / "scores.json").read_text())
    del scores["seal"]
    (run / "scores.json").write_text(json.dumps(scores))
    assert found.scores() == scores
    save_file(
        load_file(run / "weights" / "task00.safetensors"), run / "weights" / "task00.safetensors", {"order": "[]"}
    )
    assert found.load_checkpoint() is not None
    found.append({"kind": "x"})
    assert (run / "metrics.jsonl").read_text().endswith('{"kind": "x"}\n')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.json", [1], "it is .1., not a mapping"),
        ("scores.json", {"task_names": ["a"], "matrices": [1]}, "'matrices' of it is .1., not a mapping"),
        ("index/final.json", {"class_names": 5, "tasks": []}, "'class_names' of it is 5, not a list"),
        (
            "index/final.json",
            {"class_names": [], "tasks": [["x"]]},
            "entry 0 of entry 0 of 'tasks' .* is 'x', not int",
        ),
        ("compatibility.json", {"metric": "x", "matrix": [[True]]}, "is True, not float or int or null"),
        ("forecast.json", {"after": 1}, "not a list"),
    ],
)
def test_json_of_another_shape_is_one_sentence_with_the_file(name, content, message, run):
    found = RunDirectory(earlier_version(run))
    (run / name).write_text(json.dumps(content))
    readers = [found.scores, found.classes, found.compatibility, found.forecasts]
    complaints = [complaint for _, complaint in map(attempt, readers) if complaint]
    assert len(complaints) == 1
    assert re.search(rf"{re.escape(name)} cannot be read .*{message}.*; restore it", complaints[0])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": ["task"]}, "'kind' of it is .'task'., not str"),
        ({"kind": "task", "task": "0"}, "'task' of it is '0', not int"),
        ({"kind": "task", "scores": [0.5]}, "'scores' of it is .0.5., not a mapping"),
        ({"kind": "ahead", "task": 0}, "it has no 'scores'"),
        ({"kind": "epoch", "loss": "low"}, "'loss' of it is 'low', not float or int or null"),
    ],
)
def test_a_record_of_another_shape_is_told_by_its_line(record, message, run):
    found = RunDirectory(earlier_version(run))
    count = len(found.records())
    found.append(record)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line {count + 1} is no record of this run .{message}"):
        found.records()


# --- nothing is destroyed before it is checked


def write_place(run: Path, **changes: int) -> None:
    """place.json as somebody would write it who knows how it is sealed."""
    path = next((run / "checkpoint").iterdir()) / "place.json"
    content = json.loads(path.read_text()) | changes
    *place, _ = content.pop("seal")
    seal = checksum(json.dumps([*place, content]).encode())
    path.write_text(json.dumps({**content, "seal": [*place, seal]}))


@pytest.mark.parametrize(
    ("changes", "renamed", "message"),
    [
        ({"task": 99, "record_bytes": 0}, None, "task 99, epoch 0 is not where task0002-epoch000000 was written"),
        ({"task": 2, "epoch": 99}, None, "task 2, epoch 99 is not where"),
        ({"record_bytes": 0, "record_sum": None}, None, "before task 2, does not follow its last record"),
        ({"task": True}, None, "'task' of it is True, not int"),
        ({"task": -1}, None, "is not where"),
        # an earlier version: the folder can be called like what it says
        (
            {"task": 99, "record_bytes": 0, "record_sum": None},
            "task0099-epoch000000",
            "the run has 2 tasks of 1 epochs",
        ),
        ({"task": 1, "epoch": 7, "record_sum": None}, "task0001-epoch000007", "written after epoch 7 of task 1"),
        ({"task": 1, "epoch": 1, "record_sum": None}, "task0001-epoch000001", "does not follow its last record"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(changes, renamed, message, run):
    if not renamed:
        write_place(run, **changes)
    else:
        earlier_version(run)
        folder = next((run / "checkpoint").iterdir())
        for part in ("model", "strategy", "objective"):
            save_file(load_file(folder / f"{part}.safetensors"), folder / f"{part}.safetensors")
        path = folder / "place.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        folder.rename(folder.with_name(renamed))
    before = {name: (run / name).read_bytes() for name in files_of(run)}
    with pytest.raises(ValueError, match=message):
        run_experiment({**CONFIG, "seed": 0}, run)
    assert {name: (run / name).read_bytes() for name in files_of(run)} == before


def test_records_without_a_checkpoint_are_not_cut_off(run):
    shutil.rmtree(run / "checkpoint")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint cannot be read .*metrics\.jsonl tells of 4 steps"):
        run_experiment({**CONFIG, "seed": 0}, run)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("left", ["task0002-epoch000002.part.mode", "task0099", "task0003-epoch000001.part"])
def test_what_a_killed_process_left_is_no_checkpoint(left, run):
    (run / "checkpoint" / left).touch()
    assert RunDirectory(run).load_checkpoint() is not None
    run_experiment({**CONFIG, "seed": 0}, run)  # has nothing to do, and says nothing


@pytest.mark.parametrize(
    "state", [["x"], {"optimizer": ["x"], "scaler": {}}, {"optimizer": {"state": [1]}, "scaler": {}}]
)
def test_an_optimizers_state_of_another_make_is_refused(state, run):
    folder = next((earlier_version(run) / "checkpoint").iterdir())
    torch.save(state, folder / "optimizer.pt")
    with pytest.raises(ValueError, match=r"optimizer\.pt cannot be read .*the optimizer's state.*; restore it"):
        RunDirectory(run).load_checkpoint()
