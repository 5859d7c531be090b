"""What a report shows of a run: the queries that are followed, their nearest, their pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream, Task
from tripletmas.models.networks import mlp
from tripletmas.objectives.embedded import embed_tasks
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
        write_shown(run, number, seen, embed_tasks(model(number), seen))
    return run, tiny_stream[:2]


def test_the_same_queries_are_followed_from_task_to_task(shown):
    run, stream = shown
    first, second = (run.read_tensors(f"gallery/shown0{number}.safetensors") for number in range(2))
    size = len(first["queries"])
    for name in ("tasks", "labels", "queries"):
        assert torch.equal(second[name][:size], first[name])
    assert first["queries"].sort().values.tolist() == list(range(len(stream[0].query)))
    embedded = embed_tasks(model(1), stream)
    for task, query, vector in zip(second["tasks"], second["queries"], second["vectors"], strict=True):
        assert torch.equal(embedded.queries[int(task)].vectors[int(query)], vector)


def test_the_draw_depends_on_the_name_of_the_task_alone(tiny_stream):
    task = tiny_stream[0]
    assert torch.equal(followed(task), followed(tiny_stream[0]))
    assert not torch.equal(followed(task), followed(replace(task, name="another")))


def test_nearest_before_and_after(shown):
    """Against sorting by cosine, the query itself left out; before: by the first model, in the first task alone."""
    run, stream = shown
    found = run.read_tensors("gallery/neighbours.safetensors")
    sizes = [len(task.query) for task in stream]
    samples = torch.cat([task.query[list(range(size))][0] for task, size in zip(stream, sizes, strict=True)])
    labels = torch.cat([task.query.labels for task in stream])
    starts = [0, sizes[0]]
    kept = run.read_tensors("gallery/found01.safetensors")
    for row, (task, query) in enumerate(zip(kept["tasks"].tolist(), kept["queries"].tolist(), strict=True)):
        own = starts[task] + query
        assert torch.equal(found["pictures"][found["query_picture"][row]], (samples[own] * 255).round().byte())
        assert int(found["query_label"][row]) == int(labels[own])
        for when, number, count in (("before", 0, sizes[0]), ("after", 1, sum(sizes))):
            if when == "before" and task == 1:
                assert found["before_picture"][row].tolist() == [-1] * 5
                continue
            with torch.no_grad():
                vectors = torch.nn.functional.normalize(model(number)(samples[:count]), dim=1)
            scores = vectors @ vectors[own]
            scores[own] = -2
            best = scores.argsort(descending=True)[:5]
            torch.testing.assert_close(found[f"{when}_score"][row], scores[best])
            assert found[f"{when}_label"][row].tolist() == labels[best].tolist()
            pictures = found["pictures"][found[f"{when}_picture"][row]]
            assert torch.equal(pictures, (samples[best] * 255).round().byte())


def test_a_picture_is_kept_once(shown):
    pictures = shown[0].read_tensors("gallery/neighbours.safetensors")["pictures"].flatten(1)
    assert len(pictures.unique(dim=0)) == len(pictures)


def test_a_gallery_of_its_own(tiny_stream, tmp_path):
    """Nothing is left out, and pictures of queries and of gallery items are told apart."""
    stream = tuple(replace(task, gallery=task.train.plain()) for task in tiny_stream)
    run = RunDirectory.create(tmp_path / "run", {})
    write_shown(run, 0, stream[:1], embed_tasks(model(0), stream[:1]))
    found = run.read_tensors("gallery/neighbours.safetensors")
    kept = run.read_tensors("gallery/found00.safetensors")
    row = 0
    query = stream[0].query[int(kept["queries"][row])][0]
    item = stream[0].train[int(kept["item"][row, 0])][0]
    for where, sample in ((found["query_picture"][row], query), (found["after_picture"][row, 0], item)):
        assert torch.equal(found["pictures"][where], (sample * 255).round().byte())


def test_fewer_than_five_items_and_samples_that_are_no_images(tmp_path):
    data = LabelledDataset(torch.rand(4, 3), torch.tensor([0, 0, 1, 1]), ["a", "b"])
    task = Task("t", (0, 1), data, data)
    run = RunDirectory.create(tmp_path / "run", {})
    write_shown(run, 0, (task,), embed_tasks(torch.nn.Linear(3, 2), (task,)))
    kept = run.read_tensors("gallery/found00.safetensors")
    assert (kept["item"] >= 0).sum(dim=1).tolist() == [3] * 4
    assert torch.equal(kept["item"] < 0, kept["score"] == -torch.inf)
    assert not (run.path / "gallery" / "neighbours.safetensors").exists()


def test_large_pictures_are_made_small(tmp_path):
    data = LabelledDataset(torch.rand(4, 3, 200, 100), torch.tensor([0, 0, 1, 1]), ["a", "b"])
    task = Task("t", (0, 1), data, data)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60000, 2))
    run = RunDirectory.create(tmp_path / "run", {})
    write_shown(run, 0, (task,), embed_tasks(network, (task,)))
    assert run.read_tensors("gallery/neighbours.safetensors")["pictures"].shape[1:] == (3, 64, 32)
