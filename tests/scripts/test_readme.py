"""README is true: its Python runs, and its commands do what they say, in the order they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from tripletmas.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    for line in block.splitlines()
    if line.startswith("tripletmas ")
]


# raised, once a process, inside pytorch-metric-learning's trainer by newer versions of torch
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")
@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_python_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[block], f"README.md, python block {block}", "exec"), {"__name__": "readme"})


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
    for block in PYTHON:
        if named := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / named[1]).write_text(block)
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        if "omniglot" in command or "pretrained true" in command:  # a download: everything before it is run
            arguments.append("--print_config")
        elif arguments[0] == "train":
            arguments.append("--training.epochs=2")
            if "shapes-facts" in command:
                small = {"images": 500, "test_images": 200, "unseen_images": 20, "size": 32}
                arguments += [f"--data.{key}={value}" for key, value in small.items()]
        assert cli.main(arguments) == 0, f"{command}\n{capsys.readouterr().err}"


def test_mentioned_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", README)
    missing = [path for pair in links for path in pair if path and not (ROOT / path).exists()]
    assert not missing


def test_map_of_the_code_is_whole():
    listed = set(re.findall(r"^ {2,4}(\w+\.py|\w+/)", README, flags=re.M))
    package = ROOT / "tripletmas"
    there = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    there |= {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    assert there <= listed, f"README's map lacks {sorted(there - listed)}"
