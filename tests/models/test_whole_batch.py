"""A model that is shown a share of a batch answers as if it were shown all of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from processes import run_in_processes
from random_models import Dropping, Noisy
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tripletmas.basics import distributed
from tripletmas.basics.shares import gather_shares, share, sum_gradients
from tripletmas.data.batches import seed_everything
from tripletmas.models.whole_batch import WholeBatch, draws_by_itself


def passes(kinds: list[str]) -> dict[str, list[Tensor]]:
    """kind -> what a network of this kind answers to its share of a batch of 7, its gradients, its buffers."""
    found = {}
    for kind in kinds:
        seed_everything(3)
        model, values = NETWORKS[kind]()
        model, x = model.double(), values.double().requires_grad_(True)
        own = share(len(x))
        with WholeBatch(len(x)) if distributed.is_on() else nullcontext():
            answer = model(x[own.start : own.stop])
        everything = gather_shares(answer, len(x))
        weight = torch.linspace(-1, 1, everything.numel()).view_as(everything)
        ((everything * weight).sum().square() / distributed.world_size()).backward()
        sum_gradients([x, *model.parameters()])
        gradients = [each.grad for each in (x, *model.parameters()) if each.grad is not None]
        found[kind] = [everything.detach(), *gradients, *(each.clone() for each in model.buffers()), torch.rand(2)]
    return found


def _images(*layers: nn.Module, last: bool = False) -> tuple[nn.Module, Tensor]:
    model, x = nn.Sequential(*layers, nn.Flatten()), torch.rand(7, 4, 3, 3)
    return (model, x.to(memory_format=torch.channels_last)) if last else (model, x)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "norm": lambda: _images(nn.BatchNorm2d(4)),
    "norm, cumulative, without weights": lambda: _images(nn.BatchNorm2d(4, momentum=None, affine=False)),
    "norm that tracks nothing": lambda: _images(nn.BatchNorm2d(4, track_running_stats=False)),
    "two norms": lambda: _images(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4)),
    "norm of numbers": lambda: (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), torch.rand(7, 5)),
    "norm that stands still": lambda: _images(nn.BatchNorm2d(4).eval()),
    "dropout": lambda: _images(nn.Dropout(0.3), nn.Dropout2d(0.3)),
    "dropout, channels last": lambda: _images(nn.Conv2d(4, 4, 1), nn.Dropout(0.3), last=True),
    "dropout in place": lambda: _images(nn.Conv2d(4, 4, 1), nn.Dropout(0.3, inplace=True)),
    "dropout, of nothing": lambda: _images(nn.Dropout(0.0), nn.Dropout(0.3).eval()),
    "depth": lambda: _images(StochasticDepth(0.4, "row"), DropPath(0.4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_shares_answer_as_the_whole(n):
    """7 samples in shares of 3 and 4, or of 2, 2 and 3; afterwards all draw what one process does."""
    alone = passes(list(NETWORKS))
    for answer in run_in_processes(passes, n, list(NETWORKS)):
        for kind, expected in alone.items():
            for found, wanted in zip(answer[kind], expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, msg=kind)


def test_what_draws_by_itself():
    samples, noisy_one, dropping, plain = torch.rand(2, 8), Noisy(8, 4), Dropping(4), nn.Linear(8, 4)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    attention, sentences = nn.Sequential(layer, nn.Flatten()), torch.rand(2, 3, 8)
    state = torch.get_rng_state()
    assert draws_by_itself(noisy_one, samples)
    assert not draws_by_itself(dropping, samples)
    assert draws_by_itself(dropping, samples, draws=False)
    assert not draws_by_itself(plain, samples)
    assert draws_by_itself(attention, sentences)
    assert torch.equal(torch.get_rng_state(), state)
