"""How a task is optimised: what may be asked for, and the learning rate at each step."""

from __future__ import annotations

import math

import pytest
import torch

from tripletmas.runs.options import TrainConfig, make_optimizer, set_rate


def rate(progress: float, **options) -> float:
    config = TrainConfig(lr=0.5, **options)
    model = torch.nn.Linear(2, 2)
    return set_rate(make_optimizer(model, torch.nn.TripletMarginLoss(), config), config, progress)


def test_the_rate_is_a_function_of_the_share_of_the_task():
    assert [rate(progress) for progress in (0.0, 0.5, 0.99)] == [0.5] * 3
    for progress in (0.0, 0.25, 0.5):
        assert rate(progress, schedule="cosine") == pytest.approx(0.25 * (1 + math.cos(math.pi * progress)))
    # 54 of 100 epochs at the full rate: progress is (epoch + step / steps) / epochs
    rates = [rate((epoch + step / 3) / 100, schedule="step") for epoch in (0, 53, 54, 99) for step in range(3)]
    assert rates == pytest.approx([0.5] * 6 + [0.05] * 6)
    assert rate(0.3, schedule="step", step_at=0.25) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "random"}, "sampler must be one of class_balanced, shuffled, got 'random'"),
        ({"schedule": "steps"}, "schedule must be one of constant, cosine, step, got 'steps'"),
        ({"step_at": 1.0}, r"step_at must lie between 0 and 1, got 1\.0"),
        ({"sampler": "shuffled", "batch_size": 1}, "batch_size must be >= 2, got 1"),
        ({"batch_size": 7}, r"batch_size must be >= 2 \* samples_per_class"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_a_shuffled_batch_needs_no_pairs():
    assert TrainConfig(sampler="shuffled", batch_size=3).batch_size == 3
