"""Protection in Lightning: equal to the penalty in the loss, resumed, over processes, and never silently absent."""

from __future__ import annotations

import copy
import csv
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import schedulefree
import torch
from guest_lightning import loader, make_module, package_of, quiet, run, trainer_of
from guest_tasks import (
    add_by_hand,
    largest_difference,
    make_net,
    make_protection,
    make_task,
    metric_loss,
    recall_at_1,
    weights,
)
from processes import run_in_processes, run_python
from torch.utils.data import DataLoader

from tripletmas.integrations.lightning import ProtectionCallback
from tripletmas.protection.protection import MAS

PACKAGES = {"lightning": lightning.pytorch, "pytorch_lightning": pytorch_lightning}
TESTS = Path(__file__).resolve().parents[1]
Params = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        quiet()
        yield


@pytest.fixture(scope="module")
def first_task() -> dict[str, torch.Tensor]:
    """Weights after the first task."""
    net = make_net()
    trainer_of(lightning.pytorch, max_epochs=20).fit(make_module(lightning.pytorch, net), loader(0))
    return weights(net)


def learned(first_task: dict[str, torch.Tensor]) -> tuple[torch.nn.Module, MAS]:
    """A net that has learned the first task, and what holds it."""
    net = make_net()
    net.load_state_dict(first_task)
    protection = make_protection(net)
    protection.consolidate(loader(0))
    return net, protection


# --- equal to the penalty in the loss

OPTIMIZERS = {
    "sgd": None,
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, max_iter=3, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("sgd", {}),
        ("adamw", {"gradient_clip_val": 0.1}),
        ("sgd", {"gradient_clip_val": 0.1, "accumulate_grad_batches": 3}),
        ("sgd", {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}),
        ("sgd", {"precision": "bf16-mixed", "gradient_clip_val": 0.1}),
        ("sgd", {"precision": "16-mixed", "gradient_clip_val": 0.1}),
        ("fused", {"precision": "16-mixed"}),
        ("lbfgs", {"max_epochs": 1}),
    ],
    ids=str,
)
def test_equals_the_penalty_in_the_loss(first_task, optimizer, options):
    options = dict(options)
    half = options.pop("precision", None)

    def trained(*callbacks: Any, **penalty: Any) -> dict[str, torch.Tensor]:
        if half:  # for a CPU, Lightning itself takes bfloat16 alone
            scaler = torch.amp.GradScaler("cpu") if half == "16-mixed" else None
            options["plugins"] = lightning.pytorch.plugins.MixedPrecision(half, "cpu", scaler)
        module = make_module(lightning.pytorch, net, make_optimizer=OPTIMIZERS[optimizer], **penalty)
        trainer_of(lightning.pytorch, callbacks=list(callbacks), **options).fit(module, loader(1))
        return weights(net)

    net, protection = learned(first_task)
    found = trained(ProtectionCallback(protection, consolidate=False))
    net, protection = learned(first_task)
    by_hand = trained(penalty=protection.value)
    net, _ = learned(first_task)
    unprotected = trained()
    # half precision rounds the scaled gradients of the one before, of the other after they are added
    most = 1e-5 if half == "16-mixed" or optimizer == "lbfgs" else 1e-6
    assert largest_difference(found, by_hand) < most
    assert largest_difference(unprotected, by_hand) > 20 * most


@pytest.mark.parametrize("accumulated", [1, 2])
def test_after_clipping(first_task, accumulated):
    """By hand: gradients are clipped, then the penalty's is added."""
    options = {"gradient_clip_val": 0.05, "accumulate_grad_batches": accumulated}
    net, protection = learned(first_task)
    callback = ProtectionCallback(protection, consolidate=False, clip="after")
    module = make_module(lightning.pytorch, net)
    trainer_of(lightning.pytorch, callbacks=[callback], **options).fit(module, loader(1))
    by_hand, held = learned(first_task)
    module = make_module(lightning.pytorch, by_hand)

    def clip_and_add(optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
        add_by_hand(held)

    module.configure_gradient_clipping = clip_and_add
    trainer_of(lightning.pytorch, **options).fit(module, loader(1))
    assert largest_difference(weights(net), weights(by_hand)) < 1e-6


class Manual(lightning.pytorch.LightningModule):
    """Manual optimization: first layer and last have an optimizer each, and a third steps what is not protected."""

    def __init__(self, net: torch.nn.Sequential, penalty: Any = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.other, self.penalty = net, torch.nn.Linear(2, 2), penalty

    def training_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        loss = metric_loss(self.net(inputs), labels)
        loss = loss if self.penalty is None else loss + self.penalty()
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss + self.other.weight.square().sum())
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        groups = self.net[0].parameters(), self.net[2].parameters(), self.other.parameters()
        return [torch.optim.SGD(group, lr=0.05) for group in groups]


def test_several_optimizers_stepped_by_hand(first_task):
    net, protection = learned(first_task)
    callback = ProtectionCallback(protection, consolidate=False)
    trainer_of(lightning.pytorch, callbacks=[callback]).fit(Manual(net), loader(1))
    by_hand, held = learned(first_task)
    trainer_of(lightning.pytorch).fit(Manual(by_hand, held.value), loader(1))
    assert largest_difference(weights(net), weights(by_hand)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_two_tasks_in_both_packages(name):
    """Two lines: as much of the first task is known as with the penalty in the loss, and more than without."""
    package = PACKAGES[name]
    recalls = {}
    for kind in ("callback", "by hand", "none"):
        net = make_net()
        module = make_module(package, net)
        protection = make_protection(net)
        callbacks = [ProtectionCallback(protection)] if kind == "callback" else []
        trainer_of(package, callbacks=callbacks, max_epochs=40).fit(module, loader(0))
        if kind == "by hand":
            protection.consolidate(loader(0))
            module = make_module(package, net, penalty=protection.value)
        trainer_of(package, callbacks=callbacks, max_epochs=60).fit(module, loader(1))
        recalls[kind] = recall_at_1(net, make_task(0)), recall_at_1(net, make_task(1))
    assert recalls["callback"] == recalls["by hand"]
    assert recalls["callback"][0] > recalls["none"][0] + 0.05
    assert recalls["callback"][1] > 0.85


def test_consolidates_each_sample_once(first_task):
    """A loader that shuffles and drops what is short: the importance is that of the samples that it draws."""
    net, _ = learned(first_task)
    task = make_task(0)
    shuffled = DataLoader(task, batch_size=16, shuffle=True)
    callback = ProtectionCallback(make_protection(net))
    trainer_of(lightning.pytorch, callbacks=[callback], max_epochs=1).fit(make_module(lightning.pytorch, net), shuffled)
    expected = make_protection(net)
    expected.consolidate(DataLoader(task, batch_size=48))
    assert largest_difference(callback.protection.importance, expected.importance) < 1e-6


def test_consolidates_what_a_function_gives(first_task):
    net, _ = learned(first_task)
    asked = []

    def batches(trainer: Any, module: Any) -> Any:
        asked.append((trainer, module))
        return loader(2)

    callback = ProtectionCallback(make_protection(net), consolidate=batches)
    module = make_module(lightning.pytorch, net)
    trainer = trainer_of(lightning.pytorch, callbacks=[callback], max_epochs=1)
    trainer.fit(module, loader(1))
    assert asked == [(trainer, module)]
    expected = make_protection(net)
    expected.consolidate(loader(2))
    assert largest_difference(callback.protection.importance, expected.importance) == 0


def test_streams_without_an_end_are_measured_as_far_as_trained(first_task):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            inputs, labels = make_task(0).tensors
            while True:
                yield from zip(inputs, labels, strict=True)

    net, _ = learned(first_task)
    callback = ProtectionCallback(make_protection(net))
    trainer = trainer_of(lightning.pytorch, callbacks=[callback], max_steps=3, max_epochs=-1)
    trainer.fit(make_module(lightning.pytorch, net), DataLoader(Stream(), batch_size=16))
    expected = make_protection(net)
    expected.consolidate(loader(0))  # 3 batches of 16
    assert largest_difference(callback.protection.importance, expected.importance) < 1e-6


def test_logs_the_penalty_and_the_share_held(first_task, tmp_path):
    net, protection = learned(first_task)
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
    callback = ProtectionCallback(protection, consolidate=False)
    trainer = trainer_of(lightning.pytorch, tmp_path, callbacks=[callback], logger=logger, log_every_n_steps=4)
    trainer.fit(make_module(lightning.pytorch, net), loader(1))
    with open(Path(logger.log_dir, "metrics.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 7, 11]
    assert float(rows[-1]["protection/penalty"]) == pytest.approx(float(protection.value().detach()))
    assert float(rows[-1]["protection/share_held"]) == protection.coverage().share_held == 1


# --- checkpoints


def test_is_in_checkpoints_and_restored(first_task, tmp_path):
    net, protection = learned(first_task)
    module = make_module(lightning.pytorch, net)
    trainer = trainer_of(lightning.pytorch, tmp_path, callbacks=[ProtectionCallback(protection)], max_epochs=1)
    trainer.fit(module, loader(1))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    other = make_net(seed=5)
    callback = ProtectionCallback(make_protection(other))
    trainer = trainer_of(lightning.pytorch, tmp_path, callbacks=[callback], max_epochs=1)
    trainer.fit(make_module(lightning.pytorch, other), loader(1), ckpt_path=tmp_path / "after.ckpt")
    # that task was done, and consolidated: nothing was added a second time
    assert largest_difference(callback.protection.state_dict(), protection.state_dict()) == 0


def test_a_task_that_ended_unconsolidated_is_consolidated_when_resumed(first_task, tmp_path):
    """Killed between the last checkpoint and the end of the fit."""
    net, protection = learned(first_task)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    trainer_of(lightning.pytorch, tmp_path, callbacks=[ProtectionCallback(protection), keep]).fit(
        make_module(lightning.pytorch, net), loader(1)
    )
    other = make_net(seed=5)
    callback = ProtectionCallback(make_protection(other))
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    trainer_of(lightning.pytorch, tmp_path, callbacks=[callback, keep]).fit(
        make_module(lightning.pytorch, other), loader(1), ckpt_path=tmp_path / "last.ckpt"
    )
    assert largest_difference(callback.protection.state_dict(), protection.state_dict()) == 0


def checkpoint(folder: Path, callbacks: list[Any], net: torch.nn.Module) -> Path:
    trainer = trainer_of(lightning.pytorch, folder, callbacks=callbacks, max_epochs=1)
    trainer.fit(make_module(lightning.pytorch, net), loader(0))
    trainer.save_checkpoint(folder / "one.ckpt")
    return folder / "one.ckpt"


def test_a_checkpoint_without_its_part_is_an_error(tmp_path):
    path = checkpoint(tmp_path, [], make_net())
    net = make_net()
    callback = ProtectionCallback(make_protection(net))
    trainer = trainer_of(lightning.pytorch, tmp_path, callbacks=[callback], max_epochs=2)
    with pytest.raises(ValueError, match=r"no part 'tripletmas\.protection', so that training would go on unprotected"):
        trainer.fit(make_module(lightning.pytorch, net), loader(1), ckpt_path=path)
    callback.protection.consolidate(loader(0))  # as if it had been loaded from a file of its own
    trainer = trainer_of(lightning.pytorch, tmp_path, callbacks=[callback], max_epochs=2)
    trainer.fit(make_module(lightning.pytorch, net), loader(1), ckpt_path=path)


def test_a_checkpoint_resumed_without_the_callback_is_told(tmp_path):
    net = make_net()
    path = checkpoint(tmp_path, [ProtectionCallback(make_protection(net))], net)
    trainer = trainer_of(lightning.pytorch, tmp_path, max_epochs=2)
    with pytest.warns(UserWarning, match=r"Please add the following callbacks: \['tripletmas.protection'\]"):
        trainer.fit(make_module(lightning.pytorch, make_net()), loader(1), ckpt_path=path)


def test_a_checkpoint_with_another_measure_is_an_error(tmp_path):
    net = make_net()
    path = checkpoint(tmp_path, [ProtectionCallback(make_protection(net))], net)
    callback = ProtectionCallback(MAS(net, relative=False))
    trainer = trainer_of(lightning.pytorch, tmp_path, callbacks=[callback], max_epochs=2)
    with pytest.raises(ValueError, match="the checkpoint holds a protection that measured with"):
        trainer.fit(make_module(lightning.pytorch, net), loader(1), ckpt_path=path)


# --- bad input, and other callbacks


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "got a NoneType"), (torch.nn.Linear(2, 2), "got a Linear"), (MAS, "got MAS")],
)
def test_what_is_no_protection_is_an_error(given, said):
    with pytest.raises(ValueError, match=f"takes a protection of the model, such as tm.MAS.model., {said}"):
        ProtectionCallback(given)


def test_what_is_no_function_of_batches_is_an_error_before_training():
    with pytest.raises(ValueError, match="consolidate must be True, False or a function that gives batches, got a"):
        ProtectionCallback(make_protection(make_net()), consolidate=loader(0))  # pyright: ignore[reportArgumentType]


def test_two_callbacks_of_one_protection_are_an_error():
    net = make_net()
    protection = make_protection(net)
    callbacks = [ProtectionCallback(protection, clip="after", name=name) for name in ("one", "other")]
    with pytest.raises(ValueError, match="two ProtectionCallbacks have one protection"):
        trainer_of(lightning.pytorch, callbacks=callbacks).fit(make_module(lightning.pytorch, net), loader(0))


def test_in_double_precision():
    net = make_net()
    protection = make_protection(net)
    options = {"precision": "64-true", "max_epochs": 1, "callbacks": [ProtectionCallback(protection)]}
    for number in range(2):
        trainer_of(lightning.pytorch, **options).fit(make_module(lightning.pytorch, net), loader(number))
    assert protection.num_protected_steps > 0
    assert {each.dtype for each in protection.reference.values()} == {torch.float64}


def test_a_schedule_free_optimizer_is_consolidated_with_the_weights_that_answer():
    net = make_net()
    protection = make_protection(net)
    module = make_module(lightning.pytorch, net, make_optimizer=lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01))
    module.on_train_start = lambda: module.optimizers().train()
    trainer = trainer_of(lightning.pytorch, max_epochs=2, callbacks=[ProtectionCallback(protection)])
    trainer.fit(module, loader(0))
    assert not trainer.optimizers[0].param_groups[0]["train_mode"]
    assert largest_difference(protection.reference, weights(net)) == 0


def test_an_unknown_place_to_clipping_is_an_error():
    with pytest.raises(ValueError, match="clip must be 'before' or 'after', got 'during'"):
        ProtectionCallback(make_protection(make_net()), clip="during")


def test_the_protection_of_another_model_is_an_error():
    callback = ProtectionCallback(make_protection(make_net()))
    with pytest.raises(ValueError, match="one of another model, a Sequential that is no part of the LightningModule"):
        trainer_of(lightning.pytorch, callbacks=[callback]).fit(make_module(lightning.pytorch, make_net()), loader(0))


def test_optimizers_without_a_protected_weight_are_an_error():
    net = make_net()
    module = Manual(net)
    module.configure_optimizers = lambda: torch.optim.SGD(module.other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no optimizer of the LightningModule steps a weight that is protected"):
        trainer_of(lightning.pytorch, callbacks=[ProtectionCallback(make_protection(net))]).fit(module, loader(0))


def test_several_loaders_want_a_function():
    net = make_net()
    trainer = trainer_of(lightning.pytorch, callbacks=[ProtectionCallback(make_protection(net))])
    with pytest.raises(ValueError, match="there are several training loaders"):
        trainer.fit(make_module(lightning.pytorch, net), [loader(0), loader(1)])


def test_processes_that_end_with_the_fit_are_an_error(monkeypatch):
    net = make_net()
    trainer = trainer_of(lightning.pytorch, strategy="ddp_spawn", devices=2)
    with pytest.raises(ValueError, match="is lost with them: use strategy='ddp', or consolidate=False"):
        ProtectionCallback(make_protection(net)).setup(trainer, make_module(lightning.pytorch, net), "fit")


def test_weights_that_change_after_it_are_told(first_task):
    class Average(lightning.pytorch.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            with torch.no_grad():
                pl_module.net[0].weight.mul_(0.9)

    net, protection = learned(first_task)
    module = make_module(lightning.pytorch, net)
    callback = ProtectionCallback(protection)
    with pytest.warns(UserWarning, match="by another callback, .*: list ProtectionCallback after it"):
        trainer_of(lightning.pytorch, callbacks=[callback, Average()]).fit(module, loader(1))
    with pytest.warns(UserWarning, match="since the last fit, .*: consolidate again"):
        trainer_of(lightning.pytorch, callbacks=[callback]).fit(module, loader(1))
    trainer_of(lightning.pytorch, callbacks=[Average(), ProtectionCallback(protection)]).fit(module, loader(1))


def test_other_weights_for_a_test_take_nothing_away(first_task, tmp_path):
    """`test(ckpt_path=...)` restores callbacks, too: what was consolidated after the checkpoint stays."""
    net, protection = learned(first_task)
    module = make_module(lightning.pytorch, net)
    module.test_step = lambda batch, batch_idx: None
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path)
    trainer = trainer_of(lightning.pytorch, tmp_path, callbacks=[ProtectionCallback(protection), keep])
    trainer.fit(module, loader(1))
    held = {name: value.clone() for name, value in protection.state_dict().items()}
    trainer.test(module, loader(1), ckpt_path="best", verbose=False)
    assert largest_difference(protection.state_dict(), held) == 0
    assert largest_difference(protection.importance, learned(first_task)[1].importance) > 0


def test_an_error_in_the_middle_leaves_nothing_attached(first_task):
    class Fail(lightning.pytorch.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("as it happens")

    net, protection = learned(first_task)
    callback = ProtectionCallback(protection)
    module = make_module(lightning.pytorch, net)
    trainer = trainer_of(lightning.pytorch, callbacks=[callback, Fail()])
    with pytest.raises(RuntimeError, match="as it happens"):
        trainer.fit(module, loader(1))
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in trainer.optimizers)
    trainer_of(lightning.pytorch, callbacks=[callback]).fit(module, loader(1))


@pytest.mark.slow
def test_learning_rates_are_looked_for_before_it(first_task, tmp_path):
    net, protection = learned(first_task)
    callback = ProtectionCallback(protection)
    module = make_module(lightning.pytorch, net)
    module.learning_rate = 0.05
    module.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=module.learning_rate)
    before = copy.deepcopy(protection.state_dict())
    trainer = trainer_of(lightning.pytorch, tmp_path, callbacks=[callback], max_epochs=2)
    trainer.tuner = None
    lightning.pytorch.tuner.Tuner(trainer).lr_find(module, loader(1), num_training=10)
    assert largest_difference(protection.state_dict(), before) == 0
    trainer.fit(module, loader(1))
    assert largest_difference(protection.state_dict(), before) > 0


# --- killed, and over processes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("lightning", "mas"), ("pytorch_lightning", "gram")])
def test_killed_and_resumed_in_a_new_process(name, kind, tmp_path):
    """Without a difference to what ran through; a SIGKILL is answered by nobody."""
    killed = run_python(str(TESTS / "guest_lightning.py"), name, str(tmp_path), kind, "killed")
    assert killed.returncode == -9, killed.stderr
    resumed = run_python(str(TESTS / "guest_lightning.py"), name, str(tmp_path), kind, "resumed")
    assert resumed.returncode == 0, resumed.stderr
    (tmp_path / "other").mkdir()
    whole = run(name, tmp_path / "other", kind, "whole")
    assert largest_difference(torch.load(tmp_path / "resumed"), whole) == 0


def in_each_process(count: int) -> tuple[Params, Params, Params]:
    """Weights after two tasks, and what is held after the first and after the second."""
    quiet()
    package = package_of("lightning")
    net = make_net()
    callback = ProtectionCallback(make_protection(net))
    module = make_module(package, net)
    held = []
    for number in range(2):
        trainer = trainer_of(package, callbacks=[callback], strategy="ddp", devices=2)
        trainer.fit(module, loader(number, count=count))
        held.append({name: value.clone() for name, value in callback.protection.state_dict().items()})
    return weights(net), held[0], held[1]


@pytest.mark.slow
def test_two_processes_stay_equal():
    """And hold what one would, of 47 samples: what samplers repeat to make shares equal is not counted twice."""
    first, second = run_in_processes(in_each_process, 2, 47)
    assert all(largest_difference(one, other) == 0 for one, other in zip(first, second, strict=True))
    after, held_before, held = first
    net = make_net()
    net.load_state_dict(after)
    expected = make_protection(net).consolidate(loader(1, count=47))
    for name, importance in expected.items():
        added = held[f"importance/{name}"] - held_before[f"importance/{name}"]
        torch.testing.assert_close(added, importance, rtol=1e-5, atol=1e-6)


def test_copies_go_into_other_processes():
    """As `ddp_spawn` does it: the callback, its protection and the model in one pickle."""
    net = make_net()
    protection = make_protection(net)
    protection.consolidate(loader(0))
    copied, held = pickle.loads(pickle.dumps((net, ProtectionCallback(protection))))
    assert held.protection.model is copied
