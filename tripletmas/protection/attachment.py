"""An optimizer to which a guard is attached, and whether the penalty is in its gradients already."""

from __future__ import annotations

import weakref
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from tripletmas.basics.distributed import own_part
from tripletmas.basics.sentences import with_article
from tripletmas.protection.optimizers import is_schedule_free

Clip = Literal["before", "after"]


class Added(NamedTuple):
    """A penalty that was added to gradients, and one of them as it was then; no parameter where nothing was pulled."""

    parameter: nn.Parameter | None
    gradient: Tensor | None
    versions: tuple[int, int]

    def is_gone(self) -> bool:
        """Whether other gradients have taken the place of those that it was added to."""
        return self.parameter is not None and self.parameter.grad is not self.gradient

    def is_as_it_was(self) -> bool:
        """Whether the gradient is the same, and nothing was written to it since."""
        return self.gradient is not None and not self.is_gone() and _versions(self.gradient) == self.versions


def added_to(parameters: list[nn.Parameter]) -> Added:
    """What was just added to the gradients of these, if to any."""
    parameter = next((each for each in parameters if each.grad is not None), None)
    gradient = None if parameter is None else parameter.grad
    return Added(parameter, gradient, (0, 0) if gradient is None else _versions(gradient))


def _versions(gradient: Tensor) -> tuple[int, int]:
    """How often it was written to; of one that is spread over processes (`fully_shard`) as a whole, and this process's
    part of it by itself, which is where a backward pass adds."""
    return gradient._version, own_part(gradient)._version


class Attachment:
    """Attributes:
    handle: of the hook that runs before the optimizer's steps.
    clip: where the penalty stands to a clipping of gradients. after: it is added when the optimizer steps; before: the
        training loop says when.
    added: since the last step, by the training loop; None if it was not.
    """

    def __init__(self, handle: RemovableHandle, clip: Clip, chain: list[Any]):
        self.handle = handle
        self.clip: Clip = clip
        self.added: Added | None = None
        self._schedule_free = [weakref.ref(each) for each in chain if is_schedule_free(each)]

    @property
    def schedule_free(self) -> list[Any]:
        """It, or what wraps it, if that is of the package schedulefree."""
        return [each for each in (reference() for reference in self._schedule_free) if each is not None]

    def refuse_to_add_again(self) -> None:
        """Raise a ValueError where nothing has happened to the gradients since the penalty was added."""
        if self.added is not None and self.added.is_as_it_was():
            raise ValueError("the penalty is in these gradients already: call add_gradients once a step")

    def take(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """At a step: from now on the penalty is in no gradient.

        Returns:
            A parameter to whose gradient it was added, if there is one.

        Raises:
            ValueError: if it was not added since the last step, or is not in the gradients that the optimizer uses.
        """
        kind, added = type(optimizer).__name__, self.added
        if added is None:
            raise ValueError(
                f"{with_article(kind)} that was attached with clip='before' stepped without add_gradients(optimizer): "
                "call it once a step, between unscaling and clipping, or attach with clip='after'"
            )
        if added.is_gone():
            raise ValueError(
                f"the gradients of this {kind} are others than add_gradients(optimizer) was called for, so that the "
                "penalty is lost: call it after the backward pass (in the closure, if there is one), and clip in place"
            )
        if added.parameter is not None and getattr(optimizer, "grad_scale", None) is not None:
            raise ValueError(
                f"a GradScaler has not unscaled the gradients of this {kind}: call scaler.unscale_(optimizer) before "
                "add_gradients(optimizer)"
            )
        self.added = None
        return [] if added.parameter is None else [added.parameter]


def check_clip(clip: str, optimizer: Optimizer) -> None:
    """Raise a ValueError for a `clip` that there is not, or that does not fit the optimizer."""
    if clip not in get_args(Clip):
        raise ValueError(f"clip must be 'before' or 'after', got {clip!r}")
    if clip == "before" and isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS compares values of the loss, to which clipped gradients do not belong: attach it with clip='after'"
        )
