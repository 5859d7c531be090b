"""How a task is optimised: what may be asked for, and the learning rate at each step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tripletmas.models.making import make_model
from tripletmas.runs.options import TrainConfig, make_optimizer, refuse_nothing, set_rate, split_backbone


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
        ({"backbone_lr": "0.01y"}, "backbone_lr must be a rate > 0 .* multiple of lr such as 0.01x, got '0.01y'"),
        ({"backbone_lr": "x"}, "backbone_lr must be a rate > 0 .*, got 'x'"),
        ({"backbone_lr": "nanx"}, "backbone_lr must be a rate > 0 .*, got 'nanx'"),
        ({"backbone_lr": "0x"}, "backbone_lr must be a rate > 0 .*, got '0x'"),
        ({"backbone_lr": 0.0}, r"backbone_lr must be a rate > 0 .*, got '0\.0'"),
        ({"backbone_lr": -0.1}, r"backbone_lr must be a rate > 0 .*, got '-0\.1'"),
        ({"backbone_lr": math.inf}, "backbone_lr must be a rate > 0 .*, got 'inf'"),
        ({"batch_size": 7}, r"batch_size must be >= 2 \* samples_per_class"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_a_shuffled_batch_needs_no_pairs():
    assert TrainConfig(sampler="shuffled", batch_size=3).batch_size == 3


# --- a backbone with a rate of its own


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    ids = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


@pytest.mark.parametrize(
    ("name", "options", "last"),
    [
        ("mlp", {}, "embedding"),
        ("conv4", {"width": 4}, "embedding"),
        ("resnet18", {"dim": 4}, "fc"),
        ("squeezenet1_1", {"dim": 4}, "classifier.1"),
        ("vit_b_32", {"dim": 4}, "heads.head"),
    ],
)
def test_the_last_layer_of_models_is_their_projection(name, options, last):
    model = make_model(name, (3, 32, 32), options=options)
    projection, backbone = split_backbone(model)
    assert names_of(model, projection) == {f"{last}.weight", f"{last}.bias"}
    assert len(projection) + len(backbone) == len(list(model.parameters()))


def test_without_a_projection_all_is_backbone():
    """A network that was cut off ends in batch norm."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())
    assert split_backbone(model) == ([], list(model.parameters()))
    config = TrainConfig(lr=0.5, backbone_lr="0.01x")
    optimizer = make_optimizer(model, nn.Linear(2, 2), config)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.5]


def test_frozen_weights_are_in_neither_part():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for frozen in (model[0].bias, model[2].weight):
        frozen.requires_grad_(False)
    last, backbone = split_backbone(model)
    assert names_of(model, last) == {"2.bias"}
    assert names_of(model, backbone) == {"0.weight", "1.weight", "1.bias"}


def test_a_weight_that_the_last_layer_shares_is_not_slow():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight = model[1].weight
    assert names_of(model, split_backbone(model)[1]) == {"0.bias"}


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))]
)
def test_a_model_without_a_backbone(model):
    what = "Linear" if isinstance(model, nn.Linear) else "1"
    with pytest.raises(ValueError, match=f"all but the last layer, and this model has only '{what}' to train: set lr"):
        make_optimizer(model, nn.TripletMarginLoss(), TrainConfig(backbone_lr=1e-4))
    make_optimizer(model, nn.TripletMarginLoss(), TrainConfig())


@pytest.mark.parametrize(("given", "slow"), [(0.002, 0.002), ("0.002", 0.002), ("0.01x", 0.005), (None, 0.5)])
def test_a_rate_or_a_multiple(given, slow):
    """Every schedule scales both; the rate that is shown is that of the last layer."""
    config = TrainConfig(lr=0.5, backbone_lr=given, schedule="cosine")
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    optimizer = make_optimizer(model, nn.TripletMarginLoss(), config)
    for progress in (0.0, 0.25):
        factor = (1 + math.cos(math.pi * progress)) / 2
        assert set_rate(optimizer, config, progress) == 0.5 * factor
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates[id(model[1].weight)] == rates[id(model[1].bias)] == 0.5 * factor
        assert rates[id(model[0].weight)] == pytest.approx(slow * factor)


def test_steps_of_sgd_are_smaller_in_the_backbone():
    """By hand: loss = sum of all weights, gradient 1, so one step is the rate."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    config = TrainConfig(optimizer="sgd", lr=0.5, backbone_lr="0.01x")
    optimizer = make_optimizer(model, nn.TripletMarginLoss(), config)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    moved = [float((old - new.detach()).mean()) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([0.005, 0.005, 0.5, 0.5], abs=1e-6)


# --- warm-up


@pytest.mark.parametrize("warmup", [4, 4.0, 0.1])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_the_rate_rises_to_what_the_schedule_says(schedule: str, warmup: float):
    """40 steps, of which 4 warm up: a quarter, a half, three quarters, all of the rate; then as transformers has it."""
    config = TrainConfig(lr=0.5, schedule=schedule, warmup=warmup)  # pyright: ignore[reportArgumentType]
    optimizer = make_optimizer(nn.Linear(2, 2), nn.TripletMarginLoss(), config)
    rates = [set_rate(optimizer, config, step / 40, steps=40) / 0.5 for step in range(40)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    then = {
        "constant": [1.0] * 36,
        "cosine": [(1 + math.cos(math.pi * (step - 4) / 36)) / 2 for step in range(4, 40)],
        "step": [1.0] * 18 + [0.1] * 18,  # 54 of 100 epochs are 21.6 steps
    }[schedule]
    assert rates[4:] == pytest.approx(then)


def test_the_cosine_after_a_warm_up_is_that_of_transformers():
    import transformers

    config = TrainConfig(lr=1.0, schedule="cosine", warmup=5)
    optimizer = make_optimizer(nn.Linear(2, 2), nn.TripletMarginLoss(), config)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    theirs = transformers.get_cosine_schedule_with_warmup(other, num_warmup_steps=5, num_training_steps=30)
    for step in range(30):
        if step >= 5:
            assert set_rate(optimizer, config, step / 30, steps=30) == pytest.approx(theirs.get_last_lr()[0])
        other.step()
        theirs.step()


def test_a_warm_up_ends_before_its_task():
    for warmup, steps in ((0.99, 1), (0.99, 20), (3, 4)):
        config = TrainConfig(lr=1.0, warmup=warmup)
        optimizer = make_optimizer(nn.Linear(2, 2), nn.TripletMarginLoss(), config)
        assert set_rate(optimizer, config, (steps - 1) / steps, steps=steps) == 1.0
    with pytest.raises(ValueError, match="a warmup of 20 steps is no shorter than the task, which has 20"):
        set_rate(optimizer, TrainConfig(warmup=20), 0.0, steps=20)
    for wrong in (-0.1, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="warmup must be a share of a task's steps"):
            TrainConfig(warmup=wrong)


def test_a_model_with_nothing_to_train():
    for model in (nn.Flatten(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(ValueError, match="the model has no weights to train, or all are frozen"):
            refuse_nothing(model, nn.Identity())
        refuse_nothing(model, nn.Linear(2, 2))  # proxies, heads
    assert make_optimizer(nn.Flatten(), nn.Linear(2, 2), TrainConfig()).param_groups[1]["params"]  # proxies, heads
