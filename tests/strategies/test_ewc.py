"""EWC: the penalty of the literal formula, whatever the objective, and what it says where it cannot work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tripletmas.basics.weights import Params, trainable
from tripletmas.data.tasks import Stream
from tripletmas.models.networks import mlp
from tripletmas.objectives.objective import MetricLoss
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.ewc import EWC
from tripletmas.strategies.fisher_of_task import fisher_of_task

CONFIG = TrainConfig(epochs=2, batch_size=8, samples_per_class=2)


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return mlp((1, 4, 4), dim=4, hidden=(8,))


def recognition(stream: Stream) -> Recognition:
    torch.manual_seed(0)
    return Recognition(4, [task.classes for task in stream], stream[0].train.class_names)


def contrastive(stream: Stream) -> MetricLoss:
    return Retrieval(make_loss("contrastive", dim=4, num_classes=6))


OBJECTIVES = {"recognition": recognition, "metric": contrastive}


def prepared(stream: Stream, make: Callable[[Stream], MetricLoss], strategy: EWC) -> tuple[nn.Module, MetricLoss]:
    model, loss = perceptron(), make(stream)
    strategy.prepare(model, loss, stream)
    return model, loss


def moved(model: nn.Module, by: float) -> Params:
    """Move all weights, each by another amount; returns by how much."""
    steps = {name: by * torch.randn_like(p) for name, p in trainable(model).items()}
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter += steps[name]
    return steps


@pytest.mark.filterwarnings("ignore:weights that this .* holds have changed since:UserWarning")  # by hand
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_penalty_is_the_formula(objective: str, tiny_stream: Stream):
    """strength * sum (decay * F1 + F2) (theta - theta2)^2, and its gradient 2 * strength * (...) * (theta - theta2)."""
    strategy = EWC(strength=5.0, decay=0.5, loss_batch_size=8)
    model, loss = prepared(tiny_stream, OBJECTIVES[objective], strategy)
    measured = []
    for number in range(2):
        moved(model, 0.1)
        torch.manual_seed(number)
        measured.append(fisher_of_task(model, tiny_stream[number], loss, loss_batch_size=8))
        strategy.after_task(model, tiny_stream[number])
    steps = moved(model, 0.1)
    importance = {name: 0.5 * measured[0][name] + measured[1][name] for name in steps}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    strategy.before_task(model, tiny_stream[2], optimizer)
    value = strategy.protections[0].value().item()
    optimizer.step()  # without a loss, all gradient is the penalty's
    assert value == pytest.approx(5 * sum(float((importance[n] * steps[n] ** 2).sum()) for n in steps), rel=1e-4)
    for name, parameter in trainable(model).items():
        expected = 2 * 5 * importance[name] * steps[name]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_changes_later_tasks_only_and_strength_0_is_finetune(objective: str, tiny_stream: Stream):
    def weights(strength: float | None, tasks: int) -> Tensor:
        strategy = EWC(strength=strength or 0.0, loss_batch_size=8)
        model, loss = perceptron(), OBJECTIVES[objective](tiny_stream)
        train_stream(model, tiny_stream[:tasks], strategy, loss, CONFIG)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(1000.0, 1), weights(0.0, 1))
    assert (weights(1000.0, 2) - weights(0.0, 2)).abs().max() > 1e-4


def test_each_task_is_measured_by_its_own_head(tiny_stream: Stream):
    """Heads of weight 0 give the trunk no gradient: where only head 1 is not 0, only task 1 has importance."""
    strategy = EWC()
    model, loss = prepared(tiny_stream, recognition, strategy)
    assert isinstance(loss, Recognition)
    for number in (0, 2):
        nn.init.zeros_(loss.heads[number].weight)  # pyright: ignore[reportArgumentType]
    strategy.after_task(model, tiny_stream[1])
    assert strategy.protections[0].importance.keys() == trainable(model).keys()
    with pytest.raises(ValueError, match="zero everywhere"):
        strategy.after_task(model, tiny_stream[2])


def test_a_satisfied_hinge_says_so(tiny_stream: Stream):
    """With a margin of -2 no triplet is violated: distances of unit vectors are at most 2."""
    strategy = EWC()
    satisfied = Retrieval(make_loss("triplet", dim=4, num_classes=6, options={"margin": -2.0}))
    with pytest.raises(ValueError, match=r"zero everywhere.*larger margin"):
        train_stream(perceptron(), tiny_stream, strategy, satisfied, CONFIG)


def test_options_are_checked():
    with pytest.raises(ValueError, match="labels must be"):
        EWC(labels="own")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="prepare"):
        EWC().state_dict()
