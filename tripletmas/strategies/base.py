"""The moments of a run at which a strategy may act. All do nothing here; a strategy overrides those it needs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.data import LabelledDataset
from tripletmas.params import Params
from tripletmas.protection import Protection
from tripletmas.tasks import Task


class Strategy:
    """How a model learns task after task. Concrete strategies are final.

    Attributes:
        protection: what holds weights in place, if the strategy has one: the loop shows its penalty, saves its
            importance, and reports what it leaves unprotected.
    """

    protection: Protection | None = None

    def prepare(self, model: nn.Module) -> None:
        """Once, before anything else: `model` is what will be trained."""

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset | None:
        """What this task trains on; None to train nothing."""
        return task.train

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        """Before the first epoch of a task, and again when a run is resumed in the middle of it."""

    def loss(self, model: nn.Module, inputs: Tensor, embeddings: Tensor) -> Tensor | None:
        """A scalar to add to the metric loss of a batch; None for nothing."""
        return None

    def after_step(self, model: nn.Module) -> None:
        """After each optimizer step."""

    def after_task(self, model: nn.Module, task: Task) -> None:
        """After the last epoch of a task, before it is evaluated."""

    def deployed(self, model: nn.Module) -> nn.Module:
        """The model to evaluate and to save; usually the one that is trained."""
        return model

    def state_dict(self) -> Params:
        """All that resuming needs, as tensors by name."""
        return {}

    def load_state_dict(self, state: Params) -> None:
        """Take over a saved state; called where it was saved: after `prepare`, and in a task after `before_task`."""
