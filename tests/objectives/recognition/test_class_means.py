"""Class means: fresh, stale, compensated; and the drift, against a literal twin."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, Task, make_stream
from tripletmas.index.drift import compensate_drift
from tripletmas.models.embedding import Embeddings, embed
from tripletmas.objectives.recognition.class_means import ClassMeans


def literal_drift(means: Tensor, before: Tensor, after: Tensor, sigma: float) -> list[list[float]]:
    """SDC by loops in Python's floats."""
    moved = []
    for mean in means.tolist():
        weights, drift = [], [0.0] * len(mean)
        for old in before.tolist():
            squared = sum((a - b) ** 2 for a, b in zip(old, mean, strict=True))
            weights.append(math.exp(-squared / (2 * sigma**2)))
        for weight, old, new in zip(weights, before.tolist(), after.tolist(), strict=True):
            drift = [d + weight * (b - a) for d, a, b in zip(drift, old, new, strict=True)]
        moved.append([m + d / sum(weights) for m, d in zip(mean, drift, strict=True)])
    return moved


@pytest.mark.parametrize("sigma", [0.2, 0.3, 2.0])
def test_the_drift_equals_its_literal_twin(sigma):
    means, before, after = (torch.randn(size, 3, dtype=torch.float64) for size in (4, 7, 7))
    found = compensate_drift(means, before, after, sigma=sigma)
    torch.testing.assert_close(found, torch.tensor(literal_drift(means, before, after, sigma), dtype=torch.float64))


def test_a_mean_far_from_every_sample_moves_with_the_nearest():
    means = torch.tensor([[1000.0, 0.0]])  # all weights underflow in the literal form
    before, after = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [5.0, 5.0]])
    before[1, 0] = -1
    assert compensate_drift(means, before, after).tolist() == [[1001.0, 2.0]]


class Turned(nn.Module):
    """Samples of the plane, turned by an angle."""

    def __init__(self):
        super().__init__()
        self.angle = nn.Parameter(torch.zeros(()))

    def forward(self, points: Tensor) -> Tensor:
        c, s = self.angle.cos(), self.angle.sin()
        return points @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])


def stream() -> Stream:
    """Four classes around the circle, of different lengths: only the direction counts."""
    angles = torch.arange(4).repeat_interleave(8) * math.pi / 2 + 0.05 * torch.randn(32)
    points = torch.stack([angles.cos(), angles.sin()], 1) * (1 + torch.rand(32, 1))
    data = LabelledDataset(points, torch.arange(4).repeat_interleave(8), list("abcd"))
    return make_stream(Source(data), tasks=2)[0]


def embedded(model: nn.Module, tasks: Stream) -> list[Embeddings]:
    return [embed(model, task.train.plain()) for task in tasks]


def turned_means(angle: float) -> tuple[ClassMeans, Stream, Turned]:
    """The means after the second task, during which the model turned by an angle."""
    model, tasks, means = Turned(), stream(), ClassMeans()
    means.after_task(embedded(model, tasks[:1]), tasks[:1])
    means.before_task(*embedded(model, tasks[1:]))
    with torch.no_grad():
        model.angle.fill_(angle)
    means.after_task(embedded(model, tasks), tasks)
    return means, tasks, model


def test_without_drift_all_three_agree():
    means, tasks, model = turned_means(0.0)
    assert means.labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(means.means["fresh"], means.means["stale"])
    torch.testing.assert_close(means.means["fresh"], means.means["compensated"])
    samples, labels = tasks[0].query[list(range(len(tasks[0].query)))]
    assert torch.equal(means.nearest(model(samples).detach(), "stale"), labels)


def test_fresh_means_follow_the_model_and_stale_ones_stay():
    means, tasks, model = turned_means(math.pi / 2)
    samples, labels = tasks[0].query[list(range(len(tasks[0].query)))]
    vectors = model(samples).detach()
    assert torch.equal(means.nearest(vectors, "fresh"), labels)
    # a now lies where b was; b lies where c was, whose own (new) mean is elsewhere
    assert means.nearest(vectors[labels == 0], "stale").unique().tolist() == [1]
    old = turned_means(0.0)[0]
    assert means.means["stale"].shape == old.means["stale"].shape == (4, 2)


def test_means_are_those_of_directions():
    means, tasks, _ = turned_means(0.0)
    data = tasks[1].train
    samples, labels = data[list(range(len(data)))]
    for position, label in enumerate(tasks[1].classes, start=2):
        directions = [(point / point.norm()).tolist() for point in samples[labels == label]]
        mean = [sum(each[axis] for each in directions) / len(directions) for axis in range(2)]
        assert means.means["fresh"][position].tolist() == pytest.approx(mean, abs=1e-6)


def test_a_stream_that_has_grown_may_have_other_labels():
    """A class whose name sorts first is added: all labels move by one, and the means follow their classes."""
    means, tasks, _ = turned_means(0.0)
    grown = tuple(replace(task, classes=tuple(label + 1 for label in task.classes)) for task in tasks)
    other = ClassMeans()
    other.load_state_dict(means.state_dict(), grown)
    assert other.labels.tolist() == [1, 2, 3, 4]
    vectors = torch.tensor([[1.0, 0.0]])
    assert other.nearest(vectors, "stale").tolist() == (means.nearest(vectors, "stale") + 1).tolist()


def test_a_state_is_taken_over_in_the_middle_of_a_task():
    model, tasks, means = Turned(), stream(), ClassMeans()
    means.after_task(embedded(model, tasks[:1]), tasks[:1])
    means.before_task(*embedded(model, tasks[1:]))
    other = ClassMeans()
    other.load_state_dict(means.state_dict(), tasks)
    with torch.no_grad():
        model.angle.fill_(0.3)
    for each in (means, other):
        each.after_task(embedded(model, tasks), tasks)
    assert all(torch.equal(means.means[kind], other.means[kind]) for kind in means.means)


def test_a_class_of_several_tasks_has_one_mean_of_all_its_samples():
    """In a model that stands still, what is kept is what all data give; what moved weighs as many samples as it has."""
    angles = torch.tensor([0.0, 0.2, 0.1, 0.3, 1.0, 1.2, 1.1, 1.3, 0.5, 0.7, 0.6, 0.8])
    points, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0] * 4 + [1] * 4 + [0] * 4)
    data = LabelledDataset(points, labels, list("ab"))
    tasks = tuple(
        Task(name, classes, data.subset(rows), data.subset(rows))
        for name, classes, rows in (("1", (0, 1), [0, 1, 4, 5]), ("2", (0,), [8, 9, 10]))
    )
    model, means = Turned(), ClassMeans()
    means.after_task(embedded(model, tasks[:1]), tasks[:1])
    means.before_task(*embedded(model, tasks[1:]))
    old = means.means["stale"].clone()
    with torch.no_grad():
        model.angle.fill_(0.4)
    means.after_task(embedded(model, tasks), tasks)
    assert means.labels.tolist() == [0, 1]
    c, s = math.cos(0.4), math.sin(0.4)
    turned = points @ torch.tensor([[c, s], [-s, c]])
    torch.testing.assert_close(means.means["fresh"][0], turned[[0, 1, 8, 9, 10]].mean(dim=0))
    # two samples by the first model, three by the second
    torch.testing.assert_close(means.means["stale"][0], (2 * old[0] + 3 * turned[[8, 9, 10]].mean(dim=0)) / 5)
    assert torch.equal(means.means["stale"][1], old[1])
    moved = compensate_drift(old, points[[8, 9, 10]], turned[[8, 9, 10]])
    torch.testing.assert_close(means.means["compensated"][0], (2 * moved[0] + 3 * turned[[8, 9, 10]].mean(dim=0)) / 5)
    torch.testing.assert_close(means.means["compensated"][1], moved[1])
    other = ClassMeans()
    other.load_state_dict(means.state_dict(), tasks)
    assert other.labels.tolist() == [0, 1]
