"""How several processes share the batches of a task, so that it is learned as by one.

Each holds the whole model, and embeds its share of each batch; the embeddings are gathered, and all compute the loss of
the whole batch. So the loss, and the sum of all gradients, are those of one process, but for rounding.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tripletmas.basics import distributed
from tripletmas.basics.weights import state_of, weight_hash
from tripletmas.data.batches import seed_everything, shuffled_batches
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.whole_batch import WholeBatch, draws_by_itself
from tripletmas.runs.options import TrainConfig

logger = logging.getLogger(__name__)


def check_sharing(model: nn.Module, stream: Stream, config: TrainConfig) -> None:
    """Before training: whether every process will have something to do; warn of what they do otherwise than one.

    Raises:
        ValueError: as `check_shares`.
    """
    if not distributed.is_on():
        return
    check_shares(stream, config)
    if sharing_of(model, stream[0].train).draws_alone:
        logger.warning(
            "the model draws random numbers in training (dropout) that %d processes draw each for itself: losses and "
            "scores will differ from those of another number of processes by more than rounding",
            distributed.world_size(),
        )


def check_shares(stream: Stream, config: TrainConfig) -> None:
    """Before a run is begun: whether every process will have something of each batch.

    Raises:
        ValueError: if there are more processes than classes in a batch, or, of shuffled ones, samples.
    """
    number = distributed.world_size()
    if number == 1:
        return
    for task in stream:
        most, what, remedy = _least_batch(task, config)
        if number > most:
            raise ValueError(
                f"{number} processes cannot share a batch of {most} {what} (task {task.name!r}): start at most {most}, "
                f"or {remedy}"
            )


def _least_batch(task: Task, config: TrainConfig) -> tuple[int, str, str]:
    """(how much the smallest batch of an epoch has, of what, what else helps)."""
    if config.sampler == "class_balanced":
        classes = min(config.batch_size // config.samples_per_class, len(task.train.classes))
        return classes, "classes", "raise training.batch_size as far as there are classes"
    any_order = shuffled_batches(len(task.train), batch_size=config.batch_size, generator=torch.Generator())
    return min(map(len, any_order)), "samples", "take another training.batch_size"


@dataclass(frozen=True)
class Sharing:
    """How the model embeds what this process reads of a batch.

    Args:
        draws_alone: each process draws numbers of its own in the model, by (seed, task, epoch, step, rank); else all
            draw the same, those of the whole batch.
    """

    draws_alone: bool

    def embed(self, model: nn.Module, inputs: Tensor, size: int, place: tuple[int, ...]) -> Tensor:
        """Raw embeddings (m, dim) of this process's share of a batch of `size`, as if the model were given all of it.

        Args:
            place: (seed, task, epoch, step).
        """
        inputs = inputs.clone()  # the model may change them, and the strategy reads them, too
        if not distributed.is_on():
            return model(inputs)
        if not self.draws_alone:
            with WholeBatch(size):
                return model(inputs)
        seed_everything(*place, 1 + distributed.rank())
        with WholeBatch(size, draws=False):
            found = model(inputs)
        seed_everything(*place, 0)  # what is drawn next, by a miner or a strategy, is the same for all again
        return found


def sharing_of(model: nn.Module, data: LabelledDataset) -> Sharing:
    """How this model is shared on these data; texts have another length in each process, so draws are its own."""
    if not distributed.is_on():
        return Sharing(draws_alone=False)
    two, _ = data.plain()[[0, min(1, len(data) - 1)]]
    return Sharing(draws_by_itself(model, two, draws=data.texts is None))


def check_weights(model: nn.Module, when: str) -> None:
    """Raise a ValueError unless all processes have the same weights, to the bit."""
    if distributed.is_on():
        distributed.check_same(f"the hash of the weights after {when}", weight_hash(state_of(model)))
