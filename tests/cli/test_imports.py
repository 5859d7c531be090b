"""What a command imports: whoever asks little need not wait for what takes seconds. No test measures that time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SMALL

from tripletmas.cli.main import main

LARGE = {"torch", "torchvision", "pytorch_metric_learning", "scipy", "sklearn", "matplotlib", "faiss", "transformers"}
PROGRAM = """
import json, sys
from tripletmas.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)))
"""


def imported(*words: object) -> set[str]:
    """The large packages that a command imports, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, check=True
    )
    return LARGE & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def shop(tmp_path_factory, write_images) -> Path:
    """A folder with images, a finished run with its report, and an index of the images by the run."""
    folder = tmp_path_factory.mktemp("shop")
    for number, name in enumerate("xyz"):
        write_images(folder / "images" / name, seed=number)
    run, index = str(folder / "run"), str(folder / "shop.index")
    assert main(["train", "--data", "digits", "--out", run, *SMALL]) == 0
    assert main(["index", "build", run, "--images", str(folder / "images"), "--out", index, "--force"]) == 0
    return folder


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["index"], ["index", "--help"], ["list"], ["nonsense"]])
def test_what_computes_nothing_imports_nothing_large(words):
    assert imported(*words) == set()


@pytest.mark.slow  # the run
def test_an_index_and_its_run_are_told_of_without_torch(shop):
    assert imported("index", "info", shop / "shop.index") == set()
    assert "torch" in imported("index", "info", shop / "none.index")  # which says what is wrong


@pytest.mark.slow
def test_a_query_imports_its_model_and_the_index(shop):
    assert imported("query", shop / "shop.index", shop / "images/x/0.png", "--force") == {"torch", "faiss"}


@pytest.mark.slow
def test_a_finished_run_is_resumed_without_drawing(shop):
    found = imported("resume", shop / "run")
    assert found == {"torch", "pytorch_metric_learning", "scipy"}


@pytest.mark.slow
def test_networks_of_torchvision_are_told_of_by_it_alone(shop):
    assert "torchvision" in imported("train", "--model", "resnet18", "--help")
    assert imported("train", "--model", "conv4", "--help") == {"torch"}


TOLD = """
import os, sys
from importlib.abc import MetaPathFinder
class Told(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), file=sys.stderr)
sys.meta_path.insert(0, Told())
from tripletmas.cli.main import main
"""


@pytest.mark.parametrize(
    ("call", "given", "expected"),
    [
        ("main()", {}, "10000"),
        ("main()", {"GOMP_SPINCOUNT": "5"}, "5"),
        ("main()", {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ("main(sys.argv[1:])", {}, "None"),  # inside another program, whose threads are its own affair
    ],
)
@pytest.mark.slow
def test_threads_of_a_command_sleep_sooner(call: str, given: dict[str, str], expected: str):
    """By what the environment says when torch is imported, which reads it; who has said how threads wait is heard."""
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", f"{TOLD}{call}", "list", "strategies"],
        check=True,
        capture_output=True,
        text=True,
        env=environment | given,
    )
    assert done.stderr.splitlines()[0] == expected
