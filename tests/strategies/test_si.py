"""The path integral against its definition, a literal loop, and the fall of the loss; SI in the loop."""

from __future__ import annotations

import pytest
import torch
from processes import run_in_processes
from replicated import identical
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tripletmas.basics import distributed
from tripletmas.basics.weights import Params, snapshot, trainable
from tripletmas.data.tasks import Stream
from tripletmas.models.networks import mlp
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.si import SI, PathIntegral

CONFIG = TrainConfig(epochs=3, batch_size=8, samples_per_class=2, lr=0.01)


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return mlp((1, 4, 4), dim=4, hidden=(8,))


class Point(nn.Module):
    def __init__(self, values: list[float]):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def quadratic(model: Point) -> Tensor:
    """sum_i c_i theta_i^2 / 2, c = (1, 3, 0.5)."""
    return (torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64) * model.values.square()).sum() / 2


def test_on_a_quadratic_its_sum_is_the_fall_of_the_loss():
    """By Taylor, which ends there: L(theta + d) - L(theta) = g d + sum_i c_i d_i^2 / 2, and omega is - g d.

    With d = -rate * g, omega is rate * g^2 and the rest at most rate / 2 * max c = 0.01 * 3 / 2 of it.
    """
    model = Point([1.0, -2.0, 3.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    path = PathIntegral(model)
    path.begin(optimizer)
    start = float(quadratic(model).detach())
    for _ in range(50):
        optimizer.zero_grad()
        quadratic(model).backward()
        optimizer.step()
        path.after_step()
    fall = start - float(quadratic(model).detach())
    total = float(path.omega["values"].sum())
    assert fall > 0.3 * start
    assert (1 - 0.015) * total <= fall < total


def test_damping_and_sign():
    """One step of rate 1 from (1, 2) under the gradient (1, -2), by hand: theta = (0, 4), omega = (1, 4)."""
    model = Point([1.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    path = PathIntegral(model)
    path.begin(optimizer)
    model.values.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
    optimizer.step()
    path.after_step()
    assert path.omega["values"].tolist() == [1.0, 4.0]
    path.omega["values"][1] = -4.0  # the loss has risen along this weight
    importance = path.end(0.25)
    assert importance["values"].tolist() == [1 / (1 + 0.25), 0.0]
    assert path.state_dict() == {}


def test_a_step_that_is_left_out_adds_nothing():
    """As a GradScaler leaves out a step whose gradients are not finite: the optimizer is not called."""
    model = Point([1.0, 2.0])
    path = PathIntegral(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    path.begin(optimizer)
    path.after_step()
    assert path.omega["values"].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="no step of this task lowered its loss"):
        path.end(0.1)
    model.values.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    path.after_step()
    path.after_step()
    assert path.omega["values"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("first", [True, False])
def test_what_other_hooks_add_does_not_count(first: bool):
    """Whichever was registered first, and also where a task begins twice, as when a run is resumed in it."""
    model = Point([1.0])
    path = PathIntegral(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def doubled(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        assert model.values.grad is not None
        model.values.grad *= 2

    if first:
        path.begin(optimizer)
    optimizer.register_step_pre_hook(doubled)
    path.begin(optimizer)
    model.values.grad = torch.tensor([0.25], dtype=torch.float64)
    optimizer.step()
    path.after_step()
    assert path.omega["values"].tolist() == [0.25 * 0.5]


@pytest.mark.parametrize("clip", [None, 0.05])
def test_it_is_the_literal_loop(tiny_stream: Stream, clip: float | None):
    """Two tasks, with a penalty in the second that is none of omega, under AdamW; the same loop written out."""
    torch.manual_seed(0)
    batches = [[(torch.randn(8, 1, 4, 4), torch.arange(8) % 2) for _ in range(4)] for _ in range(2)]
    loss = Retrieval(make_loss("contrastive", dim=4, num_classes=6))
    strength, damping = 20.0, 0.01

    strategy = SI(strength=strength, damping=damping)
    model = perceptron()
    strategy.prepare(model, loss, tiny_stream)
    for number in range(2):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        strategy.before_task(model, tiny_stream[number], optimizer)
        for inputs, labels in batches[number]:
            optimizer.zero_grad()
            loss(model(inputs), labels).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            strategy.after_step(model)
        strategy.after_task(model, tiny_stream[number])

    twin = perceptron()
    importance = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for number in range(2):
        optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
        start = snapshot(trainable(twin))
        omega = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
        for inputs, labels in batches[number]:
            own = dict(
                zip(start, torch.autograd.grad(loss(twin(inputs), labels), list(twin.parameters())), strict=True)
            )
            norm = torch.cat([value.flatten() for value in own.values()]).norm()
            if clip:
                assert norm > clip
                own = {name: value * clip / norm for name, value in own.items()}
            before = snapshot(trainable(twin))
            for name, parameter in twin.named_parameters():
                # the reference is where the last task ended, which is where this one starts
                parameter.grad = own[name] + 2 * strength * importance[name] * (before[name] - start[name])
            optimizer.step()
            for name, parameter in twin.named_parameters():
                omega[name] -= own[name] * (parameter.detach() - before[name])
        for name, parameter in twin.named_parameters():
            change = parameter.detach() - start[name]
            importance[name] += omega[name].clamp(min=0) / (change**2 + damping)

    found = strategy.protections[0].importance
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, rtol=1e-4, atol=1e-5)
        assert found[name].max() > 0
        torch.testing.assert_close(found[name], importance[name], rtol=1e-3, atol=1e-5 * float(importance[name].max()))


def trained(stream: Stream, strength: float = 10.0) -> tuple[nn.Module, SI]:
    strategy = SI(strength=strength)
    model = perceptron()
    train_stream(model, stream, strategy, make_loss("contrastive", dim=4, num_classes=6), CONFIG)
    return model, strategy


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_changes_later_tasks_only_and_strength_0_is_finetune(tiny_stream: Stream):
    assert torch.equal(weights(trained(tiny_stream[:1], 10.0)[0]), weights(trained(tiny_stream[:1], 0.0)[0]))
    assert (weights(trained(tiny_stream, 10.0)[0]) - weights(trained(tiny_stream, 0.0)[0])).abs().max() > 1e-3


def test_memory_is_two_copies_between_tasks_and_four_within(tiny_stream: Stream):
    model, strategy = trained(tiny_stream[:2])
    size = weights(model).numel()
    assert sum(value.numel() for value in strategy.state_dict().values()) == 2 * size
    strategy.before_task(model, tiny_stream[2], torch.optim.SGD(model.parameters(), lr=0.1))
    assert sum(value.numel() for value in strategy.state_dict().values()) == 4 * size


def test_a_run_that_is_resumed_in_the_middle_of_a_task_ends_the_same(tiny_stream: Stream, tmp_path, monkeypatch):
    loss = Retrieval(make_loss("contrastive", dim=4, num_classes=6))
    whole, strategy = trained(tiny_stream)
    saved = RunDirectory.save_checkpoint
    count = 0

    def stops(self: RunDirectory, checkpoint) -> None:
        nonlocal count
        saved(self, checkpoint)
        count += 1
        if count == 6:  # three epochs and the end of task 0, then two epochs of task 1
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save_checkpoint", stops)
    run = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_stream(perceptron(), tiny_stream, SI(strength=10.0), loss, CONFIG, run)
    start = run.load_checkpoint()
    assert start is not None
    assert (start.task, start.epoch) == (1, 2)
    resumed, model = SI(strength=10.0), perceptron()
    train_stream(model, tiny_stream, resumed, loss, CONFIG, RunDirectory(tmp_path))
    assert torch.equal(weights(model), weights(whole))
    found, expected = resumed.state_dict(), strategy.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_recognition_leaves_the_heads_out(tiny_stream: Stream):
    strategy, model = SI(), perceptron()
    loss = Recognition(4, [task.classes for task in tiny_stream], tiny_stream[0].train.class_names)
    train_stream(model, tiny_stream, strategy, loss, CONFIG)
    assert strategy.protections[0].importance.keys() == trainable(model).keys()


def test_without_a_loss_it_says_so(tiny_stream: Stream):
    strategy, model = SI(), perceptron()
    with pytest.raises(ValueError, match="no step of this task lowered its loss"):
        train_stream(model, tiny_stream, strategy, lambda embeddings, labels: 0 * embeddings.sum(), CONFIG)


def test_options_are_checked():
    with pytest.raises(ValueError, match="damping must be > 0"):
        SI(damping=0.0)
    with pytest.raises(RuntimeError, match="prepare"):
        SI().state_dict()


def integrated() -> Params:
    """Of a task that replicas learn together, each on its own half."""
    model = perceptron().double()
    learner = DistributedDataParallel(model) if distributed.is_on() else model
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    path = PathIntegral(learner)
    path.begin(optimizer)
    data = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    for _ in range(4):
        optimizer.zero_grad()
        (learner(data[distributed.rank() :: distributed.world_size()]) - 1).square().mean().backward()
        optimizer.step()
        path.after_step()
    return path.end(0.1)


@pytest.mark.slow
def test_replicas_have_the_path_of_one_process():
    expected = integrated()
    first, second = run_in_processes(integrated, 2)
    assert identical(first, second)
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-12)
