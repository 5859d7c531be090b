"""Two processes learn, measure and score as one does, but for rounding; what cannot be shared is told."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_in_processes
from random_models import Dropping, Noisy
from test_strategies import ALL, CONFIG, DIM, OBJECTIVES, build, make_model, make_objective, make_stream
from torch import Tensor, nn

from tripletmas.basics import distributed
from tripletmas.basics.weights import state_of
from tripletmas.data.batches import own_parts
from tripletmas.data.tasks import Stream
from tripletmas.models.lora import adapt
from tripletmas.models.networks import mlp
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import run_experiment
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.strategies.anchors import Anchors
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.ewc import EWC
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.mas import MAS
from tripletmas.strategies.si import SI

# adaptive steps would make rounding of small gradients large
GENTLE = replace(CONFIG, epochs=1, optimizer="sgd", lr=0.02)


def proxies() -> Retrieval:
    torch.manual_seed(2)
    return Retrieval(make_loss("proxy_anchor", dim=DIM, num_classes=6))


def adapted() -> nn.Module:
    torch.manual_seed(0)
    return adapt(mlp((8,), dim=DIM, hidden=(16, 16)), 2)


def parts(name: str, objective: str) -> Strategy:
    """As in the table; so weak that they do not make rounding large, and that plain steps under them are stable."""
    strategy = build(name, objective)
    for part in getattr(strategy, "parts", {"": strategy}).values():
        for kind, strength in ((Anchors, 1.0), (EWC, 1.0), (SI, 0.1)):
            if isinstance(part, kind):
                part.strength = strength
    return strategy


def of_metric(**options: Any) -> Callable[[], tuple[nn.Module, Stream, Strategy, Any, TrainConfig]]:
    given = {"model": make_model, "strategy": Finetune, "loss": make_objective, "config": GENTLE} | options
    return lambda: (given["model"](), make_stream(2), given["strategy"](), given["loss"](), given["config"])


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return make()

    return made


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, DIM))


# what only recognition has: heads in what is added, and the Fisher information
OF_HEADS = ("frozen", "distill", "ebll", "ewc", "imm", "joint", "distill+replay")
CASES = {
    **{
        f"{name}, {objective}": of_metric(
            strategy=lambda name=name, objective=objective: parts(name, objective),
            loss=lambda objective=objective: make_objective(objective),
        )
        for objective in OBJECTIVES
        for name in ALL
        if name != "pretrained" and (objective == "metric" or name in OF_HEADS)
    },
    "batch norm": of_metric(model=seeded(with_norm), strategy=lambda: MAS(strength=1.0)),
    "batch norm that stands still": of_metric(
        model=seeded(with_norm), config=replace(GENTLE, freeze_batchnorm="always"), strategy=lambda: MAS(strength=1.0)
    ),
    "dropout": of_metric(model=seeded(lambda: Dropping(DIM))),
    "proxies, clipped": of_metric(loss=proxies, config=replace(GENTLE, clip=0.5)),
    "drawn triplets": of_metric(loss=lambda: Retrieval(make_loss("margin", dim=DIM, num_classes=6))),
    "odd batches": of_metric(config=replace(GENTLE, batch_size=15, samples_per_class=5)),
    "shuffled": of_metric(
        config=replace(GENTLE, sampler="shuffled", batch_size=9), loss=lambda: make_objective("recognition")
    ),
    "factors": of_metric(model=adapted, strategy=lambda: MAS(strength=1.0)),
    "gradients of batches": of_metric(strategy=lambda: MAS(batch_gradients=5)),
    "half precision": of_metric(config=replace(GENTLE, precision="bf16")),
}


# how near: in half precision 8 bits are kept, and a fit by L-BFGS ends where its steps are small
COARSE = {"half precision": 2e-2, "frozen, recognition": 2e-2}


def learned(names: list[str], folder: Path) -> dict[str, Any]:
    """case -> the weights, what the strategy holds, the records."""
    found = {}
    for name in names:
        model, stream, strategy, objective, config = CASES[name]()
        path = folder / name.replace(" ", "_").replace(",", "")
        if distributed.is_main():
            RunDirectory.create(path, {"seed": 0})
        distributed.barrier()
        train_stream(model, stream, strategy, objective, config, RunDirectory.open(path))
        distributed.barrier()
        found[name] = {
            "weights": state_of(strategy.deployed(model)),
            "strategy": strategy.state_dict(),
            "objective": state_of(objective),
            "records": [without_seconds(record) for record in RunDirectory(path).records()],
        }
    return found


def without_seconds(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: without_seconds(value) for key, value in record.items() if key not in ("seconds", "files")}
    return [without_seconds(each) for each in record] if isinstance(record, list) else record


def assert_near(found: Any, expected: Any, where: str, tolerance: float = 2e-4) -> None:
    """Equal but for rounding, numbers in tensors, lists and dicts."""
    if isinstance(expected, Tensor):
        assert found.shape == expected.shape, where
        size = max(1e-3, float(expected.double().abs().max())) if expected.numel() else 1.0
        assert float((found.double() - expected.double()).abs().max() if expected.numel() else 0) <= tolerance * size, (
            where
        )
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_near(found[key], value, f"{where}/{key}", tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_near(found[number], value, f"{where}/{number}", tolerance)
    elif isinstance(expected, float) and math.isfinite(expected):
        assert found == pytest.approx(expected, rel=10 * tolerance, abs=10 * tolerance), where
    else:
        assert found == expected or found is expected, where


@pytest.mark.slow
@pytest.mark.parametrize("group", range(4))
def test_two_processes_learn_as_one(tmp_path, group):
    names = list(CASES)[group::4]
    answers = run_in_processes(learned, 2, names, tmp_path / "two")
    alone = learned(names, tmp_path / "one")
    wrong = []
    for name in names:
        try:
            assert_near(answers[0][name], alone[name], name, COARSE.get(name, 2e-4))
            for part in ("weights", "strategy", "objective"):
                first, second = (answer[name][part] for answer in answers)
                assert list(first) == list(second)
                assert all(torch.equal(first[key], second[key]) for key in first), f"{name}: {part} of the processes"
        except AssertionError as error:
            wrong.append(f"{name}: {str(error)[:300]}")
    assert not wrong, "\n".join(wrong)


# --- killed, and resumed


def mas_run(path: Path, dies: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """The weights after two tasks, going on where the run stopped; one process may be killed at one of its steps.

    Args:
        dies: (which process, at which step).
    """
    strategy, steps = MAS(strength=1.0), []

    def after_step(model: nn.Module) -> None:
        steps.append(1)
        if dies == (distributed.rank(), len(steps)):
            os.kill(os.getpid(), signal.SIGKILL)

    strategy.after_step = after_step
    if distributed.is_main():
        RunDirectory.create(path, {"seed": 0})
    distributed.barrier()
    model = make_model()
    config = replace(GENTLE, epochs=2)
    train_stream(model, make_stream(2), strategy, make_objective(), config, RunDirectory.open(path))
    return state_of(model)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_and_resumed_by_two_processes_or_by_one(tmp_path, rank):
    """The second task has the steps 5 to 8: the kill in its second epoch costs that epoch."""
    with pytest.raises(RuntimeError, match=f"rank {1 - rank}"):  # it tells that the other is gone
        run_in_processes(mas_run, 2, tmp_path / "two", (rank, 7))
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    checkpoint = RunDirectory(tmp_path / "two").load_checkpoint()
    assert checkpoint is not None
    assert (checkpoint.task, checkpoint.epoch) == (1, 1)
    whole = run_in_processes(mas_run, 2, tmp_path / "whole")[0]
    again = run_in_processes(mas_run, 2, tmp_path / "two")[0]
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert_near(mas_run(tmp_path / "one"), whole, "by one")


@pytest.mark.slow
def test_what_one_process_began_two_finish(tmp_path):
    whole = mas_run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="rank 0 did not end"):
        run_in_processes(mas_run, 1, tmp_path / "one", (0, 7))
    assert_near(run_in_processes(mas_run, 2, tmp_path / "one")[0], whole, "by two")


# --- what cannot be shared, or differs


def complaint(config: TrainConfig) -> str | None:
    try:
        train_stream(make_model(), make_stream(1), Finetune(), make_objective(), config)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_more_processes_than_a_batch_can_feed():
    """A task has two classes; of 28 samples in batches of 13 two are left over."""
    told = "3 processes cannot share a batch of 2 classes (task '0,1'): start at most 2"
    assert all(answer.startswith(told) for answer in run_in_processes(complaint, 3, GENTLE))
    config = replace(GENTLE, sampler="shuffled", batch_size=13)
    assert (
        run_in_processes(complaint, 3, config)
        == [
            "3 processes cannot share a batch of 2 samples (task '0,1'): start at most 2, or take another "
            "training.batch_size"
        ]
        * 3
    )
    assert complaint(config) is None


def refused(out: Path) -> tuple[str, bool]:
    """What a run of too many processes is told, and whether its folder was made."""
    with pytest.raises(ValueError, match="cannot share a batch of 2 classes") as error:
        run_experiment({"data": {"name": "digits"}, "training": {"epochs": 1}}, out)
    return str(error.value), out.exists()


@pytest.mark.slow
def test_a_run_of_too_many_processes_is_not_begun(tmp_path):
    """Else its folder would refuse the other batch size that the error proposes: of another configuration."""
    told = "3 processes cannot share a batch of 2 classes (task '0,1'): start at most 2, "
    told += "or raise training.batch_size as far as there are classes"
    assert run_in_processes(refused, 3, tmp_path / "run") == [(told, False)] * 3


def drifting() -> str | None:
    """One process steps otherwise than the other."""

    class Pushed(Strategy):
        def after_step(self, model: nn.Module) -> None:
            with torch.no_grad():
                next(model.parameters()).add_(1e-7 * distributed.rank())

    try:
        train_stream(make_model(), make_stream(1), Pushed(), make_objective(), GENTLE)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_replicas_that_drift_apart_are_told():
    told = "the hash of the weights after task 0, epoch 0 must be the same on all ranks"
    assert all(str(answer).startswith(told) for answer in run_in_processes(drifting, 2))
    assert drifting() is None


def noisy(folder: Path) -> tuple[dict[str, Tensor], list[str], list[float]]:
    """The weights, what was warned of, and the next number that all draw."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("tripletmas").addHandler(handler)
    torch.manual_seed(0)
    model = Noisy(8, DIM)
    train_stream(model, make_stream(1), Finetune(), make_objective(), GENTLE)
    return state_of(model), [each for each in said if "draws" in each], torch.rand(3).tolist()


@pytest.mark.slow
def test_a_model_that_draws_by_itself_is_told_of(tmp_path):
    """Its replicas stay the same all the same, and two runs are."""
    first, second = run_in_processes(noisy, 2, tmp_path), run_in_processes(noisy, 2, tmp_path)
    for weights, _, numbers in [*first, *second]:
        assert torch.equal(weights["weight"], first[0][0]["weight"])
        assert numbers == first[0][2]
    assert first[0][1][0].startswith("the model draws random numbers in training (dropout) that 2 processes draw each")
    assert noisy(tmp_path)[1] == []


def test_shares_of_a_batch():
    assert own_parts([[5, 3], [8]]) == [[5, 3], [8]]
    assert own_parts([]) == []
