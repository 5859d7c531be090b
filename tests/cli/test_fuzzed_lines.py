"""Command lines with mistakes in them: whatever is typed, one sentence comes back, and never a traceback.

A few dozen lines among the slow tests; under `long` as many as the variable TRIPLETMAS_FUZZ says, else 2,000.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from tripletmas.cli.main import COMMANDS, main
from tripletmas.runs import catalog

SECONDS = 60  # of a line that asks for much, such as a large model; it is then given up
LINES = [
    "train --data folder --data.root photos --data.size 8 --model mlp --data.tasks 2 --out new",
    "train --data digits --data.per_class 4 --model.dim 4 --out new",
    "train --config run/config.yaml --out new",
    "train --data csv --data.path list.csv --data.size 8 --model mlp --out new",
    "search --data.per_class 4 --strategy l2 --search.most 1 --out new",
    "resume run",
    "evaluate run --after 0 --gallery fresh,stale --json new.json",
    "evaluate run --task 1 --compatibility",
    "forecast run --all --json new.json",
    "compare run run --seeds 0,1 --markdown",
    "report run",
    "importance run --images photos --weight 0.5 --invert --again",
    "index build run --images photos --out new.index --kind exact --metric l2",
    "index build run --images photos --out new.index --kind IVF2,Flat --nprobe 2",
    "index add shop.index --images more --skip-unreadable",
    "index remove shop.index photos/a/0.png",
    "index info shop.index",
    "index refresh shop.index --compensate linear",
    "index refresh shop.index --reembed --images photos",
    "query shop.index photos/a/0.png -k 3 --json new.json",
    "query run photos/a/0.png --fact circle",
    "export run --embeddings new.npz --part query",
    "list strategies",
    "doctor",
]
VALUES = [
    *(
        "",
        " ",
        "-",
        "--",
        "0",
        "1",
        "-1",
        "2",
        "3.5",
        "1e400",
        "nan",
        "inf",
        "null",
        "true",
        "no",
        "auto",
        "[]",
        "[1,2]",
    ),
    *(
        "{}",
        "{a: b}",
        "[[",
        "a=b",
        "'",
        '"',
        "\\",
        "%s",
        "{0}",
        "*",
        "**",
        "&a *a",
        "!!set {a}",
        "2026-11-28",
        "é",
        "犬",
    ),
    *("\x1b[31m", "\u202e", "\udce9", "a\nb", "x" * 5000, "10000000000000000000000", "-10000000000000000000000"),
    *(
        "run",
        "photos",
        "shop.index",
        "list.csv",
        "broken",
        "none",
        "..",
        ".",
        "/dev/null",
        "/dev/null/x",
        "photos/a/0.png",
    ),
    *("run/config.yaml", "run/metrics.jsonl", "all.zip", "pipe", "digits", "mas", "mas+l2", "gram", "triplet", "conv4"),
    *("cpu", "cuda:7", "meta", "fresh", "stale", "linear", "IVF0,Flat", "PCA4,Flat", "recognition", "facts", "folder"),
]
SMALL = ["--training.epochs=1", "--report=false"]


class GivenUp(BaseException):
    """No `except Exception` takes it for an error."""


def give_up(*_: object) -> None:
    raise GivenUp


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_images) -> Path:
    place = tmp_path_factory.mktemp("fuzzed")
    for number, name in enumerate("abcd"):
        write_images(place / "photos" / name, seed=number)
    write_images(place / "more" / "a", seed=9)
    (place / "broken").mkdir()
    (place / "broken" / "a.png").write_text("no picture")
    (place / "all.zip").write_text("no archive")
    rows = [f"photos/{name}/{number}.png,{name}" for name in "abcd" for number in range(6)]
    (place / "list.csv").write_text("\n".join(["path,label", *rows]))
    Image.new("L", (8, 8)).save(place / "a.png")
    os.mkfifo(place / "pipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_STATE_HOME", str(place / "state"))
        data = "--data folder --data.root photos --data.size 8 --model mlp --data.tasks 2"
        assert main(["train", *data.split(), "--out", "run", *SMALL]) == 0
        assert main(["index", "build", "run", "--images", "photos", "--out", "shop.index", "--after", "0"]) == 0
    return place


@pytest.fixture(scope="module")
def options() -> list[str]:
    """What commands and parts have, right or wrong for the line."""
    parts = {"strategy": ("mas", "gram", "distill", "replay"), "model": ("mlp", "conv4"), "loss": ("triplet",)}
    names = [
        f"--{part}.{name}"
        for part, of_part in parts.items()
        for each in of_part
        for name in catalog.options(part, each)
    ]
    return sorted({*names, *re.findall(r"--[a-z.-]+", " ".join(LINES)), "--help", "--device", "--training.lr"})


def mistaken(draw: random.Random, options: list[str]) -> list[str]:
    """A line that would do, with one to four mistakes."""
    words = shlex.split(draw.choice(LINES))
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(words) + 1)
        match draw.randrange(6):
            case 0:
                words[at : at + 1] = [draw.choice(VALUES)]
            case 1:
                words[at:at] = [draw.choice(options), draw.choice(VALUES)]
            case 2:
                words[at:at] = [f"{draw.choice(options)}={draw.choice(VALUES)}"]
            case 3:
                del words[at : at + 1]
            case 4:
                words[at : at + 1] = [
                    word[: len(word) // 2] + word[len(word) // 2 + 1 :] for word in words[at : at + 1]
                ]
            case 5:
                words[at:at] = [draw.choice([*options, *VALUES, *COMMANDS])]
    return words + {"train": SMALL, "search": SMALL[:1]}.get(words[0] if words else "", [])


def fuzz(made: Path, options: list[str], call, monkeypatch, tmp_path: Path, *, count: int, seed: int) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    handler = signal.signal(signal.SIGALRM, give_up)
    draw = random.Random(seed)
    try:
        for number in range(count):
            if number % 25 == 0:
                place = tmp_path / f"place{number}"
                shutil.copytree(made, place, ignore=shutil.ignore_patterns("pipe"))
                os.mkfifo(place / "pipe")
                monkeypatch.chdir(place)
            words = mistaken(draw, options)
            signal.alarm(SECONDS)
            try:
                status, text, complaint = call(*words)
            except SystemExit as left:  # after --help
                status, text, complaint = int(left.code or 0), "help", ""
            except GivenUp:
                continue
            except BaseException as error:
                raise AssertionError(f"{words}: {type(error).__name__}") from error
            finally:
                signal.alarm(0)
            assert status in (0, 2), (words, complaint)
            assert "Traceback" not in text + complaint, words
            assert status == 0 or complaint or text, words
            assert "\x1b" not in text + complaint, words
    finally:
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("undrawn")
def test_some_lines_with_mistakes(made, options, call, monkeypatch, tmp_path):
    fuzz(made, options, call, monkeypatch, tmp_path, count=60, seed=0)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("undrawn")
def test_many_lines_with_mistakes(made, options, call, monkeypatch, tmp_path):
    count = int(os.environ.get("TRIPLETMAS_FUZZ", "2000"))
    fuzz(made, options, call, monkeypatch, tmp_path, count=count, seed=1)
