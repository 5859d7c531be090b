"""Commands under torchrun: who does what, who is heard, and that one process's error ends all of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import SMALL
from processes import run_in_processes

from tripletmas.basics import distributed
from tripletmas.basics.launched import launched
from tripletmas.cli import main as cli
from tripletmas.cli.processes import sharing
from tripletmas.index.images import ImageIndex
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import choose_device

ROOT = Path(__file__).resolve().parents[2]
LEARN = ["train", *SMALL, "--strategy", "mas", "--loss", "ntxent", "--report", "false"]


def under_torchrun(*words: object) -> subprocess.Popen[str]:
    """The command in two processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tripletmas"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*start, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    return process


def own_lines(printed: str) -> list[str]:
    """Without what torchrun says."""
    return [line for line in printed.splitlines() if line.startswith("tripletmas: ")]


def launch(monkeypatch: pytest.MonkeyPatch, rank: int, number: int = 2) -> None:
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in said.items():
        monkeypatch.setenv(name, str(value))


# --- who does what


def test_what_the_environment_says(monkeypatch):
    assert launched() is None
    launch(monkeypatch, 1, 3)
    assert launched() == (1, 1, 3)
    launch(monkeypatch, 0, 1)  # a single one is none of several
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"names no process of a launcher .*WORLD_SIZE=two"):
        launched()
    monkeypatch.delenv("MASTER_PORT")
    assert launched() is None


@pytest.mark.parametrize("words", [("compare", "runs/a"), ("index", "info"), ("list", "data"), ("index",)])
def test_what_cannot_be_shared_is_done_by_the_first(words, monkeypatch):
    for rank in range(2):
        launch(monkeypatch, rank)
        with sharing(words[0], words[1:]) as works:
            assert works == (rank == 0)
            assert not distributed.has_group()


def test_the_others_say_nothing(monkeypatch, call):
    launch(monkeypatch, 1)
    assert call("list", "strategies") == (0, "", "")
    launch(monkeypatch, 0)
    assert "mas" in call("list", "strategies")[1]


def test_each_process_has_its_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch(monkeypatch, 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'cuda:0' would be that of all 2 processes: use auto or cuda"):
        choose_device("cuda:0")
    launch(monkeypatch, 2, 3)
    with pytest.raises(ValueError, match="torch sees 2 CUDA devices: start no more processes than there are"):
        choose_device("auto")


# in an interpreter of its own: the patience is shortened, and torch's own account of the failure is not wanted here
_WAITS = """
import sys
from datetime import timedelta
from tripletmas.basics import distributed
from tripletmas.cli.main import main
distributed._START, distributed._SILENCE = timedelta(seconds=2), 0.5
sys.exit(main(["train", "--data", "digits", "--out", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_single_process_in_the_environment_of_several_says_what_it_waits_for(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ended = subprocess.run(
        [sys.executable, "-c", _WAITS, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), **said},
        check=False,
    )
    waits, failed = own_lines(ended.stderr)
    assert "process 0 of 4 waits for the others" in waits
    assert "unset RANK for a single process; they have not come" in failed
    assert ended.returncode == 2
    assert not (tmp_path / "run").exists()


# --- together


def commands(lines: list[list[str]]) -> list[int]:
    """Their exit statuses; a command begins when all have ended the one before."""
    return [(cli.main(line), distributed.barrier())[0] for line in lines]


@pytest.mark.slow
def test_a_run_and_its_index_by_two_processes_are_those_of_one(tmp_path, write_images):
    images = write_images(tmp_path / "photos", count=7)
    (images / "6.png").write_bytes(b"no image")

    def lines(out: str) -> list[list[str]]:
        run, index = str(tmp_path / out), str(tmp_path / f"{out}.index")
        shown = ["--images", str(images), "--skip-unreadable"]
        return [
            [*LEARN, "--out", run],
            ["evaluate", run, "--json", f"{run}.json"],
            ["index", "build", run, *shown, "--out", index],
            ["index", "add", index, *shown],
            ["train", "--sweep", "strategy.strength=0.1..1", "--trials", "2", *LEARN[1:], "--out", f"{run}.trials"],
        ]

    assert run_in_processes(commands, 2, lines("two")) == [[0, 0, 0, 0, 2]] * 2
    assert commands(lines("one")[:4]) == [0] * 4
    one, two = (ImageIndex.open(tmp_path / f"{name}.index") for name in ("one", "two"))
    assert one.paths == two.paths
    assert torch.allclose(torch.as_tensor(one.vectors), torch.as_tensor(two.vectors), atol=1e-3)
    scores = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    assert scores[0]["tasks"] == scores[1]["tasks"]
    losses = [[each["loss"] for each in RunDirectory(tmp_path / name).records("epoch")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def joined_before(run: str) -> tuple[list[int], bool]:
    """Commands of a program that has joined its processes itself, as a script under torchrun does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert launched() is not None
    commands = [cli.main([*LEARN, "--training.epochs=1", "--out", run]), cli.main(["evaluate", run])]
    return commands, distributed.has_group()


@pytest.mark.slow
def test_a_program_that_has_joined_its_processes_may_call_commands(tmp_path):
    assert run_in_processes(joined_before, 2, str(tmp_path / "run")) == [([0, 0], True)] * 2


@pytest.mark.slow
def test_an_error_is_told_once_and_ends_all(tmp_path):
    ended = under_torchrun("train", "--data", "digitz", "--out", tmp_path / "run")
    printed = ended.communicate(timeout=300)[0]
    assert ended.returncode == 1
    assert len(own_lines(printed)) == 1
    assert "unknown data 'digitz'" in own_lines(printed)[0]
    assert "Traceback" not in printed.partition("ChildFailedError")[0].partition("Traceback")[0]


@pytest.mark.long
def test_killed_under_torchrun_and_resumed_by_one(tmp_path, call):
    """Of one process that dies the other tells, unless torchrun ends it first; torchrun itself tells in any case."""
    learn = [*LEARN, "--training.epochs=30", "--training.optimizer=sgd", "--training.lr=0.001"]
    process = under_torchrun(*learn, "--out", tmp_path / "two")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "two" / "checkpoint").glob("task0001-epoch*")):
        time.sleep(0.05)
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout
    workers = [int(line.split()[0]) for line in found.splitlines() if "tripletmas" in line]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert len(own_lines(printed)) <= 1
    assert re.search(r"exitcode\s*: -9", printed)
    assert call("resume", tmp_path / "two")[0] == 0
    assert call(*learn, "--out", tmp_path / "one")[0] == 0
    losses = [[each["loss"] for each in RunDirectory(tmp_path / name).records("epoch")] for name in ("one", "two")]
    assert len(losses[0]) == 90
    assert losses[0] == pytest.approx(losses[1], rel=2e-2, abs=2e-2)
