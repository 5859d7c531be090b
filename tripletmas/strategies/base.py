"""The moments of a run at which a strategy may act. All do nothing here; a strategy overrides those it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.weights import Params
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective

if TYPE_CHECKING:
    from tripletmas.protection.guard import Guard


class Strategy:
    """How a model learns task after task. Concrete strategies are final.

    Attributes:
        protections: what holds weights in place, if the strategy has any: the loop shows their penalty, saves their
            importance, and reports what they leave unprotected.
        freezes_batchnorm: whether the running statistics of batch norm stand still after the first task, unless the
            configuration says otherwise.
        trains: whether any task is trained.
        compensate: the map that moves stored vectors after each task, unless the configuration says otherwise; None
            where it would only move what is held.
    """

    protections: tuple[Guard, ...] = ()
    freezes_batchnorm: bool = False
    trains: bool = True
    compensate: Literal["linear"] | None = "linear"

    def check(self, model: nn.Module, batch: Any) -> None:
        """Before `prepare`, and before a run is begun: the model, and a few samples of the first task with labels.

        Raises:
            ValueError: if the strategy cannot work with a model of its kind.
        """

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        """Once, before anything else: the model that will be trained, for this objective, on these tasks.

        Raises:
            ValueError: if the strategy cannot work with them.
        """

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset | None:
        """What this task trains on; None to train nothing."""
        return task.train

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        """Before the first epoch of a task, and again when a run is resumed in the middle of it."""

    def loss(self, model: nn.Module, inputs: Tensor, embeddings: Tensor) -> Tensor | None:
        """A scalar to add to the loss of a batch; None for nothing.

        The inputs are as they were before the model had them, which may have changed its own copy. Where several
        processes share a batch, each asks for its own samples, and what it is told counts as a mean over these does.
        """
        return None

    def after_step(self, model: nn.Module) -> None:
        """After each optimizer step."""

    def after_task(self, model: nn.Module, task: Task) -> None:
        """After the last epoch of a task, before it is evaluated."""

    def kept_pairs(self) -> tuple[Tensor, Tensor] | None:
        """Raw embeddings (n, dim) of the old samples that it keeps, before the last task and after; None for none.

        They join the pairs on which the map is fitted that moves stored vectors.
        """
        return None

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        """Hold what unlabelled data need, too, of the model as it is between two tasks; a task of the run counts 1.

        Returns:
            The importance of the data, as `protections[0]` measures it.

        Raises:
            ValueError: for a strategy that measures no importance, or needs more than unlabelled data.
        """
        raise ValueError(
            f"{type(self).__name__} does not measure importance on unlabelled data; mas, local_mas and gram do"
        )

    def deployed(self, model: nn.Module) -> nn.Module:
        """The model to evaluate and to save; usually the one that is trained."""
        return model

    def set_strength(self, strength: float) -> None:
        """From now on, hold on to what was learned with this strength; 0 holds nothing, as finetune does.

        Raises:
            ValueError: for a strategy without a strength.
        """
        raise ValueError(f"{type(self).__name__} has no strength to set")

    def state_dict(self) -> Params:
        """All that resuming needs, as tensors by name."""
        return {}

    def load_state_dict(self, state: Params) -> None:
        """Take over a saved state; called where it was saved: after `prepare`, and in a task after `before_task`."""
