"""L2: the same importance for every weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.protection.importance.uniform import uniform_importance
from tripletmas.protection.protection import Protection
from tripletmas.strategies.l2 import L2


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_every_trainable_weight_counts_the_same():
    model = make_model()
    model[3].weight.requires_grad_(False)
    importance = uniform_importance(model, ())
    assert list(importance) == ["1.weight", "1.bias", "2.weight", "2.bias", "3.bias"]
    assert all(bool((value == 1).all()) for value in importance.values())


@pytest.mark.parametrize(("decay", "weights"), [(1.0, (1, 2, 3)), (0.0, (1, 1, 1)), (0.5, (1, 1.5, 1.75))])
def test_the_penalty(decay, weights, tiny_stream):
    """strength * (1 + decay + decay^2 + ...) * sum (theta - theta*)^2, around the weights of the last task."""
    model, strategy = make_model(), L2(strength=0.3, decay=decay)
    strategy.prepare(model, Retrieval(make_loss("triplet", dim=3, num_classes=6)), tiny_stream)
    for task, weight in zip(tiny_stream, weights, strict=True):
        strategy.after_task(model, task)
        before = [parameter.detach().double() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        total = 0.0
        for parameter, reference in zip(model.parameters(), before, strict=True):
            for now, then in zip(parameter.flatten().tolist(), reference.flatten().tolist(), strict=True):
                total += (now - then) ** 2
        assert strategy.protections[0].value().item() == pytest.approx(0.3 * weight * total, rel=1e-5)


def test_its_protection_is_saved_and_loaded(tiny_stream, tmp_path):
    model, strategy = make_model(), L2(strength=0.3)
    strategy.prepare(model, Retrieval(make_loss("triplet", dim=3, num_classes=6)), tiny_stream)
    strategy.after_task(model, tiny_stream[0])
    strategy.protections[0].save(tmp_path / "l2.safetensors")
    loaded = Protection.load(tmp_path / "l2.safetensors", model)
    loaded.consolidate(())
    assert loaded.strength == 0.3
    assert bool((loaded.importance["1.weight"] == 2).all())
