"""What several processes know together."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from processes import run_in_processes

from tripletmas.basics import distributed


def own_tensors(rank: int) -> dict[str, torch.Tensor]:
    """Sums of w over n ranks: float 0 + 1 + .. + (n-1) in each place, of counts n."""
    return {
        "w": torch.full((2, 3), float(rank)),
        "turned": torch.arange(6.0).reshape(2, 3).t() + rank,
        "count": torch.tensor(1),
        "exact": torch.tensor(0.1, dtype=torch.float64),
        "none": torch.zeros(0, 3),
    }


def everything():
    rank = distributed.rank()
    mine = own_tensors(rank)
    with distributed.alone():
        by_itself = (distributed.world_size(), distributed.rank(), distributed.sum_over_ranks(mine)["w"])
    return {
        "who": (rank, distributed.world_size(), distributed.is_on(), distributed.is_main()),
        "alone": by_itself,
        "sums": distributed.sum_over_ranks(mine),
        "given": mine,
        "numbers": distributed.sum_numbers(samples=rank + 1, length=0.5),
        "rows": distributed.gather_rows(torch.full((rank, 2), float(rank))),
        "objects": distributed.gather_objects({"rank": rank}),
        "told": distributed.broadcast_object(f"from {rank}", source=distributed.world_size() - 1),
        "copied": distributed.broadcast_tensor(torch.tensor([rank, 7]).t()),
        "waited": distributed.barrier(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
def test_all_ranks_know_the_same(n):
    answers = run_in_processes(everything, n)
    for rank, found in enumerate(answers):
        assert found["who"] == (rank, n, n > 1, rank == 0)
        assert found["alone"][:2] == (1, 0)
        assert torch.equal(found["alone"][2], torch.full((2, 3), float(rank)))
        total = sum(range(n))
        assert torch.equal(found["sums"]["w"], torch.full((2, 3), float(total)))
        assert torch.equal(found["sums"]["turned"], torch.arange(6.0).reshape(2, 3).t() * n + total)
        assert found["sums"]["count"] == n
        assert found["sums"]["exact"].dtype == torch.float64
        assert found["sums"]["none"].shape == (0, 3)
        assert list(found["sums"]) == list(found["given"])
        assert torch.equal(found["given"]["w"], own_tensors(rank)["w"])  # untouched
        assert found["numbers"] == {"samples": sum(range(n + 1)), "length": 0.5 * n}
        # rank r gave r rows of r
        assert found["rows"].tolist() == [[float(r)] * 2 for r in range(n) for _ in range(r)]
        assert found["objects"] == [{"rank": r} for r in range(n)]
        assert found["told"] == f"from {n - 1}"
        assert found["copied"].tolist() == [0, 7]


def random_sums():
    generator = torch.Generator().manual_seed(distributed.rank())
    mine = {f"t{size}": torch.randn(size, generator=generator) for size in (1, 7, 1000, 65_537)}
    portions = distributed._AT_ONCE
    distributed._AT_ONCE = 1000  # several portions
    found = distributed.sum_over_ranks(mine)
    distributed._AT_ONCE = portions
    return found


@pytest.mark.slow
def test_sums_are_the_same_to_the_bit_on_all_ranks():
    first, *others = run_in_processes(random_sums, 3)
    for name, value in first.items():
        assert all(torch.equal(value, other[name]) for other in others)
    generators = [torch.Generator().manual_seed(rank) for rank in range(3)]
    for size in (1, 7, 1000, 65_537):
        expected = torch.stack([torch.randn(size, generator=each) for each in generators]).double().sum(0)
        torch.testing.assert_close(first[f"t{size}"].double(), expected, rtol=1e-6, atol=1e-6)


def failing(where: list[int]):
    outcome = []
    for number in where:
        try:
            with distributed.together("measuring"):
                if distributed.rank() == number:
                    raise LookupError("no such file")
        except Exception as error:
            outcome.append((type(error).__name__, str(error)))
        else:
            outcome.append(None)
    try:
        distributed.check_same("the strength", distributed.rank() // 2)
    except ValueError as error:
        outcome.append(str(error))
    return outcome


@pytest.mark.slow
def test_a_failure_on_one_rank_is_one_on_all():
    answers = run_in_processes(failing, 3, [1, 5])
    told = ("ValueError", "measuring failed on rank 1 of 3: no such file")
    other = "the strength must be the same on all ranks: rank 0 has 0, rank 2 1"
    assert answers == [[told, None, other], [("LookupError", "no such file"), None, other], [told, None, other]]


def test_in_one_process_everything_is_what_was_given():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert not distributed.has_group()
    assert not distributed.is_on()
    mine = own_tensors(3)
    assert all(distributed.sum_over_ranks(mine)[name] is value for name, value in mine.items())
    assert distributed.sum_numbers(samples=3) == {"samples": 3}
    assert distributed.gather_rows(mine["w"]) is mine["w"]
    assert distributed.gather_objects(5) == [5]
    assert distributed.broadcast_object(5, source=0) == 5
    assert distributed.broadcast_tensor(mine["w"]) is mine["w"]
    distributed.barrier()
    distributed.check_same("it", object())
    with pytest.raises(LookupError), distributed.together("it"):
        raise LookupError


@pytest.mark.slow
def test_it_costs_no_import_that_torch_has_not_made():
    code = (
        "import torch, tripletmas, sys; before = set(sys.modules); import tripletmas.basics.distributed as d; d.rank();"
        "print(sorted(m for m in set(sys.modules) - before if not m.startswith('tripletmas')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
