"""Protection in loops of accelerate: its prepared optimizers, its checkpoints, its processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from guest_accelerate import run
from guest_tasks import add_by_hand, largest_difference, make_net, make_protection, make_task, metric_loss, weights
from processes import run_in_processes, run_python
from torch.utils.data import DataLoader

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _fresh_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("clip", ["before", "after"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_equals_the_penalty_by_hand(clip, accumulated):
    """before: the penalty is in the loss; after: its gradient is added by the formula, after the clipping."""
    found = {}
    for kind in ("attached", "by hand", "none"):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
        net = make_net()
        protection = make_protection(net)
        protection.consolidate([make_task(0).tensors])
        model, optimizer, loader = accelerator.prepare(
            net, torch.optim.SGD(net.parameters(), lr=0.05), DataLoader(make_task(1), batch_size=16)
        )
        if kind == "attached":
            protection.attach(optimizer, clip=clip)
        for _ in range(4):
            for inputs, labels in loader:
                with accelerator.accumulate(model):
                    loss = metric_loss(model(inputs), labels)
                    is_in_loss = kind == "by hand" and clip == "before"
                    accelerator.backward(loss + protection.value() if is_in_loss else loss)
                    if accelerator.sync_gradients:
                        if clip == "before" and kind == "attached":
                            protection.add_gradients(optimizer)
                        accelerator.clip_grad_norm_(model.parameters(), 0.05)
                        if clip == "after" and kind == "by hand":
                            add_by_hand(protection)
                    optimizer.step()
                    optimizer.zero_grad()
        found[kind] = weights(net)
    assert largest_difference(found["attached"], found["by hand"]) < 1e-7
    assert largest_difference(found["none"], found["by hand"]) > 1e-5


@pytest.mark.parametrize("registered", ["saved only", "loaded only"])
def test_a_checkpoint_that_has_no_part_for_it_or_one_too_many_is_an_error(registered, tmp_path):
    """accelerate's own words."""
    net = make_net()
    protection = make_protection(net)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(net)
    if registered == "saved only":
        accelerator.register_for_checkpointing(protection)
    accelerator.save_state(str(tmp_path / "checkpoint"))
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(net)
    if registered == "loaded only":
        accelerator.register_for_checkpointing(protection)
    with pytest.raises(Exception, match=r"Number of custom checkpoints in folder .* does not match"):
        accelerator.load_state(str(tmp_path / "checkpoint"))


def in_each_process(folder: str) -> dict[str, torch.Tensor]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29400")  # asked for, though the group is there
    return run(Path(folder), "both", 47)


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path):
    """47 samples: samplers make shares equal, and what they repeat for it is not counted twice."""
    one, other = run_in_processes(in_each_process, 2, str(tmp_path))
    assert largest_difference(one, other) == 0


@pytest.mark.slow
def test_killed_and_resumed_in_a_new_process(tmp_path):
    """Without a difference to what ran through; a SIGKILL is answered by nobody."""
    killed = run_python(str(TESTS / "guest_accelerate.py"), str(tmp_path), "killed")
    assert killed.returncode == -9, killed.stderr
    resumed = run_python(str(TESTS / "guest_accelerate.py"), str(tmp_path), "resumed")
    assert resumed.returncode == 0, resumed.stderr
    whole = run(tmp_path / "whole", "whole")
    assert largest_difference(torch.load(tmp_path / "resumed"), whole) == 0
