"""Code of one's own: found without executing it, executed as it was read, and later only if it is known."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

from tripletmas.basics.files import save_tensors
from tripletmas.index.images import ImageIndex, Settings, Transform
from tripletmas.runs import plugins
from tripletmas.runs.plugins import Code, find, registered
from tripletmas.runs.trust import accept, memory, recorded, remember, remembered

PART = "strategy"
MINE = "from __future__ import annotations\n\n\nclass Mine:\n    class Inner: ...\n\n\nexecuted = __name__\n"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with `mine.py`; what is remembered lies in `state`."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.py").write_text(MINE)
    return tmp_path / "here"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution of one package, with entry points: package -> its version, files and entry points."""

    def make(package: str, files: dict[str, str], entry_points: str = "") -> Path:
        site = tmp_path / f"site-{package}"
        for name, content in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(content)
        info = site / f"{package}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[tripletmas.strategies]\n{entry_points}\n")
        monkeypatch.syspath_prepend(site)
        return site

    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def records_of(code: Code, *, part: str = PART) -> dict:
    return {"model": {}, part: {code.name: code.record()}}


def refused(message: str, name: str = "mine.py:Mine", *, records: object = None) -> None:
    """Whether `find`, or with records `recorded`, says this, and executes nothing."""
    before = set(sys.modules)
    with pytest.raises(ValueError, match=message) as raised:
        find(PART, name) if records is None else recorded(PART, name, records)
    assert "\n" not in str(raised.value)
    assert set(sys.modules) == before


# --- finding and executing


@pytest.mark.parametrize("spelt", ["mine.py", "./mine.py", "../here/mine.py", "link.py", "/absolute"])
def test_a_file_is_named_by_its_real_path(spelt, place):
    Path("link.py").symlink_to("mine.py")
    code = find(PART, f"{spelt if spelt != '/absolute' else place / 'mine.py'}:Mine")
    assert (code.name, code.file) == (f"{place}/mine.py:Mine", f"{place}/mine.py")
    assert (code.source, code.attribute) == (MINE.encode(), "Mine")
    mine = code.load()
    assert mine is code.load() is find(PART, "mine.py:Mine").load()
    assert find(PART, "mine.py:Mine.Inner").load() is mine.Inner
    assert (mine.__module__.startswith("mine_"), sys.modules[mine.__module__].Mine) == (True, mine)


def test_a_home_is_understood(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    assert find(PART, "~/mine.py:Mine").file == f"{place}/mine.py"


def test_two_files_of_one_name_are_two_modules(place):
    Path("other").mkdir()
    Path("other/mine.py").write_text(MINE)
    one, other = (find(PART, f"{path}:Mine").load() for path in ("mine.py", "other/mine.py"))
    assert one is not other
    assert all(sys.modules[each.__module__].Mine is each for each in (one, other))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:Mine", r"strategy 'none\.py:Mine': no such file: .*/here/none\.py"),
        ("folder.py:Mine", r"folder\.py is no file"),
        ("./mine:Mine", "no such file"),
        ("mine.txt:Mine", r"no module 'mine\.txt' is installed; a file is named by its path: path/to/file\.py:NAME"),
        ("./mine.txt:Mine", r"mine\.txt is no Python source"),
        ("mine:Mine", r"no module 'mine' is installed; a file is named by its path: path/to/file\.py:NAME"),
        ("torch.nonesuch:Mine", r"no module 'torch\.nonesuch' is installed"),
        ("json.decoder.shlex:Mine", r"no module 'json\.decoder\.shlex' is installed"),  # json.decoder is no package
        ("sys:exit", "'sys' has no Python source"),
        ("mine.py:", r"must be written path/to/file\.py:NAME or package\.module:NAME"),
        (":Mine", "must be written"),
        ("mine.py:Mine()", "must be written"),
        ("mine.py:Mine.", "must be written"),
        ("theirs", r"unknown strategy 'theirs' \(known: none\)"),
    ],
)
def test_what_is_not_there(name, message):
    Path("folder.py").mkdir()
    Path("mine.txt").write_text(MINE)
    refused(message, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class Mien: ...", r"mine\.py has no 'Mine' \(did you mean 'Mien'\?\)"),
        ("x = 1\n1 / 0", r"mine\.py cannot be imported, line 2 \(ZeroDivisionError: division by zero\)"),
        ("import nonesuch", r"cannot be imported, line 1 \(ModuleNotFoundError: No module named 'nonesuch'\)"),
        ("import sys\nsys.exit('over')", r"cannot be imported, line 2 \(SystemExit: over\)"),
        ("class Mine", r"cannot be imported \(SyntaxError: .*\(mine\.py, line 1\)\)"),
        ("from . import x\nMine = 1", "attempted relative import with no known parent package"),
        ("# coding: nonesuch", "SyntaxError: .*unknown encoding"),
    ],
)
def test_code_that_does_not_work(content, message):
    Path("mine.py").write_text(content)
    code, before = find(PART, "mine.py:Mine"), set(sys.modules)
    for _ in range(2):  # what failed is not taken for imported
        with pytest.raises(ValueError, match=message):
            code.load()
    assert "has no 'Mine'" in message or set(sys.modules) == before


def test_what_was_read_is_executed():
    """Neither what the file holds by then, nor cached bytecode; without the `__future__` of the module that does it."""
    code = find(PART, "mine.py:executed")
    Path("mine.py").write_text("1 / 0")
    executed = code.load()
    assert executed.startswith("mine_")
    assert not Path("__pycache__").exists()
    Path("mine.py").write_text("def Mine(x: 1): ...")
    assert find(PART, "mine.py:Mine").load().__annotations__ == {"x": 1}  # no `from __future__ import annotations`


# --- modules and entry points


def test_a_module_is_imported_as_python_imports_it(install):
    """With its package, under its name; and nothing is executed before."""
    files = {
        "theirs/__init__.py": "from theirs.part import Mine\nbegun = True",
        "theirs/part.py": "from . import base\nfrom .base import Base\nclass Mine(Base): ...",
        "theirs/base.py": "class Base: ...",
    }
    site = install("theirs", files)
    code = find(PART, "theirs.part:Mine")
    assert "theirs" not in sys.modules
    assert (code.name, code.file) == ("theirs.part:Mine", f"{site}/theirs/part.py")
    assert code.load() is importlib.import_module("theirs").Mine is importlib.import_module("theirs.part").Mine
    assert find(PART, "theirs.part:Mine").load() is code.load()
    assert find(PART, "theirs:begun").load() is True


def test_a_module_is_executed_as_it_was_read(install):
    site = install("theirs", {"theirs/__init__.py": "", "theirs/part.py": "Mine = 1"})
    code = find(PART, "theirs.part:Mine")
    (site / "theirs/part.py").write_text("Mine = 2")
    assert code.load() == 1
    assert find(PART, "theirs.part:Mine").load() == 2  # it has changed since it was imported


def test_a_module_that_is_loaded_from_elsewhere(install, tmp_path, monkeypatch):
    install("theirs", {"theirs.py": "Mine = 1"})
    importlib.import_module("theirs")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/theirs.py").write_text("Mine = 2")
    monkeypatch.syspath_prepend(tmp_path / "other")
    with pytest.raises(ValueError, match=r"theirs is loaded from .*/theirs\.py already"):
        find(PART, "theirs:Mine").load()


def test_entry_points(install):
    install("theirs", {"theirs.py": "class Mine: ..."}, "theirs = theirs:Mine\nworse = theirs [extra]")
    assert registered(PART) == {"theirs": "theirs 1.2: theirs:Mine", "worse": "theirs 1.2: theirs [extra]"}
    assert registered("loss") == {}
    code = find(PART, "theirs")
    assert "theirs" not in sys.modules
    assert (code.name, code.module, code.attribute) == ("theirs", "theirs", "Mine")
    assert code.load() is importlib.import_module("theirs").Mine
    refused("strategy 'worse' must be written", "worse")
    refused(r"unknown strategy 'their' \(did you mean 'theirs'\?\)", "their")


def test_a_name_that_two_packages_register(install):
    install("first", {"first.py": ""}, "mas = first:Mine\nboth = first:Mine")
    install("second", {"second.py": ""}, "both = second:Mine")
    refused("strategy 'both' is registered by .*first 1.2.*: uninstall one", "both")
    with pytest.raises(ValueError, match=r"strategy 'mas' is built in, and first 1\.2 registers another: uninstall"):
        plugins.refuse_registered(PART, "mas")
    plugins.refuse_registered(PART, "finetune")


# --- where no code is executed


def begun(folder: Path) -> Path:
    """A run directory that is no more than begun."""
    folder.mkdir()
    (folder / "config.yaml").write_text("version:\n  tripletmas: 0.1.0\nstrategy: {name: mas}\n")
    return folder


@pytest.mark.parametrize(
    "spelt", ["run/mine.py", "run/deep/er/mine.py", "outside.py", "run/../outside.py", "run/out.py"]
)
def test_nothing_inside_a_run_directory(spelt):
    """By its path or by what the path leads to; also for a training that names it, and with --trust-code."""
    begun(Path("run"))
    Path("run/deep/er").mkdir(parents=True)
    for path in ("run/mine.py", "run/deep/er/mine.py"):
        Path(path).write_text(MINE)
    Path("outside.py").symlink_to("run/mine.py")
    Path("run/out.py").symlink_to(Path("mine.py").absolute())
    message = "lies inside the run directory .*/run: no code is executed from there"
    refused(message, f"{spelt}:Mine")
    with pytest.raises(ValueError, match=message):
        accept({PART: {f"{spelt}:Mine": {"file": spelt, "sha256": ""}}})


@pytest.mark.parametrize("mark", ["weights/task00.safetensors", "checkpoint/task0000-epoch000001/place.json"])
def test_what_a_run_directory_is(mark):
    """A configuration for `--config` beside one's own code makes none, nor do weights of another program."""
    Path("config.yaml").write_text("strategy: {name: mine.py:Mine}\nversion: 3\n")
    Path("weights").mkdir()
    Path("weights/best.pt").write_text("")
    find(PART, "mine.py:Mine")
    Path(mark).parent.mkdir(parents=True, exist_ok=True)
    Path(mark).write_text("")
    refused("lies inside the run directory")


def test_an_index_brings_no_code_along(install):
    """Unless training has named it: one's own code may lie where one's own index does."""
    save_tensors("weights.safetensors", {"vectors": torch.zeros(2)}, {"other": "tripletmas index"})
    os.mkfifo("pipe")  # which nobody writes to: to open it would wait for ever
    site = install("theirs", {"theirs.py": MINE})
    for name, folder in (("mine.py:Mine", Path()), ("theirs:Mine", site)):
        code = find(PART, name)
        ImageIndex.empty(Settings(dim=2, transform=Transform(8, 1))).save(folder / "shop.index")
        with pytest.raises(
            ValueError, match=r"lies beside the index .*/shop\.index: training must have named it itself"
        ):
            accept(records_of(code), unseen=True)
        accept(records_of(code))
        accept(records_of(code), unseen=True)
        assert recorded(PART, code.name, records_of(code)) == code


# --- later


def test_a_part_that_training_named_is_let_through(place, monkeypatch):
    code = find(PART, "mine.py:Mine")
    remember(code)
    monkeypatch.chdir("/")
    assert recorded(PART, code.name, records_of(code)) == code
    assert code.record() == {"file": str(place / "mine.py"), "sha256": code.sha256}


def test_what_nobody_named_is_told_before_it_is_executed():
    Path("mine.py").write_text("1 / 0")
    code = find(PART, "mine.py:Mine")
    message = (
        f"strategy '.*/mine.py:Mine' is code: .*/mine.py .sha256 {code.sha256[:12]}. would be executed, and no "
        "training by this account has named it; read it, and add --trust-code to execute it"
    )
    refused(message, code.name, records=records_of(code))
    accept(records_of(code))
    assert recorded(PART, code.name, records_of(code)) == code


@pytest.mark.parametrize("records", ["x", {}, {PART: "x"}, {PART: {}}, "of the model", {PART: {"NAME": 5}}])
def test_a_run_that_recorded_nothing(records):
    """Whoever edits config.yaml can name the code, but not have it executed."""
    code = find(PART, "mine.py:Mine")
    remember(code)
    if records == "of the model":
        records = records_of(code, part="model")
    if records == {PART: {"NAME": 5}}:
        records = {PART: {code.name: 5}}
    refused("strategy '.*' is code without a recorded checksum, so it is not executed", code.name, records=records)
    accept({PART: {}})


def test_code_that_has_changed():
    code = find(PART, "mine.py:Mine")
    remember(code)
    Path("mine.py").write_text(MINE + "\n")
    now = find(PART, "mine.py:Mine").sha256
    message = f"/mine.py has changed since the run was trained .sha256 {code.sha256[:12]}, now {now[:12]}.: restore it"
    refused(message, code.name, records=records_of(code))
    with pytest.raises(ValueError, match=message):
        accept(records_of(code))
    Path("mine.py").unlink()
    refused("no such file", code.name, records=records_of(code))


def test_code_that_lies_elsewhere(install, tmp_path, place, monkeypatch):
    """A link in place of the file, and a module of the same name, with the same content, that is found first."""
    code = find(PART, "mine.py:Mine")
    remember(code)
    Path("mine.py").rename("moved.py")
    Path("mine.py").symlink_to("moved.py")
    refused("was .*/mine.py when the run was trained, and is .*/moved.py now", code.name, records=records_of(code))
    site = install("theirs", {"theirs/__init__.py": "", "theirs/part.py": MINE})
    code = find(PART, "theirs.part:Mine")
    remember(code)
    planted = place / "theirs"
    planted.mkdir()
    (planted / "__init__.py").write_text("1 / 0")
    (planted / "part.py").symlink_to(site / "theirs/part.py")
    monkeypatch.syspath_prepend(place)
    message = (
        "'theirs.part:Mine' was .*/site-theirs/theirs/part.py when the run was trained, and is .*/here/theirs/part.py"
    )
    refused(message, code.name, records=records_of(code))


def test_only_what_was_named_is_remembered():
    """Not another name in the same file, nor the same as another part: options could make much of that."""
    code = find(PART, "mine.py:Mine")
    remember(code)
    for part, name in ((PART, "Mine.Inner"), ("data", "Mine")):
        other = find(part, f"mine.py:{name}")
        with pytest.raises(ValueError, match="no training by this account has named it"):
            recorded(part, other.name, records_of(other, part=part))


def test_an_entry_point_that_names_other_code_by_now(install):
    site = install("theirs", {"theirs.py": MINE}, "theirs = theirs:Mine")
    code = find(PART, "theirs")
    remember(code)
    entry_points = site / "theirs-1.2.dist-info/entry_points.txt"
    entry_points.write_text(entry_points.read_text().replace(":Mine", ":executed"))
    refused("no training by this account has named it", "theirs", records=records_of(code))


# --- memory


def test_memory_is_read_only_if_nobody_else_can_write_it(place, monkeypatch):
    code = find(PART, "mine.py:Mine")
    assert not remembered(code)
    for _ in range(2):
        remember(code)
    (file,) = memory().iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().splitlines() == [PART, code.name, f"sha256 {code.sha256}"]
    file.chmod(0o666)
    assert not remembered(code)
    remember(code)
    assert remembered(code)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: -1)
        assert not remembered(code)
    assert remembered(code)
    file.rename(place / "kept")
    file.symlink_to(place / "kept")
    assert not remembered(code)
    file.unlink()
    file.write_text("other")
    assert not remembered(code)


def test_where_memory_lies(monkeypatch, tmp_path):
    assert memory() == tmp_path / "state/tripletmas/code"
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "state"):
        monkeypatch.setenv("XDG_STATE_HOME", relative)
        assert memory() == tmp_path / ".local/state/tripletmas/code"
