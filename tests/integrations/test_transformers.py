"""Protection in transformers.Trainer and its kin: equal to the penalty in the loss, resumed, over processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guest_tasks import add_by_hand, largest_difference, make_net, make_task, recall_at_1, weights
from guest_transformers import Model, batches, make_protection, rows, run, trainer_of
from processes import run_python
from torch import nn
from transformers import TrainerCallback

from tripletmas.integrations.transformers import ProtectionCallback
from tripletmas.protection.protection import MAS, Protection
from tripletmas.protection.structured.gram import Gram

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def first_task(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights after the first task."""
    net = make_net()
    trainer_of(Model(net), tmp_path_factory.mktemp("first"), rows(0), num_train_epochs=20).train()
    return weights(net)


def learned(first_task: dict[str, torch.Tensor]) -> tuple[nn.Module, MAS]:
    """A net that has learned the first task, and what holds it."""
    net = make_net()
    net.load_state_dict(first_task)
    protection = make_protection(net)
    protection.consolidate(batches(0))
    return net, protection


# --- equal to the penalty in the loss


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},  # clips at 1.0
        {"max_grad_norm": 0.1},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": 0.1, "gradient_accumulation_steps": 3},
        {"max_grad_norm": 0.1, "optim": "adamw_torch_fused", "learning_rate": 0.01},
        {"max_grad_norm": 0.1, "bf16": True},
        {"max_grad_norm": 0.1, "optim": "adamw_torch_fused", "learning_rate": 0.01, "fp16": True},
    ],
    ids=str,
)
def test_equals_the_penalty_in_the_loss(first_task, options, tmp_path):
    options = dict(options)
    is_half = options.pop("fp16", False)

    def trained(penalty: Any, *callbacks: Any) -> dict[str, torch.Tensor]:
        trainer = trainer_of(Model(net, penalty), tmp_path, rows(1), *callbacks, **options)
        if is_half:  # what accelerate does on a GPU alone; at first the scale is too large, and steps are left out
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
            trainer.accelerator.native_amp = True
            trainer.accelerator.state._mixed_precision = "fp16"
        trainer.train()
        return weights(net)

    net, protection = learned(first_task)
    found = trained(None, ProtectionCallback(protection, consolidate=False))
    net, protection = learned(first_task)
    by_hand = trained(protection.value)
    net, _ = learned(first_task)
    unprotected = trained(None)
    assert largest_difference(found, by_hand) < 1e-6
    assert largest_difference(unprotected, by_hand) > 1e-4


@pytest.mark.slow
def test_two_callbacks_each_hold_a_layer(first_task, tmp_path):
    """Both add their penalty before one clipping; each has a file of its own."""

    def layers(net: Any) -> list[MAS]:
        whole = make_protection(net)
        whole.consolidate(batches(0))
        parts = []
        for layer in "02":
            parts.append(MAS(net.get_submodule(layer), whole.strength))
            state = {name.replace(f"/{layer}.", "/"): value for name, value in whole.state_dict().items()}
            parts[-1].load_state_dict({name: value for name, value in state.items() if "." not in name})
        return parts

    options = {"max_grad_norm": 0.1, "num_train_epochs": 1, "save_strategy": "epoch"}
    net, _ = learned(first_task)
    callbacks = [ProtectionCallback(each, consolidate=False, name=f"layer{i}") for i, each in enumerate(layers(net))]
    trainer = trainer_of(Model(net), tmp_path, rows(1), *callbacks, **options)
    trainer.train()
    found = weights(net)
    assert {path.name for path in tmp_path.rglob("layer*")} == {"layer0.safetensors", "layer1.safetensors"}
    net, protection = learned(first_task)
    trainer_of(Model(net, protection.value), tmp_path, rows(1), **options).train()
    assert largest_difference(found, weights(net)) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_after_clipping(first_task, accumulated, tmp_path):
    """By hand: gradients are clipped, then the penalty's is added."""

    class AddByHand(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            add_by_hand(held)

    options = {"max_grad_norm": 0.05, "gradient_accumulation_steps": accumulated}
    net, protection = learned(first_task)
    callback = ProtectionCallback(protection, consolidate=False, clip="after")
    trainer_of(Model(net), tmp_path, rows(1), callback, **options).train()
    by_hand, held = learned(first_task)
    trainer_of(Model(by_hand), tmp_path, rows(1), AddByHand(), **options).train()
    assert largest_difference(weights(net), weights(by_hand)) < 1e-6


@pytest.mark.slow
def test_two_tasks(tmp_path):
    """Two lines: as much of the first task is known as with the penalty in the loss, and more than without."""
    recalls = {}
    for kind in ("callback", "by hand", "none"):
        net = make_net()
        protection = make_protection(net)
        callbacks = [ProtectionCallback(protection)] if kind == "callback" else []
        trainer_of(Model(net), tmp_path, rows(0), *callbacks, num_train_epochs=40).train()
        if kind == "by hand":
            protection.consolidate(batches(0))
        model = Model(net, protection.value if kind == "by hand" else None)
        trainer_of(model, tmp_path, rows(1), *callbacks, num_train_epochs=60).train()
        recalls[kind] = recall_at_1(net, make_task(0)), recall_at_1(net, make_task(1))
    assert recalls["callback"] == recalls["by hand"]
    assert recalls["callback"][0] > recalls["none"][0] + 0.05
    assert recalls["callback"][1] > 0.85


@pytest.mark.slow
def test_consolidates_each_sample_once(first_task, tmp_path):
    """The Trainer shuffles; the importance is that of the samples, after the last step."""
    net, _ = learned(first_task)
    callback = ProtectionCallback(make_protection(net))
    trainer_of(Model(net), tmp_path, rows(0, count=47), callback, num_train_epochs=1).train()
    expected = make_protection(net)
    expected.consolidate(batches(0, count=47))
    assert largest_difference(callback.protection.importance, expected.importance) < 1e-6


@pytest.mark.slow
def test_consolidates_what_a_function_gives(first_task, tmp_path):
    net, _ = learned(first_task)
    asked = []
    callback = ProtectionCallback(make_protection(net), consolidate=lambda trainer: asked.append(trainer) or batches(2))
    trainer = trainer_of(Model(net), tmp_path, rows(1), callback, num_train_epochs=1)
    trainer.train()
    assert asked == [trainer]
    expected = make_protection(net)
    expected.consolidate(batches(2))
    assert largest_difference(callback.protection.importance, expected.importance) == 0


@pytest.mark.slow
def test_streams_without_an_end_are_measured_as_far_as_trained(first_task, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            while True:
                yield from rows(0)

    net, _ = learned(first_task)
    callback = ProtectionCallback(make_protection(net))
    trainer_of(Model(net), tmp_path, Stream(), callback, max_steps=3).train()
    expected = make_protection(net)
    expected.consolidate(batches(0))  # 3 batches of 16
    assert largest_difference(callback.protection.importance, expected.importance) < 1e-6


@pytest.mark.slow
def test_logs_the_penalty_and_the_share_held(first_task, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    net, protection = learned(first_task)
    options = {"logging_strategy": "steps", "logging_steps": 4, "report_to": "tensorboard"}
    trainer = trainer_of(Model(net), tmp_path, rows(1), ProtectionCallback(protection, consolidate=False), **options)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "protection/penalty" in entry]
    assert [entry["step"] for entry in logged] == [4, 8, 12]
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [4, 8, 12]
    assert logged[-1]["protection/penalty"] == pytest.approx(float(protection.value().detach()))
    assert logged[-1]["protection/share_held"] == protection.coverage().share_held == 1
    (written,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(written.parent)).Reload().Scalars("train/protection/penalty")
    assert [event.step for event in events] == [4, 8, 12]


@pytest.mark.slow
def test_the_best_model_is_consolidated(first_task, tmp_path):
    """`load_best_model_at_end` brings back the weights of the second epoch, and these are the reference."""

    class Metric(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
            metrics["eval_loss"] = abs(state.epoch - 2)

    net, protection = learned(first_task)
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    data = {"train": rows(1), "eval": rows(1)}
    trainer = trainer_of(Model(net), tmp_path, data, Metric(), ProtectionCallback(protection), **options)
    trainer.train()
    assert trainer.state.best_global_step == 6
    assert largest_difference(protection.reference, dict(net.named_parameters())) == 0
    saved = Protection.load(tmp_path / "checkpoint-6" / "protection.safetensors", net, estimate=protection.estimate)
    assert saved.reference.keys() == protection.reference.keys()


# --- checkpoints


def checkpoint(folder: Path, *callbacks: Any, net: nn.Module | None = None) -> Path:
    trainer_of(Model(net or make_net()), folder, rows(0), *callbacks, save_strategy="epoch", num_train_epochs=1).train()
    return folder / "checkpoint-3"


def resume(net: nn.Module, folder: Path, protection: Any, path: Path) -> None:
    trainer = trainer_of(Model(net), folder, rows(0), ProtectionCallback(protection), num_train_epochs=2)
    trainer.train(resume_from_checkpoint=str(path))


@pytest.mark.slow
def test_a_checkpoint_without_its_file_is_an_error(tmp_path):
    path = checkpoint(tmp_path / "run")
    net = make_net()
    protection = make_protection(net)
    with pytest.raises(ValueError, match=r"has no protection\.safetensors, so that training would go on unprotected"):
        resume(net, tmp_path / "run", protection, path)
    protection.consolidate(batches(0))  # as if it had been loaded from a file of its own
    resume(net, tmp_path / "run", protection, path)


@pytest.mark.slow
def test_a_checkpoint_may_have_been_moved(first_task, tmp_path):
    net, protection = learned(first_task)
    held = {name: value.clone() for name, value in protection.state_dict().items()}
    path = checkpoint(tmp_path / "run", ProtectionCallback(protection, consolidate=False), net=net)
    moved = path.rename(tmp_path / "elsewhere")
    other = make_net(seed=3)
    protection = make_protection(other)
    callback = ProtectionCallback(protection, consolidate=False)
    trainer = trainer_of(Model(other), tmp_path / "run", rows(0), callback, num_train_epochs=2)
    trainer.train(resume_from_checkpoint=str(moved))
    assert largest_difference(protection.state_dict(), held) == 0


def by_gram(net: nn.Module) -> Gram:
    """One that has learned the first task."""
    gram = Gram(net, 0.02, forward=lambda net, batch: net(batch["x"]))
    gram.consolidate(batches(0))
    return gram


@pytest.mark.slow
def test_checkpoints_of_another_model_or_measure_are_errors(first_task, tmp_path):
    net, protection = learned(first_task)
    path = checkpoint(tmp_path / "run", ProtectionCallback(protection), net=net)
    with pytest.raises(ValueError, match=r"protection.safetensors: it holds a protection that measured with"):
        resume(net, tmp_path / "run", Gram(net), path)
    gram = checkpoint(tmp_path / "gram", ProtectionCallback(by_gram(net), consolidate=False), net=net)
    with pytest.raises(ValueError, match=r"measured with .*input_importance.*, and this one: .*mas_importance"):
        resume(net, tmp_path / "gram", make_protection(net), gram)
    resume(net, tmp_path / "gram", by_gram(net), gram)
    with pytest.raises(ValueError, match=r"protection.safetensors: saved for another model: .*2.bias"):
        resume(net, tmp_path / "run", MAS(net[0], forward=protection.estimate.keywords["forward"]), path)


def test_no_event_of_a_trainer_is_an_error(tmp_path):
    callback = ProtectionCallback(make_protection(make_net()))
    trainer = trainer_of(Model(make_net()), tmp_path, rows(0))
    with pytest.raises(ValueError, match=r"works in the train\(\) of a transformers.Trainer"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, optimizer=None)


# --- bad input


@pytest.mark.parametrize(
    ("given", "said"), [(None, "got a NoneType"), (nn.Linear(2, 2), "got a Linear"), (MAS, "got MAS")]
)
def test_what_is_no_protection_is_an_error(given, said):
    with pytest.raises(ValueError, match=f"takes a protection of the model, such as tm.MAS.model., {said}"):
        ProtectionCallback(given)


def test_what_is_no_function_of_batches_is_an_error_before_training():
    with pytest.raises(ValueError, match="consolidate must be True, False or a function that gives batches, got a"):
        ProtectionCallback(make_protection(make_net()), consolidate=batches(0))  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_callback_given_twice_is_an_error(tmp_path):
    net = make_net()
    callback = ProtectionCallback(make_protection(net))
    with pytest.raises(ValueError, match="two ProtectionCallbacks have one protection"):
        trainer_of(Model(net), tmp_path, rows(0), callback, callback).train()


@pytest.mark.slow
def test_a_schedule_free_optimizer_is_consolidated_with_the_weights_that_answer(tmp_path):
    net = make_net()
    protection = make_protection(net)
    callback = ProtectionCallback(protection)
    for number in range(2):
        options = {"optim": "schedule_free_adamw", "num_train_epochs": 2, "learning_rate": 0.01}
        trainer_of(Model(net), tmp_path, rows(number), callback, **options).train()
        assert largest_difference(protection.reference, weights(net)) == 0
    assert protection.num_protected_steps > 0


@pytest.mark.slow
def test_the_protection_of_another_model_is_an_error(tmp_path):
    callback = ProtectionCallback(make_protection(make_net()))
    with pytest.raises(ValueError, match="one of another model, a Sequential that is no part of the Trainer's model"):
        trainer_of(Model(make_net()), tmp_path, rows(0), callback).train()


@pytest.mark.slow
def test_an_error_in_the_middle_leaves_nothing_attached(first_task, tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("as it happens")

    net, protection = learned(first_task)
    callback = ProtectionCallback(protection)
    trainer = trainer_of(Model(net), tmp_path, rows(1), callback, Fail())
    with pytest.raises(RuntimeError, match="as it happens"):
        trainer.train()
    trainer.remove_callback(Fail)
    trainer.train()
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks
    assert not trainer.accelerator.clip_grad_norm_.callbacks


# --- killed, and over processes


SCRIPT = str(TESTS / "guest_transformers.py")


@pytest.mark.slow
def test_killed_and_resumed_in_a_new_process(tmp_path):
    """Without a difference to what ran through; a SIGKILL is answered by nobody."""
    killed = run_python(SCRIPT, str(tmp_path), "killed")
    assert killed.returncode == -9, killed.stderr
    resumed = run_python(SCRIPT, str(tmp_path), "resumed")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((tmp_path / "second" / "checkpoint-12" / "trainer_state.json").read_text())["global_step"] == 12
    whole = run(tmp_path / "whole", "whole")
    assert largest_difference(torch.load(tmp_path / "resumed"), whole) == 0


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path):
    """47 samples: samplers make shares equal, and what they repeat for it is not counted twice."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = run_python(*launcher, SCRIPT, str(tmp_path), "both")
    assert both.returncode == 0, both.stderr
    one, other = (torch.load(tmp_path / f"both{rank}") for rank in range(2))
    assert largest_difference(one, other) == 0
