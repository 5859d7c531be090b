"""One contract for every strategy of the catalog, and what each promises in its docstring."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tripletmas.catalog import STRATEGIES, build_strategy, options
from tripletmas.data import LabelledDataset
from tripletmas.forgetting import Scores
from tripletmas.importance import mas_importance
from tripletmas.losses import make_loss
from tripletmas.models import mlp
from tripletmas.optimization import TrainConfig
from tripletmas.params import trainable
from tripletmas.strategies import Strategy
from tripletmas.tasks import Stream, Task, split_by_class
from tripletmas.training import train_stream

CLASSES, DIM = 6, 6
# Copies of the trainable parameters that a strategy keeps, as its docstring states.
COPIES = {"finetune": 0, "frozen": 0, "joint": 0, "mas": 2, "local_mas": 2}
DIFFERENT = [name for name in STRATEGIES if name != "finetune"]
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=0.005)


def make_stream(tasks: int = 3) -> Stream:
    """Points around six centres, two classes a task."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(CLASSES, 8, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(20)
    samples = centres[labels] + 0.7 * torch.randn(len(labels), 8, generator=generator)
    data = LabelledDataset(samples, labels, [str(label) for label in range(CLASSES)])
    return split_by_class(data, tasks=3)[:tasks]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return mlp((8,), dim=DIM, hidden=(16,))


def train(strategy: Strategy, stream: Stream, config: TrainConfig = CONFIG) -> tuple[nn.Module, Scores]:
    model = make_model()
    loss = make_loss("triplet", dim=DIM, num_classes=CLASSES)
    return model, train_stream(model, stream, strategy, loss, config)


def prepare(strategy: Strategy, model: nn.Module, stream: Stream) -> None:
    strategy.prepare(model, make_loss("triplet", dim=DIM, num_classes=CLASSES), stream)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def finetuned() -> Tensor:
    return weights(train(build_strategy("finetune", {}), make_stream())[0])


# --- every strategy


def test_the_baselines_are_in_the_table():
    assert {"finetune", "frozen", "joint"} <= STRATEGIES.keys()  # every method is reported beside them
    assert COPIES.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_listed_option_is_accepted(name: str):
    defaults = {option: listed.default for option, listed in options("strategy", name).items()}
    assert all(listed.help for listed in options("strategy", name).values())
    assert isinstance(build_strategy(name, defaults), Strategy)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_first_task_is_learned_as_by_finetune(name: str):
    first = make_stream(1)
    found, expected = (weights(train(build_strategy(strategy, {}), first)[0]) for strategy in (name, "finetune"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", DIFFERENT)
def test_later_tasks_are_learned_in_another_way(name: str, finetuned: Tensor):
    found = weights(train(build_strategy(name, {}), make_stream())[0])
    assert (found - finetuned).abs().max() > 1e-3


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_learns(name: str):
    stream = make_stream()
    model, scores = train(build_strategy(name, {}), stream)
    recall = scores.matrix("recall@1", "task")
    assert recall[0, 0] > 0.9
    if name != "frozen":
        assert recall[2, 2] > 0.9
        start = make_model()
        loss = make_loss("triplet", dim=DIM, num_classes=CLASSES)
        samples, labels = stream[2].train[list(range(len(stream[2].train)))]
        assert loss(model(samples), labels) < 0.5 * loss(start(samples), labels)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_seed_decides_the_run(name: str):
    found, again = (weights(train(build_strategy(name, {}), make_stream())[0]) for _ in range(2))
    assert torch.equal(found, again)


@pytest.mark.parametrize("name", STRATEGIES)
def test_memory_is_what_the_docstring_states(name: str):
    strategy = build_strategy(name, {})
    model, _ = train(strategy, make_stream())
    size = sum(p.numel() * p.element_size() for p in trainable(model).values())
    assert sum(value.numel() * value.element_size() for value in strategy.state_dict().values()) == COPIES[name] * size


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_state_is_taken_over(name: str):
    strategy, other = build_strategy(name, {}), build_strategy(name, {})
    model, _ = train(strategy, make_stream(2))
    prepare(other, model, make_stream(2))
    other.load_state_dict(strategy.state_dict())
    assert list(other.state_dict()) == list(strategy.state_dict())
    assert all(torch.equal(value, strategy.state_dict()[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_trained_model_is_deployed_and_its_structure_stays(name: str):
    strategy = build_strategy(name, {})
    model, _ = train(strategy, make_stream(2))
    assert strategy.deployed(model) is model
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in make_model().named_parameters()]
    assert all(p.requires_grad for p in model.parameters())


# --- each by itself


def test_frozen_learns_the_first_task_only():
    first, _ = train(build_strategy("frozen", {}), make_stream(1))
    last, scores = train(build_strategy("frozen", {}), make_stream())
    assert torch.equal(weights(first), weights(last))
    recall = scores.matrix("recall@1", "task")
    assert recall[0, 0] == recall[1, 0] == recall[2, 0]


def test_joint_trains_on_everything_so_far():
    stream = make_stream()
    data = build_strategy("joint", {}).training_data(stream[2], stream[:2])
    assert data is not None
    samples, labels = data[list(range(len(data)))]
    assert torch.equal(samples, torch.cat([task.train[list(range(len(task.train)))][0] for task in stream]))
    assert torch.equal(labels, torch.cat([task.train.labels for task in stream]))


def test_mas_without_strength_is_finetune(finetuned: Tensor):
    assert torch.equal(weights(train(build_strategy("mas", {"strength": 0.0}), make_stream())[0]), finetuned)


def test_mas_holds_weights_the_firmer_the_stronger_it_is(finetuned: Tensor):
    first = weights(train(build_strategy("finetune", {}), make_stream(1))[0])
    strategies = [build_strategy("mas", {"strength": strength}) for strength in (0.3, 10.0)]
    moved = [(weights(train(strategy, make_stream(2))[0]) - first).norm() for strategy in strategies]
    free = (weights(train(build_strategy("finetune", {}), make_stream(2))[0]) - first).norm()
    assert free > moved[0] > moved[1] > 0


def test_mas_sums_the_importance_of_each_task_on_its_training_data():
    strategy = build_strategy("mas", {"relative": False, "decay": 0.5})
    model, stream = make_model(), make_stream()
    prepare(strategy, model, stream)
    total: dict[str, Tensor] = {}
    for task in stream:
        strategy.before_task(model, task, torch.optim.SGD(model.parameters(), lr=0.01))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        samples, _ = task.train[list(range(len(task.train)))]
        for key, value in mas_importance(model, [samples]).items():
            total[key] = 0.5 * total.get(key, torch.zeros_like(value)) + value
        strategy.after_task(model, task)
        for key, value in strategy.protections[0].importance.items():
            torch.testing.assert_close(value, total[key], rtol=1e-5, atol=1e-8)
        for key, parameter in model.named_parameters():
            assert torch.equal(strategy.protections[0].reference[key], parameter)


def test_mas_measures_plain_samples_and_no_labels():
    def refuse(sample: Tensor) -> Tensor:
        raise AssertionError("importance was measured on an augmented sample")

    task = make_stream(1)[0]
    swapped = LabelledDataset(task.train.samples, CLASSES - 1 - task.train._all_labels, task.train.class_names)
    measured = []
    for train_data in (task.train, task.train.with_transform(refuse), swapped.subset(task.train.indices)):
        model, strategy = make_model(), build_strategy("mas", {})
        prepare(strategy, model, (task,))
        strategy.after_task(model, Task(task.name, task.classes, train_data, task.query))
        measured.append(copy.deepcopy(strategy.protections[0].importance))
    for other in measured[1:]:
        assert all(torch.equal(value, other[key]) for key, value in measured[0].items())


def test_mas_must_be_prepared():
    strategy, task = build_strategy("mas", {}), make_stream(1)[0]
    with pytest.raises(RuntimeError, match=r"call strategy\.prepare\(model, loss, stream\) first"):
        strategy.after_task(make_model(), task)


def test_layers_that_local_mas_does_not_know_are_told_before_the_training():
    model = torch.nn.Sequential(make_model(), torch.nn.LayerNorm(DIM))
    stream, losses = make_stream(1), []

    def counted(embeddings: Tensor, labels: Tensor) -> Tensor:
        losses.append(1)
        return embeddings.sum()

    with pytest.raises(ValueError, match=r"not for 1 .*left_out="):
        train_stream(model, stream, build_strategy("local_mas", {}), counted, CONFIG)
    assert not losses
    train_stream(model, stream, build_strategy("local_mas", {"left_out": ("1",)}), counted, CONFIG)
    assert losses
