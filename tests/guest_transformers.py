"""A model for transformers.Trainer, and two tasks trained one after the other, in processes that may be killed.

python tests/guest_transformers.py FOLDER killed                  # and then `resumed`, or from the start `whole`
torchrun --standalone --nproc-per-node 2 tests/guest_transformers.py FOLDER both
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from guest_tasks import STRENGTH, make_net, make_task, metric_loss, weights
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from tripletmas.integrations.transformers import ProtectionCallback
from tripletmas.protection.protection import MAS
from tripletmas.protection.structured.gram import Gram

EPOCHS = 4


class Model(nn.Module):
    """A net and its loss, with a penalty if one is given."""

    def __init__(self, net: nn.Module, penalty: Callable[[], Tensor] | None = None):
        super().__init__()
        self.net, self.penalty = net, penalty

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        embeddings = self.net(x)
        loss = metric_loss(embeddings, labels)
        return {"loss": loss if self.penalty is None else loss + self.penalty(), "embeddings": embeddings}


def make_protection(net: nn.Module) -> MAS:
    return MAS(net, STRENGTH, forward=lambda net, batch: net(batch["x"]))


def rows(number: int, **options: Any) -> list[dict[str, Any]]:
    inputs, labels = make_task(number, **options).tensors
    return [{"x": x, "labels": int(label)} for x, label in zip(inputs, labels, strict=True)]


def batches(number: int, **options: Any) -> list[dict[str, Tensor]]:
    inputs, labels = make_task(number, **options).tensors
    return [{"x": inputs, "labels": labels}]


def trainer_of(model: nn.Module, folder: Path, data: Any, *callbacks: Any, **options: Any) -> Trainer:
    """A Trainer of few epochs on a CPU that draws and reports nothing, and saves if it is told to."""
    defaults = {
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(str(folder), **(defaults | options))
    data = data if isinstance(data, dict) else {"train": data}
    return Trainer(
        model, arguments, train_dataset=data["train"], eval_dataset=data.get("eval"), callbacks=list(callbacks)
    )


class Kill(TrainerCallback):
    """In the middle of the third epoch."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, part: str) -> dict[str, Tensor]:
    """Both tasks, `whole`; or `killed` in the third epoch of the second, or from there, `resumed` in a new process.

    Held by single weights and by Grams at once.
    """
    net = make_net(seed=1 if part == "resumed" else 0)  # nothing is left but the checkpoint
    gram = Gram(net, 0.02, forward=lambda net, batch: net(batch["x"]))
    guards = [ProtectionCallback(gram, name="gram"), ProtectionCallback(make_protection(net))]
    model = Model(net)
    count = 47 if part == "both" else 48
    if part != "resumed":
        trainer_of(model, folder / "first", rows(0, count=count), *guards).train()
    callbacks = [*guards, *([Kill()] if part == "killed" else [])]
    options = {"save_strategy": "epoch", "optim": "adamw_torch_fused", "learning_rate": 0.01}
    trainer = trainer_of(model, folder / "second", rows(1, count=count), *callbacks, **options)
    trainer.train(resume_from_checkpoint=part == "resumed")
    held = {f"{each.name}/{key}": value for each in guards for key, value in each.protection.state_dict().items()}
    return weights(net) | held


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, folder, part = sys.argv
    rank = os.environ.get("RANK", "")
    torch.save(run(Path(folder), part), Path(folder, part + rank))
    if torch.distributed.is_initialized():  # the Trainer leaves its threads; ended with the interpreter they may abort
        gc.collect()
        torch.distributed.destroy_process_group()
