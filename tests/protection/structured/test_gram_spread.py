"""A Gram of a model that is spread over processes (`fully_shard`) holds what one process holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_in_processes
from replicated import identical, shared
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tripletmas.basics import distributed
from tripletmas.basics.weights import named_parameters, trainable
from tripletmas.protection.structured import sums
from tripletmas.protection.structured.gram import Gram
from tripletmas.protection.structured.moments import relative_grams

# In double precision, where other orders of adding up differ by 1e-16, and steps of Adam, searches and roots of shares
# have let that grow a little.
RELATIVE, ABSOLUTE = 1e-9, 1e-12

WAYS: dict[str, dict[str, Any]] = {
    "last": {"strength": 2.0, "reference": "last", "decay": 0.5},
    "budget": {"budget": 0.02},
}


class Net(nn.Module):
    """Of 2 and of 3 processes some have rows of a part of a group, of some groups, or none."""

    def __init__(self):
        super().__init__()
        self.table, self.token = nn.Embedding(7, 6), nn.Parameter(torch.randn(1, 1, 6))
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)  # 18 rows, packed: the first 6, and 12
        self.thirds, self.halves = nn.Conv1d(6, 6, 3, groups=3), nn.Conv1d(6, 10, 1, groups=2)
        self.each = nn.Conv1d(10, 10, 2, groups=10)
        self.norm, self.twice = nn.LayerNorm(10), nn.Linear(10, 10, bias=False)
        self.up, self.matrix = nn.ConvTranspose1d(10, 4, 2, groups=2), nn.Parameter(torch.randn(4, 5))
        self.one, self.head = nn.Linear(5, 1), nn.Linear(260, 4)
        self.one.bias.requires_grad_(False)
        self.register_buffer("basis", torch.randn(5, 260))

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words) + self.token
        x = x + self.attend(x, x.roll(1, 1).tanh(), x.roll(1, 1).tanh())[0]
        x = self.each(self.halves(self.thirds(x.mT).tanh()).relu()).mT
        x = self.twice(self.twice(self.norm(x)).tanh())
        x = (self.up(x.mT).mean(2) @ self.matrix).tanh()
        return self.head(x @ self.get_buffer("basis")) * self.one(x)  # few directions, of which a low rank is kept


def make_net() -> Net:
    torch.manual_seed(0)
    net = Net().double().eval()
    for bias in (net.attend.in_proj_bias, net.attend.out_proj.bias, net.norm.bias):
        nn.init.normal_(bias)
    return net


def spread_out(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    for name in ("halves", "head"):
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={model.get_parameter("one.bias")})
    return model


def words(seed: int, count: int = 13) -> TensorDataset:
    return TensorDataset(torch.randint(7, (count, 6), generator=torch.Generator().manual_seed(seed)))


def whole(values: Any) -> dict[str, Tensor]:
    return {name: distributed.whole(value.detach()).clone() for name, value in values.items()}


def squared(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The directions of a low rank may be turned round, and are the same."""
    return {name: value @ value.mT if name.startswith("factor/") else value for name, value in values.items()}


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    (data,) = words(7, 12).tensors
    for _ in range(steps):
        optimizer.zero_grad()
        (model(data[distributed.rank() :: distributed.world_size()]) - 1).square().mean().backward()
        optimizer.step()


def held(folder: str) -> dict[str, Any]:
    sums.WIDE = 200
    return {way: three_tasks(way, Path(folder, way)) for way in WAYS}


def three_tasks(way: str, path: Path) -> dict[str, Any]:
    """The later ones learned under protection; all that can be compared, and a file after the second."""
    model = spread_out(make_net()) if distributed.is_on() else make_net()
    gram = Gram(model, **WAYS[way])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    gram.attach(optimizer)
    found: dict[str, Any] = {"measured": whole(gram.consolidate(shared(words(1))))}
    learn(model, optimizer)
    found["shares"] = {name: torch.tensor(share).double() for name, share in gram.shares().items()}
    found["value"] = {"": gram.value().detach()}
    optimizer.zero_grad()
    gram.value().backward()
    found["gradient of the value"] = whole({name: each.grad for name, each in trainable(model).items()})
    gram.consolidate(shared(words(2)))
    found["settled"] = whole(named_parameters(model))
    learn(model, optimizer)
    found["weights"] = whole(named_parameters(model))
    gram.save(path)
    found["state"] = whole(gram.state_dict())
    coverage = gram.coverage()
    found["held"] = {"": torch.tensor([coverage.num_held, coverage.num_weights])}
    found["goes on"] = goes_on(path, model)
    return found


def goes_on(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """A Gram that is read, in place of the one that wrote it."""
    gram = Gram.load(path, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=5e-5)
    gram.attach(optimizer)
    learn(model, optimizer, 2)
    gram.consolidate(shared(words(3)))
    return whole(named_parameters(model)) | whole(gram.state_dict())


def read(folder: str) -> dict[str, Any]:
    model = spread_out(make_net()) if distributed.is_on() else make_net()
    return {way: whole(Gram.load(Path(folder, way), model).state_dict()) for way in WAYS}


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sums, "WIDE", 200)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "other"), [(2, None), (3, 2)])
def test_it_holds_what_one_process_holds(n: int, other: int | None, tmp_path: Path):
    for folder in ("one", "several"):
        (tmp_path / folder).mkdir()
    expected = held(str(tmp_path / "one"))
    first, *others = run_in_processes(held, n, str(tmp_path / "several"))
    assert all(identical(first, each) for each in others)
    for way, parts in expected.items():
        for part, values in parts.items():
            found = squared(first[way][part])
            assert values.keys() == found.keys()
            for name, value in squared(values).items():
                at = (way, part, name)
                torch.testing.assert_close(
                    found[name], value, rtol=RELATIVE, atol=ABSOLUTE, msg=lambda m, at=at: f"{at}: {m}"
                )
    as_saved = {way: parts["state"] for way, parts in first.items()}
    assert any(key.startswith("factor/") for key in as_saved["budget"])
    assert any(key.startswith("offset/") for key in as_saved["budget"])
    assert identical(read(str(tmp_path / "several")), as_saved)
    for found in run_in_processes(read, other, str(tmp_path / "several")) if other else []:
        assert identical(found, as_saved)
    assert all(identical(read(str(tmp_path / "one"))[way], parts["state"]) for way, parts in expected.items())


def refused() -> list[str]:
    """What is said of models that are spread in another way than by rows over all processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    mesh, said = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "parts")), []
    for model in (
        fully_shard(nn.Linear(4, 4), mesh=mesh),
        fully_shard(nn.Linear(4, 4), mesh=mesh["parts"]),
        fully_shard(nn.Linear(4, 4, bias=False), mesh=mesh["replicas"], shard_placement_fn=lambda _: Shard(1)),
    ):
        for hold in (lambda m: Gram(m), lambda m: relative_grams(m, [torch.ones(2, 4)])):
            with pytest.raises(ValueError, match="weight is spread over") as error:
                hold(model)
        said.append(str(error.value))
    return said


@pytest.mark.slow
def test_other_ways_of_spreading_are_refused_in_a_sentence():
    rest = "and a Gram holds rows of weights: use fully_shard over a mesh of one dimension that has all processes, or "
    for first, second, third in run_in_processes(refused, 2):
        assert first == f"weight is spread over a mesh of 2 dimensions, {rest}tripletmas.MAS"
        assert second == f"weight is spread over 1 of 2 processes, {rest}tripletmas.MAS"
        assert third == f"weight is spread over processes as S(1), not by rows, {rest}tripletmas.MAS"
