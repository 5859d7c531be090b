"""Attaching a guard to an optimizer of weights that are spread over processes (`fully_shard`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from processes import run_in_processes
from torch import Tensor, nn

from tripletmas.basics import distributed
from tripletmas.basics.weights import named_parameters
from tripletmas.protection.protection import MAS

Said = list[str | None]


def make_net(rows: int) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, rows), nn.Tanh(), nn.Linear(rows, 4)).double()
    if distributed.is_on():
        from torch.distributed.fsdp import fully_shard

        fully_shard(net[0])
        fully_shard(net)
    return net


def own(seed: int) -> Tensor:
    data = torch.randn(12, 6, generator=torch.Generator().manual_seed(seed)).double()
    return data[distributed.rank() :: distributed.world_size()]


def held(rows: int) -> tuple[nn.Module, MAS]:
    """A net that is held, and has moved since."""
    net = make_net(rows)
    protection = MAS(net, 3.0)
    protection.consolidate([own(1)])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01)
    return net, protection


def refusal(act: Callable[[], object]) -> str | None:
    try:
        act()
    except ValueError as error:
        return str(error)
    return None


def whole(net: nn.Module) -> dict[str, Tensor]:
    return {name: distributed.whole(value.detach()).clone() for name, value in named_parameters(net).items()}


def in_each_process() -> tuple[Said, dict[str, Tensor], str | None]:
    return (told_of_adding_again(), *by_lbfgs())


@pytest.mark.slow
def test_two_processes_are_told_and_step_as_one_is():
    """What was done to gradients since the penalty was added is seen: a backward pass adds to this process's part of
    them, other things to the whole. LBFGS makes one vector of weights: 6 and 4 rows are even over 2 processes, 5 not.
    """
    (twice, *others), weights, refused = in_each_process()
    assert twice == "the penalty is in these gradients already: call add_gradients once a step"
    assert others == [None] * 2
    assert refused is None
    for said, found, refused in run_in_processes(in_each_process, 2):
        assert said == [twice, *others]
        assert refused is not None
        assert refused.startswith(
            "LBFGS makes one vector of all weights, and torch makes none of those that are spread"
        )
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def told_of_adding_again() -> Said:
    net, protection = held(5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    protection.attach(optimizer, clip="before")

    def backward() -> None:
        net(own(2)).square().mean().backward()

    def left_out() -> None:
        """A step that is left out, whose gradients stay where they are."""
        optimizer.zero_grad(set_to_none=False)
        backward()

    backward()
    protection.add_gradients(optimizer)
    said = [refusal(lambda: protection.add_gradients(optimizer))]
    for since in (left_out, backward):
        since()
        said.append(refusal(lambda: protection.add_gradients(optimizer)))
    optimizer.step()
    return said


def by_lbfgs() -> tuple[dict[str, Tensor], str | None]:
    net, protection = held(6)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4)
    protection.attach(optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(own(2)) - 1).square().mean()
        loss.backward()
        return distributed.sum_over_ranks({"": loss.detach()})[""] / distributed.world_size()

    for _ in range(3):
        optimizer.step(closure)  # pyright: ignore[reportArgumentType, reportCallIssue]
    other, its = held(5)
    return whole(net), refusal(lambda: its.attach(torch.optim.LBFGS(other.parameters())))
