"""One contract for every strategy of the catalog, and what each promises in its docstring."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from oracles import ridge_labels
from torch import Tensor, nn

from tripletmas.basics.weights import state_of, trainable
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, Task
from tripletmas.data.tasks import make_stream as split
from tripletmas.models.networks import mlp
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.objectives.scores import Scores
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.runs.catalog import STRATEGIES, build_strategy, options
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.base import Strategy

CLASSES, DIM, TASKS = 6, 6, 3
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=0.005)
OBJECTIVES = ("metric", "recognition")

COMBINED = ("mas+distill", "distill+replay", "mas+imm", "anchors+replay")
ALL = (*STRATEGIES, *COMBINED)
# In recognition with what only that has; else the defaults.
OPTIONS = {"recognition": {"distill": {"distance": "soft_targets"}, "imm": {"merging": "mode"}}}
STILL = ("pretrained", "frozen")  # learn nothing in later tasks
LEARNERS = [name for name in ALL if name != "pretrained"]
DIFFERENT = [name for name in ALL if name != "finetune"]
WITH_STRENGTH = [name for name in STRATEGIES if "strength" in options("strategy", name)]
# Bytes of the state after all tasks, given those of the weights, as the docstrings state; a counter has 8.
MEMORY: dict[str, Callable[[int], int]] = {
    "finetune": lambda weights: 0,
    "pretrained": lambda weights: 0,
    "frozen": lambda weights: 0,
    "joint": lambda weights: 0,
    "mas": lambda weights: 2 * weights,
    "local_mas": lambda weights: 2 * weights,
    # of 8 inputs and a 1, and of 16 and a 1; value, tasks and multiplier of two layers
    "gram": lambda weights: weights + weights // 2 + 4 * (9 * 9 + 17 * 17) + 2 * 4 * 8,
    "l2": lambda weights: 2 * weights,
    "ewc": lambda weights: 2 * weights,
    "si": lambda weights: 2 * weights,
    "distill": lambda weights: weights + 8,
    "ebll": lambda weights: weights + 8 + TASKS * 4 * ((DIM // 4 + 2) * DIM + DIM // 4),
    "imm": lambda weights: weights + 8,
    "replay": lambda weights: 2 * 8 * NUM_SAMPLES + 8,  # fewer than the default memory
    "anchors": lambda weights: CLASSES * 5 * (8 + 4 * DIM) + 8,
}
NUM_SAMPLES = 84  # 20 of each class, of which 6 are held out


def make_stream(tasks: int = TASKS) -> Stream:
    """Points around six centres, two classes a task."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(CLASSES, 8, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(20)
    samples = centres[labels] + 0.7 * torch.randn(len(labels), 8, generator=generator)
    data = LabelledDataset(samples, labels, [str(label) for label in range(CLASSES)])
    return split(Source(data), tasks=3)[0][:tasks]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return mlp((8,), dim=DIM, hidden=(16,))


def make_objective(objective: str = "metric") -> nn.Module:
    """A metric loss, or heads for all three tasks."""
    if objective == "metric":
        # without a hinge: once all triplets satisfied one, ewc and si would find nothing important
        return Retrieval(make_loss("ntxent", dim=DIM, num_classes=CLASSES))
    torch.manual_seed(1)
    return Recognition(
        DIM, [task.classes for task in make_stream()], [str(label) for label in range(CLASSES)], ridge_dim=16
    )


def build(name: str, objective: str = "metric") -> Strategy:
    given = OPTIONS.get(objective, {})
    return build_strategy(
        name, {k: v for k, v in given.items() if k in name.split("+")} if "+" in name else given.get(name, {})
    )


def train(
    strategy: Strategy,
    stream: Stream,
    config: TrainConfig = CONFIG,
    *,
    objective: str = "metric",
    run: RunDirectory | None = None,
) -> tuple[nn.Module, Scores]:
    """The model that was trained, and its scores."""
    model = make_model()
    return model, train_stream(model, stream, strategy, make_objective(objective), config, run)


@dataclass(frozen=True)
class Trained:
    """A run that nobody changes any more."""

    strategy: Strategy
    model: nn.Module
    scores: Scores

    def weights(self) -> Tensor:
        """Of the model that is deployed."""
        return weights(self.strategy.deployed(self.model))


@cache
def trained(name: str, objective: str = "metric", tasks: int = TASKS) -> Trained:
    strategy = build(name, objective)
    return Trained(strategy, *train(strategy, make_stream(tasks), objective=objective))


def prepare(strategy: Strategy, model: nn.Module, stream: Stream) -> None:
    strategy.prepare(model, make_objective(), stream)


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def finetuned() -> Tensor:
    return trained("finetune").weights()


def assert_same(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(state) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


class Killed(BaseException):
    """Stands for the death of the process."""


# --- every strategy


def test_the_baselines_are_in_the_table():
    assert {"finetune", "pretrained", "frozen", "joint"} <= STRATEGIES.keys()  # every method is reported beside them
    assert MEMORY.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_listed_option_is_accepted(name: str):
    defaults = {option: listed.default for option, listed in options("strategy", name).items()}
    assert all(listed.help for listed in options("strategy", name).values())
    assert isinstance(build_strategy(name, defaults), Strategy)


@pytest.mark.parametrize("name", WITH_STRENGTH)
def test_what_it_cannot_take_is_refused_before_there_is_a_run(name: str):
    """When it is made: a run directory would be there already when it is prepared."""
    for option, values in {"strength": (-1.0, float("nan")), "decay": (-0.1, 1.5, float("nan"))}.items():
        for value in values if option in options("strategy", name) else ():
            with pytest.raises(ValueError, match=f"{option}.* must"):
                build_strategy(name, {option: value})


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", LEARNERS)
def test_the_first_task_is_learned_as_by_finetune(name: str, objective: str):
    assert torch.equal(trained(name, objective, 1).weights(), trained("finetune", objective, 1).weights())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", DIFFERENT)
def test_later_tasks_are_learned_in_another_way(name: str, objective: str):
    assert (trained(name, objective).weights() - trained("finetune", objective).weights()).abs().max() > 1e-3


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns(name: str):
    run = trained(name)
    recall = run.scores.matrix("recall@1", "task")
    assert recall[0, 0] > 0.9
    if name not in STILL:
        assert recall[2, 2] > 0.9
        loss, start, last = make_objective(), make_model(), make_stream()[2]
        samples, labels = last.train[list(range(len(last.train)))]
        assert loss(run.model(samples), labels) < 0.5 * loss(start(samples), labels)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ALL)
def test_a_seed_decides_the_run(name: str, objective: str):
    again = build(name, objective)
    model, _ = train(again, make_stream(), objective=objective)
    assert torch.equal(weights(again.deployed(model)), trained(name, objective).weights())


@pytest.mark.parametrize("name", WITH_STRENGTH)
def test_without_strength_it_is_finetune(name: str, finetuned: Tensor):
    assert torch.equal(weights(train(build_strategy(name, {"strength": 0.0}), make_stream())[0]), finetuned)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", WITH_STRENGTH)
def test_a_strength_that_is_set_to_zero_is_finetune(name: str, objective: str):
    strategy = build(name, objective)
    prepare = strategy.prepare

    def prepare_and_set(*arguments) -> None:
        prepare(*arguments)
        strategy.set_strength(0.0)

    strategy.prepare = prepare_and_set
    model, _ = train(strategy, make_stream(), objective=objective)
    assert torch.equal(weights(model), trained("finetune", objective).weights())


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in WITH_STRENGTH])
def test_a_strategy_without_strength_says_so(name: str):
    with pytest.raises(ValueError, match="has no strength to set"):
        build(name).set_strength(1.0)


@pytest.mark.parametrize("name", ALL)
def test_memory_is_what_the_docstring_states(name: str):
    run = trained(name)
    found = num_bytes(run.strategy.state_dict())
    assert found == sum(MEMORY[part](num_bytes(trainable(run.model))) for part in name.split("+"))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ALL)
def test_the_state_is_taken_over(name: str, objective: str):
    run, other = trained(name, objective), build(name, objective)
    model = copy.deepcopy(run.model)
    other.prepare(model, make_objective(objective), make_stream())
    other.load_state_dict({key: value.clone() for key, value in run.strategy.state_dict().items()})
    assert_same(other.state_dict(), run.strategy.state_dict())
    assert torch.equal(weights(other.deployed(model)), run.weights())


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ALL)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(name: str, objective: str, tmp_path: Path, monkeypatch):
    save = RunDirectory.save_checkpoint
    deaths = {(1, 2), (2, 0), (2, 2)}  # (task, epochs done): in a later task, between two, and in the last one

    def save_and_die(run: RunDirectory, checkpoint) -> None:
        save(run, checkpoint)
        if (place := (checkpoint.task, checkpoint.epoch)) in deaths:
            deaths.remove(place)
            raise Killed

    def train_on() -> tuple[Strategy, nn.Module]:
        strategy = build(name, objective)
        return strategy, train(strategy, make_stream(), objective=objective, run=RunDirectory.create(tmp_path, {}))[0]

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", save_and_die)
        for _ in range(1 if name in STILL else 3):  # which have no epochs in a later task
            with pytest.raises(Killed):
                train_on()
        strategy, model = train_on()
    whole = trained(name, objective)
    assert torch.equal(weights(model), weights(whole.model))
    assert torch.equal(weights(strategy.deployed(model)), whole.weights())
    assert_same(strategy.state_dict(), whole.strategy.state_dict())


@pytest.mark.parametrize("name", ALL)
def test_the_structure_of_the_model_stays(name: str):
    run = trained(name)
    deployed = run.strategy.deployed(run.model)
    assert (deployed is run.model) == ("imm" not in name)
    assert run.strategy.deployed(run.model) is deployed
    assert list(state_of(run.model)) == list(state_of(deployed)) == list(state_of(make_model()))
    assert all(p.requires_grad for p in run.model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_the_loss_keeps_its_own_gradients_and_the_model_its_mode(name: str):
    """After a task, nothing is left behind that the next step would count."""
    strategy, model, loss, stream = build(name), make_model().train(), make_objective(), make_stream(2)
    strategy.prepare(model, loss, stream)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    strategy.before_task(model, stream[0], optimizer)
    loss(model(stream[0].train[[0, 1, 14, 15]][0]), stream[0].train.labels[[0, 1, 14, 15]]).backward()
    optimizer.step()
    strategy.after_step(model)
    optimizer.zero_grad()
    before = weights(model)
    strategy.after_task(model, stream[0])
    assert model.training
    assert torch.equal(weights(model), before)
    assert all(parameter.grad is None for parameter in (*model.parameters(), *loss.parameters()))


# --- each by itself


def test_frozen_learns_the_first_task_only():
    first, _ = train(build_strategy("frozen", {}), make_stream(1))
    last, scores = train(build_strategy("frozen", {}), make_stream())
    assert torch.equal(weights(first), weights(last))
    recall = scores.matrix("recall@1", "task")
    assert recall[0, 0] == recall[1, 0] == recall[2, 0]


def test_frozen_learns_as_many_tasks_as_it_is_told():
    learned = weights(trained("finetune", tasks=2).model)
    assert torch.equal(weights(train(build_strategy("frozen", {"tasks": 2}), make_stream())[0]), learned)
    with pytest.raises(ValueError, match="tasks must be >= 0, got -1"):
        build_strategy("frozen", {"tasks": -1})


def test_pretrained_is_the_model_as_it_came():
    run = trained("pretrained")
    assert torch.equal(weights(run.model), weights(make_model()))
    embedded = run.scores.matrix("recall@1", "task")
    assert embedded[0, 0] == embedded[1, 0] == embedded[2, 0]
    assert torch.equal(run.scores.matrix("recall@1", "seen_stale")[2], run.scores.matrix("recall@1", "seen")[2])


def test_pretrained_has_heads_that_know_their_tasks():
    """Of an untrained model: the tasks are told apart by two lines through its six dimensions, or nearly."""
    accuracy = trained("pretrained", "recognition").scores.matrix("accuracy", "task")
    assert accuracy.diagonal().min() > 0.9
    assert torch.equal(accuracy[2], accuracy.diagonal())


def test_a_ridge_on_sums_forgets_nothing_where_the_model_stands_still():
    """It is the ridge on all data at once then, whatever came last; where the model moves, old sums are stale."""
    stream, model = make_stream(), make_model()
    recognition = make_objective("recognition")
    train_stream(model, stream, build("pretrained"), recognition, CONFIG)
    parts = [task.train[list(range(len(task.train)))] for task in stream]
    samples, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    asked = torch.cat([task.query[list(range(len(task.query)))][0] for task in stream])
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(DIM, 16, generator=generator, dtype=torch.float64)
    vectors, queries = model(samples).tolist(), model(asked).detach()
    expected = ridge_labels(vectors, labels.tolist(), queries.tolist(), recognition.ridge.strength, random)
    assert recognition.ridge.predict(queries).tolist() == expected


def test_joint_trains_on_everything_so_far():
    stream = make_stream()
    data = build_strategy("joint", {}).training_data(stream[2], stream[:2])
    assert data is not None
    samples, labels = data[list(range(len(data)))]
    assert torch.equal(samples, torch.cat([task.train[list(range(len(task.train)))][0] for task in stream]))
    assert torch.equal(labels, torch.cat([task.train.labels for task in stream]))


def test_mas_holds_weights_the_firmer_the_stronger_it_is(finetuned: Tensor):
    first = weights(train(build_strategy("finetune", {}), make_stream(1))[0])
    strategies = [build_strategy("mas", {"strength": strength}) for strength in (0.3, 10.0)]
    moved = [(weights(train(strategy, make_stream(2))[0]) - first).norm() for strategy in strategies]
    free = (weights(train(build_strategy("finetune", {}), make_stream(2))[0]) - first).norm()
    assert free > moved[0] > moved[1] > 0


@pytest.mark.filterwarnings("ignore:weights that this .* holds have changed since:UserWarning")  # by hand
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
    with pytest.raises(RuntimeError, match=r"call strategy\.prepare\(model, objective, stream\) first"):
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
