"""Two tasks in Avalanche, as one process, two, or one that is killed learns them. Imports Avalanche, in seconds.

As a program: `avalanche_tasks.py whole|killed|resumed FOLDER`.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tripletmas as tm
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it finds or not
    from avalanche.distributed import DistributedHelper
    from avalanche.models import IncrementalClassifier, MTSimpleMLP
    from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
    from avalanche.training.supervised import Naive

    from tripletmas.integrations import avalanche as guest


def make_stream(num_tasks: int = 2) -> Stream:
    """Tasks of two classes, each with 28 images to learn and 12 to query, 1 x 4 x 4."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * num_tasks).repeat_interleave(20)
    patterns = torch.rand(2 * num_tasks, 1, 4, 4, generator=random)
    images = (patterns[labels] + torch.rand(len(labels), 1, 4, 4, generator=random)) / 2
    return tm.make_stream(
        Source(LabelledDataset(images, labels, list(map(str, range(2 * num_tasks))))), tasks=num_tasks
    )[0]


class Growing(nn.Module):
    """A network whose head gets a row for each class that comes."""

    def __init__(self, **options: Any):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
        self.head = IncrementalClassifier(8, 2, **options)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def perceptron() -> nn.Module:
    """For four classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


MODELS = {"perceptron": perceptron, "growing": Growing, "heads": lambda: MTSimpleMLP(input_size=16, hidden_size=8)}


def make_strategy(model: nn.Module, plugins: list[Any], **options: Any) -> Naive:
    """Three epochs of SGD with momentum, in batches of 4."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    evaluator = options.pop("evaluator", None) or EvaluationPlugin(loggers=[])
    settings = {"train_mb_size": 4, "train_epochs": 3, "eval_mb_size": 16, **options}
    return Naive(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        evaluator=evaluator,
        plugins=plugins,
        **settings,
    )


class Kill(SupervisedPlugin):
    """SIGKILL at a step of the second experience."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def after_update(self, strategy: Any, **_: Any) -> None:
        if strategy.experience.current_experience == 1 and strategy.clock.train_exp_iterations == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def main(how: str, folder: Path) -> None:
    """Learn two tasks with checkpoints between them, held by single weights and by Grams, and keep what was learned in
    HOW.pt."""
    torch.manual_seed(0)
    model = Growing()
    plugins = [guest.ProtectionPlugin(each) for each in (tm.Gram(model, 0.02), tm.MAS(model, 0.3))]
    strategy = make_strategy(model, plugins)
    checkpoint = folder / f"{'whole' if how == 'whole' else 'broken'}.checkpoint"
    strategy, start = guest.maybe_load_checkpoint(strategy, checkpoint)
    assert start == (1 if how == "resumed" else 0)
    for experience in guest.benchmark_from(make_stream()).train_stream[start:]:
        if how == "killed":
            strategy.plugins.insert(1, Kill(5)) if experience.current_experience else None
        strategy.train(experience)
        guest.save_checkpoint(strategy, checkpoint)
    guards = [each.protection for each in strategy.plugins if isinstance(each, guest.ProtectionPlugin)]
    assert len(guards) == 2
    assert all(each.model is strategy.model for each in guards)
    held = {
        f"{number}/{name}": value for number, each in enumerate(guards) for name, value in each.state_dict().items()
    }
    torch.save({"model": strategy.model.state_dict(), "protection": held}, folder / f"{how}.pt")


def learn_in_one_of_several(rank: int, count: int, folder: str) -> None:
    """Two tasks with data of each process's own, by Avalanche's own sampler; what came out, in RANK.pt."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    torch.manual_seed(0)
    model = perceptron()
    plugin = guest.ProtectionPlugin(tm.MAS(model))
    strategy = make_strategy(DistributedHelper.wrap_model(model), [plugin])
    strategy.train(guest.benchmark_from(make_stream(), task_labels=True).train_stream)
    torch.save({"model": model.state_dict(), "importance": plugin.protection.importance}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
