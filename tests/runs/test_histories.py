"""A run after any history of crashes, damage and new tasks, against one that was never disturbed.

A failure prints the shortest history that leads to it. `TRIPLETMAS_STEPS` says how many operations are tried, about
(default 60; under `long` 2,000).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from histories import try_histories
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from killed_runs import Killed, Points, assert_same_run, train

from tripletmas.data.tasks import Stream
from tripletmas.runs.directory import RunDirectory

STEPS = 12  # operations of one history
FAST = {"model": "mlp", "loss": "triplet", "epochs": 2}


class History(RuleBasedStateMachine):
    """What is told of a run at any time is what the undisturbed one of as many tasks says."""

    stream: Stream
    undisturbed: dict[tuple[str, int], Path]

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=memory()))
        self.path = self.folder / "run"
        self.tasks, self.is_whole = 1, False

    def teardown(self):
        shutil.rmtree(self.folder)

    @initialize(strategy=st.sampled_from(["finetune", "mas", "joint"]))
    def begin(self, strategy: str):
        self.strategy = strategy

    # --- what happens to it

    @rule(at=st.integers(0, 60))
    def die(self, at: int):
        """Go on, and be killed somewhere; a run that is done is left as it is."""
        with suppress(Killed):
            self.go_on(Points(at))

    @rule()
    def end(self):
        self.go_on(Points())
        self.is_whole = True
        assert_same_run(self.reference(), self.path)

    @precondition(lambda self: self.tasks < len(self.stream))
    @rule()
    def a_task_is_added(self):
        self.tasks, self.is_whole = self.tasks + 1, False

    @precondition(lambda self: self.there())
    @rule()
    def other_options(self):
        with pytest.raises(ValueError, match="another configuration"):
            RunDirectory.create(self.path, {"seed": 4})

    @precondition(lambda self: self.there())
    @rule(data=st.data())
    def one_bit_flips(self, data: st.DataObject):
        """It is refused, or makes no difference; with the file as it was, all is well again."""
        files = sorted(each for each in self.path.rglob("*") if each.is_file() and each.stat().st_size)
        file = data.draw(st.sampled_from(files))
        content, copy = file.read_bytes(), self.folder / "copy"
        place = data.draw(st.integers(0, 8 * len(content) - 1))
        shutil.copytree(self.path, copy)
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        (copy / file.relative_to(self.path)).write_bytes(damaged)
        with suppress(ValueError):
            self.go_on(Points(), copy)
            assert_same_weights(self.reference(), copy)
        shutil.rmtree(copy)

    # --- what is asked of it

    @precondition(lambda self: self.is_whole)
    @rule()
    def it_is_read(self):
        run, reference = RunDirectory(self.path), RunDirectory(self.reference())
        assert run.scores() == reference.scores()
        assert run.records() == reference.records()
        for number in range(self.tasks):
            for kept in ("weights", "galleries"):
                one, other = getattr(run, kept).read(number), getattr(reference, kept).read(number)
                assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())

    # --- the test's own

    def go_on(self, points: Points, path: Path | None = None) -> None:
        train(self.stream[: self.tasks], path or self.path, points, strategy=self.strategy, **FAST)

    def there(self) -> bool:
        return (self.path / "config.yaml").exists()

    def reference(self) -> Path:
        """The undisturbed run of this strategy, which learned one task after the other as they were added."""
        key = (self.strategy, self.tasks)
        if key not in self.undisturbed:
            self.undisturbed[key] = self.undisturbed["", 0] / f"{self.strategy}{self.tasks}"
            for tasks in range(1, self.tasks + 1):
                train(self.stream[:tasks], self.undisturbed[key], Points(), strategy=self.strategy, **FAST)
        return self.undisturbed[key]


def assert_same_weights(one: Path, other: Path) -> None:
    """What a damaged file may not change."""
    first, second = (RunDirectory(each).load_checkpoint() for each in (one, other))
    assert first is not None
    assert second is not None
    assert all(torch.equal(first.model[name], second.model[name]) for name in first.model)
    assert RunDirectory(one).scores() == RunDirectory(other).scores()


def memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def machine(stream: Stream, folder: Path) -> type[History]:
    """One whose runs learn these tasks, and whose references lie there."""
    return type("History", (History,), {"stream": stream, "undisturbed": {("", 0): folder}})


@pytest.mark.slow
def test_some_histories(tiny_stream, tmp_path):
    try_histories(machine(tiny_stream, tmp_path), 60, length=STEPS)


@pytest.mark.long
def test_many_histories(tiny_stream, tmp_path):
    try_histories(machine(tiny_stream, tmp_path), 2000, length=STEPS)
