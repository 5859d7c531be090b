"""The tutorials run from an empty folder, as they stand there, but on less."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from page_blocks import run_python, steps_of

from tripletmas.cli import main as cli

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
_FEW = ("images=300", "test_images=100", "unseen_images=20")
LESS = {  # of train
    "search": ["--training.epochs=1", "--data.size=16", "--report=false"],
    "texts": ["--training.epochs=1", "--report=false"],
    "facts": ["--training.epochs=1", "--report=false", *(f"--data.{option}" for option in _FEW)],
}


def test_each_is_run():
    assert {path.stem for path in TUTORIALS.glob("*.md")} == set(LESS)


@pytest.mark.slow
@pytest.mark.parametrize("name", LESS)
def test_runs(name, tmp_path, monkeypatch, tiny_encoder, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_encoder, "sentence-transformers/all-MiniLM-L6-v2")  # a folder goes before a name on the hub
    ran = 0
    for kind, text in steps_of((TUTORIALS / f"{name}.md").read_text(encoding="utf-8")):
        if kind == "python":
            run_python([text], name)
        elif kind == "tripletmas":
            words = shlex.split(text)
            more = LESS[name] if words[0] == "train" else []
            assert cli.main([*words, *more]) == 0, f"{words}\n{capsys.readouterr().err}"
            ran += 1
        else:
            subprocess.run(text, shell=True, check=True)
    assert ran >= 3
