"""The run directory: atomic saves, damage that is named, the guard of its configuration. Resuming: test_resume.py."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from commands import earlier_version
from safetensors import SafetensorError
from torch import nn

from tripletmas.basics import files
from tripletmas.basics.weights import state_of
from tripletmas.runs.checkpoint import Checkpoint
from tripletmas.runs.directory import RunDirectory

CONFIG = {"strategy": {"name": "mas", "strength": 0.3}, "seed": 0}
FILES = (
    *("model.safetensors", "objective.safetensors"),
    *("optimizer.pt", "place.json", "strategy.safetensors"),
)


def state(task: int = 1, epoch: int = 2, *, size: int = 3, fill: float = 1.0) -> Checkpoint:
    model = {"z.weight": torch.full((size,), fill), "a.count": torch.tensor(7), "b.weight": torch.ones(2, 2).t()}
    steps = {"optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]}, "scaler": {}}
    return Checkpoint(
        task=task, epoch=epoch, model=model, strategy={"importance/z": torch.rand(2)}, objective={}, optimizer=steps
    )


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG)


def loaded(run: RunDirectory) -> Checkpoint:
    found = run.load_checkpoint()
    assert found is not None
    return found


def saved_folders(run: RunDirectory) -> list[str]:
    return sorted(p.name for p in (run.path / "checkpoint").iterdir())


def only_folder(run: RunDirectory) -> Path:
    (folder,) = (run.path / "checkpoint").iterdir()
    return folder


# --- what is saved is what is loaded


def test_a_checkpoint_comes_back_as_it_was(run):
    assert run.load_checkpoint() is None
    run.append({"kind": "epoch"})
    saved = state()
    run.save_checkpoint(saved)
    found = loaded(run)
    assert (found.task, found.epoch) == (1, 2)
    assert found.record_bytes == len('{"kind": "epoch", "seal": "01234567"}\n')
    assert list(found.model) == ["z.weight", "a.count", "b.weight"]  # the order too: sums over them depend on it
    for name, value in saved.model.items():
        assert torch.equal(found.model[name], value)
        assert found.model[name].dtype == value.dtype
    assert torch.equal(found.strategy["importance/z"], saved.strategy["importance/z"])
    assert found.objective == {}
    assert found.optimizer is not None
    assert found.optimizer["optimizer"]["state"][0]["step"] == 5.0
    run.save_checkpoint(replace(saved, optimizer=None))
    assert loaded(run).optimizer is None


@pytest.mark.slow
def test_only_the_latest_is_kept(run):
    """Also when one is saved again at the same place, as `tripletmas importance` does, any number of times."""
    places = [(0, 9), (0, 10), (1, 0), (1, 1), (9, 0), *[(10, 0)] * 12]  # in the order of numbers, not of text
    for fill, (task, epoch) in enumerate(places):
        run.save_checkpoint(state(task, epoch, fill=float(fill)))
        found = loaded(run)
        assert (found.task, found.epoch, found.model["z.weight"][0]) == (task, epoch, fill)
        assert len(saved_folders(run)) == 1


def test_saving_again_keeps_the_old_one_until_the_new_one_is_there(run, monkeypatch):
    run.save_checkpoint(state(1, 0, fill=1.0))
    whole = []
    real = os.replace

    def look(*paths):
        whole.append(float(loaded(run).model["z.weight"][0]))
        real(*paths)
        whole.append(float(loaded(run).model["z.weight"][0]))

    monkeypatch.setattr(files.os, "replace", look)
    run.save_checkpoint(state(1, 0, fill=2.0))
    assert whole == [1.0, 2.0]


def test_everything_is_on_the_disk_before_it_is_renamed(run, monkeypatch):
    synced, renamed = [], []
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    real = os.replace

    def remember(*paths):
        renamed.append((str(paths[1]), sorted(Path(path).name for path in synced)))
        real(*paths)

    monkeypatch.setattr(files.os, "replace", remember)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell which file a descriptor is")
    run.save_checkpoint(state())
    place = run.path / "checkpoint" / "task0001-epoch000002"
    # "run": that there is a folder `checkpoint` in it
    assert renamed == [(str(place), sorted([*FILES, "run", f"{place.name}.part"]))]


def test_nothing_is_pickled(run):
    run.save_checkpoint(state())
    assert sorted(p.name for p in only_folder(run).iterdir()) == list(FILES)
    marker = run.path / "executed"

    class Malicious:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    torch.save(Malicious(), only_folder(run) / "optimizer.pt")
    with pytest.raises(ValueError, match=r"optimizer\.pt cannot be read") as caught:
        run.load_checkpoint()
    assert "weights_only" not in str(caught.value)  # no advice to run it
    assert not marker.exists()


# --- a full disk


@pytest.mark.parametrize("write", range(len(FILES)))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_checkpoint(write, number, run, monkeypatch):
    """Each file of a checkpoint in turn finds no space."""
    run.save_checkpoint(state(0, 1, fill=1.0))
    writes = iter(range(len(FILES)))

    def failing(real, error):
        def write_or_fail(*arguments, **options):
            if next(writes) == write:
                raise error
            return real(*arguments, **options)

        return write_or_fail

    # safetensors hides the error in its text; a quota it does not name
    text = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    system_error = OSError(number, os.strerror(number))
    monkeypatch.setattr(safetensors.torch, "save_file", failing(safetensors.torch.save_file, SafetensorError(text)))
    monkeypatch.setattr(Path, "write_bytes", failing(Path.write_bytes, system_error))
    monkeypatch.setattr(Path, "write_text", failing(Path.write_text, system_error))
    with pytest.raises(OSError, match="no space left to write") as caught:
        run.save_checkpoint(state(0, 2, fill=2.0))
    assert caught.value.errno == number
    assert "task0000-epoch000002; what was saved before is whole" in str(caught.value)
    monkeypatch.undo()
    assert saved_folders(run) == ["task0000-epoch000001"]
    assert float(loaded(run).model["z.weight"][0]) == 1.0
    run.save_checkpoint(state(0, 2, fill=2.0))
    assert float(loaded(run).model["z.weight"][0]) == 2.0


@pytest.mark.parametrize("large", ["model", "optimizer"])
def test_a_disk_that_is_really_full(large, tmp_path):
    """On a file system of 256 KiB, 600 KB do not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        run = RunDirectory.create(disk / "run", CONFIG)
        run.save_checkpoint(state(0, 1))
        too_much = torch.rand(150_000)
        full = replace(state(0, 2), **{large: {"x": too_much}})
        with pytest.raises(OSError, match=r"no space left to write .*what was saved before is whole"):
            run.save_checkpoint(full)
        assert saved_folders(run) == ["task0000-epoch000001"]
        assert loaded(run).epoch == 1
        run.save_checkpoint(state(0, 2))  # and with what fits it goes on
        assert loaded(run).epoch == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_another_failure_keeps_its_own_words(run, monkeypatch):
    run.save_checkpoint(state(0, 1))

    def fail(*_):
        raise SafetensorError("I/O error: Input/output error (os error 5)")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        run.save_checkpoint(state(0, 2))
    assert caught.value.errno == errno.EIO
    assert saved_folders(run) == ["task0000-epoch000001"]


def test_what_a_killed_process_left_aside_is_no_checkpoint_and_is_cleaned(run):
    run.save_checkpoint(state(0, 1))
    aside = run.path / "checkpoint" / "task0000-epoch000002.part"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"half")
    assert loaded(run).epoch == 1
    run.save_checkpoint(state(0, 2))
    assert saved_folders(run) == ["task0000-epoch000002"]
    (run.path / "scores.json.part").write_text("half")
    run.write_json("scores.json", {})
    assert not (run.path / "scores.json.part").exists()


# --- damage


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_cut_short_is_named(file, run):
    run.save_checkpoint(state())
    path = only_folder(run) / file
    whole = path.read_bytes()
    for kept in sorted({0, 1, 7, len(whole) // 3, len(whole) // 2, len(whole) - 20, len(whole.rstrip()) - 1}):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=f"{path} cannot be read .*missing, changed, cut short or .*; restore it"):
            run.load_checkpoint()
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        run.load_checkpoint()


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_noticed_in_each_file(file, run):
    run.save_checkpoint(state())
    path = only_folder(run) / file
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole.rstrip()), 8 * len(whole) // 97):
        path.write_bytes(whole[: place // 8] + bytes([whole[place // 8] ^ 1 << place % 8]) + whole[place // 8 + 1 :])
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read"):
            run.load_checkpoint()


def test_a_place_without_its_numbers_is_named(run):
    run.save_checkpoint(state())
    for content in ("{}", '{"task": null, "epoch": 0, "record_bytes": 0}', "[1]"):
        (only_folder(run) / "place.json").write_text(content)
        with pytest.raises(ValueError, match=r"place\.json cannot be read"):
            run.load_checkpoint()


# --- what is kept of each task


def test_tasks_are_counted_by_number_not_by_name(run):
    for number in (9, 100, 10, 99):
        run.importance().write(number, {"x": torch.tensor(number)})
        run.importance(1).write(number, {"x": torch.tensor(-number)})
    assert run.importance().numbers() == run.importance(1).numbers() == [9, 10, 99, 100]
    assert run.importance().read(100)["x"] == 100
    assert run.importance(1).read(100)["x"] == -100
    assert sorted(path.name for path in (run.path / "importance").iterdir()) == [
        *("task09-1.safetensors", "task09.safetensors", "task10-1.safetensors", "task10.safetensors"),
        *("task100-1.safetensors", "task100.safetensors", "task99-1.safetensors", "task99.safetensors"),
    ]


def test_what_a_task_has_not(run):
    assert (run.num_done, run.galleries.find(0), run.weights.numbers()) == (0, None, [])
    assert (run.scores(), run.compatibility(), run.embedding(), run.classes()) == (None,) * 4
    with pytest.raises(ValueError, match=r"weights/task00\.safetensors cannot be read \(no such file"):
        run.weights.read(0)
    with pytest.raises(ValueError, match=r"no task is done yet; go on with: tripletmas resume .*run"):
        run.task_done()
    for number in range(2):
        run.weights.write(number, {})
    assert (run.num_done, run.task_done(), run.task_done(0)) == (2, 1, 0)
    for number in (-1, 2):
        with pytest.raises(ValueError, match=f"tasks 0 to 1 are done, so there is no model after task {number}"):
            run.task_done(number)


def test_weights_go_into_a_model(run):
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    run.weights.write(0, state_of(model))
    run.load_weights(other, 0)
    assert torch.equal(other.weight, model.weight)
    with pytest.raises(ValueError, match=r"weights/task00\.safetensors belongs to another model"):
        run.load_weights(nn.Linear(2, 2), 0)


# --- records and JSON


def test_records_are_appended_and_nan_is_null(run):
    run.append({"kind": "task", "scores": {"seen": {"mrr": [0.5, float("nan")]}}, "name": "Ωmega"})
    run.append({"kind": "epoch", "objective": 1.0})
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    record = {"kind": "task", "scores": {"seen": {"mrr": [0.5, None]}}, "name": "Ωmega"}
    seal = f"{zlib.crc32(json.dumps([run.identity, record]).encode()):08x}"
    assert lines == [json.dumps({**record, "seal": seal}), lines[1]]
    assert "\\u03a9mega" in lines[0]
    assert run.records() == [
        {"kind": "task", "scores": {"seen": {"mrr": [0.5, None]}}, "name": "Ωmega"},
        {"kind": "epoch", "objective": 1.0},
    ]
    run.write_json("a/b.json", {"x": (float("nan"), 1)})
    written = json.loads((run.path / "a" / "b.json").read_text())
    assert written.pop("seal")[:3] == [run.identity, "a/b.json", 0]
    assert written == {"x": [None, 1]}
    assert run.read_json("a/b.json") == {"x": [None, 1]}
    assert run.read_json("none.json") is None
    (run.path / "none.json").write_text("{")
    with pytest.raises(ValueError, match=r"none\.json cannot be read \(Expecting property name .*restore it"):
        run.read_json("none.json")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"kind": "a"}\n\n{"kind": "b"}\n', [{"kind": "a"}, {"kind": "b"}]),
        ('{"kind": "a"}\n{"kind": ', [{"kind": "a"}]),  # its process was killed
        ('{"kind": "a"}\n{"kind": \n{"kind": "b"}\n', "line 2 is no record of this run .Expecting value"),
        ('{"kind": "a"}\n7\n', "line 2 is no record"),
    ],
)
def test_a_damaged_record_is_told_by_its_line(text, found, tmp_path):
    run = RunDirectory(earlier_version(RunDirectory.create(tmp_path / "run", CONFIG).path))
    (run.path / "metrics.jsonl").write_text(text)
    if isinstance(found, list):
        assert run.records() == found
        assert run.records("a") == [{"kind": "a"}]
    else:
        with pytest.raises(ValueError, match=rf"metrics\.jsonl, {found}.*; restore it from a copy"):
            run.records()


def test_rewinding_cuts_what_came_after_the_checkpoint(run):
    run.append({"n": 1})
    run.save_checkpoint(state())
    run.append({"n": 2})
    with open(run.path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"n": 3')  # cut short by the death of the process
    run.rewind(loaded(run))
    assert run.records() == [{"n": 1}]
    run.rewind(None)
    assert run.records() == []


def test_records_that_are_gone_are_an_error(run):
    run.append({"n": 1})
    run.save_checkpoint(state())
    (run.path / "metrics.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.jsonl cannot be read \(1 bytes of 29\)"):
        run.rewind(loaded(run))


# --- the guard of the configuration


def test_the_same_configuration_goes_on(run):
    run.save_checkpoint(state())
    again = RunDirectory.create(run.path, CONFIG)
    assert loaded(again).task == 1
    assert RunDirectory.open(run.path).config() == CONFIG


def test_another_configuration_is_refused_and_what_differs_is_listed(run):
    other = {"strategy": {"name": "mas", "strength": 1.0}, "seed": 1, "device": "cpu"}
    with pytest.raises(ValueError, match="holds a run with another configuration") as caught:
        RunDirectory.create(run.path, other)
    for differing in ("strategy.strength: 0.3 -> 1.0", "seed: 0 -> 1", "device: None -> 'cpu'"):
        assert differing in str(caught.value)
    assert "name" not in str(caught.value)
    assert run.config() == CONFIG


def test_versions_are_no_part_of_the_comparison(tmp_path):
    RunDirectory.create(tmp_path / "run", {"version": {"torch": "2.6"}, **CONFIG})
    RunDirectory.create(tmp_path / "run", {"version": {"torch": "2.7", "numpy": "2"}, **CONFIG})
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    assert run.config()["version"] == {"torch": "2.6"}


def test_a_folder_with_other_things_is_refused(tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_text("")
    for path in (tmp_path, photo):
        with pytest.raises(ValueError, match="holds something that is no run"):
            RunDirectory.create(path, CONFIG)
    assert list(tmp_path.iterdir()) == [photo]


def test_a_folder_that_is_empty_or_where_the_start_was_killed_is_taken(tmp_path):
    RunDirectory.create(tmp_path, CONFIG)
    killed = tmp_path.with_name("killed")
    killed.mkdir()
    for left in ("config.yaml.part", "config.yaml.part.mode", "lock", "lock.holder"):
        (killed / left).write_text("seed")
    assert RunDirectory.create(killed, CONFIG).config() == CONFIG


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is no YAML: .*, in line 1"), ("- 1", r"hold a mapping .*, got \[1\]"), ("", "got None")],
)
def test_a_damaged_configuration_is_told(text, message, run):
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml .*{message}"):
        run.config()


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"no run directory \(it has no config\.yaml: train --out writes it\)$"):
        RunDirectory.open(tmp_path / "none")
    RunDirectory.create(tmp_path / "seed0", CONFIG)
    with pytest.raises(ValueError, match="it holds the runs seed0: name one of them"):
        RunDirectory.open(tmp_path)
