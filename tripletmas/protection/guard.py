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
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from tripletmas.basics.distributed import own_part
from tripletmas.basics.weights import Params, named_parameters, trainable
from tripletmas.protection.attachment import Attachment, Clip, added_to, check_clip
from tripletmas.protection.batches import refuse_complex
from tripletmas.protection.coverage import Coverage
from tripletmas.protection.hooks import StepHook, is_registered, make_step_hook
from tripletmas.protection.optimizers import (
    chain_of,
    check_steps,
    check_weights,
    in_train_mode,
    is_schedule_free,
    parameters_of,
    weights_beside,
)
from tripletmas.protection.penalty import Buffers
from tripletmas.protection.pretrained import file_to_write

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
        self.strength = strength
        self.decay = decay
        self.estimate = estimate
        self._enter_no_loop()

    def _enter_no_loop(self) -> None:
        self._attached: WeakKeyDictionary[Optimizer, Attachment] = WeakKeyDictionary()
        self._inside: WeakKeyDictionary[Optimizer, Optimizer] = WeakKeyDictionary()  # a wrapper -> what it steps with
        self._idle: WeakKeyDictionary[Optimizer, list[Tensor]] = WeakKeyDictionary()  # attached, and has not stepped
        self._stepped: WeakSet[Optimizer] = WeakSet()
        self._checked_rates: WeakSet[Optimizer] = WeakSet()
        self._num_protected_steps = 0
        self._protecting = False
        self._buffers: Buffers = {}

    def __getstate__(self) -> dict[str, Any]:  # of copy.copy, copy.deepcopy and pickle
        fresh: Guard = object.__new__(type(self))
        fresh._enter_no_loop()
        return {name: value for name, value in vars(self).items() if name not in vars(fresh)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._enter_no_loop()
        vars(self).update(state)

    @property
    def holds(self) -> bool:
        """Whether there is anything to hold; False before the first `consolidate`."""
        raise NotImplementedError

    @property
    def num_protected_steps(self) -> int:
        """For how many steps of optimizers the penalty was added, since this object was made."""
        return self._num_protected_steps

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
        chain = chain_of(optimizer, self._ids())
        for wrapper in chain[:-1]:
            if isinstance(wrapper, Optimizer):
                self._inside[wrapper] = chain[-1]
        optimizer = chain[-1]
        check_clip(clip, optimizer)
        check_weights(chain, clip)
        check_steps(optimizer)
        _check_types(self.model)
        self._present()
        if not self._is_attached(optimizer):
            self._attached[optimizer] = Attachment(optimizer.register_step_pre_hook(self._make_hook()), clip, chain)
            self._idle[optimizer] = _sums(self._steppable(optimizer))
        self._attached[optimizer].clip = clip
        return self._attached[optimizer].handle

    def add_gradients(self, optimizer: Any) -> None:
        """Add the penalty's gradient now, to an optimizer that was attached with `clip="before"`.

        Once a step, when all of its gradients are there and are unscaled, and before they are clipped. In a step that a
        GradScaler leaves out, too. The optimizer's step then adds nothing more.

        Raises:
            ValueError: if the optimizer is not attached so; if the penalty is in these gradients already.
        """
        if optimizer not in self._attached:
            optimizer = self._inside[optimizer] if optimizer in self._inside else chain_of(optimizer, self._ids())[-1]
        attachment = self._attached.get(optimizer)
        if attachment is None or attachment.clip != "before" or not self._is_attached(optimizer):
            raise ValueError("add_gradients is for an optimizer that was attached with clip='before'")
        attachment.refuse_to_add_again()
        attachment.added = added_to(self._pull(optimizer, first=True))

    @contextmanager
    def protect(self) -> Iterator[Guard]:
        """Protect in every optimizer that steps inside the `with` block, for frameworks that build their own.

        Warns at the end of the block if there was something to protect but no optimizer stepped on it.
        """
        if self._protecting:  # within another `protect()` of this guard: once is enough
            yield self
            return
        self._present()
        num_steps_before, has_something = self._num_protected_steps, bool(self.strength) and self.holds
        add_penalty = self._make_hook()

        def before_step(optimizer: Optimizer, args: tuple, kwargs: dict):
            own = self._is_attached(optimizer)  # its own hook adds the penalty
            return None if own else add_penalty(optimizer, args, kwargs)

        handle = register_optimizer_step_pre_hook(before_step)
        self._protecting = True
        try:
            yield self
        finally:
            self._protecting = False
            handle.remove()
        if has_something and self._num_protected_steps == num_steps_before:
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

    def _pull(self, optimizer: Optimizer, *, first: bool) -> list[nn.Parameter]:
        if not self.strength or not self.holds:
            return []
        if optimizer not in self._attached:
            check_steps(optimizer)
        pulled = self._add_gradients(optimizer, first=first)
        self._num_protected_steps += first and bool(pulled)
        return pulled

    def _add_gradients(self, optimizer: Optimizer, *, first: bool = True) -> list[nn.Parameter]:
        """Add the penalty's gradient to those of this optimizer's parameters; which of them are held.

        Args:
            first: for the first time in a step; a closure may be called several times.
        """
        raise NotImplementedError

    def _make_hook(self) -> StepHook:
        def add(optimizer: Optimizer, first: bool) -> None:
            self._idle.pop(optimizer, None)
            self._stepped.add(optimizer)
            attachment = self._attached.get(optimizer)
            if attachment is not None and attachment.clip == "before" and self._is_attached(optimizer):
                attachment.take(optimizer)
            else:
                self._pull(optimizer, first=first)

        return make_step_hook(add, self.value)

    def _is_attached(self, optimizer: Optimizer) -> bool:
        attachment = self._attached.get(optimizer)
        return attachment is not None and is_registered(attachment.handle, optimizer)

    def _ids(self) -> set[int]:
        return {id(parameter) for parameter in named_parameters(self.model).values()}

    def _steppable(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """The parameters of the model that an optimizer holds."""
        return parameters_of(optimizer, self._ids())

    def _schedule_free(self) -> list[Any]:
        """The optimizers of the package schedulefree that are attached, or have stepped within `protect`."""
        attached = [each for attachment in list(self._attached.values()) for each in attachment.schedule_free]
        return attached + [each for each in self._stepped if is_schedule_free(each) and each not in self._attached]

    def _check_mode(self) -> None:
        """Raise a ValueError where the weights are not those with which the model will answer."""
        for each in self._schedule_free():
            if in_train_mode(each):
                raise ValueError(
                    f"{type(each).__name__} is in its train mode, in which the weights are not those with which the "
                    "model answers: call its eval() before consolidate, and its train() before it goes on"
                )

    def _beside(self, parameter: nn.Parameter) -> list[Tensor]:
        """What optimizers keep of a parameter's weights, and has to move where it is moved."""
        return [weights for each in self._schedule_free() for weights in weights_beside(each, parameter)]

    def _warn_if_idle(self) -> None:
        """Warn of an attached optimizer that changed the weights without a step that hooks could see."""
        for optimizer, before in list(self._idle.items()):
            now = self._idle[optimizer] = _sums(self._steppable(optimizer))
            changed = any(float(one) != float(other) for one, other in zip(before, now, strict=False))
            if changed and self._is_attached(optimizer):
                warnings.warn(
                    f"the weights have changed since {type(optimizer).__name__} was attached, but not by its step(): "
                    "attach the optimizer that steps, or add value() to the loss",
                    stacklevel=3,
                )


def _sums(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [own_part(parameter.detach()).sum() for parameter in parameters]


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
    """Raise a ValueError for a negative strength, or a decay outside [0, 1]."""
    if not strength >= 0:
        raise ValueError(f"strength must be >= 0, got {strength}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
