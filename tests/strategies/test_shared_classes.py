"""Tasks that share classes, as the months of a shop do: every strategy, by both objectives, also interrupted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from test_strategies import (
    ALL,
    CLASSES,
    CONFIG,
    DIM,
    OBJECTIVES,
    STILL,
    Killed,
    assert_same,
    build,
    make_model,
    weights,
)
from torch import nn

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, make_stream
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.objectives.scores import Scores
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.strategies.anchors import Anchors
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.replay import Replay

MONTHS = {"1": (0, 1, 2), "2": (1, 2, 3), "3": (0, 1, 2)}  # the third month has the products of the first


@cache
def shared_stream(months: int = 3) -> Stream:
    """Points around a centre for each class, 12 in each month, of which 4 are held out."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(CLASSES, 8, generator=generator)
    named = list(MONTHS.items())[:months]
    labels = torch.tensor([label for _, classes in named for label in classes for _ in range(12)])
    groups = [month for month, classes in named for _ in classes for _ in range(12)]
    noise = torch.randn(27 * 4, 8, generator=generator)[: len(labels)]
    names = [str(label) for label in range(CLASSES)]
    return make_stream(Source(LabelledDataset(centres[labels] + 0.7 * noise, labels, names, sample_groups=groups)))[0]


def train(
    strategy: Strategy, objective: str, run: RunDirectory | None = None, stream: Stream | None = None, epochs: int = 2
) -> tuple[nn.Module, Scores]:
    stream, names = stream or shared_stream(), [str(label) for label in range(CLASSES)]
    torch.manual_seed(1)
    learned = (
        Recognition(DIM, [task.classes for task in stream], names, ridge_dim=16)
        if objective == "recognition"
        else Retrieval(make_loss("ntxent", dim=DIM, num_classes=CLASSES))
    )
    model = make_model()
    return model, train_stream(model, stream, strategy, learned, replace(CONFIG, epochs=epochs), run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        pytest.param(
            name, objective, marks=[] if objective == "metric" or name in ("joint", "replay") else pytest.mark.slow
        )
        for name in ALL
        for objective in OBJECTIVES
    ],
)
def test_an_interrupted_run_on_shared_classes_ends_as_an_uninterrupted_one(
    name: str, objective: str, tmp_path: Path, monkeypatch
):
    whole = build(name, objective)
    model, scores = train(whole, objective)
    assert ("seen_compensated" in scores.matrices) == (whole.compensate is not None)
    for gallery in scores.matrices:
        assert not scores.matrix("recall@1", gallery).tril().isnan().any()
    if objective == "recognition":
        for metric in ("fresh", "stale", "compensated", "ridge"):
            assert scores.matrix(f"accuracy_{metric}", "seen")[2].mean() > 0.4  # one of four classes is a quarter
    save, deaths = RunDirectory.save_checkpoint, {(1, 1), (2, 0), (2, 1)}

    def save_and_die(run: RunDirectory, checkpoint) -> None:
        save(run, checkpoint)
        if (place := (checkpoint.task, checkpoint.epoch)) in deaths:
            deaths.remove(place)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", save_and_die)
        for _ in range(1 if name in STILL else 3):
            with pytest.raises(Killed):
                train(build(name, objective), objective, RunDirectory.create(tmp_path, {}))
        strategy = build(name, objective)
        again, resumed = train(strategy, objective, RunDirectory.create(tmp_path, {}))
    assert torch.equal(weights(again), weights(model))
    assert torch.equal(weights(strategy.deployed(again)), weights(whole.deployed(model)))
    assert_same(strategy.state_dict(), whole.state_dict())
    assert str(resumed.to_json()) == str(scores.to_json())


@pytest.mark.parametrize("name", ["finetune", "replay", "anchors", "joint"])
def test_a_month_more_with_known_products_goes_on_as_if_it_had_been_there(name: str, tmp_path: Path):
    train(build(name), "metric", RunDirectory.create(tmp_path, {}), shared_stream(2))
    grown, scores = train(build(name), "metric", RunDirectory.create(tmp_path, {}))
    whole, expected = train(build(name), "metric")
    assert torch.equal(weights(grown), weights(whole))
    assert str(scores.to_json()) == str(expected.to_json())


@pytest.mark.slow
def test_joint_training_knows_every_task_by_its_head():
    accuracy = train(build("joint"), "recognition", epochs=20)[1].matrix("accuracy", "task")
    assert accuracy[2].min() > 0.9


def after(strategy: Replay | Anchors, tasks: int) -> list[tuple[int, int]]:
    """(task, label) of each sample that is kept after so many tasks, in its order."""
    stream = shared_stream()
    strategy.prepare(make_model(), Retrieval(make_loss("ntxent", dim=DIM, num_classes=CLASSES)), stream)
    for task in stream[:tasks]:
        strategy.after_task(make_model(), task)
    held = strategy.state_dict()["held"]
    everything = [(number, label) for number, task in enumerate(stream) for label in task.train.labels.tolist()]
    return [everything[position] for position in (held[0] if held.ndim == 2 else held).tolist()]


def test_a_class_of_several_tasks_has_one_share_of_the_memory():
    # 24 samples of 4 classes, 6 each; those of 1 and 2 by turns of the tasks: 3 and 3, and then 2, 2 and 2
    found = after(Replay(memory=24), 2)
    assert sorted(found) == sorted(6 * [(0, 0), (1, 3)] + 3 * [(0, 1), (1, 1), (0, 2), (1, 2)])
    assert found[6:12] == 3 * [(0, 1), (1, 1)]  # the best first, so that a smaller share has both tasks, too
    found = after(Replay(memory=24), 3)
    assert sorted(found) == sorted(3 * [(0, 0), (2, 0)] + 2 * [(t, c) for c in (1, 2) for t in range(3)] + 6 * [(1, 3)])


def test_a_class_of_several_tasks_has_no_more_anchors_than_another():
    found = after(Anchors(per_class=5), 2)
    assert sorted(found) == sorted(5 * [(0, 0), (1, 3)] + 3 * [(0, 1), (0, 2)] + 2 * [(1, 1), (1, 2)])
    assert after(Anchors(per_class=1), 2) == [(0, 0), (0, 1), (0, 2), (1, 3)]


def test_a_sample_alone_in_memory_is_used_where_the_task_has_more_of_its_class():
    stream = shared_stream()
    strategy = Replay(memory=24, selection="reservoir")
    strategy.prepare(make_model(), Retrieval(make_loss("ntxent", dim=DIM, num_classes=CLASSES)), stream)
    # one sample of class 0, which the second task does not have, and one of class 1, which it has
    strategy.load_state_dict({"held": torch.tensor([[0, 8], [0, 1]]), "num_seen": torch.tensor([24])})
    labels = strategy.training_data(stream[1], stream[:1]).labels.tolist()
    assert labels == [1, *stream[1].train.labels.tolist()]
    assert strategy.training_data(stream[2], stream[:2]).labels.tolist() == [0, 1, *stream[2].train.labels.tolist()]
