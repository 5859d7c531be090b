"""A LightningModule, and two tasks fitted one after the other, in a process of their own that may be killed.

python tests/guest_lightning.py lightning FOLDER gram killed     # and then `resumed`, or from the start `whole`
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from guest_tasks import make_net, make_protection, make_task, metric_loss, weights
from torch import nn
from torch.utils.data import DataLoader

from tripletmas.protection.structured.gram import Gram

EPOCHS = 4


def quiet() -> None:
    """No warning of Lightning's that is about speed or about things that these tests leave out."""
    for part in (
        ".*does not have many workers", ".*GPU available", ".*`isinstance.treespec", ".*logging interval",
        ".*exists and is not empty", ".*tensorboardX", ".*lr_scheduler.step", "Starting from v1.9", ".*process group",
        ".*No device id is provided", ".*pin_memory", ".*Gloo", ".*mixed precision.*CPU", ".*weights_only",
        ".*leaf_spec",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", part)


def make_module(package: Any, net: nn.Module, **options: Any) -> Any:
    """A LightningModule of `lightning` or `pytorch_lightning`, which trains `net`.

    Options: `make_optimizer` (parameters -> optimizer), and `penalty` () -> what is added to the loss.
    """
    make_optimizer = options.get("make_optimizer") or (lambda parameters: torch.optim.SGD(parameters, lr=0.05))

    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, labels = batch
            loss = metric_loss(self.net(inputs), labels)
            return loss + options["penalty"]() if "penalty" in options else loss

        def configure_optimizers(self) -> Any:
            return make_optimizer(self.net.parameters())

    return Module()


def trainer_of(package: Any, folder: Path | None = None, **options: Any) -> Any:
    """A Trainer of few epochs on a CPU that draws and says nothing, and writes nothing without a folder."""
    quiet()
    defaults = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": folder is not None,
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return package.Trainer(**(defaults | options))


def loader(number: int, **options: Any) -> DataLoader:
    return DataLoader(make_task(number, **options), batch_size=16)


def package_of(name: str) -> Any:
    return importlib.import_module("lightning.pytorch" if name == "lightning" else name)


def protection_of(kind: str, net: nn.Module) -> Any:
    return Gram(net, 0.02) if kind == "gram" else make_protection(net)


def run(name: str, folder: Path, kind: str, part: str) -> dict[str, torch.Tensor]:
    """Both tasks, `whole`; or `killed` in the third epoch of the second, or from there, `resumed` in a new process."""
    quiet()
    package = package_of(name)
    from tripletmas.integrations.lightning import ProtectionCallback

    net = make_net(seed=1 if part == "resumed" else 0)  # nothing is left but the checkpoint
    module = make_module(package, net, make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01))
    protection = ProtectionCallback(protection_of(kind, net))
    if part != "resumed":
        trainer_of(package, callbacks=[protection]).fit(module, loader(0))

    class Kill(package.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == 2 and trainer.global_step == 7:
                os.kill(os.getpid(), signal.SIGKILL)

    last = folder / "last.ckpt"
    keep = package.callbacks.ModelCheckpoint(folder, save_last=True)
    callbacks = [protection, keep, *([Kill()] if part == "killed" else [])]
    trainer = trainer_of(package, folder, callbacks=callbacks)
    trainer.fit(module, loader(1), ckpt_path=last if part == "resumed" else None)
    held = protection.protection.state_dict()
    return weights(net) | {f"protection/{name}": value for name, value in held.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, name, folder, kind, part = sys.argv
    torch.save(run(name, Path(folder), kind, part), Path(folder, part))
