"""Two tasks, a net and a loss for tests of frameworks: small and smooth, and one task spoils the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tripletmas.protection.protection import MAS

STRENGTH = 3.0
CLASSES = 4


def make_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))


def make_task(number: int, *, count: int = 48) -> TensorDataset:
    """Inputs (count, 8) and labels: a point for each class, another one in each task, and noise."""
    random = torch.Generator().manual_seed(number)
    centres = torch.randn(CLASSES, 8, generator=random)
    labels = torch.arange(count) % CLASSES
    inputs = centres[labels] + 0.7 * torch.randn(count, 8, generator=random)
    return TensorDataset(inputs, labels)


def metric_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Squared distances within a class, and (1 - distance)^2 below 1 between classes, a mean over pairs."""
    squares = (embeddings[:, None] - embeddings[None]).square().sum(-1)
    same = labels[:, None] == labels[None]
    apart = (1 - (squares + 1e-6).sqrt()).clamp_min(0).square()
    return torch.where(same, squares, apart).mean()


@torch.no_grad()
def recall_at_1(net: nn.Module, task: TensorDataset) -> float:
    """The share of a task's samples whose nearest other one has their label."""
    inputs, labels = task.tensors
    embeddings = net.eval()(inputs)
    distances = torch.cdist(embeddings, embeddings).fill_diagonal_(float("inf"))
    return float((labels[distances.argmin(1)] == labels).float().mean())


def make_protection(net: nn.Module) -> MAS:
    return MAS(net, STRENGTH)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)


@torch.no_grad()
def add_by_hand(protection: MAS) -> None:
    """The gradient of the penalty, as the formula has it, added to the gradients there are."""
    for name, parameter in protection.model.named_parameters():
        assert parameter.grad is not None
        pull = protection.importance[name] * (parameter - protection.reference[name])
        parameter.grad += 2 * protection.strength * pull
