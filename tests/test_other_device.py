"""On a device that is not the CPU everything gives what it gives there, and a step waits for it no more than it must.

The device is that of `other_device`: on a machine without a GPU, too, a tensor that is made on the CPU by default and
meets the model's is an error.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, made
from importance_cases import ESTIMATORS, assert_same
from other_device import NAME, OnDevice, other_device
from test_strategies import ALL, CONFIG, OBJECTIVES, build, make_model, make_objective, make_stream
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from tripletmas.basics.weights import Params, state_of
from tripletmas.objectives.facts.kind import FactsKind
from tripletmas.objectives.retrieval.losses import LOSSES, make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.objectives.scores import Scores
from tripletmas.protection.guard import Guard
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.protection import MAS, LocalMAS, Protection
from tripletmas.protection.structured.gram import Gram
from tripletmas.protection.structured.moments import input_importance
from tripletmas.runs.catalog import STRATEGIES
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import build as build_experiment
from tripletmas.runs.imagined import imagine
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.base import Strategy

SHORT = replace(CONFIG, epochs=1)


def quick(names: Iterable[str], *chosen: str) -> list[Any]:
    """The names as parameters, all but the chosen ones for the slow tests."""
    return [pytest.param(name, marks=[] if name in chosen else [pytest.mark.slow]) for name in names]


def on_cpu(state: Params) -> Params:
    return {name: value.raw if isinstance(value, OnDevice) else value for name, value in state.items()}


def assert_equal(found: Params, expected: Params) -> None:
    found = on_cpu(found)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# --- the device itself


def test_it_has_values_and_refuses_those_of_the_cpu():
    with other_device() as device:
        x = torch.arange(6.0).view(2, 3).to(NAME)
        assert (x.device.type, (x @ x.t()).to("cpu").tolist()) == (NAME, [[5.0, 14.0], [14.0, 50.0]])
        assert x[0, [1, 2]].tolist() == [1.0, 2.0]
        assert torch.zeros(2, device=NAME).tolist() == torch.tensor([0.0, 0.0], device=NAME).tolist() == [0.0, 0.0]
        x[0].add_(1)
        assert x.to("cpu").tolist() == [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]
        assert bool(torch.empty(3, device=NAME).isnan().all())
        for mix in (
            lambda: x + torch.ones(3),
            lambda: torch.stack([x[0, 0], torch.ones(())]),
            lambda: nn.Linear(3, 2)(x),
            lambda: x.add_(torch.ones(2, 3)),
            lambda: torch.randn(3, device=NAME, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match="of the CPU"):
                mix()
        assert (x * torch.tensor(2.0)).device.type == NAME  # a number of the CPU is none too many
        assert x[torch.tensor([1])].tolist() == [[3.0, 4.0, 5.0]]
        with pytest.raises(TypeError, match="copy it to the CPU first"):
            x.numpy()
        device.reads.clear()
        assert float(x.sum()) == 18
        assert bool((x > 2).any())
        assert len((x > 2).nonzero()) == 4
        assert device.reads == {"item": 2, "nonzero": 1}


# --- runs


def trained(
    name: str, objective: str, device: str, run: RunDirectory | None = None, *, config: TrainConfig = SHORT
) -> tuple[Params, Params, Scores]:
    """Weights of what is deployed, the strategy's state, scores."""
    model, strategy = make_model().to(device), build(name, objective)
    loss = make_objective(objective).to(device)
    scores = train_stream(model, make_stream(2), strategy, loss, config, run)
    return state_of(strategy.deployed(model)), strategy.state_dict(), scores


@pytest.mark.slow
@pytest.mark.parametrize("objective", quick(OBJECTIVES, "metric"))
@pytest.mark.parametrize("name", ALL)
def test_every_strategy_learns_there_as_on_the_cpu(name: str, objective: str, tmp_path: Path):
    """Training, importance, penalty, distillation, evaluation and galleries, bit for bit; and what is kept of them."""
    expected = trained(name, objective, "cpu")
    with other_device():
        weights, state, scores = trained(name, objective, NAME, RunDirectory.create(tmp_path, {}))
    assert_equal(weights, expected[0])
    assert_equal(state, expected[1])
    assert repr(scores.to_json()) == repr(expected[2].to_json())  # nan is nan


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", quick(("mas", "gram", "si", "distill", "ewc", "mas+distill"), "mas", "gram"))
def test_short_types_are_there_as_on_the_cpu(name: str, precision: Any, tmp_path: Path):
    """Products under autocast, for fp16 with a GradScaler, which the strategies' steps and pulls go through; importance
    in float32."""
    config = replace(SHORT, precision=precision, epochs=2)
    expected, plain = trained(name, "metric", "cpu", config=config), trained(name, "metric", "cpu")
    with other_device():
        run = RunDirectory.create(tmp_path, {})
        weights, state, scores = trained(name, "metric", NAME, run, config=config)
    assert_equal(weights, expected[0])
    assert_equal(state, expected[1])
    assert repr(scores.to_json()) == repr(expected[2].to_json())
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())
    assert any(not torch.equal(value, plain[0][name]) for name, value in expected[0].items())


@pytest.mark.parametrize("name", quick(("mas", "gram", "si", "distill", "ebll"), "gram", "si"))
def test_a_run_that_was_interrupted_goes_on_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected, save = trained(name, "metric", "cpu"), RunDirectory.save_checkpoint
    with other_device():

        def save_and_die(run: RunDirectory, checkpoint: Any) -> None:
            save(run, checkpoint)
            if (checkpoint.task, checkpoint.epoch) == (1, 1):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "save_checkpoint", save_and_die)
            with pytest.raises(KeyboardInterrupt):
                trained(name, "metric", NAME, RunDirectory.create(tmp_path, {}))
        weights, state, _ = trained(name, "metric", NAME, RunDirectory.create(tmp_path, {}))
    assert_equal(weights, expected[0])
    assert_equal(state, expected[1])


@pytest.mark.parametrize("loss", quick(LOSSES, "triplet", "multi_similarity", "proxy_anchor"))
def test_every_loss_is_there_as_on_the_cpu(loss: str):
    def learned(device: str) -> Params:
        model, objective = make_model().to(device), Retrieval(make_loss(loss, dim=6, num_classes=6)).to(device)
        train_stream(model, make_stream(1), build("finetune"), objective, SHORT)
        return state_of(model) | {f"loss/{name}": value for name, value in state_of(objective).items()}

    torch.manual_seed(0)
    expected = learned("cpu")
    torch.manual_seed(0)
    with other_device():
        assert_equal(learned(NAME), expected)


FACTS = (
    [
        pytest.param(name, FactsKind.losses[0], marks=[] if name == "gram" else [pytest.mark.slow])
        for name in STRATEGIES
        if name not in ("replay", "anchors")  # which take none
    ]
    + [("mas+distill", loss) for loss in FactsKind.losses[1:]]
)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "loss"), FACTS)
def test_facts_are_learned_there_as_on_the_cpu(strategy: str, loss: str):
    sizes = {"images": 80, "test_images": 40, "unseen_images": 12, "size": 32, "word_dim": 16, "tasks": 2}
    config = {
        "data": {"name": "shapes-facts", **sizes},
        "model": {"name": "mlp", "hidden": [16]},
        "training": {"epochs": 1},
    }

    def learned(device: str) -> Params:
        run = build_experiment({**config, "strategy": strategy, "loss": loss})
        run.model.to(device)
        run.objective.to(device)
        train_stream(run.model, run.stream, run.strategy, run.objective, run.training, gallery=run.gallery)
        return state_of(run.strategy.deployed(run.model)) | run.strategy.state_dict()

    expected = learned("cpu")
    with other_device():
        assert_equal(learned(NAME), expected)


# --- how often a step waits


class Counting(Strategy):
    """Another strategy, and what each of its steps waited for."""

    def __init__(self, inner: Strategy, reads: Counter[str]):
        self.inner, self.reads, self.steps = inner, reads, []

    def __getattribute__(self, name: str) -> Any:
        own = ("inner", "reads", "steps", "after_step")
        return (
            object.__getattribute__(self, name)
            if name in own
            else getattr(object.__getattribute__(self, "inner"), name)
        )

    def after_step(self, model: nn.Module) -> None:
        self.inner.after_step(model)
        self.steps.append(dict(self.reads))
        self.reads.clear()


@cache
def waits(name: str, objective: str) -> dict[str, int]:
    """What the second step of the second task waits for."""
    with other_device() as device:
        model, strategy = make_model().to(NAME), Counting(build(name, objective), device.reads)
        train_stream(model, make_stream(2), strategy, make_objective(objective).to(NAME), SHORT)
    return strategy.steps[len(strategy.steps) // 2 + 1]


# Joint and replay have samples of several tasks in a batch, and so of several heads.
@pytest.mark.parametrize("objective", quick(OBJECTIVES, "metric"))
@pytest.mark.parametrize(
    "name", [name for name in ALL if not {"joint", "replay", "frozen", "pretrained"} & {*name.split("+")}]
)
def test_a_step_waits_no_more_than_one_of_finetune(name: str, objective: str):
    """The loss is read once, to stop where it is not finite; a Gram asks once whether a layer has gone too far."""
    expected = dict(waits("finetune", objective))
    if objective == "metric":
        assert expected == {"item": 1, "nonzero": 2}  # pytorch-metric-learning looks for positive and negative pairs
    if "gram" in name:
        expected["to the cpu"] = expected.get("to the cpu", 0) + 1
    assert waits(name, objective) == expected


@pytest.mark.parametrize("num_layers", [2, 5])
def test_importance_waits_no_more_for_more_layers(num_layers: int):
    """A batch: whether all layers, and then the output, gave its last sample what it gets alone; whether the output is
    finite; how long it is. A call: whether the first batch's gradients are right, two sizes of each, whether the sums
    are finite, whether anything is above zero, what buffers held."""
    layers = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(4)) for _ in range(num_layers)]
    found = []
    with other_device() as device:
        model, x = nn.Sequential(*layers, nn.Flatten()).to(NAME), torch.randn(5, 4, 3).to(NAME)
        for num_batches in (1, 2, 3):
            device.reads.clear()
            mas_importance(model, [x] * num_batches)
            found.append(Counter(device.reads))
    assert found[2] - found[1] == found[1] - found[0] == {"item": 2, "to the cpu": 2}
    assert found[0] == {"item": 2 + 2, "to the cpu": 2 + 4}


# --- importance and guards

MEASURES = ESTIMATORS | {"gram": input_importance}
# The first two make a tensor on the CPU themselves (where torch wants the lengths of packed sequences); moved, the ties
# of the others are two parameters.
UNFIT = ("data written into a constant", "packed sequences", "layer called twice", "tied weights")


@pytest.mark.parametrize(
    "name", quick([name for name in ARCHITECTURES if name not in UNFIT], "mlp", "conv", "words", "low rank", "lstm")
)
@pytest.mark.parametrize("measure", ["mas", "gram"])
@pytest.mark.filterwarnings("ignore:nothing to hold of")  # of parameters that are zero at first
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_importance_is_there_as_on_the_cpu(measure: str, name: str):
    compare_importance(measure, name)


@pytest.mark.parametrize("measure", [name for name in MEASURES if name not in ("mas", "gram")])
def test_every_importance_is_there_as_on_the_cpu(measure: str):
    compare_importance(measure, "conv")


def compare_importance(measure: str, name: str) -> None:
    model, x = made(name)
    expected = MEASURES[measure](model, x.split(4))
    with other_device():
        found = MEASURES[measure](made(name)[0].to(NAME), x.to(NAME).split(4))
        assert all(value.device.type == NAME for value in found.values())
        assert_same(on_cpu(found), expected)


GUARDS: dict[str, Callable[..., Guard]] = {
    "mas": MAS,
    "local_mas": LocalMAS,
    "gram": Gram,
    "gram, strength": lambda model: Gram(model, strength=1.0),
}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.01),
    "adamw foreach": lambda p: AdamW(p, lr=0.01, foreach=True),
    "lbfgs": lambda p: LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
}


def guarded(make: Callable[..., Guard], optimizer: str, device: str, file: Path) -> Params:
    """Three tasks in a loop of one's own; saved, loaded, copied, unlabelled data added."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).to(device)
    guard = make(model)
    samples = torch.randn(9, 16, 8, generator=torch.Generator().manual_seed(1)).to(device)
    for task in range(3):
        stepping = OPTIMIZERS[optimizer](model.parameters())
        guard.attach(stepping)
        for batch in samples[3 * task : 3 * task + 3]:

            def closure(batch: Tensor = batch, stepping: Optimizer = stepping) -> Tensor:
                stepping.zero_grad()
                loss = (model(batch) - 1).square().mean()
                loss.backward()
                return loss

            stepping.step(closure)  # pyright: ignore
        guard.consolidate([samples[3 * task]])
        guard.add_unlabelled([samples[3 * task + 1]], weight=0.5)
    guard.coverage()
    guard.save(file)
    load = Gram.load if isinstance(guard, Gram) else Protection.load
    for other in (load(file, model), copy.deepcopy((model, guard))[1]):
        assert other.value().item() == guard.value().item()
    return guard.state_dict() | state_of(model)


@pytest.mark.filterwarnings("ignore:weights that this .* holds have changed since:UserWarning")  # by hand
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", GUARDS.values(), ids=GUARDS)
def test_a_guard_is_there_as_on_the_cpu(make: Callable[..., Guard], optimizer: str, tmp_path: Path):
    expected = guarded(make, optimizer, "cpu", tmp_path / "held.safetensors")
    with other_device():
        assert_equal(guarded(make, optimizer, NAME, tmp_path / "other.safetensors"), expected)


def scaled(make: Callable[..., Guard], clip: Any, device: str) -> tuple[Params, float]:
    """Steps under autocast in float16 whose gradients a GradScaler scales, the first of them too far; what was left of
    the scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).to(device)
    guard = make(model)
    samples = torch.randn(6, 16, 8, generator=torch.Generator().manual_seed(1)).to(device)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**20, growth_interval=3)
    for task in range(2):
        guard.attach(stepping := SGD(model.parameters(), lr=0.01), clip=clip)
        for batch in samples[1:]:
            stepping.zero_grad()
            with torch.autocast(device, torch.float16):
                loss = (model(batch) - task).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(stepping)
            if clip == "before":
                guard.add_gradients(stepping)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(stepping)
            scaler.update()
        guard.consolidate([samples[0]])
    return guard.state_dict() | state_of(model), scaler.get_scale()


@pytest.mark.parametrize("clip", ["after", "before"])
@pytest.mark.parametrize("make", GUARDS.values(), ids=GUARDS)
def test_a_guard_goes_through_a_gradient_scaler_there_as_on_the_cpu(make: Callable[..., Guard], clip: str):
    expected, scale = scaled(make, clip, "cpu")
    assert scale != 2.0**20  # a step was left out, or the scale has grown
    with other_device():
        found, same = scaled(make, clip, NAME)
        assert same == scale
        assert_equal(found, expected)


def test_images_are_imagined_there_as_on_the_cpu():
    model, images = make_model(), torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    targets = nn.functional.normalize(model(images[:2]).detach())
    expected = imagine(model.eval(), targets, images, steps=3)
    with other_device():
        found = imagine(make_model().to(NAME).eval(), targets.to(NAME), images.to(NAME), steps=3)
    assert_equal({"images": found}, {"images": expected})
