"""Runs, indexes and files of others: no command executes what they bring along, and none asks the network."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import pytest
from commands import restored_tables
from PIL import Image

from tripletmas.cli.main import COMMANDS, main

LINES = [
    "resume RUN",
    "evaluate RUN",
    "evaluate RUN --compatibility",
    "evaluate RUN --data digits",
    "forecast RUN",
    "forecast RUN --index shop.index",
    "compare RUN other",
    "report RUN",
    "importance RUN --images photos",
    "index build RUN --images photos --out new.index",
    "index add shop.index --images more",
    "index remove shop.index photos/0",
    "index info shop.index",
    "index refresh shop.index --reembed",
    "index refresh shop.index --compensate",
    "index push shop.index lancedb://base#points",
    "query lancedb://base#points photos/0/0.png",
    "index pull lancedb://base#points back.index",
    "upgrade shop.index --old RUN --new other --sample 40",
    "upgrade lancedb://base#points --old other --new RUN --sample 40 --apply",
    "query shop.index photos/0/0.png --html page.html",
    "query RUN photos/0/0.png",
    "serve shop.index --check",
    "export RUN --embeddings all.npz",
    "train --config RUN/config.yaml --out again",
    "train --data folder --data.root photos --out RUN",
    "search --config RUN/config.yaml --out again",
    "example shop --out RUN",
    "list strategies",
    "completion bash",
    "doctor",
]
PARTS = {  # what runs of parts of one's own name; each leaves a trace as soon as it is executed
    "strategy": "from tripletmas.strategies.mas import MAS as Part",
    "model": """
from tripletmas.models.networks import mlp


def Part(sample_shape, *, dim: int = 8):
    return mlp(sample_shape, dim=dim, hidden=(8,))
""",
    "loss": """
def Part(*, scale: float = 1.0):
    return lambda embeddings, labels: scale * embeddings.square().mean()
""",
    "data": """
from tripletmas.data.folders import folder


def Part(*, root: str = "photos"):
    return folder(root=root, size=8, channels=1)
""",
}
SMALL = ("--training.epochs", "1", "--report", "false")


def test_all_commands_are_tried():
    assert {line.split()[0] for line in LINES} == set(COMMANDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_images) -> Path:
    """Somebody else's folder: a run `own-<part>` for each part of one's own, a plain run `other`, an index of each."""
    folder = tmp_path_factory.mktemp("foreign")
    for number in range(4):
        write_images(folder / "photos" / str(number), seed=number)
    write_images(folder / "more" / "0", seed=9)
    with pytest.MonkeyPatch.context() as patch, restored_tables():
        patch.chdir(folder)
        patch.setenv("XDG_STATE_HOME", str(folder / "theirs"))
        data = ("--data", "folder", "--data.root", "photos", "--data.size", "8", "--data.channels", "1")
        for part, code in {**PARTS, "": ""}.items():
            name = f"own-{part}" if part else "other"
            given = {"--data": data, "--model": ("--model", "mlp")}
            if part:
                Path(f"{part}.py").write_text(f"from pathlib import Path\nPath(__file__ + '.executed').touch()\n{code}")
                given[f"--{part}"] = (f"--{part}", f"{part}.py:Part")
            parts = [word for words in given.values() for word in words]
            assert main(["train", *parts, "--data.tasks", "2", "--out", name, *SMALL]) == 0
            assert main(["index", "build", name, "--images", "photos", "--out", f"{name}.index"]) == 0
    for trace in folder.glob("*.executed"):
        trace.unlink()
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """The same folder, of one who has trained nothing; the working directory."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    for name in [name for name in sys.modules if name.startswith(tuple(f"{part}_" for part in PARTS))]:
        del sys.modules[name]
    return made


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.slow
def test_no_command_executes_code_that_a_foreign_run_names(part, place, call, tmp_path):
    refused = 0
    for line in LINES:
        copy = Path(shutil.copytree(f"own-{part}", tmp_path / "run"))
        shutil.copy(f"own-{part}.index", "shop.index")
        complaint = call(*line.replace("RUN", str(copy)).split())[2]
        assert not list(place.glob("*.executed")), line
        assert "Traceback" not in complaint
        refused += "would be executed" in complaint
        shutil.rmtree(copy)
        shutil.rmtree("again", ignore_errors=True)
    assert refused >= 8  # or the code was not in reach of these commands at all


class Trace:
    """What leaves a trace when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.slow
def test_nothing_is_unpickled(place, call, tmp_path):
    """Also not where a file of the run should be something else."""
    bad = pickle.dumps(Trace())
    pickle.loads(bad)  # it does what it should
    Path("unpickled").rmdir()
    names = [
        "config.yaml",
        "metrics.jsonl",
        "scores.json",
        "weights/task01.safetensors",
        "importance/task01.safetensors",
    ]
    names += [str(path.relative_to("other")) for path in sorted(Path("other/checkpoint").glob("*/*"))]
    for number, name in enumerate(names):
        copy = Path(shutil.copytree("other", tmp_path / f"run{number}"))
        (copy / name).write_bytes(bad)
        for line in (f"resume {copy}", f"evaluate {copy}", f"report {copy}", f"importance {copy} --images photos"):
            assert "Traceback" not in call(*line.split())[2]
            assert not Path("unpickled").exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["words.kv", "words.txt", "words.bin", "words.vec.gz"])
def test_word_vectors_are_not_unpickled(name, place, call):
    Path(name).write_bytes(pickle.dumps(Trace()))
    status, _, complaint = call("train", "--data", "shapes-facts", "--data.words", name, "--out", "facts")
    assert status == 2
    assert f"{name} cannot be read as word vectors" in complaint
    assert not Path("unpickled").exists()
    assert not Path("facts").exists()


@pytest.mark.slow
def test_yaml_constructs_nothing(place, call):
    Path("evil.yaml").write_text("strategy: !!python/object/apply:os.mkdir [unpickled]")
    status, _, complaint = call("train", "--config", "evil.yaml")
    assert status == 2
    assert "is no YAML" in complaint
    status, _, complaint = call("train", "--data.groups=!!python/object/apply:os.mkdir [unpickled]")
    assert status == 2
    assert not Path("unpickled").exists()


@pytest.mark.slow
def test_an_archive_reaches_nothing_beside_itself(place, call):
    Image.new("L", (8, 8)).save("beside.png")
    with zipfile.ZipFile("all.zip", "w") as archive:
        for name in ("a/../../beside.png", "/beside.png", str(place / "beside.png")):
            archive.writestr(name, b"what the archive holds")
    status, _, complaint = call("index", "build", "other", "--images", "all.zip", "--out", "zip.index")
    assert status == 2
    assert "no images in all.zip" in complaint  # what leads out of it is not in it
    assert not Path("zip.index").exists()


@pytest.mark.slow
def test_no_command_asks_the_network(place, call, monkeypatch, tmp_path):
    asked = []
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, lambda *arguments: asked.append(arguments) or 1 / 0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **named: asked.append(arguments) or 1 / 0)
    for line in [*LINES, "train --data cifar10 --out none", "train --data omniglot --out none", "train --data cub200"]:
        copy = Path(shutil.copytree("other", tmp_path / "run"))
        shutil.copy("other.index", "shop.index")
        call(*line.replace("RUN", str(copy)).split())
        assert not asked, line
        shutil.rmtree(copy)
        shutil.rmtree("again", ignore_errors=True)
