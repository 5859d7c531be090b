"""Coverage: counted by hand on a small model, said in sentences, and the same after a round trip through JSON."""

from __future__ import annotations

import json
import math

import torch
from torch import nn

from tripletmas.protection.coverage import Coverage, LayerWeights, measure_coverage


class Model(nn.Module):
    """Layers a (4 + 2 weights) and b.c (2), a parameter of its own (3), and one that is not trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.a = nn.Linear(2, 2)
        self.b = nn.Sequential()
        self.b.add_module("c", nn.Linear(2, 1, bias=False))
        self.still = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("mean", torch.zeros(1))


IMPORTANCE = {
    "scale": torch.tensor([1.0, 0.0, 1e-30]),
    "a.weight": torch.tensor([[0.0, 0.0], [0.0, 1.0]]),
    "a.bias": torch.zeros(2),
    "b.c.weight": torch.ones(1, 2),
}


def test_zeros_are_counted_by_layer():
    coverage = measure_coverage(Model(), IMPORTANCE)
    assert coverage.layers == {"scale": (1, 3), "a": (5, 6), "b.c": (0, 2)}
    assert list(coverage.layers) == ["scale", "a", "b.c"]  # in network order
    assert (coverage.buffers, coverage.frozen, coverage.new) == (("mean",), ("still",), ())
    assert (coverage.num_held, coverage.num_weights) == (5, 11)
    assert coverage.share_held == 5 / 11


def test_a_weight_without_importance_is_free():
    coverage = measure_coverage(Model(), {"b.c.weight": torch.ones(1, 2)})
    assert coverage.new == ("a.bias", "a.weight", "scale")
    assert coverage.layers == {"scale": (3, 3), "a": (6, 6), "b.c": (0, 2)}
    nothing = measure_coverage(Model(), {})
    assert (nothing.num_held, nothing.num_weights, nothing.new) == (0, 11, ())


def test_lines_say_it_worst_layer_first():
    assert measure_coverage(Model(), IMPORTANCE).lines() == [
        "5 of 11 trainable weights are held (45.5 %).",
        "Free because their importance is 0, as a share of their layer: a 83.3 %, scale 33.3 %.",
        "Not held: 1 buffer: mean.",
        "Not held: 1 frozen parameter: still.",
    ]
    many = {f"layer{i}": LayerWeights(i, 100_000) for i in range(1, 11)}
    first, second = Coverage(layers=many, loss_parameters=("proxies", "scale")).lines()[:2]
    assert first == "999,945 of 1,000,000 trainable weights are held (>99.9 %)."
    assert second.endswith(
        "layer10 <0.1 %, layer9 <0.1 %, layer8 <0.1 %, layer7 <0.1 %, layer6 <0.1 %, "
        "layer5 <0.1 %, layer4 <0.1 %, layer3 <0.1 % and 2 more."
    )
    assert Coverage(loss_parameters=("proxies", "scale")).lines() == [
        "Not held: 2 parameters of the loss: proxies, scale."
    ]
    assert Coverage().lines() == []


def test_json_there_and_back():
    coverage = measure_coverage(Model(), IMPORTANCE)
    assert Coverage.from_json(json.loads(json.dumps(coverage.to_json()))) == coverage


def test_records_of_earlier_versions_have_no_counts():
    """They had names by kind alone, and none at all without a protection."""
    coverage = Coverage.from_json({"buffers": ["mean"], "frozen parameters": [], "replaced or new": ["head.weight"]})
    assert coverage == Coverage(buffers=("mean",), new=("head.weight",))
    assert math.isnan(coverage.share_held)
    assert Coverage.from_json({}) == Coverage()
