"""What several processes measure together of one model, each on its own samples."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_in_processes
from replicated import identical, make_data, make_net, shared
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tripletmas.basics import distributed
from tripletmas.basics.weights import Params
from tripletmas.protection.importance.accumulator import ImportanceAccumulator
from tripletmas.protection.importance.fisher import fisher_importance, squared_gradient_importance
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.protection import MAS, Protection
from tripletmas.protection.structured.gram import Gram
from tripletmas.protection.structured.gram_matrix import LowRank, square
from tripletmas.protection.structured.moments import relative_grams


def wide_grams(model: nn.Module, batches: Iterable[Any]) -> Params:
    """Of low rank, more than 1024 columns with inputs of few directions; whole, since factors may be turned."""
    (gram,) = relative_grams(model, batches).values()
    assert isinstance(gram, LowRank)
    return {"whole": square(gram)}


def estimates(dtype: torch.dtype) -> dict[str, Callable[[nn.Module, Iterable[Any]], Params]]:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype)
    spread, wide = nn.Linear(16, 1040, bias=False).to(dtype).requires_grad_(False), nn.Linear(1040, 2).to(dtype)

    def run_up(model: nn.Module, batches: Iterable[Any]) -> Params:
        running = ImportanceAccumulator(model, relative=True)
        for images, _ in batches:
            running.update(images)
        return running.importance()

    return {
        "mas": lambda model, batches: mas_importance(model, batches, relative=True),
        "vector": lambda model, batches: mas_importance(model, batches, relative=True, output="vector"),
        "local": lambda _, batches: local_mas_importance(plain, batches, relative=True),
        "fisher, all": lambda model, batches: fisher_importance(model, batches, labels="all"),
        "fisher, true": lambda model, batches: fisher_importance(model, batches, labels="true"),
        "fisher, sampled": lambda model, batches: fisher_importance(model, batches, seed=3),
        "gram": lambda model, batches: {each.key: gram for each, gram in relative_grams(model, batches).items()},
        "wide": lambda _, batches: wide_grams(nn.Sequential(nn.Flatten(), spread, wide), batches),
    }


def measured(count: int, dtype: torch.dtype) -> dict[str, Any]:
    model = make_net(dtype)
    torch.manual_seed(4)
    made = estimates(dtype)
    if distributed.is_on():
        model = DistributedDataParallel(model)
        model.module.norm.running_mean += distributed.rank()  # each replica has had its own batches
    own = copy.deepcopy(model.state_dict())
    found: dict[str, Any] = {name: estimate(model, shared(make_data(count, dtype))) for name, estimate in made.items()}
    data = make_data(12, dtype)
    batches = [(data.tensors[0][at : at + 4], data.tensors[1][at : at + 4]) for at in (0, 4, 8)]
    found["squared"] = squared_gradient_importance(
        model, batches[distributed.rank() :: distributed.world_size()], lambda out, labels: out.square().sum(1).mean()
    )
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    return found


def differences(found: dict[str, Params], expected: dict[str, Params]) -> dict[str, float]:
    """The largest difference of each estimate, relative to the largest number of its parameter."""
    return {
        name: max(float((values[key] - one).abs().max() / one.abs().max()) for key, one in expected[name].items())
        for name, values in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "count", "dtype", "most"),
    [(2, 13, torch.float32, 1e-6), (3, 13, torch.float64, 1e-12), (4, 3, torch.float64, 1e-12)],
)  # of 13 the last of 2 ranks, and the last two of 3, have a sample that is repeated; of 3 the last of 4 has no other
def test_what_is_measured_is_that_of_one_process_and_the_same_to_the_bit_on_all(n, count, dtype, most):
    first, *others = run_in_processes(measured, n, count, dtype)
    assert all(identical(first, other) for other in others)
    for name, difference in differences(first, measured(count, dtype)).items():
        if (name, dtype) != ("wide", torch.float32):  # eigenvectors amplify rounding
            assert difference < most, name


def consolidated_by(what: str) -> list[str]:
    """What goes wrong on each rank when something is not as it should be on rank 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    is_odd = distributed.rank() == 1
    batches: Any = list(shared(make_data(7, torch.float32)))
    estimate = mas_importance
    if what == "no such layer" and is_odd:
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    elif what == "other weights" and is_odd:
        nn.init.normal_(model[1].weight)
    elif what == "bad sample" and is_odd:
        batches = [torch.full((2, 1, 4, 4), torch.nan)]
    elif what == "no file" and is_odd:
        batches = Unreadable()
    elif what == "nothing":
        batches = []
    elif what == "own estimate":
        estimate = own_estimate
    messages = []
    for hold in (Protection(model, strength=1.0, estimate=estimate), Gram(model, strength=1.0)):
        if isinstance(hold, Gram) and what == "own estimate":
            continue
        try:
            hold.consolidate(batches)
        except (ValueError, OSError) as error:
            messages.append(str(error))
    return messages


class Unreadable:
    def __iter__(self):
        yield torch.ones(2, 1, 4, 4)
        raise OSError("shelf.jpg is cut short")


def own_estimate(model: nn.Module, batches: Iterable[Any]) -> Params:
    with distributed.alone():
        return mas_importance(model, batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no such layer", "rank 1 has another model than rank 0: of another shape: 1.bias (5,) for (4,), 1.weight"),
        ("other weights", "rank 1 has other weights than rank 0 (1.weight): replicas must start from the same"),
        ("bad sample", "not finite"),
        ("no file", "shelf.jpg is cut short"),
        ("nothing", "at least one sample, and the batches were empty"),
        ("own estimate", "rank 1 has measured another importance than rank 0 (1.bias, 1.weight): an estimate of your"),
    ],
)
def test_what_is_wrong_on_one_rank_is_told_by_all(what, said):
    for messages in run_in_processes(consolidated_by, 2, what):
        assert len(messages) == (1 if what == "own estimate" else 2)
        assert all(said in message for message in messages), messages


def by_itself() -> tuple[Params, Params]:
    """Rank 1 measures what rank 0 does not know of."""
    if distributed.is_main():
        return {}, {}
    model = nn.Linear(3, 2)
    with distributed.alone():
        found = MAS(model).consolidate([torch.ones(4, 3)])
    return found, {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.slow
def test_alone_a_process_measures_by_itself():
    _, (found, weights) = run_in_processes(by_itself, 2)
    model = nn.Linear(3, 2)
    model.load_state_dict(weights)
    expected = mas_importance(model, [torch.ones(4, 3)], relative=True)
    assert identical(found, expected)


def told_alone() -> list[str]:
    """What is warned of where each of two replicas measures by itself, and then where both measure together."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for guard in (MAS(model), Gram(model)):
            with distributed.alone():
                guard.consolidate([torch.ones(4, 3)])
            guard.consolidate([torch.ones(4, 3)])
    return [str(each.message) for each in told]


@pytest.mark.slow
def test_replicas_that_are_measured_alone_are_warned_of():
    for told in run_in_processes(told_alone, 2):
        assert len(told) == 2, told
        assert all("hold other things drift apart: let all consolidate together" in each for each in told)


def trained(kind: str, folder: str) -> tuple[dict[str, Tensor], float]:
    """A protected second task under DDP, on data of its own for each rank; the weights, and how much is held."""
    model = make_net(torch.float32)
    learner = DistributedDataParallel(model) if distributed.is_on() else model
    guard = MAS(learner, strength=3.0) if kind == "mas" else Gram(learner)
    guard.consolidate(shared(make_data(13, torch.float32)))
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    guard.attach(optimizer)
    data = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(7)) + 1
    model.eval()
    for _ in range(5):
        optimizer.zero_grad()
        own = data[distributed.rank() :: distributed.world_size()]
        (learner(own) - 1).square().mean().backward()
        optimizer.step()
    value = float(guard.value().detach())
    guard.consolidate([own])
    guard.save(Path(folder, f"rank{distributed.rank()}"))
    state = {f"guard/{name}": each for name, each in guard.state_dict().items()}
    return {**model.state_dict(), **state}, value


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mas", "gram"])
def test_replicas_that_learn_on_do_not_drift_apart(kind, tmp_path):
    expected, value = trained(kind, str(tmp_path))
    (tmp_path / "rank0").unlink()
    (first, held), (second, also) = run_in_processes(trained, 2, kind, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["rank0"]  # the others write nothing
    assert identical(first, second)
    assert held == also == pytest.approx(value, rel=1e-3)
    for name, one in expected.items():
        torch.testing.assert_close(first[name], one, rtol=1e-3, atol=1e-4)
