"""README is true: its Python runs, and its commands run in an empty folder in the order in which they stand there."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from page_blocks import commands_of, missing_links, python_of, run_python

from tripletmas.basics.version import __version__
from tripletmas.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(python_of(README), "README.md")


@pytest.mark.parametrize(
    "short",
    [
        pytest.param(["--training.epochs=1"], id="short", marks=pytest.mark.slow),
        pytest.param([], id="whole", marks=pytest.mark.long),
    ],
)
def test_commands_run_in_an_empty_folder(short, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path.parent / "state"))
    commands = commands_of(README)
    assert [words[0] for words in commands] == ["example", "train", "index", "query", "evaluate", "serve"]
    for words in commands:
        more = {"train": short, "serve": ["--check"]}.get(words[0], [])
        began = time.perf_counter()
        assert cli.main([*words, *more]) == 0, f"{words}\n{capsys.readouterr().err}"
        with capsys.disabled():
            print(f"\n{time.perf_counter() - began:6.1f} s  tripletmas {' '.join([*words, *more])}", end="")
    assert (tmp_path / "neighbours.html").exists()
    assert (tmp_path / "runs" / "shop" / "report" / "report.html").exists()


def test_linked_files_exist():
    assert not missing_links(README, ROOT)


def test_it_has_two_screens():
    assert len(README.splitlines()) <= 120


def test_all_say_the_same_version():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.M)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert cited
    assert newest
    assert (cited[1], newest[1]) == (__version__, __version__)


def test_map_of_the_code_is_whole():
    mapped = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Map of the code")[2]
    listed = {line.split()[0] for line in mapped.splitlines() if line.startswith("  ") and line.strip()}
    package = ROOT / "tripletmas"
    there = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    there |= {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    assert there <= listed, f"CONTRIBUTING's map lacks {sorted(there - listed)}"
