"""IMM and MagMax: let training go on freely, and deploy a merger of the models at the ends of all tasks."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, load_state, snapshot, state_of, trainable, unwrap
from tripletmas.data.tasks import Stream, Task
from tripletmas.objectives.objective import Objective
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.fisher_of_task import fisher_of_task


class IMM(Strategy):
    """Incremental Moment Matching: train each task from the last one's own weights, deploy a merger of all.

    mean: (1/T) sum_t theta_t. mode: sum_t F_t theta_t / sum_t F_t with F_t the Fisher information of task t; a weight
    about which no task says anything gets the mean. magmax: of each weight the value that is farthest from the one with
    which the run began; it is for pretrained models. Buffers (statistics of batch norm) are averaged, integer ones are
    those of the last task. After one task the model itself is deployed.
    Stores one copy of weights and buffers, for mode and magmax a second one of the trainable weights, whatever the
    number of tasks; the mode costs the estimate of a Fisher information after each task. Nothing holds the weights
    together while they are trained, and without that a merger may be worse than its parts: `imm+l2` with
    `--strategy.l2.decay 0` is the paper's L2 transfer. So there is no strength to set. In recognition heads are not
    merged: each was trained on the model of its own task, and is used on the merged one.

    Args:
        merging: mean; mode, which weighs each weight of each task by its Fisher information; or magmax.

    Source: Lee et al., Overcoming Catastrophic Forgetting by Incremental Moment Matching, NeurIPS 2017, with all tasks
    weighed the same; Marczak et al., MagMax, ECCV 2024, without its scaling factor.
    """

    def __init__(self, *, merging: Literal["mean", "mode", "magmax"] = "mean"):
        if merging not in ("mean", "mode", "magmax"):
            raise ValueError(f"merging must be 'mean', 'mode' or 'magmax', got {merging!r}")
        self.merging = merging
        self.num_tasks = 0
        self._merged: Params = {}
        self._fisher: Params = {}
        self._start: Params = {}
        self._objective: Objective | None = None
        self._deployed: nn.Module | None = None

    def prepare(self, model: nn.Module, objective: Objective, stream: Stream) -> None:
        self.num_tasks, self._merged, self._fisher, self._objective, self._deployed = 0, {}, {}, objective, None
        self._start = snapshot(trainable(model)) if self.merging == "magmax" else {}

    def after_task(self, model: nn.Module, task: Task) -> None:
        if self._objective is None:
            raise RuntimeError("call strategy.prepare(model, objective, stream) first")
        fisher = fisher_of_task(model, task, self._objective) if self.merging == "mode" else {}
        state = snapshot(state_of(model))
        merged = {name: value.to(state[name].device) for name, value in self._merged.items()} or state
        total = {name: self._fisher.get(name, torch.zeros_like(new)).to(new.device) for name, new in fisher.items()}
        self.num_tasks += 1
        for name, value in state.items():
            if not value.is_floating_point():
                merged[name] = value
                continue
            if name in self._start:
                merged[name] = farthest(merged[name], value, self._start[name].to(value.device))
                continue
            share = torch.full_like(value, 1 / self.num_tasks)
            if name in fisher:
                total[name] = total[name] + fisher[name]
                share = torch.where(total[name] > 0, fisher[name] / total[name], share)
            merged[name] = merged_with(merged[name], value, share)
        self._merged, self._fisher, self._deployed = merged, total, None

    def deployed(self, model: nn.Module) -> nn.Module:
        if self.num_tasks < 2:
            return model
        if self._deployed is None:
            self._deployed = copy.deepcopy(unwrap(model))
            load_state(self._deployed, self._merged, "the merged model")
        return self._deployed

    def state_dict(self) -> Params:
        merged = {f"merged/{name}": value for name, value in self._merged.items()}
        fisher = {f"fisher/{name}": value for name, value in self._fisher.items()}
        start = {f"start/{name}": value for name, value in self._start.items()}
        return {"num_tasks": torch.tensor(self.num_tasks)} | merged | fisher | start

    def load_state_dict(self, state: Params) -> None:
        self.num_tasks, self._deployed = int(state["num_tasks"]), None
        self._merged, self._fisher, self._start = (
            {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
            for part in ("merged/", "fisher/", "start/")
        )


def merged_with(merged: Tensor, value: Tensor, share: Tensor) -> Tensor:
    """merged + share * (value - merged): a running weighted mean, `share` being the new value's part of all weight."""
    return merged + share * (value - merged)


def farthest(merged: Tensor, value: Tensor, start: Tensor) -> Tensor:
    """Of each entry the one of the two that is farther from the start; of equally far ones the earlier."""
    return torch.where((value - start).abs() > (merged - start).abs(), value, merged)
