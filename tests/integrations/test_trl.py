"""Protection in the trainers of trl: fine-tuning of language models, of reward models, by preferences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from guest_tasks import largest_difference, weights
from guest_trl import CLASSES, make_model, make_protection, run, trainer_of
from processes import run_python

from tripletmas.integrations.transformers import ProtectionCallback

pytest.importorskip("trl")
TESTS = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # trl's, of what it asks of transformers
every_trainer = pytest.mark.parametrize("kind", CLASSES)


@every_trainer
def test_equals_the_penalty_in_the_loss(kind, tmp_path):
    first = make_model(kind)
    protection = make_protection(first)
    trainer_of(kind, first, tmp_path, 0, ProtectionCallback(protection)).train()
    assert protection.num_protected_steps == 0  # nothing to hold yet
    found = {}
    for way in ("attached", "in the loss", "none"):
        model = make_model(kind)
        model.load_state_dict(first.state_dict())
        its = make_protection(model)
        its.load_state_dict(protection.state_dict())
        callbacks = [ProtectionCallback(its)] if way == "attached" else []
        penalty = its.value if way == "in the loss" else None
        trainer_of(kind, model, tmp_path, 1, *callbacks, penalty=penalty, optim="sgd", learning_rate=0.1).train()
        found[way] = weights(model)
    assert largest_difference(found["attached"], found["in the loss"]) < 1e-6
    assert largest_difference(found["none"], found["in the loss"]) > 1e-4


@pytest.mark.long
@every_trainer
def test_killed_and_resumed_in_a_new_process(kind, tmp_path):
    """Without a difference to what ran through; a SIGKILL is answered by nobody."""
    killed = run_python(str(TESTS / "guest_trl.py"), kind, str(tmp_path), "killed")
    assert killed.returncode == -9, killed.stderr
    resumed = run_python(str(TESTS / "guest_trl.py"), kind, str(tmp_path), "resumed")
    assert resumed.returncode == 0, resumed.stderr
    whole = run(kind, tmp_path / "whole", "whole")
    assert largest_difference(torch.load(tmp_path / "resumed"), whole) == 0
