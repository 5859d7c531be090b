"""What reaches a terminal or a log: names of others cannot act there, lines come at once, a closed pipe is no error."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.table import Table

from tripletmas.cli import console, doctor, main, train
from tripletmas.cli.terminal import Terminal, guarded, visible

HOSTILE = "a\x1b[31mred\x9b2J\u202ec\x07"
HARMLESS = r"a\x1b[31mred\x9b2J\u202ec\x07"


def test_control_and_direction_characters_are_written_out():
    assert visible(HOSTILE) == HARMLESS
    assert visible("\u061c\u200f\u2066\u2028\r\x7f") == r"\u061c\u200f\u2066\u2028\r\x7f"
    assert visible("tab\tline\nübergroß 犬 \u200d") == "tab\tline\nübergroß 犬 \u200d"


def test_a_stream_shows_them_and_lets_bars_go_back_and_up():
    stream = io.StringIO()
    terminal = Terminal(stream)
    print(HOSTILE, file=terminal)
    for text in ("\rembed: 3%", "\r     \r", "\x1b[A\x1b[A", "x\ry\n"):
        terminal.write(text)
    assert stream.getvalue() == HARMLESS + "\n\rembed: 3%\r     \r\x1b[A\x1b[Ax\\ry\n"


def test_what_an_encoding_lacks_is_written_out():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Terminal(stream).writelines(["犬", "\udce9\n"])
    assert raw.getvalue() == rb"\u72ac\udce9" + b"\n"  # after the line end, without a flush


def test_a_table_keeps_its_styles_and_shows_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE, style="bold")
    with guarded():
        console.console().print(table)
    text = capsys.readouterr().out
    assert text.count(HARMLESS.removesuffix(r"\x07")) == 3  # the bell rich itself leaves out
    assert "\x1b[1m" in text
    assert "\x1b[31m" not in text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A folder with a run and an index of classes and files with such names."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate((HOSTILE, "b\x1b]0;title\x07", "c", "d")):
        (folder / "photos" / name).mkdir(parents=True)
        for image in range(6):
            Image.new("L", (8, 8), 60 * number + image).save(folder / "photos" / name / f"{image}.png")
    data = ["--data", "folder", "--data.root", str(folder / "photos"), "--data.size", "8", "--data.tasks", "2"]
    given = ["train", *data, "--model", "mlp", "--training.epochs", "1", "--out", str(folder / "run")]
    assert main.main([*given, "--report", "false"]) == 0
    index = ["--images", str(folder / "photos"), "--out", str(folder / "a.index")]
    assert main.main(["index", "build", str(folder / "run"), *index]) == 0
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "evaluate run",
        "evaluate run --task nothing",
        "compare run --markdown",
        "report run",
        "forecast run",
        "importance run --images photos --again",
        "index info a.index",
        "index add a.index --images photos",
        "index remove a.index photos/c",
        "query a.index photos/c/0.png",
        "query a.index bad\x1b[31m.png",
        "bad\x1b[31m",
    ],
)
def test_no_command_lets_a_name_act_on_the_terminal(command, hostile, call, tmp_path, monkeypatch, undrawn):
    for each in hostile.iterdir():
        (shutil.copytree if each.is_dir() else shutil.copy)(each, tmp_path / each.name)
    monkeypatch.chdir(tmp_path)
    _, text, complaint = call(*command.split(" "))
    assert text + complaint
    assert "\x1b" not in text + complaint
    assert "\u202e" not in text + complaint


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["list", "strategies"], ["doctor"]])
def test_a_reader_that_has_left_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tripletmas", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_lines_of_a_log_are_there_before_the_end():
    script = (
        "import time, tripletmas.cli.main as m\n"
        "m._main = lambda *_, alone: (print('here'), time.sleep(60)); m.main(['x'])"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"  # or it waits until the end
        process.kill()


def test_epochs_are_told_in_a_log_once_in_a_while(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    filtered = train._Seldom()

    def passes(name: str, level: int = logging.INFO) -> bool:
        return bool(filtered.filter(logging.LogRecord(name, level, "", 0, "text", None, None)))

    told = []
    for now[0] in (101, 109, 110.5, 115, 121):
        told.append(passes("tripletmas.runs.loop"))
    assert told == [False, False, True, False, True]
    assert passes("tripletmas.runs.loop", logging.WARNING)
    assert passes("tripletmas.data.images")


@pytest.mark.slow
def test_warnings_are_told_again_at_the_end_each_once(hostile, call, tmp_path):
    data = ("--data", "folder", "--data.root", hostile / "photos", "--data.size", "8", "--data.tasks", "[2,1,1]")
    given = ("--model", "mlp", "--training.epochs", "1", "--report", "false", "--strategy", "finetune")
    status, _, complaint = call("train", *data, *given, "--out", tmp_path / "run")
    assert status == 0
    again = [line for line in complaint.splitlines() if line.startswith("warned of before: ")]
    assert again == [
        f"warned of before: task '{name}' has one class, so a triplet finds no negative in it" for name in "cd"
    ]
    assert complaint.splitlines()[-2:] == again
    status, _, complaint = call("train", "--data.per_class", "6", *given[2:], "--out", tmp_path / "digits")
    assert "warned of before" not in complaint
    # quiet, nothing is printed in between: the log has told it
    assert call("train", *data, *given, "--quiet", "--out", tmp_path / "quiet") == (0, "", "")


# --- what is no error of ours


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (KeyError("secret"), 1, "unexpected KeyError: 'secret'; --debug shows where"),
        (RuntimeError("two\n  lines"), 1, "unexpected RuntimeError: two lines; --debug shows where"),
        (MemoryError(), 2, "there is not enough memory for this, or a number is too large"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory"), 2, "there is not enough memory"),
        (RuntimeError("Storage size calculation overflowed with sizes=[1]"), 2, "there is not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), 1, "unexpected RecursionError"),
        (
            ValueError("Caught it\nOriginal Traceback (most recent call last):\n f\nValueError: a: bad"),
            2,
            "error: a: bad",
        ),
    ],
)
def test_an_error_is_one_line_and_debug_shows_where(error, status, told, call, monkeypatch):
    ours: dict[str, Any] = {"error": error}  # a command of ours, by its file: code of one's own is named by place
    exec(compile("def fails(_):\n    raise error", doctor.__file__, "exec"), ours)
    monkeypatch.setattr(doctor, "doctor", ours["fails"])
    found, text, complaint = call("doctor")
    assert (found, text) == (status, "")
    assert complaint.startswith("tripletmas: error: ")
    assert complaint.count("\n") == 1
    assert told in complaint
    _, _, complaint = call("doctor", "--debug")
    assert "Traceback" in complaint
    assert "in fails" in complaint
    assert "--debug shows where. " not in complaint


@pytest.mark.parametrize("dim", [10**12, 10**18, 10**24])
def test_sizes_that_no_memory_holds(dim, call, tmp_path):
    status, _, complaint = call("train", "--model.dim", dim, "--out", tmp_path / "run")
    assert status == 2
    assert "there is not enough memory for this, or a number is too large" in complaint
    assert not (tmp_path / "run").exists()
