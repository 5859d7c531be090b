"""One batch, or one data set, of which each of several processes has a share; with the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics.distributed import gather_rows, is_on, rank, sum_over_ranks, world_size


def shares(count: int) -> list[range]:
    """Which of `count` things in order are whose: about as many for each process, one after the other.

    >>> shares(3)
    [range(0, 3)]
    """
    ends = [count * number // world_size() for number in range(world_size() + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def share(count: int) -> range:
    """Those of `count` things in order that are this process's."""
    return shares(count)[rank()]


def gather_shares(tensor: Tensor, count: int) -> Tensor:
    """The (count, ...) of which each process gives its `share`, with the gradient: that of all of them together.

    What each process differentiates counts, as if the sum of all were differentiated. So where all compute the same
    from what is gathered, each is to take its part of it: divided by their number.
    """
    if not is_on():
        return tensor
    gathered = _Gathered.apply(tensor, count)
    assert isinstance(gathered, Tensor)
    return gathered


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, count: int) -> Tensor:
        own = shares(count)
        ctx.own = own[rank()]
        return gather_rows(tensor, [len(each) for each in own])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = sum_over_ranks({"gradient": gradients[0]})["gradient"]
        return total[ctx.own.start : ctx.own.stop], None


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give each of these the sum of its gradients in all processes; one that has none in any is left without."""
    if not is_on():
        return
    given = dict(enumerate(parameters))
    gradients = {str(n): torch.zeros_like(p) if p.grad is None else p.grad for n, p in given.items()}
    has = torch.tensor([float(p.grad is not None) for p in given.values()])
    sums = sum_over_ranks({**gradients, "has": has.to(next(iter(given.values())).device)})
    for number, found in enumerate(sums.pop("has").tolist()):
        own = given[number].grad
        if own is not None:
            own.copy_(sums[str(number)])
        elif found:
            given[number].grad = sums[str(number)]
