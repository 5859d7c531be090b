"""Scores of several tasks: what is searched in what, and which position of a gallery is the query itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Task
from tripletmas.models.embedding import Embedder, Embeddings, embed
from tripletmas.objectives.embedded import TaskScores, embed_tasks
from tripletmas.objectives.recognition.objective import Recognition
from tripletmas.objectives.retrieval.evaluate import evaluate
from tripletmas.objectives.retrieval.objective import score_alone, score_embedded

METRICS = {"recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r", "mrr", "mrr@10", "ndcg@10"}


def points(*samples: tuple[float, float, int]) -> LabelledDataset:
    """Points in the plane, (x, y, label); the search compares directions."""
    vectors = torch.tensor([sample[:2] for sample in samples])
    return LabelledDataset(vectors, torch.tensor([sample[2] for sample in samples]), ["a", "b", "c", "d"])


def task(name: str, query: LabelledDataset, gallery: LabelledDataset | None = None) -> Task:
    return Task(name, query.classes, query, query, gallery)


def at(degrees: float, label: int) -> tuple[float, float, int]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), label


# Labels 0 and 1 in the first task, 2 and 3 in the second.
FIRST = points(at(0, 0), at(10, 0), at(90, 1), at(100, 1))
SECOND = points(at(180, 2), at(190, 2), at(270, 3), at(280, 3))
model = nn.Identity()


def score_tasks(model: nn.Module, tasks: tuple[Task, ...], batch_size: int = 256) -> TaskScores:
    return score_embedded(embed_tasks(model, tasks, Embedder(batch_size)))


def test_apart_everything_is_found():
    found = score_tasks(model, (task("first", FIRST), task("second", SECOND)))
    assert found.values.keys() == {"seen", "task"}
    for metrics in found.values.values():
        assert metrics.keys() == METRICS
        assert all(value == [1.0, 1.0] for value in metrics.values())
    assert found.without_relevant == [0, 0]
    assert torch.equal(found.queries.vectors, torch.cat([torch.as_tensor(part.samples) for part in (FIRST, SECOND)]))
    assert found.queries.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_query_never_finds_itself_and_an_equal_one_in_another_task_counts():
    """The second task holds the first query of the first task again, as another class: it is now the nearest."""
    first = points(at(0, 0), at(10, 0), at(12, 0), at(90, 1), at(100, 1))
    second = points(at(0, 2), at(180, 2), at(270, 3), at(280, 3))
    found = score_tasks(model, (task("first", first), task("second", second)))
    # of the first task, the query at 0 degrees alone is misled by its equal in the second: 4 of 5
    assert found.values["seen"]["recall@1"][0] == pytest.approx(0.8)
    assert found.values["task"]["recall@1"][0] == 1.0
    # of the second, the query at 0 degrees finds the first task's at 0 degrees, the one at 180 degrees that at 100:
    # 2 of 4; in its own gallery 0 degrees is nearest to 280, 180 to 270: 2 of 4
    assert found.values["seen"]["recall@1"][1] == 0.5
    assert found.values["task"]["recall@1"][1] == 0.5


def test_with_galleries_of_their_own_the_queries_are_not_searched():
    """A gallery item that equals the query is a find, not the query itself."""
    gallery = points(at(0, 1), at(50, 0), at(95, 1))
    first = task("first", points(at(0, 0), at(90, 1)), gallery)
    found = score_tasks(model, (first, task("second", SECOND)))
    assert found.values["seen"]["recall@1"] == [0.5, 1.0]
    assert found.values["task"]["recall@2"] == [1.0, 1.0]
    assert len(found.queries) == 6


@pytest.mark.parametrize("own_gallery", [(False, False), (True, True), (True, False), (False, True)])
def test_equal_to_evaluate_by_hand(own_gallery, class_images):
    data = class_images(4, per_class=9)
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    stream, galleries, positions = [], [], []
    for number, own in enumerate(own_gallery):
        of_task = data.of_classes([2 * number, 2 * number + 1])
        query, rest = of_task.subset(range(0, 18, 3)), of_task.subset([i for i in range(18) if i % 3])
        stream.append(task(str(number), query, rest if own else None))
        galleries.append(rest if own else query)
        positions.append(torch.full((6,), -1) if own else torch.arange(6))
    found = score_tasks(embedding, tuple(stream), batch_size=5)
    embedded = [embed(embedding, gallery) for gallery in galleries]
    everything = Embeddings(
        torch.cat([each.vectors for each in embedded]), torch.cat([each.labels for each in embedded])
    )
    offsets = [0, len(galleries[0])]
    for number in range(2):
        query = embed(embedding, stream[number].query)
        seen = positions[number] + (0 if own_gallery[number] else offsets[number])
        assert {metric: values[number] for metric, values in found.values["seen"].items()} == pytest.approx(
            evaluate(query, everything, self_positions=seen).values
        )
        assert {metric: values[number] for metric, values in found.values["task"].items()} == pytest.approx(
            evaluate(query, embedded[number], self_positions=positions[number]).values
        )


def test_queries_with_nothing_to_find_are_counted_and_left_out():
    lonely = points(at(0, 0), at(10, 0), at(90, 1))
    found = score_tasks(model, (task("lonely", lonely), task("second", SECOND)))
    assert found.without_relevant == [1, 0]
    assert found.values["seen"]["recall@1"] == [1.0, 1.0]
    nothing = score_tasks(model, (task("nothing", points(at(0, 0), at(90, 1))),))
    assert all(math.isnan(value) for (value,) in nothing.values["seen"].values())
    assert nothing.without_relevant == [2]


# --- recognition


def recognising() -> Recognition:
    """Two heads on the plane, each of which says which of two directions an embedding is nearer to."""
    recognition = Recognition(2, [(0, 1), (2, 3)], list("abcd")).requires_grad_(False)
    for head, angles in zip(recognition.heads, ((0, 90), (180, 270)), strict=True):
        assert isinstance(head, nn.Linear)
        directions = [at(angle, 0)[:2] for angle in angles]
        head.weight.copy_(torch.tensor(directions))
        head.bias.zero_()
    return recognition


def test_a_head_judges_the_queries_of_its_own_task():
    second = points(at(180, 2), at(190, 2), at(270, 3), at(200, 3))  # the last looks like the other class
    tasks = (task("first", FIRST), task("second", second))
    found = recognising().score(tasks, embed_tasks(model, tasks, Embedder())).values
    assert found["task"]["accuracy"] == [1.0, 0.75]
    assert found["seen"].keys() == METRICS  # no class means are known yet


def test_the_nearest_mean_is_sought_among_all_classes():
    tasks, recognition = (task("first", FIRST), task("second", SECOND)), recognising()
    recognition.after_task(model, tasks[:1])
    recognition.before_task(model, tasks[1])
    recognition.after_task(model, tasks)
    means = recognition.means.means
    means["stale"] = means["stale"][[1, 0, 2, 3]]  # as if the first two classes had changed places
    found = recognition.score(tasks, embed_tasks(model, tasks, Embedder())).values["seen"]
    assert {metric: found[metric] for metric in found if metric not in METRICS} == {
        "accuracy_fresh": [1.0, 1.0],
        "accuracy_stale": [0.0, 1.0],
        "accuracy_compensated": [1.0, 1.0],
        "accuracy_ridge": [1.0, 1.0],
    }


def test_a_task_alone_is_scored_in_its_own_gallery():
    tasks = (task("first", FIRST), task("second", SECOND))
    own = score_tasks(model, tasks).values["task"]
    assert score_alone(model, tasks[1], Embedder()) == {metric: values[1] for metric, values in own.items()}
