"""Guard: what holds a model's weights while it goes on learning, in any training loop.

Its penalty goes into the gradient, in a hook that runs when an optimizer steps: then it works in any training loop,
fires once a step whatever the gradient accumulation, and needs no second backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from tripletmas.basics.weights import Params, named_parameters, trainable
from tripletmas.protection.absent import HeldNames, tell_what_is_not_held, warn_of_lost, warn_of_no_hook
from tripletmas.protection.attachment import Clip, added_to
from tripletmas.protection.batches import refuse_complex
from tripletmas.protection.coverage import Coverage
from tripletmas.protection.hooks import StepHook, make_step_hook
from tripletmas.protection.loop import Loop, differ, sums
from tripletmas.protection.optimizers import check_steps, contents, parameters_of
from tripletmas.protection.pretrained import file_to_write, warn_of_unlike
from tripletmas.protection.replicas import warn_of_measuring_alone
from tripletmas.protection.watching import watch_all_steps

Estimator = Callable[[nn.Module, Iterable[Any]], Params]


class Guard:
    """A penalty on a model's weights, felt at every step of an optimizer. Abstract.

    Concrete ones say what is held: each weight by its importance (`Protection`), or what each layer answers (`Gram`).
    `copy.deepcopy((model, guard))` and pickle copy both; a copy is attached to no optimizer.

    Args:
        model: the model that is trained; parameters are matched by identity in memory and by canonical name on disk.
        strength: weight of the penalty (lambda).
        decay: what is left of earlier tasks' part when a task is added; 1 sums all tasks.
        estimate: (model, batches) -> importance by canonical name.

    Raises:
        ValueError: for a negative strength, a decay outside [0, 1], complex weights, or half-precision weights, which
            are too coarse to be held in place (keep float32 weights and train under autocast).
    """

    def __init__(self, model: nn.Module, *, strength: float, decay: float, estimate: Estimator):
        check_penalty(strength, decay)
        _check_types(model)
        self.model = model
        self.strength = float(strength)
        self.decay = decay
        self.estimate = estimate
        self._left_out: frozenset[str] = frozenset()  # names of what was trained, and not measured, when it was last
        self._loop = Loop()
        watch_all_steps(self)

    def __getstate__(self) -> dict[str, Any]:  # of copy.copy, copy.deepcopy and pickle
        return {name: value for name, value in vars(self).items() if name != "_loop"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._loop = Loop()
        watch_all_steps(self)

    @property
    def holds(self) -> bool:
        """Whether there is anything to hold; False before the first `consolidate`."""
        raise NotImplementedError

    @property
    def num_protected_steps(self) -> int:
        """For how many steps of optimizers the penalty was added, since this object was made."""
        return self._loop.num_protected_steps

    @property
    def importance(self) -> Params:
        """Of every weight that is held, by canonical name; empty before the first `consolidate`."""
        raise NotImplementedError

    def shares(self) -> dict[str, float]:
        """The share of each layer's squared response that has changed, a mean over tasks; {} if not known."""
        return {}

    # --- in a training loop

    def attach(self, optimizer: Any, *, clip: Clip = "after") -> RemovableHandle:
        """Add the penalty's gradient whenever this optimizer steps; nothing until the first `consolidate`.

        Attaching an optimizer again changes nothing but `clip`. The handle's `remove()` detaches it. A copy of an
        optimizer has no hooks: attach it, too.

        Args:
            optimizer: torch's, or a wrapper (of accelerate, Lightning, Lookahead, sharpness-aware ones) of that which
                steps.
            clip: where the penalty stands to a clipping of gradients. after: it is added when the optimizer steps, and
                is not clipped. before: it is clipped with the loss, as if it were a part of it; the training loop calls
                `add_gradients` between unscaling and clipping, once a step.

        Raises:
            ValueError: if the optimizer holds no parameter of the model, or it cannot be known which one steps; where
                what is held can no longer be: a parameter that was replaced since, or has another shape or type.
        """
        _check_types(self.model)
        self._present()
        attachment, optimizer = self._loop.attach(optimizer, clip, self._make_hook(), self._ids())
        self._check(optimizer)
        if self._loop.since is None:  # of a copy
            self._note_weights()
        return attachment.handle

    def add_gradients(self, optimizer: Any) -> None:
        """Add the penalty's gradient now, to an optimizer that was attached with `clip="before"`.

        Once a step, when all of its gradients are there and are unscaled, and before they are clipped. In a step that a
        GradScaler leaves out, too. The optimizer's step then adds nothing more.

        Raises:
            ValueError: if the optimizer is not attached so; if the penalty is in these gradients already.
        """
        optimizer = self._loop.stepping(optimizer, self._ids())
        attachment = self._loop.adds_itself(optimizer)
        if attachment is None:
            raise ValueError("add_gradients is for an optimizer that was attached with clip='before'")
        attachment.refuse_to_add_again()
        self._loop.note_step(optimizer)
        attachment.added = added_to(self._pull(optimizer, first=True))

    @contextmanager
    def protect(self) -> Iterator[Guard]:
        """Protect in every optimizer that steps inside the `with` block, for frameworks that build their own.

        Warns at the end of the block if there was something to protect but no optimizer stepped on it.
        """
        loop = self._loop
        if loop.protecting:  # within another `protect()` of this guard: once is enough
            yield self
            return
        self._present()
        num_steps_before, has_something = loop.num_protected_steps, bool(self.strength) and self.holds
        add_penalty = self._make_hook()

        def before_step(optimizer: Optimizer, args: tuple, kwargs: dict):
            own = loop.is_attached(optimizer)  # its own hook adds the penalty
            return None if own else add_penalty(optimizer, args, kwargs)

        handle = register_optimizer_step_pre_hook(before_step)
        loop.protecting = True
        try:
            yield self
        finally:
            loop.protecting = False
            handle.remove()
        if has_something and loop.num_protected_steps == num_steps_before:
            warnings.warn("no optimizer stepped on the protected model inside protect()", stacklevel=3)

    def value(self) -> Tensor:
        """The penalty now: a differentiable scalar."""
        raise NotImplementedError

    # --- after a task

    def settle(self) -> None:
        """At the end of a task's training: bring back weights that went further than they may. Nothing by default."""

    def consolidate(self, batches: Iterable[Any]) -> Params:
        """Measure what was just learned, add it to what is held, and re-anchor.

        Args:
            batches: unlabelled data (labels are ignored): an iterable of tensors, (inputs, ...) tuples or dicts.

        Returns:
            The importance of this task alone, by canonical name.
        """
        raise NotImplementedError

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        """Hold what these data need, too, as the model is now: `weight` of a task, before the next one is learned.

        Returns:
            Their importance, by canonical name.
        """
        raise NotImplementedError

    def coverage(self) -> Coverage:
        """What the penalty holds of the model as it is now, and what it leaves free."""
        raise NotImplementedError

    # --- on disk

    def state_dict(self) -> Params:
        """All that is held, as tensors by name; empty before the first `consolidate`."""
        raise NotImplementedError

    def load_state_dict(self, state: Params) -> None:
        """Take over a state that `state_dict` gave, for the present model.

        Raises:
            ValueError: if the state has parameters that the model lacks, or has in other shapes; all names that do not
                match are listed. Parameters that only the model has are not held, as `coverage` says.
        """
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write state and settings to one safetensors file (settings as JSON in its header)."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `protection.safetensors` into a model's folder, where its own `save_pretrained` writes its weights.

        Raises:
            ValueError: if there is a file in the folder's place.
        """
        self.save(file_to_write(folder))

    # --- at an optimizer's step

    def _present(self) -> Collection[Any]:
        """What is held and is still in the model, which may have replaced a part by another (a new head).

        Raises:
            ValueError: for a parameter that was replaced in its place, or has another shape.
        """
        raise NotImplementedError

    def _held_names(self) -> tuple[set[str], set[str]]:
        """Names of the model's parameters that are held, and of those that were and are no more."""
        raise NotImplementedError

    def _pull(self, optimizer: Optimizer, *, first: bool) -> list[nn.Parameter]:
        if not self.strength or not self.holds:
            return []
        if self._loop.checked.get(optimizer) != contents(optimizer):
            self._check(optimizer)
        if self._loop.meets_what_was_loaded():
            warn_of_unlike(type(self).__name__, self.state_dict(), named_parameters(self.model))
        pulled = self._add_gradients(optimizer, first=first)
        self._loop.num_protected_steps += first and bool(pulled)
        return pulled

    def _add_gradients(self, optimizer: Optimizer, *, first: bool = True) -> list[nn.Parameter]:
        """Add the penalty's gradient to those of this optimizer's parameters; which of them are held.

        Args:
            first: for the first time in a step; a closure may be called several times.
        """
        raise NotImplementedError

    def _make_hook(self) -> StepHook:
        def add(optimizer: Optimizer, first: bool) -> list[nn.Parameter]:
            self._loop.note_step(optimizer)
            attachment = self._loop.adds_itself(optimizer)
            return self._pull(optimizer, first=first) if attachment is None else attachment.take(optimizer)

        return make_step_hook(add, self.value)

    def _ids(self) -> set[int]:
        return {id(parameter) for parameter in named_parameters(self.model).values()}

    # --- what is not held is told

    def takes_part(self, optimizer: Any) -> bool:
        """Whether an optimizer is attached, or was until it was detached by hand, or steps within `protect()`."""
        return self._loop.protecting or optimizer in self._loop.attached

    def watch(self, optimizer: Optimizer) -> None:
        """After a step in which no guard takes part: warn of it, if it moved weights that are held."""
        loop = self._loop
        if self.strength and self.holds and not loop.valued and optimizer not in loop.checked:
            loop.checked[optimizer] = contents(optimizer)
            if parameters_of(optimizer, self._ids()):
                warn_of_no_hook(optimizer, named_parameters(self.model), type(self).__name__, self._held_names)

    def _check(self, optimizer: Optimizer) -> None:
        """Tell what of an optimizer's weights is not held; an error if nothing is."""
        self._loop.checked[optimizer] = contents(optimizer)
        if not self.strength or not self.holds:
            return
        check_steps(optimizer)
        _check_types(self.model)
        model, (held, lost) = named_parameters(self.model), self._held_names()
        of = HeldNames(type(self).__name__, held, lost, self._left_out)
        tell_what_is_not_held(optimizer, model, of, self._loop.told)

    def _check_before_measuring(self) -> None:
        """Before a task is measured: tell where its training was not protected, or what is held no more."""
        self._loop.check_mode()
        warn_of_measuring_alone(self.model)
        if not self.strength or not self.holds:
            return
        if not (lost := self._held_names()[1]) <= self._loop.told:
            warn_of_lost(type(self).__name__, lost)

    def _warn_if_unprotected(self) -> None:
        told, since = self._loop.warn_if_idle(self._ids()), self._loop.since
        if told or since is None or self._loop.valued or not self.strength or not self.holds:
            return
        before, steps = since
        if steps == self._loop.num_protected_steps and differ(before, self._weights()):
            warnings.warn(
                f"weights that this {type(self).__name__} holds have changed since it was measured, and no step of an "
                "optimizer was protected: attach(optimizer) before training, or add value() to the loss",
                stacklevel=3,
            )

    def _note_measured(self, *, left_out: bool) -> None:
        """After it was measured, or loaded.

        Args:
            left_out: what is trained now and is not held is so on purpose.
        """
        held, trained = self._held_names()[0], trainable(self.model).keys()
        self._left_out = frozenset(trained - held if left_out else ())
        self._loop.note_measured(loaded=not left_out)
        self._note_weights()

    def _note_weights(self) -> None:
        self._loop.since = self._weights(), self._loop.num_protected_steps

    def _weights(self) -> list[Tensor]:
        model = named_parameters(self.model)
        return sums(model[name] for name in sorted(self._held_names()[0]))


def _check_types(model: nn.Module) -> None:
    parameters = trainable(model)
    refuse_complex(parameters)
    half = [name for name, p in parameters.items() if p.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise ValueError(
            f"weights in half precision cannot be protected ({half[0]}): keep them in float32 and "
            "train under torch.autocast"
        )


def check_penalty(strength: float, decay: float) -> None:
    """Raise a ValueError for a strength that is negative or not finite, or a decay outside [0, 1]."""
    if not 0 <= strength <= torch.finfo(torch.float64).max:  # a file may hold an integer that is no float
        raise ValueError(f"strength must be >= 0 and finite, got {strength}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
