"""What completes words in a shell knows the commands, their options and the names of parts."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tripletmas.cli.main import main

LINES = {  # what is typed -> what is offered
    "tra": {"train"},
    "train --strategy di": {"distill"},
    "train --strategy.name di": {"distill"},
    "index re": {"remove", "refresh"},
    "index refresh --reem": {"--reembed"},
    "index build --inv": {"--invert"},
    "train --training.epo": {"--training.epochs"},
    "train --data.class_from l": {"leaf"},
    "train --config no-": {"no-reindex"},
    "report --qu": {"--quiet"},
    "list str": {"strategies"},
    "completion z": {"zsh"},
    # where files are wanted: photo.png and runs/ lie in the folder
    "query shop.index ph": {"photo.png"},
    "train --out ru": {"runs/"},
    "index add shop.index --images ru": {"runs/"},
}


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Gives (a shell's program, its script), and skips where the machine has no such shell."""

    def found(name: str) -> tuple[str, str]:
        program = shutil.which(name)
        if not program:
            pytest.skip(f"there is no {name}")
        with contextlib.redirect_stdout(io.StringIO()) as script:
            assert main(["completion", name]) == 0
        return program, script.getvalue()

    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").touch()
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_shell_completes_what_is_typed(name, shell, folder):
    """A real shell on a terminal of its own: each line is typed, then the tabulator, and read off the screen.

    Where a line has one word to offer the shell writes it out.
    """
    alone = [
        (line, f"{line.rpartition(' ')[0]} {next(iter(words))}".strip())
        for line, words in LINES.items()
        if len(words) == 1
    ]
    program, script = shell(name)
    (folder / "script").write_text(script)
    with terminal(program, folder) as typed:
        for line, whole in [*alone, ("train --strategy=dist", "train --strategy=distill")]:
            said = typed(f"tripletmas {line}", f"tripletmas {whole}")
            assert f"tripletmas {whole}" in said, (line, said)


@pytest.mark.slow
def test_fish_completes(shell, folder):
    program, script = shell("fish")
    (folder / "script").write_text(script)
    asked = "".join(f"complete -C 'tripletmas {line}'; echo ---\n" for line in [*LINES, "train --strategy=dist"])
    said = subprocess.run(
        [program, "--no-config", "-c", f"source script\n{asked}"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    assert said.stderr == ""
    offered = [{line.partition("\t")[0] for line in part.split("\n") if line} for part in said.stdout.split("---\n")]
    assert offered[: len(LINES)] == list(LINES.values())
    assert offered[len(LINES)] == {"--strategy=distill"}


@contextlib.contextmanager
def terminal(program: str, folder: Path):
    """A shell on a terminal; gives what types a line and the tabulator, and tells what the line is then."""
    ours, theirs = pty.openpty()
    options = ["--norc"] if Path(program).name == "bash" else ["-f"]
    environment = {**os.environ, "PS1": "> ", "TERM": "dumb", "HOME": str(folder)}
    process = subprocess.Popen(
        [program, *options, "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment,
        close_fds=True,
    )
    os.close(theirs)

    def read(until: str, seconds: float = 10.0) -> str:
        """What is on the screen once this is there, or the time is over."""
        said, end = "", time.monotonic() + seconds
        while until not in said and time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                said += os.read(ours, 65536).decode(errors="replace").replace("\r", "").replace("\x07", "")
        return said

    def typed(line: str, until: str) -> str:
        os.write(ours, f"{line}\t".encode())
        said = read(until)
        os.write(ours, b"\x15")  # Ctrl-U: the line is empty again
        return said

    try:
        start = "autoload -Uz compinit && compinit -u; " if Path(program).name == "zsh" else ""
        os.write(ours, f"unset PROMPT_COMMAND; {start}. ./script; echo rea''dy\n".encode())
        assert "ready" in read("ready")
        yield typed
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_others_are_refused(call):
    status, _, complaint = call("completion", "tcsh")
    assert status == 2
    assert "bash" in complaint
