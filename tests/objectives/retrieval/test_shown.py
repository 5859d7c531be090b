"""What a report shows of a run: the queries that are followed, their nearest, their pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.embedding import Embedder
from tripletmas.models.networks import mlp
from tripletmas.objectives.embedded import embed_tasks
from tripletmas.objectives.grid import read_found, read_grid
from tripletmas.objectives.retrieval.shown import followed, write_shown
from tripletmas.runs.directory import RunDirectory


def model(seed: int):
    torch.manual_seed(seed)
    return mlp((1, 4, 4), dim=4, hidden=())


@pytest.fixture
def shown(tiny_stream, tmp_path) -> tuple[RunDirectory, Stream]:
    """After two tasks, by another model each."""
    run = RunDirectory.create(tmp_path / "run", {})
    for number in range(2):
        seen = tiny_stream[: number + 1]
        write_shown(run, number, seen, embed_tasks(model(number), seen, Embedder()))
    return run, tiny_stream[:2]


def test_the_same_queries_are_followed_from_task_to_task(shown):
    run, stream = shown
    first, second = (run.read_tensors(f"gallery/shown0{number}.safetensors") for number in range(2))
    size = len(first["queries"])
    for name in ("tasks", "labels", "queries"):
        assert torch.equal(second[name][:size], first[name])
    assert first["queries"].sort().values.tolist() == list(range(len(stream[0].query)))
    embedded = embed_tasks(model(1), stream, Embedder())
    for task, query, vector in zip(second["tasks"], second["queries"], second["vectors"], strict=True):
        assert torch.equal(embedded.queries[int(task)].vectors[int(query)], vector)


def test_the_draw_depends_on_the_name_of_the_task_alone(tiny_stream):
    task = tiny_stream[0]
    assert torch.equal(followed(task), followed(tiny_stream[0]))
    assert not torch.equal(followed(task), followed(replace(task, name="another")))


def test_nearest_before_and_after(shown):
    """Against sorting by cosine, the query itself left out; before: by the first model, in the first task alone."""
    run, stream = shown
    grid = read_grid(run)
    assert grid is not None
    assert grid.moments == ("before the last task", "after the last task")
    kept = run.read_tensors("gallery/shown01.safetensors")
    asked = list(zip(kept["tasks"].tolist(), kept["queries"].tolist(), strict=True))
    assert [row.name for row in grid.rows] == [f"{task}/{item}" for task, item in asked]  # 3 a task, all in the grid
    names = [f"{number}/{item}" for number, task in enumerate(stream) for item in range(len(task.query))]
    samples = torch.cat([task.query[list(range(len(task.query)))][0] for task in stream])
    labels = torch.cat([task.query.labels for task in stream]).tolist()
    for (task, _), row in zip(asked, grid.rows, strict=True):
        own = names.index(row.name)
        assert (row.task, row.label) == (task, f"c{labels[own]}")
        for number, count in enumerate((len(stream[0].query), len(names))):
            hits = row.found[number]
            if task == 1 and number == 0:
                assert hits == ()
                continue
            with torch.no_grad():
                vectors = torch.nn.functional.normalize(model(number)(samples[:count]), dim=1)
            scores = vectors @ vectors[own]
            scores[own] = -2
            best = scores.argsort(descending=True)[:5]
            torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), scores[best])
            assert [(hit.name, hit.label, hit.right) for hit in hits] == [
                (names[i], f"c{labels[i]}", labels[i] == labels[own]) for i in best.tolist()
            ]
    assert set(grid.pictures) == set(names)
    for name, picture in grid.pictures.items():
        assert torch.equal(picture, (samples[names.index(name)] * 255).round().byte())


def test_a_gallery_of_its_own(tiny_stream, tmp_path):
    """Nothing is left out, and pictures of queries and of gallery items are told apart."""
    stream = tuple(replace(task, gallery=task.train.plain()) for task in tiny_stream)
    run = RunDirectory.create(tmp_path / "run", {})
    write_shown(run, 0, stream[:1], embed_tasks(model(0), stream[:1], Embedder()))
    grid = read_grid(run)
    assert grid is not None
    row = grid.rows[0]
    query = stream[0].query[int(row.name.removeprefix("query 0/"))][0]
    item = stream[0].train[int(row.found[1][0].name.removeprefix("0/"))][0]
    for name, sample in ((row.name, query), (row.found[1][0].name, item)):
        assert torch.equal(grid.pictures[name], (sample * 255).round().byte())


def test_fewer_than_five_items_and_samples_that_are_no_images(tmp_path):
    data = LabelledDataset(torch.rand(4, 3), torch.tensor([0, 0, 1, 1]), ["a", "b"])
    task = Task("t", (0, 1), data, data)
    run = RunDirectory.create(tmp_path / "run", {})
    write_shown(run, 0, (task,), embed_tasks(torch.nn.Linear(3, 2), (task,), Embedder()))
    assert [len(row.found[0]) for row in read_found(run, 0).values()] == [3] * 4
    assert read_grid(run) is None
