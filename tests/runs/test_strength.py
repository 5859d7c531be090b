"""A strength found on the new task alone: the rule, what it leaves alone, and what is refused."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from tripletmas.basics.weights import snapshot, state_of
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream
from tripletmas.data.tasks import make_stream as split
from tripletmas.models.embedding import embed
from tripletmas.models.networks import mlp
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.evaluate import evaluate
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval, samples_held_out
from tripletmas.runs import strength as module
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.strength import SearchConfig, find_strength
from tripletmas.runs.task import Learner, train_task
from tripletmas.strategies.base import Strategy
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.mas import MAS

CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.005)


def make_stream(noise: float = 0.7, per_class: int = 20) -> Stream:
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(6, 8, generator=generator)
    labels = torch.arange(6).repeat_interleave(per_class)
    samples = centres[labels] + noise * torch.randn(len(labels), 8, generator=generator)
    return split(Source(LabelledDataset(samples, labels, list("abcdef"))), tasks=3)[0]


def make_learner(stream: Stream, strategy: Strategy, *, recognition: bool = False) -> Learner:
    """A learner that has learned the first task."""
    torch.manual_seed(0)
    model = mlp((8,), dim=6, hidden=(16,))
    heads = Recognition(6, [task.classes for task in stream], stream[0].train.class_names)
    objective = heads if recognition else Retrieval(make_loss("triplet", dim=6, num_classes=6))
    learner = Learner(model, objective, strategy, CONFIG)
    strategy.prepare(model, objective, stream)
    train_task(learner, stream[0], ())
    strategy.after_task(model, stream[0])
    return learner


def with_scores(monkeypatch, scores: dict[float, float]) -> list[float]:
    """Trials that score what is said, by their strength; returns the strengths in the order they are tried."""
    tried: list[float] = []

    def trial(learner, start, task, earlier, strength):
        tried.append(strength)
        return scores[strength]

    monkeypatch.setattr(module, "_trial", trial)
    return tried


def test_the_first_strength_that_leaves_room_is_taken(monkeypatch):
    stream = make_stream()
    learner = make_learner(stream, MAS())
    # floor (1 - 0.25) * 0.8 = 0.6: 8 and 4 are below, 2 is above, 1 is not tried
    tried = with_scores(monkeypatch, {0.0: 0.8, 8.0: 0.55, 4.0: 0.59, 2.0: 0.61})
    found = find_strength(learner, stream[1], stream[:1], SearchConfig(start=8.0, drop=0.25))
    assert tried == [0.0, 8.0, 4.0, 2.0]
    assert (found["strength"], found["finetune"]) == (2.0, 0.8)
    assert found["floor"] == pytest.approx(0.6)
    assert found["trials"] == [
        {"strength": 8.0, "score": 0.55},
        {"strength": 4.0, "score": 0.59},
        {"strength": 2.0, "score": 0.61},
    ]
    assert learner.strategy.protections[0].strength == 2.0


def test_where_none_leaves_room_the_task_is_learned_without(monkeypatch, caplog):
    stream = make_stream()
    learner = make_learner(stream, MAS())
    with_scores(monkeypatch, {0.0: 0.9, 4.0: 0.5, 2.0: 0.5, 1.0: 0.5})
    with caplog.at_level(logging.WARNING, "tripletmas.runs.strength"):
        found = find_strength(learner, stream[1], stream[:1], SearchConfig(start=4.0, most=3))
    assert found["strength"] == 0.0 == learner.strategy.protections[0].strength
    assert "no strength down to 1 reaches 0.720" in caplog.text


def test_a_floor_that_guessing_reaches_is_told(monkeypatch, caplog):
    stream = make_stream()
    learner = make_learner(stream, MAS())
    with_scores(monkeypatch, {0.0: 0.6, 4.0: 0.5})  # 0.8 * 0.6 = 0.48, and guessing gives 0.5
    with caplog.at_level(logging.WARNING, "tripletmas.runs.strength"):
        find_strength(learner, stream[1], stream[:1], SearchConfig(start=4.0))
    assert "the strength has to leave 0.480, which guessing reaches too (0.500)" in caplog.text


def test_a_strength_at_which_training_diverges_is_halved_like_others(monkeypatch):
    stream = make_stream()
    learner = make_learner(stream, MAS())

    def trial(learner, start, task, earlier, strength):
        if strength > 4:
            raise FloatingPointError("the loss is nan")
        return 0.9

    monkeypatch.setattr(module, "_trial", trial)
    found = find_strength(learner, stream[1], stream[:1], SearchConfig(start=16.0))
    assert found["strength"] == 4.0
    assert [trial["strength"] for trial in found["trials"]] == [16.0, 8.0, 4.0]
    assert [math.isnan(trial["score"]) for trial in found["trials"]] == [True, True, False]


def test_a_finetune_that_does_not_learn_is_an_error(monkeypatch):
    stream = make_stream()
    learner = make_learner(stream, MAS())
    with_scores(monkeypatch, {0.0: 0.52})  # two classes of equal size: guessing gives 0.5
    with pytest.raises(ValueError, match=r"finetune reaches 0\.520 on validation data of task 'c,d', where guessing"):
        find_strength(learner, stream[1], stream[:1], SearchConfig(start=1.0))


@pytest.mark.parametrize("recognition", [False, True])
def test_a_search_leaves_the_learner_as_it_was(recognition):
    stream = make_stream()
    learner = make_learner(stream, MAS(), recognition=recognition)
    parts = (learner.model, learner.objective)
    before = [snapshot(state_of(part)) for part in parts if isinstance(part, nn.Module)]
    held = snapshot(learner.strategy.state_dict())
    found = find_strength(learner, stream[1], stream[:1], SearchConfig(start=10.0))
    after = [state_of(part) for part in parts if isinstance(part, nn.Module)]
    assert all(torch.equal(old[name], new[name]) for old, new in zip(before, after, strict=True) for name in old)
    assert all(torch.equal(value, learner.strategy.state_dict()[name]) for name, value in held.items())
    what = "accuracy of the head" if recognition else "recall@1"
    assert found["metric"] == f"{what} on validation data of the new task"


def test_a_trial_is_training_with_that_strength_on_the_part_that_is_not_held_out():
    stream = make_stream()
    learner = make_learner(stream, MAS())
    found = find_strength(learner, stream[1], stream[:1], SearchConfig(start=10.0, drop=0.9))
    other = make_learner(stream, MAS())
    task, _ = samples_held_out(stream[1], 0.2, CONFIG.seed)
    other.strategy.set_strength(10.0)
    train_task(other, task, stream[:1])
    assert task.gallery is not None
    score = evaluate(embed(other.model, task.query), embed(other.model, task.gallery))["recall@1"]
    assert found["trials"] == [{"strength": 10.0, "score": score}]


def test_held_out_samples_are_not_trained_on_and_come_from_the_task_alone():
    stream = make_stream()
    task, chance = samples_held_out(stream[1], 0.2, 0)
    learned, asked = set(task.train.indices.tolist()), set(task.query.indices.tolist())
    assert not learned & asked
    assert learned | asked == set(stream[1].train.indices.tolist())
    # 14 of each class to learn from: round(0.2 * 14) = 3 held out
    assert torch.bincount(task.query.labels).tolist()[2:] == [3, 3]
    assert chance == pytest.approx(0.5)  # each of the two classes is half of the gallery
    assert samples_held_out(stream[1], 0.2, 0)[0].query.indices.tolist() == task.query.indices.tolist()


def test_a_class_too_small_to_hold_some_out():
    stream = make_stream(per_class=4)  # 2 of 4 are queries
    with pytest.raises(ValueError, match="class 'c' has 2 training samples; a search for a strength needs 3"):
        samples_held_out(stream[1], 0.2, 0)


def test_a_strategy_without_strength_is_refused_before_anything_is_trained():
    stream, calls = make_stream(), []

    def counted(embeddings, labels):
        calls.append(1)
        return embeddings.sum()

    with pytest.raises(ValueError, match="Finetune has no strength to set"):
        train_stream(mlp((8,)), stream, Finetune(), counted, CONFIG, search=SearchConfig(start=1.0))
    assert not calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, "search start must be > 0, got 0.0"),
        ({"drop": 1.0}, "must lie between 0 and 1, got 1.0 and 0.2"),
        ({"share": 0.0}, "must lie between 0 and 1, got 0.2 and 0.0"),
        ({"most": 0}, "search most must be >= 1, got 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**options)


@pytest.mark.slow
def test_a_searched_run_is_recorded_and_goes_on_with_what_was_found(tmp_path, monkeypatch):
    stream = make_stream()

    def run(name: str) -> RunDirectory:
        torch.manual_seed(0)
        model, strategy = mlp((8,), dim=6, hidden=(16,)), MAS()
        directory = RunDirectory.create(tmp_path / name, {})
        loss = make_loss("triplet", dim=6, num_classes=6)
        train_stream(model, stream, strategy, loss, CONFIG, directory, SearchConfig(start=5.0))
        return directory

    whole = run("whole")
    records = [record for record in whole.records() if record["kind"] == "search"]
    assert [record["task"] for record in records] == [1, 2]  # nothing is protected while the first task is learned
    assert all(record["trials"][-1]["score"] >= record["floor"] for record in records)

    saved, killed = RunDirectory.save_checkpoint, []

    def save(directory, state):
        saved(directory, state)
        if (state.task, state.epoch) == (2, 1) and not killed:
            killed.append(1)
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save_checkpoint", save)
    with pytest.raises(KeyboardInterrupt):
        run("killed")

    def no_search(*_):
        raise AssertionError("searched again in the middle of a task")

    monkeypatch.setattr("tripletmas.runs.loop.find_strength", no_search)
    again = run("killed")
    weights = "weights/task02.safetensors"
    assert all(
        torch.equal(value, again.read_tensors(weights)[name]) for name, value in whole.read_tensors(weights).items()
    )
    assert (again.path / "scores.json").read_bytes() == (whole.path / "scores.json").read_bytes()
