"""--quiet, --verbose and --json, as one table over the commands: what each prints then."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from commands import SMALL, failed
from PIL import Image

from tripletmas.cli.main import COMMANDS, main
from tripletmas.cli.telling import Telling, taken

TRAIN = ("train", "--report", "false", *SMALL)
# the command -> (whether it prints what it did, some keys of its JSON)
LINES: dict[tuple[str, ...], tuple[bool, set[str]]] = {
    (*TRAIN, "--out", "NEW"): (True, {"methods", "tasks", "stream"}),
    (*TRAIN, "--sweep", "strategy.strength=0.1,1", "--data.validation", "true", "--out", "NEW"): (
        True,
        {"methods", "failed"},
    ),
    (*TRAIN, "--print_config"): (False, {"data", "strategy", "training"}),
    ("search", *SMALL, "--search.most", "1", "--out", "NEW"): (True, {"methods", "report", "searches"}),
    ("resume", "RUN"): (True, {"methods", "report"}),
    ("evaluate", "RUN"): (False, {"tasks", "after", "seen"}),
    ("compare", "RUN"): (True, {"methods"}),
    ("report", "RUN"): (True, {"report"}),
    ("importance", "RUN", "--images", "PHOTOS", "--again"): (True, {"samples", "sum", "layers"}),
    ("importance", "RUN", "--undo"): (True, {"undone"}),
    ("index", "build", "RUN", "--images", "PHOTOS", "--out", "NEW"): (True, {"vectors", "dim", "after"}),
    ("index", "add", "INDEX", "--images", "PHOTOS"): (True, {"added", "vectors"}),
    ("index", "info", "INDEX"): (False, {"vectors", "stale", "parts"}),
    ("index", "refresh", "INDEX", "--compensate"): (True, {"changed"}),
    ("index", "remove", "INDEX", "PHOTOS/0.png"): (True, {"removed", "vectors"}),
    ("query", "INDEX", "PHOTOS/1.png", "-k", "2"): (False, {"queries"}),
    ("export", "RUN", "--embeddings", "NEW.npz"): (True, {"vectors", "dim"}),
    ("example", "shop", "--out", "NEW"): (True, {"pictures"}),
    ("list", "strategies"): (False, {"mas", "gram"}),
    ("doctor", "RUN"): (False, {"found"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with photos, a run to which they were added, and an index of them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), 40 * number + 90).save(folder / "photos" / f"{number}.png")
    photos = ("--images", str(folder / "photos"))
    assert main([*TRAIN, "--out", str(folder / "run")]) == 0
    assert main(["index", "build", str(folder / "run"), *photos, "--out", str(folder / "own.index")]) == 0
    assert main(["importance", str(folder / "run"), *photos]) == 0
    return folder


@pytest.fixture
def words(made: Path, tmp_path: Path):
    """A line with the names of this test's own copies in it."""
    run, index = shutil.copytree(made / "run", tmp_path / "run"), shutil.copy(made / "own.index", tmp_path)
    names = {"RUN": run, "PHOTOS": made / "photos", "INDEX": index, "NEW": tmp_path / "new"}

    def placed(line: tuple[str, ...], *more: str) -> list[str]:
        def place(word: str) -> str:
            head = next((name for name in names if word.startswith(name)), None)
            return f"{names[head]}{word.removeprefix(head)}" if head else word

        return [*map(place, line), *more]

    return placed


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_as_json_it_is_one_document(line, call, words, undrawn):
    status, text, _ = call(*words(line, "--json"))
    assert status == 0
    assert LINES[line][1] <= json.loads(text).keys()


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_quiet_leaves_the_result(line, call, words, undrawn):
    status, text, complaint = call(*words(line, "--quiet"))
    assert (status, complaint) == (0, "")
    assert (text == "") is LINES[line][0]


def test_every_command_is_in_the_table():
    """But for those whose own tests have what they want: several updates, a store."""
    assert {line[0] for line in LINES} >= COMMANDS.keys() - {"forecast", "serve", "upgrade", "completion"}


@pytest.mark.slow
def test_verbose_tells_each_step_and_how_long_it_took(call, tmp_path: Path, caplog):
    status, _, complaint = call(*TRAIN, "--out", tmp_path / "run", "--verbose")
    assert status == 0
    assert complaint.count("epoch 1 of 1: loss ") == 3  # three tasks of one epoch each
    assert "train took " in complaint
    assert logging.getLogger("tripletmas").propagate


@pytest.mark.slow
def test_the_status_is_the_same_and_problems_are_told(call, made: Path, tmp_path: Path):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    (run / "scores.json").write_text("{")
    for options in ([], ["--json"], ["--quiet"]):
        status, text, complaint = call("doctor", run, *options)
        assert (status, "1 of its files are not as they were written" in complaint) == (2, True)
        assert not options or options == ["--quiet"] or any(each["good"] is False for each in json.loads(text)["found"])
    assert call("evaluate", tmp_path / "none", "--json")[:2] == (2, "")


@pytest.mark.parametrize("command", ["report", "train", "search"])
def test_help_is_heard_in_any_case_and_names_them(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--json", "--help"])
    assert "also --quiet, --verbose, --json and --debug" in " ".join(capsys.readouterr().out.split())


def test_help_says_what_json_is_without_a_file(capsys):
    for command in ("query", "evaluate", "forecast"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "without FILE" in " ".join(capsys.readouterr().out.split())


def test_quiet_says_nothing_of_a_page(call, made: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    line = ("query", made / "own.index", made / "photos" / "1.png", "-k", "1", "--html", page, "--jsonl", "-")
    status, text, complaint = call(*line, "--quiet")
    assert (status, len(text.splitlines()), complaint) == (0, 1, "")
    assert page.is_file()
    assert call(*line)[2] == f"page: {page}\n"


def test_what_makes_no_sense_is_refused(call):
    failed(call("serve", "x.index", "--json"), "serve goes on until it is ended: leave --json out")
    failed(call("report", "x", "--quiet", "--verbose"), "give --quiet or --verbose, not both")
    for lines in (["--jsonl", "-"], ["--jsonl=-"]):
        failed(call("query", "x", "a.png", "--json", *lines), "give --json or --jsonl -, not both")


def test_a_file_for_the_document_is_none_for_standard_output():
    assert taken("evaluate", ["run", "--json", "scores.json"]) == (Telling(), ["run", "--json", "scores.json"])
    assert taken("evaluate", ["run", "--json", "--task", "0"]) == (Telling(json=True), ["run", "--task", "0"])
    assert taken("query", ["x", "--", "--quiet"]) == (Telling(), ["x", "--", "--quiet"])
