"""structures.py: factors and diagonals against loops over samples, positions and weights; and runs of both."""

from __future__ import annotations

import json

import best_strengths
import pytest
import reproduce_structures
import structures
import torch
from torch import Tensor, nn


class Small(nn.Module):
    """A convolution, batch norm and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(12, 4)
        self.norm.running_mean.add_(0.2)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.conv(images))).flatten(1))


@pytest.fixture
def model() -> nn.Module:
    return Small().double().eval()


@pytest.fixture
def ones(monkeypatch):
    """v is all ones, so that <v, u> is a sum."""
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)


IMAGES = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def summed_direction(model: nn.Module, image: Tensor) -> Tensor:
    out = model(image[None])[0]
    return (out / out.norm()).sum()


def test_factors_against_loops(model, ones):
    found = {name: (a, g) for name, a, g in structures.factors(model, IMAGES)}
    a, g = torch.zeros(12 + 1, 12 + 1).double(), torch.zeros(4, 4).double()
    patches, slopes = torch.zeros(19, 19).double(), torch.zeros(3, 3).double()
    channels, squares = torch.zeros(3, 2, 2).double(), torch.zeros(3).double()
    for image in IMAGES:
        mapped = model.conv(image[None]).detach().requires_grad_()
        plain = ((mapped - model.norm.running_mean.view(1, 3, 1, 1)) / (1 + 1e-5) ** 0.5).detach()
        normed = model.norm(mapped)
        hidden = torch.relu(normed).flatten(1)
        out = model.last(hidden)
        of_map, of_norm, of_out = torch.autograd.grad((out / out.norm()).sum(), [mapped, normed, out])
        row = torch.cat([hidden[0].detach(), torch.ones(1)])
        a += row.outer(row)
        g += of_out[0].outer(of_out[0])
        padded = nn.functional.pad(image, (1, 1, 1, 1))
        for y in range(2):
            for x in range(2):
                patch = torch.cat([padded[:, y : y + 3, x : x + 3].flatten(), torch.ones(1)])
                patches += patch.outer(patch)
                slopes += of_map[0, :, y, x].outer(of_map[0, :, y, x]) / 4
                for channel in range(3):
                    pair = torch.stack([plain[0, channel, y, x], torch.tensor(1.0).double()])
                    channels[channel] += pair.outer(pair)
                    squares[channel] += of_norm[0, channel, y, x] ** 2 / 4
    for name, expected in (("last", (a, g)), ("conv", (patches, slopes)), ("norm", (channels, squares))):
        for one, other in zip(found[name], expected, strict=True):
            torch.testing.assert_close(one, other)


def test_squares_against_each_sample(model, ones):
    weights = {name: each.detach() for name, each in model.named_parameters()}
    found = structures.squares(model, weights, IMAGES)
    for name, parameter in model.named_parameters():
        grads = [torch.autograd.grad(summed_direction(model, image), parameter)[0] for image in IMAGES]
        torch.testing.assert_close(found[name], sum(each.square() for each in grads))


def test_the_penalty_is_the_form(model):
    """tr(G D A D^T) by hand, of two tasks, each from its own weights."""
    kron = structures.Kron(strength=2.0)
    assert kron.loss(model, IMAGES, IMAGES) is None
    random = torch.Generator().manual_seed(2)
    expected = 0.0
    for task in range(2):
        for name, layer in structures.layers(model):
            now = structures.matrix(layer).detach()
            then = now + 0.1 * torch.randn(now.shape, generator=random, dtype=torch.float64)
            rows, moved = torch.randn(5, now.shape[1], generator=random, dtype=torch.float64), now - then
            if name == "norm":
                a = torch.stack([rows.T @ rows * (channel + 1) for channel in range(len(now))])
                g = torch.rand(len(now), generator=random, dtype=torch.float64)
                expected += sum(float(g[c] * moved[c] @ a[c] @ moved[c]) for c in range(len(now)))
            else:
                a, half = rows.T @ rows, torch.randn(len(now), len(now), generator=random, dtype=torch.float64)
                g = half @ half.T
                expected += float(torch.trace(g @ moved @ a @ moved.T))
            kron.kept |= {f"{task}/{name}/weights": then, f"{task}/{name}/a": a, f"{task}/{name}/g": g}
    found = kron.loss(model, IMAGES, IMAGES)
    assert found is not None
    assert found.item() == pytest.approx(2.0 * expected)


@pytest.mark.parametrize("method", ["kron", "direction"])
def test_a_run(method, tmp_path):
    """Three tasks of digits, as the script makes a run of its tables."""
    setting = reproduce_structures.with_strategies(reproduce_structures.SETTINGS["digits"])
    small = {"data": {"name": "digits", "tasks": [2, 2, 6], "per_class": 10}, "training": {"epochs": 1}}
    setting.config.update(small)
    chosen = {**reproduce_structures.METHODS[method].strategy, "strength": 10.0}
    config = best_strengths.tested(setting, reproduce_structures.METHODS[method], chosen)[0]
    line = best_strengths.execute((config, tmp_path / "found.json", {}))
    assert "failed" not in line
    assert 0 < reproduce_structures.usefulness(json.loads((tmp_path / "found.json").read_text())) <= 1
