"""Teacher: the model as it was at the end of the previous task, for strategies that keep to what it said."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, device_of, load_state, state_of, unwrap


class Teacher:
    """A frozen copy of the model, in eval mode, and of the heads of the tasks learned so far, if there are any.

    It reads in full precision, also where the model is trained under autocast.

    Attributes:
        num_tasks: how many tasks the copy has learned; 0 before the first copy.

    Args:
        model: the one that is trained; a copy is made on the device where it then is.
        heads: of the objective, one a task, which are copied with it; None for none.
    """

    def __init__(self, model: nn.Module, heads: nn.ModuleList | None = None):
        self.num_tasks = 0
        self._trained = model
        self._trained_heads = nn.ModuleList() if heads is None else heads
        self._model: nn.Module | None = None
        self._heads: Sequence[nn.Module] = ()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self._trained)

    def follow(self) -> None:
        """At the end of a task: from now on say what the model says now."""
        self._copy(self.num_tasks + 1)

    @torch.no_grad()
    def embeddings(self, inputs: Tensor) -> Tensor:
        """The embeddings (n, dim) of these samples, without gradient."""
        assert self._model is not None
        return self._model(inputs.clone()).float()  # it may change them, and is not the only one that reads them

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> list[Tensor]:
        """What the copied heads say of the teacher's embeddings: (n, c) for each task learned, without gradient."""
        return [head(embeddings) for head in self._heads]

    def state_dict(self) -> Params:
        """Weights and buffers by `teacher/NAME`, heads by `heads/NUMBER/NAME`, and `num_tasks`."""
        state = {"num_tasks": torch.tensor(self.num_tasks)}
        for prefix, module in self._modules().items():
            state |= {prefix + name: value for name, value in state_of(module).items()}
        return state

    def load_state_dict(self, state: Params) -> None:
        """Take over a state that `state_dict` gave, for the present model; other keys are not looked at."""
        self._copy(int(state["num_tasks"]))
        for prefix, module in self._modules().items():
            part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            load_state(module, part, "the saved teacher")

    def _copy(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self._model = _frozen(unwrap(self._trained)) if num_tasks else None
        self._heads = [_frozen(head) for head in self._trained_heads[:num_tasks]]

    def _modules(self) -> dict[str, nn.Module]:
        heads = {f"heads/{number}/": head for number, head in enumerate(self._heads)}
        return ({"teacher/": self._model} if self._model else {}) | heads


def _frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval()
