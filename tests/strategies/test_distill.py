"""Distillation: its distances against loops over the definition, and the teacher that it keeps."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tripletmas.basics.weights import state_of
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.distill import Distill, cosine_distance, soft_target_loss, squared_distance

DIM = 3


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, DIM))


def make_recognition(stream) -> Recognition:
    torch.manual_seed(1)
    return Recognition(DIM, [task.classes for task in stream], stream[0].train.class_names)


def make_metric() -> nn.Module:
    return Retrieval(make_loss("triplet", dim=DIM, num_classes=6))


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


# --- distances


def softmax(numbers: list[float]) -> list[float]:
    powers = [math.exp(number) for number in numbers]
    return [power / sum(powers) for power in powers]


def literal_soft_targets(
    logits: list[list[list[float]]], targets: list[list[list[float]]], temperature: float
) -> float:
    total = 0.0
    for of_head, wanted_of_head in zip(logits, targets, strict=True):
        for row, wanted in zip(of_head, wanted_of_head, strict=True):
            now, then = (softmax([number / temperature for number in numbers]) for numbers in (row, wanted))
            total -= sum(p * math.log(q) for p, q in zip(then, now, strict=True)) / len(of_head)
    return temperature**2 * total


def test_cosine_and_squared_distance_are_means_over_samples():
    torch.manual_seed(0)
    first, second = torch.randn(7, DIM, dtype=torch.float64), torch.randn(7, DIM, dtype=torch.float64)
    cosine = squared = 0.0
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        cosine += (1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))) / 7
        squared += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 7
    assert cosine_distance(first, second).item() == pytest.approx(cosine, rel=1e-9)
    assert squared_distance(first, second).item() == pytest.approx(squared, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_soft_targets_are_summed_over_heads_and_averaged_over_samples(temperature):
    torch.manual_seed(0)
    logits, targets = ([torch.randn(5, c, dtype=torch.float64) for c in (2, 4)] for _ in range(2))
    found = soft_target_loss(logits, targets, temperature).item()
    expected = literal_soft_targets([t.tolist() for t in logits], [t.tolist() for t in targets], temperature)
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_gradient_of_soft_targets_hardly_depends_on_a_high_temperature():
    torch.manual_seed(0)
    lengths = []
    for temperature in (20.0, 40.0):
        logits, targets = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(4, 3)
        logits.requires_grad_()
        soft_target_loss([logits], [targets], temperature).backward()
        lengths.append(logits.grad.norm().item())
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)  # without T^2 it would fall to a quarter


# --- the strategy


@pytest.mark.parametrize("distance", ["cosine", "squared", "soft_targets"])
def test_what_is_added_is_the_distance_to_the_model_of_the_last_task(distance, tiny_stream):
    model, strategy = make_model(), Distill(strength=0.7, distance=distance, temperature=3.0)
    loss = make_recognition(tiny_stream) if distance == "soft_targets" else make_metric()
    strategy.prepare(model, loss, tiny_stream)
    inputs, _ = tiny_stream[2].train[list(range(6))]
    for number, task in enumerate(tiny_stream[:2]):
        strategy.after_task(model, task)
        model.eval()
        wanted = model(inputs).detach()
        heads = loss.heads[: number + 1] if isinstance(loss, Recognition) else []
        wanted_logits = [head(wanted).tolist() for head in heads]
        change(model)
        change(loss)
        model.train()
        found = model(inputs)
        if distance == "soft_targets":
            expected = literal_soft_targets([head(found).tolist() for head in heads], wanted_logits, 3.0)
        else:
            expected = {"cosine": cosine_distance, "squared": squared_distance}[distance](found, wanted).item()
        addition = strategy.loss(model, inputs, found)
        assert addition is not None
        assert addition.item() == pytest.approx(0.7 * expected, rel=1e-4)
        assert addition.requires_grad


def test_nothing_is_added_before_there_is_a_teacher_nor_without_strength(tiny_stream):
    model, strategy = make_model(), Distill()
    strategy.prepare(model, make_metric(), tiny_stream)
    inputs, _ = tiny_stream[0].train[[0, 1]]
    assert strategy.loss(model, inputs, model(inputs)) is None
    strategy.set_strength(0.0)
    strategy.after_task(model, tiny_stream[0])
    assert strategy.loss(model, inputs, model(inputs)) is None
    strategy.set_strength(1.0)
    assert strategy.loss(model, inputs, model(inputs)) is not None


def test_the_teacher_learns_nothing_and_the_old_heads_do(tiny_stream):
    model, loss, strategy = make_model(), make_recognition(tiny_stream), Distill(distance="soft_targets")
    strategy.prepare(model, loss, tiny_stream)
    strategy.after_task(model, tiny_stream[0])
    before = {name: value.clone() for name, value in strategy.state_dict().items()}
    change(model)
    inputs, _ = tiny_stream[1].train[list(range(6))]
    addition = strategy.loss(model, inputs, model(inputs))
    assert addition is not None
    addition.backward()
    assert loss.heads[0].weight.grad is not None
    assert loss.heads[1].weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in strategy.state_dict().items())


def test_the_state_is_weights_buffers_and_the_old_heads(tiny_stream, tmp_path):
    model, loss, strategy = make_model(), make_recognition(tiny_stream), Distill(distance="soft_targets")
    strategy.prepare(model, loss, tiny_stream)
    train_stream(model, tiny_stream[:2], strategy, loss, TrainConfig(epochs=1, batch_size=8))
    state = strategy.state_dict()
    heads = [f"heads/{number}/{name}" for number in range(2) for name in ("weight", "bias")]
    assert list(state) == ["num_tasks", *(f"teacher/{name}" for name in state_of(model)), *heads]
    save_file(state, tmp_path / "state.safetensors")
    other, other_model = Distill(distance="soft_targets"), make_model()
    other.prepare(other_model, loss, tiny_stream)
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    inputs, _ = tiny_stream[2].train[list(range(6))]
    change(model)
    change(loss)
    found = model(inputs)
    first, second = strategy.loss(model, inputs, found), other.loss(model, inputs, found)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_soft_targets_need_recognition(tiny_stream):
    with pytest.raises(ValueError, match="'soft_targets' needs heads: use it with --objective recognition"):
        Distill(distance="soft_targets").prepare(make_model(), make_metric(), tiny_stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength must be >= 0"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"distance": "euclid"}, "distance must be 'cosine', 'squared' or 'soft_targets', got 'euclid'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Distill(**options)


def test_it_must_be_prepared(tiny_stream):
    with pytest.raises(RuntimeError, match=r"call strategy\.prepare"):
        Distill().after_task(make_model(), tiny_stream[0])


def test_the_default_distance_is_that_of_the_objective(tiny_stream):
    """Without a choice: cosine under a metric loss, soft targets in recognition."""
    found = {}
    for name, loss in (("metric", make_metric()), ("recognition", make_recognition(tiny_stream))):
        for distance in (None, "cosine", "soft_targets"):
            if (name, distance) == ("metric", "soft_targets"):
                continue
            model, strategy = make_model(), Distill(distance=distance)
            strategy.prepare(model, loss, tiny_stream)
            strategy.after_task(model, tiny_stream[0])
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1)
            samples, _ = tiny_stream[1].train[[0, 1, 2]]
            value = strategy.loss(model, samples, model(samples))
            assert value is not None
            found[name, distance] = value.item()
    assert found["metric", None] == found["metric", "cosine"]
    assert found["recognition", None] == found["recognition", "soft_targets"] != found["recognition", "cosine"]
