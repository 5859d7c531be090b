"""Every strategy trains a model of which parts are frozen, or that learns by changes of low rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tripletmas.basics.weights import snapshot, state_of, trainable
from tripletmas.data.tasks import Stream
from tripletmas.models.exported import read_exported
from tripletmas.models.making import make_model
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.runs.catalog import STRATEGIES, build_strategy
from tripletmas.runs.deployed import from_pretrained
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import run_experiment
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.pretrained import save_pretrained

NEEDS_HEADS = ("ewc",)
OPTIONS: dict[str, dict[str, Any]] = {
    "replay": {"memory": 8},
    "imm": {"merging": "magmax"},
    "local_mas": {"left_out": ()},
}


def made(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return make_model("mlp", (1, 4, 4), options={"dim": 4, "hidden": (12, 8), **options})


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("name", [*STRATEGIES, "mas+distill", "gram+anchors"])
def test_every_strategy(name: str, lora: int | None, tiny_stream: Stream):
    model = made(lora=lora)
    config = TrainConfig(epochs=2, batch_size=8, samples_per_class=2, freeze="hidden1", warmup=0.5, lr=0.01)
    stream = tiny_stream[:2]
    class_names = stream[0].train.class_names
    loss = (
        Recognition(4, [task.classes for task in stream], class_names, ridge_dim=8)
        if name in NEEDS_HEADS
        else make_loss("contrastive", dim=4, num_classes=len(class_names))
    )
    before = snapshot(state_of(model))
    scores = train_stream(model, stream, build_strategy(name, OPTIONS.get(name, {})), loss, config)
    assert scores.matrix().isfinite().any()
    moved = {key for key, value in state_of(model).items() if not torch.equal(value, before[key])}
    assert moved == (set() if name == "pretrained" else set(trainable(model)))
    assert {key.partition(".")[0] for key in trainable(model)} == {"hidden2", "embedding"}
    if lora:
        assert "hidden2.bias" not in trainable(model)
        change = state_of(model)["hidden2.weight"] - before["hidden2.weight"]
        tasks = 1 if name == "frozen" else 2
        values = torch.linalg.svdvals(change.double())
        assert name.startswith("gram") or values[lora * tasks] < 1e-6  # a change of rank 2 for each task


@pytest.mark.slow
def test_what_is_exported_does_not_learn_by_low_rank(tmp_path):
    """Nor is anything frozen in it: how a model was trained is nothing that it is."""
    config = {
        "data": {"name": "digits", "tasks": 1},
        "model": {"name": "mlp", "hidden": [16], "dim": 8, "lora": 2},
        "strategy": "finetune",
        "training": {"epochs": 1, "freeze": "embedding.bias"},
    }
    run_experiment(config, tmp_path / "run")
    save_pretrained(RunDirectory(tmp_path / "run"), tmp_path / "exported")
    assert "lora" not in read_exported(tmp_path / "exported")["model"]
    found = from_pretrained(tmp_path / "exported").model
    assert len(trainable(found)) == 4
