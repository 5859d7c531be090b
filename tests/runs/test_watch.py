"""What training says of a collapse: when, how often, and that a loss which is stuck is helped out of it."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest
import torch
from commands import interrupt_after
from torch import nn
from torch.nn import functional

from tripletmas.basics.weights import state_of
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Task
from tripletmas.models.networks import mlp
from tripletmas.objectives import collapse
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import Retrieval
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.watch import News, Watch
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.imm import IMM

LABELS = torch.arange(12) % 3


def objective(loss: str = "triplet") -> Retrieval:
    return Retrieval(make_loss(loss, dim=4, num_classes=9))


def batch(spread: float, seed: int = 0) -> torch.Tensor:
    """Embeddings (12, 64) with about this spread: noise of variance v on each axis about a vector of length 8 has a
    mean squared distance of 63 v / 64 from it in direction, and the spread is as large."""
    noise = torch.randn(12, 64, generator=torch.Generator().manual_seed(seed))
    return 1 + noise * (64 * spread / 63) ** 0.5


def record(*spreads: float, loss: float = 0.21, inputs=None, of: Retrieval | None = None) -> dict:
    """That of an epoch of batches with these spreads and this loss."""
    inputs = torch.rand(12, 1, 4, 4) if inputs is None else inputs
    watch = Watch(len(spreads))
    for step, each in enumerate(spreads):
        watch.see(step, inputs, batch(each, step), LABELS, torch.tensor(loss))
    return {**watch.record(of or objective()), "steps": len(spreads)}


def test_an_epoch_says_how_far_its_last_batches_are_spread():
    found = record(*[0.1] * 6, *[0.02] * 4)  # four batches at each end
    assert found["embedding"]["spread"] == pytest.approx(0.02, rel=0.3)
    assert 1 < found["embedding"]["rank"] < 12
    assert "collapse" not in found


def test_a_loss_at_its_margin_is_a_sign_where_it_was_so_at_both_ends_of_the_epoch():
    """The margin is a distance of 0.2, so a spread of 0.02."""
    assert record(*[0.002] * 12)["collapse"].keys() == {"margin"}
    assert "collapse" not in record(*[0.2] * 4, *[0.002] * 8), "in this epoch it comes"
    assert "collapse" not in record(*[0.001] * 4, *[0.002] * 8), "in this epoch it is on its way out"
    assert "collapse" not in record(*[0.002] * 12, loss=0.197), "the loss is below its margin"
    assert "collapse" not in record(*[0.002] * 12, of=objective("contrastive")), "another loss"


def test_nearly_equal_embeddings_are_a_sign_but_for_copies_of_one_sample():
    assert "equal" in record(*[1e-5] * 6)["collapse"]
    assert "collapse" not in record(*[1e-5] * 6, inputs=torch.ones(12, 1, 4, 4))


def test_classes_that_are_told_apart_have_not_collapsed():
    """However near to each other they are: as Pullover and Dress of Fashion-MNIST, whose loss sits at its margin."""
    watch, means = Watch(8), torch.randn(3, 64, generator=torch.Generator().manual_seed(9))
    for step in range(8):
        watch.see(step, torch.rand(12, 4), batch(1e-6, step) + 0.03 * means[LABELS], LABELS, torch.tensor(0.2))
    found = watch.record(objective())
    assert found["embedding"]["spread"] < 0.002
    assert "collapse" not in found


def test_an_epoch_of_one_batch_of_one_sample_says_nothing():
    watch = Watch(1)
    watch.see(0, torch.rand(1, 4), torch.ones(1, 4), torch.zeros(1).long(), torch.tensor(0.2))
    assert "collapse" not in watch.record(objective())


def test_what_is_certain_is_told_once_a_task():
    """A loss at its margin after two epochs of twelve batches and more, equal embeddings at once."""

    def told(*epochs: dict, number: int = 0, news: News | None = None) -> list[set[str]]:
        news = news or News()
        return [set(news.of(number, each)) for each in epochs]

    margin, equal, none = record(*[0.002] * 8), record(*[1e-5] * 8), record(*[0.5] * 8)
    assert told(*[margin] * 4) == [set(), {"margin"}, set(), set()]
    assert told(margin, none, margin, margin) == [set()] * 3 + [{"margin"}]
    assert told(equal, equal, equal) == [{"equal"}, {"margin"}, set()]
    assert told(*[record(*[0.002] * 4)] * 4) == [set(), set(), {"margin"}, set()], "three epochs make twelve batches"
    assert told(*[record(1e-5)] * 4) == [set()] * 3 + [{"equal"}]
    slow = [record(*[spread] * 8) for spread in (0.0005, 0.0009, 0.0016, 0.003, 0.0055)]
    assert told(*slow) == [set()] * 5, "a slow learner, whose spread grows by half and more in each epoch"
    news = News()
    assert told(*[margin] * 2, news=news)[-1] == told(*[margin] * 2, number=1, news=news)[-1] == {"margin"}


class Shrinking(nn.Module):
    """Embeddings that are all but one from the start: the hardest triplets hold them there."""

    def __init__(self, size: float):
        super().__init__()
        torch.manual_seed(0)
        self.network, self.size = mlp((1, 4, 4), dim=4, hidden=(16,)), size

    def forward(self, images):
        return 1 + self.size * self.network(images)


def stream(num_tasks: int = 2) -> tuple[Task, ...]:
    random = torch.Generator().manual_seed(0)
    names = [f"class {label}" for label in range(3 * num_tasks)]

    def data(label: int, size: int) -> LabelledDataset:
        labels = label + torch.arange(size) % 3
        samples = torch.rand(size, 1, 4, 4, generator=random)
        return LabelledDataset(samples, labels, names)

    tasks = [(f"task {i}", (3 * i, 3 * i + 1, 3 * i + 2), 3 * i) for i in range(num_tasks)]
    return tuple(Task(name, classes, train=data(label, 96), query=data(label, 90)) for name, classes, label in tasks)


CONFIG = TrainConfig(epochs=5, batch_size=24, samples_per_class=8, lr=1e-5)


def messages(caplog) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_a_collapse_is_warned_of_and_recorded(tmp_path, caplog):
    """Of noise nothing can be learned: it ends at chance, too."""
    run = RunDirectory.create(tmp_path / "run", {"name": "a run"})
    train_stream(Shrinking(1e-3), stream(), Finetune(), objective(), CONFIG, run)
    told = messages(caplog)
    assert [each.partition(":")[0] for each in told] == [
        *["task 1 of 2 (task 0), epoch 1", "task 1 of 2 (task 0), epoch 3"],
        *["after task 1 (task 0)", "task 2 of 2 (task 1), epoch 1", "task 2 of 2 (task 1), epoch 3"],
        "after task 2 (task 1)",
    ]
    assert "nearly equal" in told[0]
    assert re.search(r"sits at its margin, 0\.2: .*; from now on all triplets", told[1])
    assert "all triplets" not in told[4], "they are learned from already"
    assert "and guessing gives 0.326" in told[2]  # 29 of 89 others
    first, second = run.records("task")
    assert {"equal", "chance"} <= first["collapse"].keys()
    assert (second["guess"]["queries"], second["guess"]["chance"]) == (90, pytest.approx(29 / 89))
    assert run.records("epoch")[0]["collapse"].keys() == {"equal", "margin"}


def test_looking_changes_no_number(monkeypatch):
    """Bit for bit, with a loss that is not helped."""
    ends = []
    for watched in (True, False):
        if not watched:
            monkeypatch.setattr(Watch, "record", lambda self, objective: {})
        model = Shrinking(1.0)
        train_stream(model, stream(1), Finetune(), objective("multi_similarity"), replace(CONFIG, lr=1e-2))
        ends.append(state_of(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_softened_loss_takes_all_triplets_of_a_batch():
    """In the words of its definition: the mean over triplets (a, p, n) with a loss above 0."""
    loss, vectors = make_loss("triplet", dim=4, num_classes=9), batch(0.3)
    assert (loss.soften(), loss.soften()) == (True, False)
    units = functional.normalize(vectors, dim=1)
    terms = [
        float((units[a] - units[p]).norm() - (units[a] - units[n]).norm() + 0.2)
        for a in range(12)
        for p in range(12)
        for n in range(12)
        if a != p and LABELS[a] == LABELS[p] != LABELS[n]
    ]
    above = [term for term in terms if term > 0]
    assert float(loss(vectors, LABELS)) == pytest.approx(sum(above) / len(above), rel=1e-4)
    assert not make_loss("triplet", dim=4, num_classes=9, mining="semihard").soften()
    assert not make_loss("contrastive", dim=4, num_classes=9).soften()
    assert not Retrieval(lambda embeddings, labels: embeddings.sum()).soften()


def test_a_softened_loss_mines_batches_that_are_too_large_for_all_triplets():
    labels, vectors = torch.arange(1026) % 3, torch.randn(1026, 4)
    hard, soft = (make_loss("triplet", dim=4, num_classes=9) for _ in range(2))
    soft.soften()
    assert torch.equal(soft(vectors, labels), hard(vectors, labels))


def trained(path) -> tuple[nn.Module, RunDirectory]:
    run = RunDirectory.create(path, {"name": "a run"})
    model = Shrinking(1e-3)
    train_stream(model, stream(), Finetune(), objective(), CONFIG, run)
    return model, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[nn.Module, RunDirectory]:
    return trained(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [2, 3, 7])
def test_a_run_that_goes_on_knows_that_its_loss_was_softened(whole, tmp_path, monkeypatch, epochs: int):
    """It was after the third epoch; interrupted before it, after it, and in the second task."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "part")
    model, run = trained(tmp_path / "part")
    assert all(torch.equal(one, state_of(model)[name]) for name, one in state_of(whole[0]).items())
    collapses = [[each.get("collapse") for each in one.records("epoch")] for one in (whole[1], run)]
    assert collapses[0] == collapses[1]
    assert any(collapses[0])


class Normalising(Shrinking):
    """One with batch norm before its embedding."""

    def __init__(self):
        super().__init__(1e-3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, images):
        return 1 + self.size * self.norm(self.network(images))


STANDS_STILL = replace(CONFIG, epochs=6, freeze_batchnorm=True)


def trained_with_still_norms(path=None) -> tuple[nn.Module, RunDirectory | None]:
    run = RunDirectory.create(path, {"name": "a run"}) if path else None
    model = Normalising()
    train_stream(model, stream(), Finetune(), objective(), STANDS_STILL, run)
    return model, run


@pytest.fixture(scope="module")
def whole_with_still_norms(tmp_path_factory) -> tuple[nn.Module, RunDirectory | None]:
    return trained_with_still_norms(tmp_path_factory.mktemp("still") / "run")


@pytest.mark.slow
def test_a_stuck_task_whose_batch_norm_stands_still_begins_again(whole_with_still_norms, tmp_path, monkeypatch, caplog):
    """From the weights before it, after its third epoch, at a tenth of the rate; the first task, whose batch norm
    follows the data, goes on."""
    _, run = whole_with_still_norms
    assert [each["rate"] for each in run.records("epoch")] == pytest.approx([1e-5] * 6 + [1e-5] * 3 + [1e-6] * 3)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            trained_with_still_norms(tmp_path / "part")
    again = RunDirectory.open(tmp_path / "part").load_checkpoint()
    assert (again.task, again.epoch) == (1, 3)
    before = run.weights.read(0)
    assert before.keys() == again.model.keys()
    assert all(torch.equal(again.model[name], value) for name, value in before.items())
    told = [each for each in messages(caplog) if "begins again" in each]
    assert [each.partition(":")[0] for each in told] == ["task 2 of 2 (task 1), epoch 3"]


@pytest.mark.slow
def test_without_a_run_it_begins_again_from_the_same(whole_with_still_norms):
    model, _ = trained_with_still_norms()
    assert all(torch.equal(one, state_of(model)[name]) for name, one in state_of(whole_with_still_norms[0]).items())


@pytest.mark.slow
def test_nothing_begins_again_where_another_model_is_deployed_than_is_trained(tmp_path, caplog):
    """The run has kept the merged model of imm, from which its tasks do not begin."""
    run = RunDirectory.create(tmp_path / "run", {"name": "a run"})
    train_stream(Normalising(), stream(3), IMM(), objective(), STANDS_STILL, run)
    assert {each["rate"] for each in run.records("epoch") if each["task"] == 2} == {1e-5}


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [8, 9, 10])
def test_a_run_that_goes_on_knows_that_its_task_began_again(whole_with_still_norms, tmp_path, monkeypatch, epochs: int):
    """Interrupted before, at and after the epoch after which it does."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs)
        with pytest.raises(KeyboardInterrupt):
            trained_with_still_norms(tmp_path / "part")
    model, run = trained_with_still_norms(tmp_path / "part")
    assert all(torch.equal(one, state_of(model)[name]) for name, one in state_of(whole_with_still_norms[0]).items())
    rates = [[each["rate"] for each in one.records("epoch")] for one in (whole_with_still_norms[1], run)]
    assert rates[0] == rates[1]


def test_one_class_alone_and_guesses_that_are_not_known_are_no_collapse(caplog):
    """One class in a task may come to lie on a point."""
    names = ["a", "b"]
    one = LabelledDataset(torch.rand(24, 1, 4, 4), torch.zeros(24), names)
    train_stream(Shrinking(1e-6), (Task("one", (0,), train=one, query=one),), Finetune(), objective(), CONFIG)
    assert not messages(caplog)


def test_signs_have_one_list():
    assert set(collapse.SIGNS) == {"equal", "rank", "margin", "chance"}
