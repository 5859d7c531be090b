"""A protection in pytorch-metric-learning's trainers, on two tasks of dict batches."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from metric_learning_tasks import Images, Task
from pytorch_metric_learning.utils.logging_presets import HookContainer
from torch import nn

import tripletmas as tm
from tripletmas.integrations.metric_learning import ProtectionHooks
from tripletmas.protection.importance.mas import mas_importance

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")  # PML's own progress bar
TESTS = Path(__file__).resolve().parents[1]


class InLoss:
    """A metric loss with the penalty written into it by hand."""

    def __init__(self, loss: nn.Module, model: nn.Module, importance: dict, reference: dict):
        self.loss, self.model, self.importance, self.reference = loss, model, importance, reference

    def __call__(self, embeddings, labels, indices_tuple):
        value = self.loss(embeddings, labels, indices_tuple)
        for name, parameter in self.model.named_parameters():
            if name in self.importance:
                moved = parameter - self.reference[name]
                value = value + 0.3 * (self.importance[name] * moved * moved).sum()
        return value

    def train(self):
        pass

    def eval(self):
        pass


@pytest.mark.parametrize(("clip", "norm"), [("before", 0.1), ("after", None)])
def test_equal_to_the_penalty_in_the_loss(clip, norm):
    """Also where the trainer clips the norm of the trunk's gradients to 0.1, or the loss has it."""
    models = []
    for how in ("hooks", "loss"):
        tasks = Task()
        hooks = ProtectionHooks(tm.MAS(tasks.both), clip=clip) if how == "hooks" else None
        importance, reference = {}, {}
        for number in range(2):
            clippers = {"trunk_grad_clipper": lambda: nn.utils.clip_grad_norm_(tasks.trunk.parameters(), norm)}  # noqa: B023
            trainer = tasks.trainer(number, gradient_clippers=clippers if norm else None)
            if hooks:
                hooks.train(trainer, num_epochs=2)
                continue
            own = trainer.loss_funcs["metric_loss"]
            trainer.loss_funcs["metric_loss"] = InLoss(own, tasks.both, importance, reference)
            trainer.train(num_epochs=2)
            importance = mas_importance(tasks.both, [Images(number).images], relative=True)
            reference = {name: value.detach().clone() for name, value in tasks.both.named_parameters()}
        models.append(tasks.both)
    pairs = zip(*(each.parameters() for each in models), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-6


def test_importance_is_that_of_all_samples():
    tasks = Task()
    hooks = ProtectionHooks(tm.MAS(tasks.both))
    hooks.train(tasks.trainer(0))
    expected = mas_importance(tasks.both, [Images(0).images], relative=True)
    for name, importance in hooks.protection.importance.items():
        torch.testing.assert_close(importance, expected[name])


def test_frozen_parts_are_left_alone():
    """`freeze_these` steps no optimizer of theirs."""
    tasks = Task()
    hooks = ProtectionHooks(tm.MAS(tasks.both))
    hooks.train(tasks.trainer(0))
    before = copy.deepcopy(tasks.trunk.state_dict())
    hooks.train(tasks.trainer(1, freeze_these=("trunk",)))
    assert all(torch.equal(value, before[name]) for name, value in tasks.trunk.state_dict().items())


def test_in_pmls_own_container(tmp_path):
    """Which records penalty and share with the losses, and saves and loads the protection with the models."""
    told = []

    class Keeper:
        """What PML hands its record keeper, which is a package of its own."""

        def update_records(self, record, iteration, *, parent_name="", **options):
            if parent_name == "loss_histories":
                told.append((iteration, dict(record)))

    tasks = Task()
    hooks = ProtectionHooks(tm.MAS(tasks.both))
    hooks.train(tasks.trainer(0))
    container = HookContainer(Keeper(), log_freq=2)
    trainer = tasks.trainer(1, end_of_iteration_hook=container.end_of_iteration_hook)
    hooks.train(trainer, num_epochs=2, container=container)
    assert [iteration for iteration, _ in told] == [0, 2, 4, 6]
    assert [record["protection_penalty"] > 0 for _, record in told] == [False, True, True, True]
    share = hooks.protection.coverage().share_held
    assert 0.5 < told[-1][1]["protection_share_held"] <= 1
    losses = [float(record["total_loss"]) for _, record in told]
    assert losses == pytest.approx([float(record["metric_loss"]) for _, record in told])  # the penalty is in none
    container.save_models(trainer, tmp_path, 2)
    fresh = Task()
    other = ProtectionHooks(tm.MAS(fresh.both))
    again = fresh.trainer(1)
    other.attach(again, container)
    assert container.load_latest_saved_models(again, tmp_path, device="cpu") == 3
    assert other.protection.coverage().share_held == share
    for name, value in hooks.protection.state_dict().items():
        assert torch.equal(value, other.protection.state_dict()[name])


def test_more_epochs_of_a_task_that_is_done_are_told(tmp_path, caplog):
    """A trainer whose own hook stops early is done early, too: run again, it has its end, which is no error."""
    tasks = Task()
    hooks = ProtectionHooks(tm.MAS(tasks.both))
    hooks.train(tasks.trainer(0), tmp_path, num_epochs=1)
    hooks.train(tasks.trainer(0), tmp_path, num_epochs=1)
    assert "nothing is trained" not in caplog.text
    hooks.train(tasks.trainer(0), tmp_path, num_epochs=2)
    told = f"{tmp_path} has a task that was done after epoch 1, so that nothing is trained for num_epochs=2"
    assert told in caplog.text
    assert not (tmp_path / "trunk_2.pth").exists()


def test_what_does_not_fit_is_a_sentence(tmp_path):
    tasks = Task()
    with pytest.raises(ValueError, match=r"takes a protection.*got a NoneType"):
        ProtectionHooks(None)
    with pytest.raises(ValueError, match="another model than the trainer trains"):
        ProtectionHooks(tm.MAS(tasks.embedder)).attach(tasks.trainer(0))
    trainer = tasks.trainer(0)
    trainer.optimizers.pop("trunk_optimizer")
    with pytest.raises(ValueError, match=r"none of the trainer's optimizers \(embedder_optimizer\) steps"):
        ProtectionHooks(tm.MAS(tasks.trunk)).attach(trainer)
    hooks = ProtectionHooks(tm.MAS(tasks.both))
    hooks.train(tasks.trainer(0), tmp_path, num_epochs=2)
    with pytest.raises(ValueError, match="has epoch 2 of a task, and num_epochs is 1"):
        hooks.train(tasks.trainer(0), tmp_path, num_epochs=1)
    with pytest.raises(ValueError, match=r"a protection that measured with .*'relative': True"):
        ProtectionHooks(tm.MAS(tasks.both, relative=False)).train(tasks.trainer(0), tmp_path, num_epochs=2)
    (tmp_path / "protection_2.pth").unlink()
    with pytest.raises(ValueError, match=r"protection_2.pth is missing beside trunk_2.pth.*it was saved without one"):
        hooks.train(tasks.trainer(0), tmp_path, num_epochs=2)
    (tmp_path / "protection_2.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"protection_2.pth cannot be read"):
        hooks.train(tasks.trainer(0), tmp_path, num_epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mas", pytest.param("gram", marks=pytest.mark.long)])
def test_killed_in_the_middle_of_a_task_and_resumed_in_another_process(kind, tmp_path):
    for how, status in (("whole", 0), ("killed", -signal.SIGKILL), ("resumed", 0)):
        program = [sys.executable, str(TESTS / "metric_learning_tasks.py"), how, str(tmp_path), kind]
        environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
        result = subprocess.run(program, capture_output=True, text=True, env=environment)
        assert result.returncode == status, result.stderr
        assert how != "killed" or (tmp_path / "broken" / "task1" / "trunk_1.pth").exists()
    whole, resumed = (torch.load(tmp_path / f"{how}.pt") for how in ("whole", "resumed"))
    for part in ("model", "protection"):
        assert whole[part].keys() == resumed[part].keys()
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (TESTS.parent / "docs" / "metric_learning.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    space: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "metric_learning.md", "exec"), space)
    assert len(blocks) == 2
    assert space["mas"].coverage().share_held > 0.5
