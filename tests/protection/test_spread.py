"""A model whose weights are spread over processes (`fully_shard`) is measured and held as one process holds it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_in_processes
from replicated import identical, make_data, make_net, shared
from torch import Tensor, nn

from tripletmas.basics import distributed
from tripletmas.basics.weights import named_parameters
from tripletmas.protection.importance.accumulator import ImportanceAccumulator
from tripletmas.protection.importance.fisher import fisher_importance
from tripletmas.protection.protection import MAS, LocalMAS, Protection


def spread_out(model: nn.Module, shape: tuple[int, ...] | None = None) -> nn.Module:
    """Layers by themselves and the rest with the whole, as the documentation of torch has it.

    Args:
        shape: of the mesh; of one with two dimensions (HSDP) the rows of it are replicas of each other.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shape = shape or (distributed.world_size(),)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    fully_shard(model.convolve, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def together(values: Any) -> dict[str, Tensor]:
    return {name: distributed.whole(value.detach()).clone() for name, value in values.items()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, data: Tensor) -> None:
    optimizer.zero_grad()
    own = data[distributed.rank() :: distributed.world_size()]
    (model(own) - 1).square().mean().backward()
    optimizer.step()


def held(folder: str, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Two tasks, the second learned under protection, saved between them; all that can be compared."""
    several = distributed.is_on()
    model = make_net()
    if several:
        spread_out(model, shape)
    with torch.no_grad():
        model(torch.ones(2, 1, 4, 4).double())  # after this the root has whole parameters, under other identities
    protection = MAS(model, strength=3.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    protection.attach(optimizer)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    kinds = [distributed.is_spread(each) for each in model.parameters()]
    found: dict[str, Any] = {"measured": together(protection.consolidate(shared(make_data(13))))}
    assert [distributed.is_spread(each) for each in model.parameters()] == kinds == [several] * len(kinds)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    for each in (*protection.importance.values(), *protection.reference.values()):
        assert distributed.is_spread(each) == several
    found["fisher"] = together(fisher_importance(model, shared(make_data(13))))
    protection.save(Path(folder, f"spread{several}"))
    found["as saved"] = together(protection.state_dict())

    model.eval()
    data = torch.randn(36, 1, 4, 4, generator=torch.Generator().manual_seed(7)).double() + 1
    for _ in range(5):
        step(model, optimizer, data)
    found["value"] = {"": protection.value().detach()}
    found["weights"] = together(named_parameters(model))
    found["held"] = {"": torch.tensor(protection.coverage().num_held)}

    again = Protection.load(Path(folder, f"spread{several}"), model)
    found["loaded"] = together(again.state_dict())
    found["after loading"] = {"": again.value().detach()}
    protection.consolidate(shared(make_data(9)))
    found["summed"] = together(protection.state_dict())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2,), (3,), (2, 2)])  # the convolution has 3 rows, the scale 4: uneven parts
def test_a_model_under_fully_shard_is_held_as_one_process_holds_it(shape, tmp_path):
    expected = held(str(tmp_path))
    first, *others = run_in_processes(held, math.prod(shape), str(tmp_path), shape)
    assert all(identical(first, other) for other in others)
    assert identical(first["loaded"], first["as saved"])
    assert torch.equal(first["after loading"][""], first["value"][""])
    for part, values in expected.items():
        for name, value in values.items():
            torch.testing.assert_close(first[part][name], value, rtol=1e-9, atol=1e-12, msg=lambda m, p=part: p + m)
    # a plain model reads what a spread one has written, and the other way round
    plain = make_net()
    read = Protection.load(tmp_path / "spreadTrue", plain)
    assert identical(read.state_dict(), first["as saved"])


def pulled_without_gradient() -> tuple[Tensor, int]:
    """A weight that the loss does not know: where it is pulled back it has a gradient, and all of it decays."""
    model = make_net()
    model.unused = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    if distributed.is_on():
        spread_out(model)
    protection = MAS(model)
    protection.add({"unused": torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    protection.attach(optimizer)
    step(model, optimizer, torch.ones(4, 1, 4, 4).double())  # nothing pulls yet, so nothing decays either
    with torch.no_grad():
        named_parameters(model)["unused"].mul_(2)
    step(model, optimizer, torch.ones(4, 1, 4, 4).double())
    return distributed.whole(named_parameters(model)["unused"].detach()), protection.coverage().num_held


@pytest.mark.slow
def test_a_weight_without_gradient_is_pulled_on_all_ranks_or_none():
    # 0.99 of (2, 4, 6, 8) by decay; the first is pulled by 2 * 0.3 * 1 * (2 - 1) at rate 0.1
    expected = torch.tensor([0.99 * 2 - 0.06, 0.99 * 4, 0.99 * 6, 0.99 * 8], dtype=torch.float64)
    for found, num_held in (pulled_without_gradient(), *run_in_processes(pulled_without_gradient, 2)):
        torch.testing.assert_close(found, expected)
        assert num_held == 1


def read_plain(path: str) -> dict[str, Tensor]:
    return together(Protection.load(path, spread_out(make_net())).state_dict())


@pytest.mark.slow
def test_what_a_plain_model_has_written_is_spread(tmp_path):
    protection = MAS(make_net())
    protection.consolidate(shared(make_data(5)))
    protection.save(tmp_path / "plain")
    for found in run_in_processes(read_plain, 2, str(tmp_path / "plain")):
        assert identical(found, protection.state_dict())


def told_of_others(folder: str) -> str:
    """What is said of a model whose weights have all moved since its protection was saved."""
    model = spread_out(make_net())
    protection = MAS(model)
    protection.consolidate(shared(make_data(5)))
    protection.save_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    with pytest.warns(UserWarning, match="are not those that the model has") as said:
        Protection.from_pretrained(folder, model)
    return str(said.pop().message)


@pytest.mark.slow
def test_a_share_of_other_weights_is_one_of_all(tmp_path):
    first, second = run_in_processes(told_of_others, 2, str(tmp_path))
    assert first == second
    assert "100.00% of the weights" in first


def refused() -> list[str]:
    """What is said of a spread model that cannot be measured, and of one on a device without values."""
    model, messages = spread_out(make_net()), []
    for measure in (
        lambda: ImportanceAccumulator(model),
        lambda: measured_alone(model),
        lambda: MAS(model).consolidate([torch.full((2, 1, 4, 4), torch.nan if distributed.rank() else 1.0).double()]),
        lambda: LocalMAS(model).consolidate([torch.ones(2, 1, 4, 4).double()]),
        lambda: MAS(make_net().to("meta")).consolidate([torch.ones(2, 1, 4, 4)]),
        lambda: measured_without_group(model),
    ):
        try:
            measure()
        except ValueError as error:
            messages.append(str(error))
    return messages


def measured_alone(model: nn.Module) -> None:
    with distributed.alone():
        MAS(model).consolidate([torch.ones(2, 1, 4, 4).double()])


def measured_without_group(model: nn.Module) -> None:
    distributed.barrier()
    torch.distributed.destroy_process_group()
    MAS(model).consolidate([torch.ones(2, 1, 4, 4).double()])


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused_on_all_ranks():
    for said in run_in_processes(refused, 2):
        assert "not finite" in said.pop(2)
        for sentence, start in zip(
            said,
            (
                "scale is spread over processes (fully_shard): mas_importance",
                "scale is spread over processes: all of them measure it, outside tripletmas.alone()",
                "local importance is known for linear and convolution layers",
                "scale is on the meta device and has no values",
                "the model is one of several processes, and their process group is gone",
            ),
            strict=True,
        ):
            assert sentence.startswith(start)
