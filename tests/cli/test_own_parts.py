"""Parts of one's own on the command line: as good as built-in ones, and executed only for those who named them."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from commands import failed, interrupt_after, write_config

from tripletmas.runs.directory import RunDirectory

STRATEGY = """
from tripletmas.strategies.base import Strategy


class Anchored(Strategy):
    '''Hold every weight near where the last task left it.

    Args:
        strength: of the squared distance.
    '''

    def __init__(self, *, strength: float = 0.01):
        self.strength, self.kept = strength, {}

    def loss(self, model, inputs, embeddings):
        if not self.kept:
            return None
        return self.strength * sum((p - self.kept[name]).square().sum() for name, p in model.named_parameters())

    def after_task(self, model, task):
        self.kept = {name: p.detach().clone() for name, p in model.named_parameters()}

    def state_dict(self):
        return self.kept

    def load_state_dict(self, state):
        self.kept = state

    def set_strength(self, strength):
        self.strength = strength
"""
OTHERS = """
import torch
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source


def squares(*, classes: int = 4, seed: int = 0) -> Source:
    '''Noisy patterns.'''
    random = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, 1, 8, 8, generator=random)
    labels = torch.arange(classes).repeat_interleave(12)
    samples = (patterns[labels] + torch.rand(len(labels), 1, 8, 8, generator=random)) / 2
    return Source(LabelledDataset(samples, labels, [f'c{i}' for i in range(classes)]))


class Net(torch.nn.Module):
    def __init__(self, sample_shape, *, dim: int = 8):
        super().__init__()
        self.embedding = torch.nn.Linear(torch.Size(sample_shape).numel(), dim)

    def forward(self, images):
        return self.embedding(images.flatten(1))


class ToProxies(torch.nn.Module):
    def __init__(self, dim, num_classes, *, scale: float = 10.0):
        super().__init__()
        self.scale, self.proxies = scale, torch.nn.Parameter(torch.randn(num_classes, dim))

    def forward(self, embeddings, labels):
        return torch.nn.functional.cross_entropy(-self.scale * torch.cdist(embeddings, self.proxies), labels)
"""
SMALL = (
    "--data.tasks=2",
    "--model=mlp",
    "--model.hidden=[8]",
    "--model.dim=4",
    "--training.epochs=1",
    "--report=false",
)
OWN = ("--strategy=mine.py:Anchored", "--data=others.py:squares", "--data.tasks=2", "--model=mlp")
OWN = (*OWN, "--training.epochs=1")
TRAIN = ("train", *OWN, "--report=false", "--out=run")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with files of one's own; what this account trained with is remembered beside it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.py").write_text(STRATEGY)
    Path("others.py").write_text(OTHERS)
    return tmp_path / "here"


@pytest.fixture
def by_somebody_else(place, call, tmp_path, write_images, monkeypatch) -> None:
    """A run `run` and an index `shop.index` of code that this account has not trained with; photos."""
    for folder in ("photos/a", "more"):
        write_images(place / folder)
    assert call(*TRAIN, "--model=others.py:Net")[0] == 0
    assert call("index", "build", "run", "--images", "photos", "--out", "indexes/shop.index")[0] == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    for name in executed():
        del sys.modules[name]


def executed() -> list[str]:
    """The modules of files of one's own that this process has executed."""
    return [name for name in sys.modules if name.startswith(("mine_", "others_", "evil_"))]


def test_options_and_help_come_from_the_signature(call, capsys):
    with pytest.raises(SystemExit):
        call("train", "--strategy=mine.py:Anchored", "--help")
    assert "--strategy.strength STRENGTH\n                        of the squared distance." in capsys.readouterr().out
    failed(call("train", "--strategy=mine.py:Anchored", "--strategy.strenght=1"), "did you mean 'strength'")
    result = call("train", "--strategy=mine.py:Anchored", "--strategy.strength=high")
    failed(result, "--strategy.strength takes float or auto, not 'high'")


@pytest.mark.slow
def test_a_strategy_goes_all_the_way(call, place, monkeypatch):
    """Trained, interrupted and resumed from another directory, searched, swept."""
    assert call(*TRAIN)[0] == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=1)
        assert call(*TRAIN, "--out=stopped")[0] == 130
    monkeypatch.chdir("/")
    monkeypatch.setattr("tripletmas.report.page.write_report", lambda path: path)
    assert call("resume", place / "stopped")[0] == 0
    run, stopped = (RunDirectory(place / name) for name in ("run", "stopped"))
    assert run.scores() == stopped.scores()
    config = run.config()
    assert config["strategy"] == {"name": f"{place}/mine.py:Anchored", "strength": 0.01}
    assert list(config["code"]) == ["data", "strategy"]
    monkeypatch.chdir(place)
    assert call(*TRAIN, "--strategy=./mine.py:Anchored")[0] == 0  # the same, which is done
    assert call("search", *OWN, "--training.epochs=3", "--search.most=1", "--out=searched")[0] == 0
    assert run.config()["code"] == RunDirectory("searched").config()["code"]
    assert call(*TRAIN, "--sweep=strategy=mine.py:Anchored,finetune", "--out=swept")[0] == 0
    assert {path.name for path in Path("swept").iterdir()} == {"strategy=mine.py_Anchored", "strategy=finetune"}
    assert call("train", "--strategy=mine.py:Anchored", *SMALL)[0] == 0
    assert "Anchored" in call("compare", "runs/Anchored", "--markdown")[1]
    assert str(place) not in call("compare", "runs/Anchored", "--markdown")[1]


@pytest.mark.slow
def test_every_part_can_be_ones_own(call, place, write_images):
    """Also a kind of task: that of the tests, by the path of its file."""
    parts = ("--model=others.py:Net", "--model.dim=6", "--loss=others.py:ToProxies", "--loss.scale=5")
    assert call("train", *OWN, *parts, "--out=run")[0] == 0
    state = RunDirectory("run").objectives.find(1)
    assert state is not None
    assert state["loss.proxies"].shape == (4, 6)
    assert "loss ToProxies" in Path("run/report/report.html").read_text()
    kind = f"{Path(__file__).parents[1] / 'binary_codes.py'}:CodesKind"
    assert call(*TRAIN, "--objective", kind, "--out=codes")[0] == 0
    assert RunDirectory("codes").config()["objective"] == kind
    failed(call(*TRAIN, "--objective", kind, "--loss=others.py:ToProxies"), "it fits objective 'metric' only")
    assert "code@1" in call("evaluate", "codes")[1]
    assert "Anchored" in call("compare", "codes", "--markdown")[1]


@pytest.mark.slow
def test_commands_execute_what_training_named(call, place, write_images):
    write_images(place / "photos" / "a")
    assert call(*TRAIN, "--model=others.py:Net", "--strategy=mas")[0] == 0
    for line in (
        "evaluate run",
        "evaluate run --data others.py:squares --data.tasks=2 --data.seed=1",
        "export run --embeddings vectors.npz",
        "importance run --images photos",
        "index build run --images photos --out indexes/shop.index",
        "query indexes/shop.index photos/a/0.png -k 1",
        "index add indexes/shop.index --images photos",
        "index refresh indexes/shop.index --reembed",
        "report run",
    ):
        status, _, complaint = call(*line.split())
        assert status == 0, complaint


@pytest.mark.slow
@pytest.mark.usefixtures("by_somebody_else")
@pytest.mark.parametrize(
    "line",
    [
        "evaluate run",
        "resume run",
        "export run --embeddings vectors.npz",
        "importance run --images photos",
        "index build run --images photos --out indexes/new.index",
        "index add indexes/shop.index --images more",
        "query indexes/shop.index photos/a/0.png -k 1",
    ],
)
def test_commands_execute_nothing_of_others(line, call, monkeypatch):
    """One sentence says what would be executed; with --trust-code it is."""
    failed(call(*line.split()), r"is code: .*/others\.py .* would be executed, .* add --trust-code to execute it")
    assert not executed()
    monkeypatch.setattr("tripletmas.report.page.write_report", lambda path: path)
    result = call(*line.split(), "--trust-code")
    assert result[0] == 0 or "protects no weights" in result[2]
    assert call("evaluate", "run")[0] == 0  # from now on


@pytest.mark.usefixtures("by_somebody_else")
@pytest.mark.slow
def test_what_needs_no_code_asks_for_none(call):
    for line in ("report run", "compare run --markdown", "index info indexes/shop.index"):
        assert call(*line.split())[0] == 0


@pytest.mark.slow
def test_a_report_needs_the_kind_of_task(call, tmp_path, monkeypatch):
    shutil.copy(Path(__file__).parents[1] / "binary_codes.py", "codes.py")
    assert call(*TRAIN, "--objective=codes.py:CodesKind")[0] == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    for command in ("report", "compare"):
        failed(call(command, "run"), r"objective '.*/codes.py:CodesKind' is code: .* would be executed")
    assert call("compare", "run", "--markdown", "--trust-code")[0] == 0


@pytest.mark.slow
def test_a_configuration_of_somebody_else(call, monkeypatch, tmp_path):
    """A file names code: only if training has named it before, or the command line does."""
    Path("config.yaml").write_text(yaml.safe_dump({"strategy": {"name": "mine.py:Anchored", "strength": 0.5}}))
    line = ("train", "--config=config.yaml", "--out=run", *SMALL)
    message = (
        "would be executed, and no training by this account has named it; read it, and name it on the command line"
    )
    failed(call(*line), message)
    assert call(*line, "--strategy=./mine.py:Anchored")[0] == 0
    assert RunDirectory("run").config()["strategy"]["strength"] == 0.5
    assert call(*line)[0] == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    failed(call(*line), message)


@pytest.mark.slow
def test_an_edited_run_executes_nothing_new(call):
    """Whoever can write config.yaml can name other code, and even record it."""
    assert call(*TRAIN)[0] == 0
    Path("evil.py").write_text("1 / 0")
    path = Path("run/config.yaml")
    text = path.read_text()
    write_config(Path("run"), text.replace("mine.py:Anchored", "evil.py:Evil").replace("/mine.py", "/evil.py"))
    failed(call("evaluate", "run"), r"evil\.py has changed since the run was trained")
    write_config(Path("run"), text.replace("name: ", "name: evil.py:Evil #"))
    failed(call("evaluate", "run"), "data 'evil.py:Evil' is code without a recorded checksum, so it is not executed")
    for code in ("code: 5", "code: {strategy: [evil.py]}"):
        write_config(Path("run"), text.partition("code:")[0] + code)
        failed(call("evaluate", "run", "--trust-code"), "is code without a recorded checksum")


@pytest.mark.slow
def test_changed_code(call):
    """Neither read later nor trained on with."""
    assert call(*TRAIN)[0] == 0
    Path("mine.py").write_text(STRATEGY.replace("0.01", "0.02"))
    for line in ("evaluate run", "resume run", "evaluate run --trust-code"):
        failed(call(*line.split()), r"mine\.py has changed since the run was trained")
    result = call(*TRAIN, "--strategy.strength=0.01")
    failed(
        result,
        r"holds a run with another configuration \(code\.strategy\..*mine\.py:Anchored\.sha256: '\w+' -> '\w+'\)",
    )
    Path("mine.py").write_text(STRATEGY)
    assert call("evaluate", "run")[0] == 0


@pytest.mark.slow
def test_code_inside_a_run_directory(call):
    assert call(*TRAIN)[0] == 0
    shutil.copy("mine.py", "run/mine.py")
    failed(call("train", "--strategy=run/mine.py:Anchored", "--out=new"), "lies inside the run directory")


def test_memory_that_cannot_be_written(call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    failed(call(*TRAIN), "Not a directory: .*/file")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ("--strategy=x.py:X", None, r"strategy 'x\.py:X': no such file: .*/here/x\.py"),
        ("--strategy=x.py:X", "Y = 1", r"x\.py has no 'X' \(known: Y\)"),
        ("--strategy=x.py:X", "1 / 0", r"x\.py cannot be imported, line 1 \(ZeroDivisionError: division by zero\)"),
        ("--strategy=x.py:X", "X = 1", r"strategy '.*x\.py:X' is of type int, nothing that can be called"),
        ("--strategy=x.py:X", "class X: ...", r"strategy '.*x\.py:X' gave X, not a tripletmas Strategy"),
        (
            "--strategy=x.py:X",
            "def X(strength): ...",
            r"takes strength by position, and is given 0: options are keyword-",
        ),
        (
            "--strategy=x.py:X",
            "def X(*, name='a'): ...",
            "has an option `name`, which is what the part itself is called",
        ),
        ("--strategy=x.py:X", "def X(*, a: 'nothing'): ...", r"its options cannot be read \(NameError: "),
        ("--strategy=mas+x.py:X", "", r"no such file: .*/mas\+x\.py"),
        ("--model=x.py:X", "def X(sample_shape, *, dim=4): ...", "model '.*' gave NoneType, not a torch.nn.Module"),
        ("--model=x.py:X", "def X(*, dim=4): ...", "takes nothing by position, and is given 1"),
        ("--loss=x.py:X", "def X(*, margin=1.0): ...", r"gave NoneType, not a function of \(embeddings, labels\)"),
        ("--objective=recognition --loss=x.py:X", "def X(): ...", "it fits objective 'metric' only"),
        ("--data=x.py:X", "def X(*, size=3): ...", "data '.*' gave NoneType, not a Source"),
        ("--objective=x.py:X", "class X: ...", "objective '.*' is of type type, not a tripletmas Kind"),
        (
            "--objective=x.py:X",
            "from tripletmas.objectives.retrieval.kind import RetrievalKind as X",
            "calls itself 'metric', which is built in",
        ),
        ("--strategy=theirs", None, r"unknown strategy 'theirs' \(known: finetune, "),
    ],
)
def test_parts_that_are_refused(options, content, message, call):
    if content is not None:
        Path("x.py").write_text(content)
    failed(call("train", *SMALL[-2:], *options.split(), "--out=run"), message)
    assert not Path("run").exists()


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Iterator[Path]:
    """A distribution `theirs 1.2` that registers a strategy, and one under the name of a built-in one."""
    site = tmp_path / "site"
    (site / "theirs-1.2.dist-info").mkdir(parents=True)
    (site / "theirs-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
    entry_points = "[tripletmas.strategies]\nanchored = theirs:Anchored\nl2 = theirs:Anchored\n"
    (site / "theirs-1.2.dist-info" / "entry_points.txt").write_text(entry_points)
    (site / "theirs.py").write_text(STRATEGY)
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("theirs", None)


@pytest.mark.slow
def test_installed_parts_have_plain_names(call, installed):
    """And go together with others."""
    assert call("train", *SMALL, "--strategy=mas+anchored", "--strategy.anchored.strength=0.1", "--out=run")[0] == 0
    config = RunDirectory("run").config()
    assert config["strategy"]["anchored"] == {"strength": 0.1}
    assert config["code"]["strategy"]["anchored"]["file"] == str(installed / "theirs.py")
    assert call("evaluate", "run")[0] == 0
    (installed / "theirs.py").write_text(STRATEGY + "\n")  # another version
    failed(call("evaluate", "run"), r"theirs\.py has changed since the run was trained")
    assert re.search(r"\nanchored +theirs 1\.2: theirs:Anchored\n", call("list", "strategies")[1])
    failed(call("train", "--strategy=anchord"), r"unknown strategy 'anchord' \(did you mean 'anchored'\?\)")
    failed(
        call("train", "--strategy=l2"), "strategy 'l2' is built in, and theirs 1.2 registers another: uninstall that"
    )
