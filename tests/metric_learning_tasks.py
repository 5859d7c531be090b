"""Two tasks in a trainer of pytorch-metric-learning, as one process or one that is killed learns them.

As a program: `metric_learning_tasks.py whole|killed|resumed FOLDER mas|gram`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import losses, samplers, trainers
from pytorch_metric_learning.utils import common_functions
from torch import Tensor, nn
from torch.utils.data import Dataset

import tripletmas as tm
from tripletmas.integrations.metric_learning import ProtectionHooks


class Images(Dataset):
    """32 samples (1, 4, 4) of four classes, each a dict, as many data sets of Hugging Face have them."""

    def __init__(self, task: int):
        random = torch.Generator().manual_seed(task)
        self.labels = torch.arange(4).repeat_interleave(8)
        patterns = torch.rand(4, 1, 4, 4, generator=random)
        self.images = (patterns[self.labels] + torch.rand(32, 1, 4, 4, generator=random)) / 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {"pixels": self.images[position], "label": self.labels[position]}


def data_and_labels(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return batch["pixels"], batch["label"]


class Task:
    """Trunk and embedder, and the trainer of each task."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        common_functions.NUMPY_RANDOM.seed(0)  # of which PML's sampler draws
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
        self.embedder = nn.Linear(8, 4)
        self.both = nn.Sequential(self.trunk, self.embedder)

    def trainer(self, number: int, **options: Any) -> trainers.MetricLossOnly:
        """With momentum, batches of 8 by PML's sampler, a proxy loss."""
        torch.manual_seed(number)
        models = {"trunk": self.trunk, "embedder": self.embedder}
        optimizers = {
            f"{name}_optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            for name, model in models.items()
        }
        dataset = Images(number)
        return trainers.MetricLossOnly(
            models=models,
            optimizers=optimizers,
            batch_size=8,
            loss_funcs={"metric_loss": losses.ProxyNCALoss(4, 4)},
            dataset=dataset,
            sampler=samplers.MPerClassSampler(dataset.labels, m=2, batch_size=8, length_before_new_iter=32),
            data_and_label_getter=data_and_labels,
            dataloader_num_workers=0,
            **options,
        )


def kill_at(step: int, task: int) -> Callable[[Any], None]:
    """SIGKILL at a step of the second epoch of a task."""

    def hook(trainer: Any) -> None:
        if task == 1 and trainer.epoch == 2 and trainer.iteration == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def main(how: str, folder: Path, kind: str) -> None:
    """Learn two tasks, in folders, and keep what was learned in HOW.pt."""
    tasks = Task()
    hooks = ProtectionHooks(tm.MAS(tasks.both) if kind == "mas" else tm.Gram(tasks.both, 0.02))
    of = folder / ("whole" if how == "whole" else "broken")
    for number in range(2):
        options = {"end_of_iteration_hook": kill_at(2, number)} if how == "killed" else {}
        hooks.train(tasks.trainer(number, **options), of / f"task{number}", num_epochs=3)
    torch.save({"model": tasks.both.state_dict(), "protection": hooks.protection.state_dict()}, folder / f"{how}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
