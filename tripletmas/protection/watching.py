"""Seeing every optimizer that steps: also one that nobody attached, such as a copy, or that of the next task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tripletmas.protection.optimizers import all_inside


class Watcher(Protocol):
    """What looks at each step of any optimizer."""

    def takes_part(self, optimizer: Any) -> bool:
        """Whether it belongs to this step."""
        ...

    def watch(self, optimizer: Optimizer) -> None:
        """A step to which no watcher belongs."""
        ...


_WATCHERS: WeakSet[Watcher] = WeakSet()
_hook: list[Callable[..., None]] = []


def watch_all_steps(watcher: Watcher) -> None:
    """From now on call `watcher.watch(optimizer)` after each step of an optimizer to which no watcher belongs.

    After it, since only then it is known what its closure did; as long as the watcher lives. There is one hook of
    torch's for all watchers, which stays: removed while optimizers step, it would disturb them.
    """
    if not _hook:
        _hook.append(_after_step)
        register_optimizer_step_post_hook(_after_step)
    _WATCHERS.add(watcher)


def _after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    watchers = list(_WATCHERS)
    if any(each.takes_part(optimizer) for each in watchers):
        return
    inside = all_inside(optimizer)
    if not any(each.takes_part(one) for each in watchers for one in inside):
        for each in watchers:
            each.watch(optimizer)
