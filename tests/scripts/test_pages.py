"""The pages in docs/ about the command line and the loop are true: what stands in their blocks runs, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision
from page_blocks import commands_of, missing_links, python_of, run_python
from PIL import Image
from sklearn.datasets import load_digits

from tripletmas.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


# raised, once a process, inside pytorch-metric-learning's trainer by newer versions of torch
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")
@pytest.mark.parametrize("name", ["loop.md", "own_strategy.md"])
def test_python_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(python_of(page(name)), name)


@pytest.mark.slow
def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(load_digits().images[:40]):
        Image.fromarray((image * 255 / 16).astype("uint8")).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "0.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes())
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "net.pth")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for block in python_of(page("own_strategy.md")):
        if named := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / named[1]).write_text(block)
    commands = commands_of(page("commands.md"))
    assert len(commands) >= 8
    for arguments in commands:
        if "datasets/omniglot/mas.yaml" in arguments or "--model.pretrained" in arguments:
            arguments.append("--print_config")  # a download: everything before it is run
        elif arguments[0] == "train":
            arguments.append("--training.epochs=2")
            if "shapes-facts" in arguments:
                small = {"images": 500, "test_images": 200, "unseen_images": 20, "size": 32}
                arguments += [f"--data.{key}={value}" for key, value in small.items()]
        assert cli.main(arguments) == 0, f"{arguments}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_linked_files_exist(path):
    assert not missing_links(path.read_text(encoding="utf-8"), path.parent)
