"""What would mislead a strategy: a model that changes its inputs, is frozen in part, or is copied with it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from test_strategies import ALL, CONFIG, OBJECTIVES, build, make_model, make_objective, make_stream, weights
from torch import Tensor, nn

from tripletmas.data.batches import seed_everything
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Task
from tripletmas.objectives.objective import Objective
from tripletmas.runs.galleries import GalleryConfig
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig, make_optimizer
from tripletmas.strategies.base import Strategy

every_strategy = pytest.mark.parametrize("name", ALL)
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


class Standardising(nn.Module):
    """A model that standardises its input: in place, or not."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place, self.network = in_place, make_model()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.sub_(0.5).div_(2.0) if self.in_place else x.sub(0.5).div(2.0))


@every_objective
@every_strategy
def test_a_model_may_change_its_input_in_place(name: str, objective: str):
    """A teacher, a student, and a map of the embeddings before and after, see the same samples all the same."""
    found = []
    for in_place in (True, False):
        model, stream = Standardising(in_place), make_stream(2)
        samples = stream[0].train.samples
        kept = samples.clone()
        strategy = build(name, objective)
        scores = train_stream(model, stream, strategy, make_objective(objective), CONFIG, gallery=GalleryConfig())
        assert torch.equal(samples, kept)
        found.append((weights(strategy.deployed(model)), scores.matrix("recall@1", "seen_compensated")))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1].nan_to_num(), found[1][1].nan_to_num())


def test_a_loss_that_changes_the_embeddings_in_place_is_told():
    """A strategy reads them, too: it would distil what the loss has made of them."""

    def normalising(embeddings: Tensor, labels: Tensor) -> Tensor:
        return embeddings.div_(embeddings.detach().norm(dim=1, keepdim=True)).square().sum()

    with pytest.raises(ValueError, match=r"the loss changes the embeddings in place.* let it use a copy"):
        train_stream(make_model(), make_stream(1), build("distill"), normalising, CONFIG)


def test_an_augmentation_may_change_its_sample_in_place():
    """Samples are read again at every epoch."""
    samples = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    data = LabelledDataset(samples, torch.arange(4), list("abcd"))
    augmented = data.with_transform(lambda sample: sample.mul_(2))
    expected = 2 * samples.clone()
    for _ in range(2):
        assert torch.equal(augmented[[0, 1, 2, 3]][0], expected)
        assert torch.equal(augmented[2][0], expected[2])
    data[1][0].zero_()  # a sample that was read is the caller's own
    assert torch.equal(2 * samples, expected)


# --- frozen in part


@every_objective
@every_strategy
def test_a_layer_that_is_frozen_between_tasks_stays_where_it_is(name: str, objective: str):
    """With weight decay, which moves whatever has a gradient, if only one of zeros."""
    model, stream, loss, strategy = make_model(), make_stream(), make_objective(objective), build(name, objective)
    strategy.prepare(model, loss, stream)
    config = replace(CONFIG, weight_decay=0.1)
    learn(strategy, model, loss, stream, 0, config)
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    optimizer = make_optimizer(model, loss, config)  # made before, as a framework's is
    layer.requires_grad_(False)
    before, free = copy.deepcopy(layer), weights(model)
    learn(strategy, model, loss, stream, 1, config, optimizer)
    assert torch.equal(layer.weight, before.weight)
    assert torch.equal(layer.bias, before.bias)
    assert name in ("pretrained", "frozen") or not torch.equal(weights(model), free)
    learn(strategy, model, loss, stream, 2, config)


def learn(
    strategy: Strategy,
    model: nn.Module,
    objective: Objective,
    stream: tuple[Task, ...],
    number: int,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """A task as the loop learns it, but for its shuffling."""
    seed_everything(0, number)
    task, optimizer = stream[number], optimizer or make_optimizer(model, objective, config)
    if number:
        objective.before_task(strategy.deployed(model), task)
    strategy.before_task(model, task, optimizer)
    data = strategy.training_data(task, stream[:number])
    for step in range(3 if data is not None else 0):
        inputs, labels = data[list(range(step, len(data), 3))]
        optimizer.zero_grad()
        embeddings = model(inputs)
        loss = objective(embeddings, labels)
        added = strategy.loss(model, inputs, embeddings)
        (loss if added is None else loss + added).backward()
        optimizer.step()
        strategy.after_step(model)
    strategy.after_task(model, task)
    objective.after_task(strategy.deployed(model), stream[: number + 1])


# --- copied


@every_objective
@every_strategy
def test_a_copy_in_the_middle_of_a_stream_goes_on_by_itself(name: str, objective: str):
    """With its model and objective: as a framework copies what it was given."""
    model, stream, loss, strategy = make_model(), make_stream(), make_objective(objective), build(name, objective)
    strategy.prepare(model, loss, stream)
    learn(strategy, model, loss, stream, 0, CONFIG)
    copies = copy.deepcopy((strategy, model, loss))
    before = weights(model)
    for number in (1, 2):
        learn(*copies, stream, number, CONFIG)
    assert torch.equal(weights(model), before)
    for number in (1, 2):
        learn(strategy, model, loss, stream, number, CONFIG)
    assert torch.equal(weights(copies[1]), weights(model))
    assert torch.equal(weights(copies[0].deployed(copies[1])), weights(strategy.deployed(model)))
    state, expected = copies[0].state_dict(), strategy.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
