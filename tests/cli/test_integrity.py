"""`tripletmas doctor RUN_OR_INDEX`, what commands refuse to write, and two processes at one run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import SMALL, earlier_version, failed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tripletmas.basics.locks import locked
from tripletmas.basics.weights import snapshot
from tripletmas.cli.main import main
from tripletmas.report import kept
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.task_files import TaskFiles

TRAIN = ("train", "--strategy", "mas", "--report", "false", *SMALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_images) -> Path:
    """A folder with a finished run, images, and an index of them."""
    folder = tmp_path_factory.mktemp("place")
    assert main([*TRAIN, "--out", str(folder / "run")]) == 0
    write_images(folder / "photos" / "a")
    index = ["index", "build", str(folder / "run"), "--images", str(folder / "photos"), "--out"]
    assert main([*index, str(folder / "shop.index")]) == 0
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Path:
    copied = Path(shutil.copytree(trained, tmp_path / "place"))
    monkeypatch.chdir(copied)
    return copied


def problems(text: str) -> list[str]:
    return [re.split(" +", line, maxsplit=2)[1] for line in text.splitlines() if line.startswith("PROBLEM")]


# --- doctor


@pytest.mark.slow
def test_a_healthy_run_and_index(place, call):
    status, text, _ = call("doctor", "run")
    assert (status, problems(text)) == (0, [])
    files = [path for path in Path("run").rglob("*.safetensors") if "checkpoint" not in path.parts]
    for path in files:
        assert re.search(rf"^ok +{path} +\d+ tensors$", text, re.MULTILINE)
    assert f"run {RunDirectory('run').identity}" in text
    assert "run/checkpoint           it was written before task 3" in text
    status, text, _ = call("doctor", "shop.index")
    assert status == 0
    assert "6 vectors" in text
    assert call("index", "build", "run", "--images", "photos", "--out", "own.index")[0] == 0
    shutil.rmtree("photos")
    assert re.search(r"note +own\.index: images +6 of 6 are not where they were: ", call("doctor", "own.index")[1])
    failed(call("doctor", "none"), "none is neither a run directory nor an index file")
    failed(call("doctor", "--repair"), "--repair is for a run: name its directory")
    failed(call("doctor", "shop.index", "--repair"), "nothing of shop.index can be derived anew")


@pytest.mark.slow
def test_what_is_wrong_is_told_by_name(place, call):
    for name in ("weights/task00.safetensors", "shown/grid.json", "metrics.jsonl"):
        path = Path("run", name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    result = call("doctor", "run")
    found = problems(result[1])
    assert {"run/weights/task00.safetensors", "run/shown/grid.json", "run/metrics.jsonl"} <= {*found}
    failed(result, rf"run: {len(found)} of its files are not as they were written$")
    Path("shop.index").write_bytes(Path("shop.index").read_bytes()[:-1])
    failed(call("doctor", "shop.index"), "shop.index: 1 of its files")


@pytest.mark.slow
def test_what_is_gone_or_was_left_is_told(place, call):
    Path("run/gallery/task01.safetensors").unlink()
    Path("run/scores.json.part").touch()
    Path("run/lock.holder").write_text(json.dumps({"process": 7, "machine": "m", "since": "noon"}))
    text = call("doctor", "run")[1]
    assert problems(text) == ["run/gallery/task01.safetensors"]
    assert re.search(r"note +run/scores\.json\.part +was left by a process that was killed", text)
    assert re.search(r"note +run/lock +was left by process 7 on m, since noon, which was killed; it holds nobody", text)
    with locked(Path("run/lock"), "run"):
        assert re.search(r"note +run/lock +is held by process", call("doctor", "run")[1])


def test_a_run_of_an_earlier_version_is_told_to_be_one(place, call):
    earlier_version(Path("run"))
    status, text, _ = call("doctor", "run")
    assert status == 0
    assert re.search(r"note +run/config\.yaml +of a version without checksums", text)


def test_an_index_of_an_earlier_version_is_told_to_be_one(place, call):
    path = Path("shop.index")
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["tripletmas"])
        tensors = {name: file.get_tensor(name).clone() for name in about["order"]}
    texts = {"order": about["order"], "tripletmas index": about["header"]["tripletmas index"]}
    save_file(tensors, path, {name: json.dumps(text) for name, text in texts.items()})
    status, text, _ = call("doctor", path)
    assert status == 0
    assert re.search(r"^ok +shop\.index +6 vectors$", text, re.MULTILINE)
    assert re.search(r"note +shop\.index: header +of a version without checksums of headers", text)


@pytest.mark.slow
def test_what_can_be_derived_is_repaired(place, call):
    importance, scores = Path("run/importance/task02.safetensors"), Path("run/scores.json")
    before = snapshot(load_file(importance)), json.loads(scores.read_text())
    importance.write_bytes(importance.read_bytes()[:-4])
    scores.write_text("{")
    assert problems(call("doctor", "run")[1]) == ["run/importance/task02.safetensors", "run/scores.json"]
    status, text, _ = call("doctor", "run", "--repair")
    assert (status, problems(text)) == (0, [])
    assert [line for line in text.splitlines() if line.startswith("repaired")] == [
        "repaired run/scores.json, from metrics.jsonl",
        "repaired run/importance/task02.safetensors, from the checkpoint",
        "repaired run/report/report.html",
    ]
    after = load_file(importance), json.loads(scores.read_text())
    assert after[0].keys() == before[0].keys()
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert {**after[1], "seal": None} == {**before[1], "seal": None}


def test_scores_that_say_something_else_than_the_records_are_told(place, call):
    run = RunDirectory("run")
    scores = run.scores()
    scores["matrices"]["seen"]["recall@1"][0][0] = 0.123
    run.keep_scores(scores)
    assert re.search(r"PROBLEM +run/scores\.json +it says something else than metrics", call("doctor", "run")[1])


@pytest.mark.parametrize(
    "line", ["report run", "compare run run", "evaluate run", "export run --embeddings x.npz", "doctor run"]
)
@pytest.mark.parametrize("damage", [lambda lines: lines[1:], lambda lines: [*lines[1:2], lines[0], *lines[2:]]])
def test_records_that_are_whole_but_not_those_of_the_checkpoint_are_refused(damage, line, place, call):
    """Each line has its own checksum; that one is gone, or two are swapped, the checkpoint alone can tell."""
    path = Path("run/metrics.jsonl")
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    status, printed, complaint = call(*line.split())
    assert status
    assert re.search(r"run/metrics\.jsonl\W+.*(bytes of|it is not what it was)", printed + complaint)


@pytest.mark.slow
def test_a_run_without_its_records_or_its_checkpoint_is_read(place, call):
    for name in ("metrics.jsonl", "checkpoint"):
        Path("run", name).rename(name)
        for line in ("report run", "evaluate run"):
            assert call(*line.split())[0] == 0
        Path(name).rename(Path("run", name))


# --- a run that is gone on with


@pytest.mark.slow
@pytest.mark.parametrize("is_noted", [False, True])
def test_a_finished_run_that_is_resumed_tells_what_is_damaged(is_noted, place, call):
    """Also of files that going on has no need of; where a report was written, of those that are others since."""
    if is_noted:
        Path("run/report").mkdir()
        kept.note(Path("run"))
    for name in ("importance/task00.safetensors", "weights/task01.safetensors", "shown/found00.json"):
        path = Path("run", name)
        content = path.read_bytes()
        path.write_bytes(flipped(content))
        remedy = "restore it from a copy, or train anew; tripletmas doctor run looks at all files of the run"
        failed(call("resume", "run"), rf"run/{name} cannot be read \(.*: .*; {remedy}$")
        path.unlink()
        failed(
            call("train", *TRAIN[1:], "--out", "run"), rf"run/{name} cannot be read \(.*: it is missing, .*; {remedy}$"
        )
        path.write_bytes(content)


@pytest.mark.slow
def test_scores_that_were_damaged_are_written_anew_and_told(place, call):
    before = RunDirectory("run").scores()
    path = Path("run/scores.json")
    path.write_bytes(flipped(path.read_bytes()))
    status, _, complaint = call("train", *TRAIN[1:], "--out", "run")
    assert (status, RunDirectory("run").scores()) == (0, before)
    assert "run/scores.json was damaged, and is written anew\n" in complaint


def flipped(content: bytes) -> bytes:
    """With one bit in its middle another one."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


# --- outputs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate run --json run/config.yaml", r"--json run/config\.yaml would be written into the run .*/run: name"),
        ("evaluate run --json run/report/x.json", "would be written into the run"),
        ("evaluate run --json photos/a/0.png", "is there, and is no JSON: name another file"),
        ("evaluate run --json photos", "--json photos is a folder: name a file"),
        ("evaluate run --json pipe", "--json pipe is no file on a disk, but a device or a pipe: name a file"),
        ("query shop.index photos/a/0.png --html pipe", "--html pipe is no file on a disk"),
        ("train --data digits --out notes.txt/run", "notes.txt is a file, and a folder is to be made there"),
        ("forecast run --json run/scores.json", "would be written into the run"),
        ("forecast run --index shop.index --json shop.index", "would overwrite what is read"),
        ("query own.index photos/a/0.png --html photos/a/1.html", "would lie among the images in .*/photos"),
        ("query own.index photos/a/0.png --json photos/new.json", "would lie among the images in .*/photos"),
        ("query shop.index photos/a/0.png --html shop.index", "--html shop.index would overwrite what is read"),
        ("query shop.index photos/a/0.png --html x --json ./x", "--json ./x would overwrite what is read or written"),
        ("query shop.index photos/a/0.png --html notes.txt", "notes.txt is there, and is no HTML"),
        ("query shop.index photos/a/0.png --html run/x.html", "would be written into the run"),
        ("export run --embeddings run/x.npz", "would be written into the run"),
        ("export run --embeddings notes.npz", r"notes\.npz is there, and is no \.npz"),
        ("index build run --images photos --out photos/new.index", "would lie among the images in photos"),
        ("index build run --images photos --out run/new.index", "would be written into the run"),
        ("index build run --images photos --out empty", "empty is a folder: name a file for the index"),
        ("compare run --out run/page", "would be written into the run"),
        (
            "train --data folder --data.root photos --out photos/run",
            "--out photos/run would lie among the images",
        ),
        ("train --data digits --gallery.images photos --out photos/run", "would lie among the images in photos"),
        ("train --data digits --out run/inner", "--out run/inner would be written into the run .*/run"),
    ],
)
def test_what_is_there_is_not_written_over(line, message, place, call):
    for name in ("notes.txt", "notes.npz"):
        Path(name).write_text("mine")
    os.mkfifo("pipe")
    Path("empty").mkdir()
    if "own.index" in line:
        assert call("index", "build", "run", "--images", "photos", "--out", "own.index")[0] == 0
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    failed(call(*line.split()), message)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_an_output_of_the_same_kind_is_replaced(place, call):
    for _ in range(2):
        assert call("evaluate", "run", "--json", "scores.json")[0] == 0
        assert call("query", "shop.index", "photos/a/0.png", "--html", "x.html", "--json", "x.json")[0] == 0
        assert call("export", "run", "--embeddings", "x.npz")[0] == 0


# --- what a configuration does not say


@pytest.mark.parametrize(
    "line", ["resume own", "evaluate own", "export own --embeddings x.npz", "importance own --images photos"]
)
def test_what_a_run_of_ones_own_does_not_say_is_not_guessed(line, place, call):
    """Such a run has weights and a checkpoint as any other."""
    shutil.copytree(earlier_version(Path("run")), "own")
    Path("own/config.yaml").write_text("{}\n")
    before = Path("own/metrics.jsonl").read_bytes()
    failed(call(*line.split()), r"own/config\.yaml does not say which data, model, loss, strategy.* the run has")
    assert Path("own/metrics.jsonl").read_bytes() == before


def test_a_configuration_that_was_changed_is_not_taken(place, call):
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("epochs: 1", "epochs: 2"))
    for line in ("resume run", "evaluate run"):
        failed(call(*line.split()), r"config\.yaml has been changed since it was written: .*write \w+ at its end")


# --- two at one run


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["resume run", "importance run --images photos --invert", "evaluate run --compatibility", "forecast run"]
)
def test_the_second_writer_is_told(line, place, call):
    script = "import sys, time; from pathlib import Path; from tripletmas.basics.locks import locked\n"
    script += "with locked(Path('run/lock'), 'run'): print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        failed(call(*line.split()), rf"run is being changed by another process \({other.pid} on .*: try again when")
        assert call("evaluate", "run")[0] == 0  # readers need not wait
        other.communicate(b"")


# --- importance that was interrupted


@pytest.mark.slow
@pytest.mark.parametrize("after", ["record", "checkpoint"])
def test_importance_killed_near_its_end_is_mended(after, place, call, monkeypatch):
    """Killed once the record, or the checkpoint too, was written: importance/task02 is still that of before."""
    line = ("importance", "run", "--images", "photos", "--invert")
    shutil.copytree("run", "whole")
    assert call("importance", "whole", *line[2:])[0] == 0
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        if after == "record":
            patch.setattr(RunDirectory, "save_checkpoint", stop)
        else:
            patch.setattr(TaskFiles, "write", stop)
        assert call(*line)[0] == 130
    monkeypatch.setattr("tripletmas.report.page.write_report", lambda path: path)
    before = load_file("run/importance/task02.safetensors")
    assert RunDirectory("run").is_behind("importance/task02.safetensors")
    with pytest.raises(ValueError, match="it is older than the run's other files"):
        RunDirectory("run").importance().read(2)
    assert call("resume", "run")[0] == 0
    found = RunDirectory("run").importance().read(2)
    expected = before if after == "record" else RunDirectory("whole").importance().read(2)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not all(torch.equal(before[name], load_file("whole/importance/task02.safetensors")[name]) for name in before)
