"""The optimizers of a training loop to which a guard belongs, and what was said to it already.

A copy of a guard begins with a loop of its own: it is attached to nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.distributed import own_part
from tripletmas.protection.attachment import Attachment, Clip, check_clip
from tripletmas.protection.hooks import StepHook, is_registered
from tripletmas.protection.optimizers import (
    chain_of,
    check_steps,
    check_weights,
    in_train_mode,
    is_schedule_free,
    parameters_of,
    warn_of_two_steps,
    weights_beside,
)
from tripletmas.protection.penalty import Buffers


class Loop:
    """Attributes:
    num_protected_steps: for how many steps the penalty was added.
    protecting: within the guard's `protect()`.
    valued: its value() was asked for, to be a part of a loss, since it was last measured.
    checked: of which optimizers it was told, since what is held last changed, what of their weights it is not.
    checked_rates: as `checked`, whether plain gradient steps of their rates are stable.
    stepped: optimizers that have stepped.
    told: names of weights that are not held, and of which this was said.
    is_new: what is held was loaded, and no step has met it yet.
    since: sums of the weights that are held when it was last measured, and the steps that were protected then.
    buffers: memory that every step uses again.
    """

    def __init__(self):
        self.attached: WeakKeyDictionary[Optimizer, Attachment] = WeakKeyDictionary()
        self.num_protected_steps = 0
        self.protecting = False
        self.valued = False
        self.checked: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self.checked_rates: WeakSet[Optimizer] = WeakSet()
        self.stepped: WeakSet[Optimizer] = WeakSet()
        self.told: set[str] = set()
        self.is_new = False
        self.since: tuple[list[Tensor], int] | None = None
        self.buffers: Buffers = {}
        self._inside: WeakKeyDictionary[Optimizer, Optimizer] = WeakKeyDictionary()  # a wrapper -> what it steps with
        self._idle: WeakKeyDictionary[Optimizer, list[Tensor]] = WeakKeyDictionary()  # attached, and has not stepped

    def attach(self, optimizer: Any, clip: Clip, hook: StepHook, own: set[int]) -> tuple[Attachment, Optimizer]:
        """The attachment of what steps when this optimizer does, and that.

        Args:
            own: ids of the model's parameters.
        """
        chain = chain_of(optimizer, own)
        optimizer = chain[-1]
        check_clip(clip, optimizer)
        check_weights(chain, clip)
        check_steps(optimizer)
        if clip == "after":
            warn_of_two_steps(optimizer)
        self._inside.update({each: optimizer for each in chain[:-1] if isinstance(each, Optimizer)})
        if not self.is_attached(optimizer):
            self.attached[optimizer] = Attachment(optimizer.register_step_pre_hook(hook), clip, chain)
            self._idle[optimizer] = sums(parameters_of(optimizer, own))
        self.attached[optimizer].clip = clip
        return self.attached[optimizer], optimizer

    def is_attached(self, optimizer: Optimizer) -> bool:
        """Whether the guard's hook runs before its steps."""
        attachment = self.attached.get(optimizer)
        return attachment is not None and is_registered(attachment.handle, optimizer)

    def adds_itself(self, optimizer: Optimizer) -> Attachment | None:
        """The attachment of an optimizer before whose clipping the training loop adds the penalty; None of others."""
        attachment = self.attached.get(optimizer)
        return attachment if attachment and attachment.clip == "before" and self.is_attached(optimizer) else None

    def stepping(self, optimizer: Any, own: set[int]) -> Optimizer:
        """What steps when this optimizer does."""
        if optimizer in self.attached:
            return optimizer
        return self._inside[optimizer] if optimizer in self._inside else chain_of(optimizer, own)[-1]

    def note_step(self, optimizer: Optimizer) -> None:
        """A step of which the guard's hook knows."""
        self._idle.pop(optimizer, None)
        self.stepped.add(optimizer)

    def note_measured(self, *, loaded: bool) -> None:
        """Other things are held from now on: what was told is told anew."""
        self.checked.clear()
        self.told.clear()
        self.valued, self.is_new = False, loaded

    def meets_what_was_loaded(self) -> bool:
        """At a step: whether it is the first one since what is held was loaded."""
        is_new, self.is_new = self.is_new, False
        return is_new

    def schedule_free(self) -> list[Any]:
        """The optimizers of the package schedulefree that are attached, or have stepped."""
        attached = [each for attachment in list(self.attached.values()) for each in attachment.schedule_free]
        return attached + [each for each in self.stepped if is_schedule_free(each) and each not in self.attached]

    def check_mode(self) -> None:
        """Raise a ValueError where the weights are not those with which the model will answer."""
        for each in self.schedule_free():
            if in_train_mode(each):
                raise ValueError(
                    f"{type(each).__name__} is in its train mode, in which the weights are not those with which the "
                    "model answers: call its eval() before consolidate, and its train() before it goes on"
                )

    def beside(self, parameter: nn.Parameter) -> list[Tensor]:
        """What optimizers keep of a parameter's weights, and has to move where it is moved."""
        return [weights for each in self.schedule_free() for weights in weights_beside(each, parameter)]

    def warn_if_idle(self, own: set[int]) -> bool:
        """Warn of an attached optimizer that changed the weights without a step that hooks could see; whether one did.

        Args:
            own: ids of the model's parameters.
        """
        told = False
        for optimizer, before in list(self._idle.items()):
            now = self._idle[optimizer] = sums(parameters_of(optimizer, own))
            if self.is_attached(optimizer) and differ(before, now):
                told = True
                warnings.warn(
                    f"the weights have changed since {type(optimizer).__name__} was attached, but not by its step(): "
                    "attach the optimizer that steps, or add value() to the loss",
                    stacklevel=4,
                )
        return told


def sums(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Of each: by which a change is seen."""
    return [own_part(parameter.detach()).sum() for parameter in parameters]


def differ(before: list[Tensor], now: list[Tensor]) -> bool:
    """Whether any of these sums is another one."""
    return any(float(one) != float(other) for one, other in zip(before, now, strict=False))
