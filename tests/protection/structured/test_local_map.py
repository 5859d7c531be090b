"""What each of several processes has of a linear map: its part, and all parts together are the map.

One process takes the place of each in turn, in a group of torch's that sends nothing (`fake`): sums over processes are
made by the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from tripletmas.protection.structured.linear_map import LinearMap
from tripletmas.protection.structured.local_map import local_map

MAPS: dict[str, tuple[LinearMap, dict[str, tuple[int, ...]]]] = {
    "linear": (LinearMap("w", "b", "linear"), {"w": (5, 3), "b": (5,)}),
    "without a bias": (LinearMap("w", None, "linear"), {"w": (7, 3)}),
    "one of three packed ones": (LinearMap("w", "b", "linear", 1, 2, 7), {"w": (9, 3), "b": (9,)}),
    "the first of the packed ones": (LinearMap("w", "b", "linear", 1, 0, 2), {"w": (9, 3), "b": (9,)}),
    "convolution": (LinearMap("w", "b", "convolution", 2), {"w": (6, 2, 3, 3), "b": (6,)}),
    "many groups": (LinearMap("w", "b", "convolution", 5), {"w": (10, 1, 2, 2), "b": (10,)}),
    "scale": (LinearMap("w", "b", "scale", 6), {"w": (6,), "b": (6,)}),
    "table": (LinearMap("w", None, "table", 7), {"w": (7, 3)}),
    "part of a table": (LinearMap("w", None, "table", 4, 2, 6), {"w": (7, 3)}),
    "whole": (LinearMap("w", None, "whole"), {"w": (5, 2)}),
}


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(1, 99, shape, generator=torch.Generator().manual_seed(seed)).double()


@contextmanager
def as_one_of(n: int, rank: int) -> Iterator[None]:
    dist.init_process_group("fake", rank=rank, world_size=n, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def spread(value: Tensor, n: int) -> DTensor:
    """As `fully_shard` cuts it: equal parts, the last ones with fewer rows or none."""
    each = -(-len(value) // n)
    own = value[dist.get_rank() * each : (dist.get_rank() + 1) * each]
    mesh = init_device_mesh("cpu", (n,))
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=value.shape, stride=value.stride())


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("name", MAPS)
def test_the_parts_of_all_processes_are_the_map(name: str, n: int):
    each, shapes = MAPS[name]
    before, after = ({key: numbers(shape, seed) for key, shape in shapes.items()} for seed in (0, 1))
    matrices = each.matrices({key: after[key] - before[key] for key in before})
    together, of_groups = torch.zeros_like(matrices), torch.zeros_like(matrices[:, 0])
    seen: dict[str, list[Tensor]] = {key: [] for key in shapes}
    for rank in range(n):
        with as_one_of(n, rank):
            then, now = ({key: spread(value, n) for key, value in of.items()} for of in (before, after))
            here = local_map(each, then)
            own = here.part_of(matrices)
            assert own.shape == here.shape(then)
            assert torch.equal(here.change(now, then), own)
            without = {key: value for key, value in then.items() if key != "b"}  # what has no reference has not moved
            still = {**after, **({"b": before["b"]} if "b" in before else {})}
            unmoved = each.matrices({key: still[key] - before[key] for key in before})
            assert torch.equal(here.change(now, without), here.part_of(unmoved))
            for key, part in here.spread(own, then):
                assert torch.equal(part, here.rows(now[key]) - here.rows(then[key]))
                seen[key].append(part)
            together += here.whole_of(own, then)
            of_groups += here.total_of_groups(own.sum(1), len(matrices))
    assert torch.equal(together, matrices)
    assert torch.equal(of_groups, matrices.sum(1))
    for key, parts in seen.items():
        assert torch.equal(torch.cat(parts), each.rows(after[key] - before[key]))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("kind", ["linear", "transposed"])
def test_of_what_is_computed_as_a_whole_each_takes_its_rows(kind: str, n: int):
    """A bias that is not spread, or a weight whose rows are no outputs."""
    each = LinearMap("w", "b" if kind == "linear" else None, kind, 1, *((2, 7) if kind == "linear" else ()))  # pyright: ignore
    values = {"w": numbers((9, 3), 0), "b": numbers((9,), 1)}
    seen = []
    for rank in range(n):
        with as_one_of(n, rank):
            like = {"w": spread(values["w"], n), "b": values["b"]}
            here = local_map(each, like)
            assert here.like is None
            matrices = each.matrices(values)
            assert here.part_of(matrices) is here.whole_of(matrices, like) is matrices
            found = dict(here.spread(matrices, like))
            assert torch.equal(found["w"], here.rows(like["w"]))
            seen.append(found["w"])
            if kind == "linear":
                assert torch.equal(found["b"], values["b"][2:7])
    assert torch.equal(torch.cat(seen), each.rows(values["w"]))
