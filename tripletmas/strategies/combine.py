"""Combine: several strategies at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import Params
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.anchors import Anchors
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.frozen import Frozen


class Combine(Strategy):
    """Strategies that act together: what they add to the loss is summed, and each moment comes to each in order.

    Stores and costs what its parts do.

    Args:
        parts: strategies by name; the names stand before those of their state.
        searched: the part whose strength `set_strength` sets; None for none.

    Raises:
        ValueError: for one strategy under two names, for `Frozen` with another, for two that define the training data,
            two that deploy another model than the one that is trained, or such a one with `Anchors`.
    """

    def __init__(self, parts: Mapping[str, Strategy], *, searched: str | None = None):
        if not parts:
            raise ValueError("Combine needs at least one strategy, by name: Combine({'mas': MAS(), ...})")
        if len({id(part) for part in parts.values()}) < len(parts):
            raise ValueError(f"the same strategy object is in {list(parts)} twice: make one for each name")
        if searched is not None and searched not in parts:
            raise ValueError(f"searched must be one of {list(parts)}, got {searched!r}")
        frozen = [name for name, part in parts.items() if isinstance(part, Frozen)]
        if frozen and len(parts) > 1:
            raise ValueError(f"{frozen[0]!r} combines with nothing: its model stands still")
        self.parts = dict(parts)
        self.searched = searched
        self.freezes_batchnorm = any(part.freezes_batchnorm for part in parts.values())
        self.compensate = _map_of(parts.values())
        self._data = _only([n for n, part in parts.items() if _defines_data(part)], "define the training data")
        self._deploys = _only([n for n, part in parts.items() if _deploys(part)], "deploy a model of their own")
        anchors = [name for name, part in parts.items() if isinstance(part, Anchors)]
        if anchors and self._deploys:
            raise ValueError(
                f"{anchors[0]!r} and {self._deploys!r} cannot be combined: the one keeps vectors of the model that is "
                "trained, an index has those of the model that the other deploys"
            )

    def check(self, model: nn.Module, batch: Any) -> None:
        for part in self.parts.values():
            part.check(model, batch)

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        for part in self.parts.values():
            part.prepare(model, objective, stream)
        self.protections = tuple(protection for part in self.parts.values() for protection in part.protections)

    def training_data(self, task: Task, earlier: Sequence[Task]) -> LabelledDataset | None:
        return self.parts[self._data].training_data(task, earlier) if self._data else task.train

    def before_task(self, model: nn.Module, task: Task, optimizer: Optimizer) -> None:
        for part in self.parts.values():
            part.before_task(model, task, optimizer)

    def loss(self, model: nn.Module, inputs: Tensor, embeddings: Tensor) -> Tensor | None:
        terms = [part.loss(model, inputs, embeddings) for part in self.parts.values()]
        present = [term for term in terms if term is not None]
        return sum(present[1:], start=present[0]) if present else None

    def after_step(self, model: nn.Module) -> None:
        for part in self.parts.values():
            part.after_step(model)

    def after_task(self, model: nn.Module, task: Task) -> None:
        for part in self.parts.values():
            part.after_task(model, task)

    def kept_pairs(self) -> tuple[Tensor, Tensor] | None:
        found = [pairs for part in self.parts.values() if (pairs := part.kept_pairs()) is not None]
        if not found:
            return None
        before, after = zip(*found, strict=True)
        return torch.cat(before), torch.cat(after)

    def add_unlabelled(self, batches: Iterable[Any], *, weight: float = 1.0) -> Params:
        protecting = [name for name, part in self.parts.items() if part.protections]
        if len(protecting) != 1:
            raise ValueError(
                f"importance is measured for one protecting strategy, not for {listed(protecting) or 'none'}"
            )
        return self.parts[protecting[0]].add_unlabelled(batches, weight=weight)

    def deployed(self, model: nn.Module) -> nn.Module:
        return self.parts[self._deploys].deployed(model) if self._deploys else model

    def set_strength(self, strength: float) -> None:
        if self.searched is None:
            raise ValueError(
                f"whose strength of {list(self.parts)}? Name it: Combine(..., searched='{next(iter(self.parts))}')"
            )
        self.parts[self.searched].set_strength(strength)

    def state_dict(self) -> Params:
        return {f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.state_dict().items()}

    def load_state_dict(self, state: Params) -> None:
        for name, part in self.parts.items():
            own = f"{name}/"
            part.load_state_dict({key.removeprefix(own): v for key, v in state.items() if key.startswith(own)})


def _defines_data(part: Strategy) -> bool:
    return type(part).training_data is not Strategy.training_data


def _deploys(part: Strategy) -> bool:
    return type(part).deployed is not Strategy.deployed


def _map_of(parts: Iterable[Strategy]) -> Literal["linear"] | None:
    """The map that moves stored vectors; none where a part holds them."""
    return Strategy.compensate if all(part.compensate for part in parts) else None


def _only(names: Sequence[str], what: str) -> str | None:
    if len(names) > 1:
        raise ValueError(f"{' and '.join(map(repr, names))} cannot be combined: they both {what}")
    return names[0] if names else None
