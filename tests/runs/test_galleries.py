"""Galleries over time: what is stored, how it is moved, how a run has it again; and what updates did to it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tripletmas.cli import galleries as command
from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.folders import unlabelled
from tripletmas.data.preparation import Preparation
from tripletmas.data.tasks import Stream, Task
from tripletmas.index import drift
from tripletmas.index.base import unit
from tripletmas.index.choice import Choice, choose_drift
from tripletmas.index.drift import fit_drift
from tripletmas.models.embedding import Embedder, Embeddings, embed
from tripletmas.models.networks import mlp
from tripletmas.objectives.embedded import embed_tasks, joined
from tripletmas.objectives.retrieval.evaluate import evaluate
from tripletmas.objectives.retrieval.losses import make_loss
from tripletmas.objectives.retrieval.objective import score_embedded
from tripletmas.runs import galleries as followed_by
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.galleries import Galleries, GalleryConfig, drift_by_class, own_images
from tripletmas.runs.loop import train_stream
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.updates import compatibility_matrix, flips_of_update
from tripletmas.strategies.anchors import Anchors
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen

SMALL = TrainConfig(epochs=2, batch_size=8, samples_per_class=2, lr=0.02)


class Linear(nn.Module):
    """x -> flattened x times a matrix that a test sets."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(16)[:, :dim].clone())

    def forward(self, samples: Tensor) -> Tensor:
        return samples.flatten(1) @ self.weight

    def turn(self, seed: int) -> None:
        with torch.no_grad():
            self.weight += 0.3 * torch.randn(self.weight.shape, generator=torch.Generator().manual_seed(seed))


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return mlp((1, 4, 4), dim=4, hidden=(8,))


@pytest.fixture
def run(tiny_stream, tmp_path) -> tuple[RunDirectory, Stream]:
    run = RunDirectory.create(tmp_path / "run", {})
    train_stream(perceptron(), tiny_stream, Finetune(), make_loss("triplet", dim=4, num_classes=6), SMALL, run)
    return run, tiny_stream


def followed(model: Linear, stream: Stream, maps: tuple[str, ...], images: LabelledDataset | None = None) -> Galleries:
    galleries = Galleries(maps, images=images)
    for number, task in enumerate(stream):
        galleries.before_task(model, task)
        model.turn(number)
        galleries.after_task(model, task, embed(model, task.query))
    return galleries


def test_stale_parts_stay_as_they_were(tiny_stream):
    model = Linear()
    galleries = Galleries(())
    kept = []
    for number, task in enumerate(tiny_stream):
        galleries.before_task(model, task)
        model.turn(number)
        kept.append(embed(model, task.query).vectors)
        galleries.after_task(model, task, embed(model, task.query))
    for part, vectors in zip(galleries.parts["stale"], kept, strict=True):
        assert torch.equal(part.vectors, vectors)


@pytest.mark.parametrize("name", ["sdc", "linear"])
def test_compensated_parts_are_moved_by_each_update_since(tiny_stream, name):
    """By hand: the first task's vectors go through the maps of the second and the third update, unit after each."""
    found = followed(Linear(), tiny_stream, (name,)).parts[name]
    model = Linear()
    model.turn(0)
    vectors = unit(embed(model, tiny_stream[0].query).vectors)
    for number, task in enumerate(tiny_stream[1:], start=1):
        before = unit(embed(model, task.train).vectors)
        model.turn(number)
        after = unit(embed(model, task.train).vectors)
        vectors = unit(fit_drift(name, before, after)(vectors))
    torch.testing.assert_close(found[0].vectors, vectors)
    assert [len(part) for part in found] == [len(task.query) for task in tiny_stream]


@pytest.fixture
def few_steps(monkeypatch):
    """Of the map mlp, which takes the most of a choice."""
    monkeypatch.setattr(drift, "_STEPS", 5)


def test_auto_moves_by_the_map_that_was_chosen_at_each_task(tiny_stream, few_steps):
    """By hand: the choice on a task's pairs, and the first task's vectors through the maps that were chosen."""
    galleries, model = followed(Linear(), tiny_stream, ("linear", "auto")), Linear()
    model.turn(0)
    vectors = unit(embed(model, tiny_stream[0].query).vectors)
    choices = []
    for number, task in enumerate(tiny_stream[1:], start=1):
        before = unit(embed(model, task.train).vectors)
        model.turn(number)
        after = unit(embed(model, task.train).vectors)
        choices.append(choose_drift(before, after))
        vectors = unit(fit_drift(choices[-1].name, before, after)(vectors))
    assert galleries.choices == [None, *choices]
    torch.testing.assert_close(galleries.parts["auto"][0].vectors, vectors)


def test_auto_follows_whatever_is_chosen(tiny_stream, monkeypatch):
    """Choices by a script: a rotation at the second task, nothing at the third; queries go back through both, too."""
    script = iter(["procrustes", "procrustes", "none", "none"])  # at each task first of vectors, then of queries
    monkeypatch.setattr(followed_by, "choose_drift", lambda *pairs, limit: Choice(next(script), {}, len(pairs[0])))
    galleries, model = Galleries(("auto",), back="auto"), Linear()
    for number, task in enumerate(tiny_stream):
        galleries.before_task(model, task)
        model.turn(number)
        galleries.after_task(model, task, embed(model, task.query))
        if number == 1:
            rotated = galleries.parts["auto"][0].vectors.clone()
            stored = unit(galleries.parts["stale"][0].vectors)
            torch.testing.assert_close(rotated @ rotated.T, stored @ stored.T)
            assert not torch.allclose(rotated, stored, atol=1e-2)
    torch.testing.assert_close(galleries.parts["auto"][0].vectors, rotated)
    asked = galleries.asked_by_part(embed_tasks(model, tiny_stream, Embedder())).queries[2].vectors.split(16, dim=1)
    torch.testing.assert_close(asked[1], asked[2])
    torch.testing.assert_close(asked[0] @ asked[0].T, asked[1] @ asked[1].T)
    assert not torch.allclose(asked[0], asked[1], atol=1e-2)


def test_pairs_lie_class_by_class(tiny_stream):
    """Whatever the order of a task's samples; held-out pairs are then of other classes."""
    mixed = tuple(
        replace(task, train=task.train.subset(torch.randperm(len(task.train), generator=torch.Generator())))
        for task in tiny_stream
    )
    assert not torch.equal(mixed[1].train.labels, mixed[1].train.labels.sort().values)
    found = followed(Linear(), mixed, ()).last()["after"]
    model = Linear()
    for number in range(3):
        model.turn(number)
    by_class = [embed(model, mixed[2].train.of_classes([label])).vectors for label in mixed[2].classes]
    torch.testing.assert_close(found, torch.cat(by_class))


def test_images_of_ones_own_join_the_pairs(tiny_stream, write_images, tmp_path):
    """Each update's pairs end with the images, sorted by name; a map is fitted on all of them."""
    images = unlabelled(write_images(tmp_path / "own", side=4), Preparation((4, 4), 1))
    galleries, model = followed(Linear(), tiny_stream, ("linear",), images), Linear()
    model.turn(0)
    vectors = unit(embed(model, tiny_stream[0].query).vectors)
    for number, task in enumerate(tiny_stream[1:], start=1):
        pairs = []
        for turned in (False, True):
            if turned:
                model.turn(number)
            pairs.append(torch.cat([embed(model, task.train).vectors, embed(model, images).vectors]))
        vectors = unit(fit_drift("linear", *map(unit, pairs))(vectors))
    kept = galleries.last()
    assert kept["before"].shape == kept["after"].shape == (14 + 6, 16)
    torch.testing.assert_close(kept["after"], pairs[1])
    torch.testing.assert_close(galleries.parts["linear"][0].vectors, vectors)


@pytest.mark.slow
def test_a_run_keeps_the_pairs_of_ones_own_images(tiny_stream, write_images, tmp_path):
    """Restored, they come from files: the folder may be gone, unless more is learned."""
    run, folder = RunDirectory.create(tmp_path / "run", {}), write_images(tmp_path / "own", side=9)
    loss, gallery = make_loss("triplet", dim=4, num_classes=6), GalleryConfig(images=str(folder), invert=True)
    train_stream(perceptron(), tiny_stream, Finetune(), loss, SMALL, run, gallery=gallery)
    model = perceptron()
    run.load_weights(model, 1)
    expected = embed(model, unlabelled(folder, Preparation((4, 4), 1), invert=True)).vectors
    torch.testing.assert_close(run.galleries.read(1)["after"][14:], expected)
    torch.testing.assert_close(run.galleries.read(2)["before"][14:], expected)
    shutil.rmtree(folder)
    galleries = Galleries(("linear",))
    galleries.restore(run, perceptron(), tiny_stream, 3)
    assert [len(part) for part in galleries.parts["linear"]] == [6, 6, 6]


@pytest.mark.slow
def test_old_samples_that_a_strategy_keeps_join_the_pairs(tiny_stream, tmp_path):
    """Each update's pairs end with them, as the models before and after it have them; a map is fitted on all."""
    run, strategy = RunDirectory.create(tmp_path / "run", {}), Anchors(per_class=2, strength=1.0)
    loss = make_loss("triplet", dim=4, num_classes=6)
    train_stream(perceptron(), tiny_stream, strategy, loss, SMALL, run)
    every = concatenate([task.train for task in tiny_stream])
    model, vectors = perceptron(), None
    for number, task in enumerate(tiny_stream):
        kept = every.subset(strategy.state_dict()["held"][: 4 * number])
        pairs = []
        for at in (number - 1, number) if number else ():
            run.load_weights(model, at)
            pairs.append(torch.cat([embed(model, data).vectors for data in (task.train, kept)]))
        found = run.galleries.read(number)
        assert ("before" in found) == bool(number)
        if number:
            assert len(pairs[0]) == len(task.train) + 4 * number
            torch.testing.assert_close((found["before"], found["after"]), tuple(pairs))
            vectors = unit(fit_drift("linear", *map(unit, pairs))(vectors))
        else:
            vectors = unit(found["stored"])
    restored = Galleries(("linear",))
    restored.restore(run, model, tiny_stream, 3)
    torch.testing.assert_close(restored.parts["linear"][0].vectors, vectors, rtol=1e-4, atol=1e-5)


def test_what_are_no_images_of_ones_own(write_images, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_text("no image")
    flat = r"gallery.images: the model takes samples of shape \(16,\), which are no images"
    for folder, shape, message in (
        (tmp_path / "empty", (1, 4, 4), "gallery.images: no images in .*empty"),
        (tmp_path / "none", (1, 4, 4), "gallery.images: no such folder or zip archive: .*none"),
        (tmp_path / "broken", (1, 4, 4), r"gallery.images: .*0\.png cannot be read: not an image$"),
        (write_images(tmp_path / "own"), (16,), flat),
        (tmp_path / "own", (2, 4, 4), "which are no images, grey or RGB"),
    ):
        with pytest.raises(ValueError, match=message):
            own_images(
                GalleryConfig(images=str(folder)), LabelledDataset(torch.zeros(1, *shape), torch.zeros(1), ["a"])
            )
    assert own_images(GalleryConfig(), (16,)) is None


def test_queries_move_back_to_each_part_by_hand(tiny_stream):
    """The last task's queries stay, the second's part is asked through one map, the first's through two, new to old."""
    galleries, model = Galleries((), back="linear"), Linear()
    maps = []
    for number, task in enumerate(tiny_stream):
        before = unit(embed(model, task.train).vectors)
        galleries.before_task(model, task)
        model.turn(number)
        galleries.after_task(model, task, embed(model, task.query))
        if number:
            maps.append(fit_drift("linear", unit(embed(model, task.train).vectors), before))
    embedded = embed_tasks(model, tiny_stream, Embedder())
    found = score_embedded(galleries.asked_by_part(embedded)).values
    queries, labels = unit(joined(embedded.queries).vectors), joined(embedded.queries).labels
    back = unit(maps[1](queries))
    by_part = [unit(maps[0](back)), back, queries]
    scores = torch.cat(
        [asked @ unit(part.vectors).T for asked, part in zip(by_part, galleries.parts["stale"], strict=True)], dim=1
    )
    right = labels[scores.fill_diagonal_(-2).argmax(dim=1)] == labels  # queries are the gallery: none finds itself
    expected = [float(each.double().mean()) for each in right.split(6)]
    assert found["seen"]["recall@1"] == pytest.approx(expected)
    assert 0 < sum(expected) < 3


@pytest.mark.slow
def test_queries_that_were_never_moved_find_what_they_find(tiny_stream):
    """Without an update between, every map of queries is the identity, and scores are those of fresh galleries."""
    model = Linear()
    galleries = Galleries((), back="auto")
    for task in tiny_stream:
        galleries.before_task(model, task)
        galleries.after_task(model, task, embed(model, task.query))
    embedded = embed_tasks(model, tiny_stream, Embedder())
    assert score_embedded(galleries.asked_by_part(embedded)).values == score_embedded(embedded).values
    assert [choice and choice.name for choice in galleries.choices_back] == [None, "none", "none"]


def test_a_record_says_which_map_was_chosen_and_why(tiny_stream, tmp_path, few_steps):
    run = RunDirectory.create(tmp_path / "run", {})
    loss, gallery = make_loss("triplet", dim=4, num_classes=6), GalleryConfig(compensate="auto")
    train_stream(perceptron(), tiny_stream, Finetune(), loss, SMALL, run, gallery=gallery)
    records = run.records("task")
    assert "compensated_by" not in records[0]
    for number in (1, 2):
        kept = run.galleries.read(number)
        choice = choose_drift(unit(kept["before"]), unit(kept["after"]))
        expected = {"map": choice.name, "pairs": 14, "held_out_cosine": pytest.approx(choice.scores)}
        assert records[number]["compensated_by"] == expected
    again = Galleries(("auto",))
    again.restore(run, perceptron(), tiny_stream, 3)
    assert [choice and choice.name for choice in again.choices] == [
        None,
        *(record["compensated_by"]["map"] for record in records[1:]),
    ]


def test_without_an_update_all_galleries_are_fresh(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    loss = make_loss("triplet", dim=4, num_classes=6)
    scores = train_stream(perceptron(), tiny_stream, Frozen(), loss, SMALL, run)
    for scope in ("seen", "task"):
        for kind in ("stale", "compensated"):
            fresh, kept = (scores.matrix("recall@1", gallery) for gallery in (scope, f"{scope}_{kind}"))
            torch.testing.assert_close(fresh.tril(), kept.tril())
    assert all(abs(value) < 1e-5 for task in run.records()[-1]["drift"] for value in task)


def test_scores_are_those_of_searching_the_parts(run):
    """score_embedded on stored parts against evaluate, task by task."""
    run, stream = run
    model = perceptron()
    galleries = Galleries(("linear",))
    galleries.restore(run, model, stream, len(stream))
    last = run.read_tensors("weights/task02.safetensors")
    model.load_state_dict(last)
    embedded = embed_tasks(model, stream, Embedder())
    found = score_embedded(embedded, {"stale": galleries.parts["stale"]})
    everything, start = joined(galleries.parts["stale"]), 0
    for number, task in enumerate(stream):
        own = torch.arange(len(task.query))
        seen = evaluate(embed(model, task.query), everything, self_positions=own + start)
        alone = evaluate(embed(model, task.query), galleries.parts["stale"][number], self_positions=own)
        start += len(task.query)
        for metric in seen.values:
            assert found.values["seen_stale"][metric][number] == pytest.approx(seen[metric])
            assert found.values["task_stale"][metric][number] == pytest.approx(alone[metric])
    scores = json.loads((run.path / "scores.json").read_text())["matrices"]
    assert scores["seen_stale"]["recall@1"][2] == pytest.approx(found.values["seen_stale"]["recall@1"])


def test_restored_galleries_are_what_the_saved_weights_give(run):
    run, stream = run
    from_files, by_hand = Galleries(("linear", "sdc")), Galleries(("linear", "sdc"))
    from_files.restore(run, perceptron(), stream, 2)
    for number, task in enumerate(stream[:2]):
        model = perceptron()
        if number:
            run.load_weights(model, number - 1)
            by_hand.before_task(model, task)
        run.load_weights(model, number)
        by_hand.after_task(model, task, embed(model, task.query))
    run.load_weights(model, 1)
    by_hand.before_task(model, stream[2])
    for name, parts in from_files.parts.items():
        for one, other in zip(parts, by_hand.parts[name], strict=True):
            assert torch.equal(one.vectors, other.vectors)
    assert torch.equal(from_files._before, by_hand._before)


def test_pairs_are_read_without_augmentation(tiny_stream, tmp_path):
    noisy = tuple(
        replace(task, train=task.train.with_transform(lambda x: x + torch.rand(x.shape))) for task in tiny_stream
    )
    one, other = followed(Linear(), noisy, ("linear",)), followed(Linear(), tiny_stream, ("linear",))
    for part, same in zip(one.parts["linear"], other.parts["linear"], strict=True):
        assert torch.equal(part.vectors, same.vectors)


def test_drift_by_class_by_hand():
    stored = [Embeddings(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0, 1]))]
    fresh = [Embeddings(torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1]))]
    # class 0: the same direction and a right angle, (0 + 1) / 2; class 1: the opposite direction, 2
    assert drift_by_class(stored, fresh, [(0, 1)]) == [pytest.approx([0.5, 2.0])]


def test_unseen_classes_are_scored_and_never_trained_on(tiny_stream, tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    loss = make_loss("triplet", dim=4, num_classes=6)
    scores = train_stream(perceptron(), tiny_stream[:2], Finetune(), loss, SMALL, run, unseen=tiny_stream[2])
    records = [record for record in run.records() if record["kind"] == "task"]
    for number, record in enumerate(records):
        model = perceptron()
        model.load_state_dict(run.read_tensors(f"weights/task{number:02d}.safetensors"))
        expected = evaluate(embed(model, tiny_stream[2].query))
        assert record["unseen"] == pytest.approx(expected.values)
    assert scores.task_names == tuple(task.name for task in tiny_stream[:2])


def test_other_unseen_classes_are_refused_when_a_run_goes_on(tiny_stream, tmp_path):
    run, loss = RunDirectory.create(tmp_path / "run", {}), make_loss("triplet", dim=4, num_classes=6)
    train_stream(perceptron(), tiny_stream[:1], Finetune(), loss, SMALL, run, unseen=tiny_stream[2])
    with pytest.raises(ValueError, match=r"classes that are in no task are not those .* learned task 'c0,c1'"):
        train_stream(perceptron(), tiny_stream[:2], Finetune(), loss, SMALL, run, unseen=tiny_stream[1])
    train_stream(perceptron(), tiny_stream[:2], Finetune(), loss, SMALL, run, unseen=tiny_stream[2])


def test_flips_of_the_last_update(run):
    """By hand: recall@1 before and after, of the first two tasks' queries among their own items."""
    run, stream = run
    model, galleries = perceptron(), Galleries(())
    galleries.restore(run, model, stream, 3)

    def embedded(number: int, tasks: tuple[Task, ...]):
        model.load_state_dict(run.read_tensors(f"weights/task{number:02d}.safetensors"))
        return joined([embed(model, task.query) for task in tasks])

    before = embedded(1, stream[:2])
    was = evaluate(before)
    now = evaluate(
        embedded(2, stream[:2]), joined(galleries.parts["stale"][:2]), self_positions=torch.arange(len(before))
    )
    right, right_now = was.per_query["recall@1"] == 1, now.per_query["recall@1"] == 1
    found = flips_of_update(
        run,
        perceptron(),
        stream[:2],
        embed_tasks(model, stream, Embedder()),
        {"stale": galleries.parts["stale"]},
        embed=Embedder(),
    )
    assert set(found) == {"fresh", "stale"}
    assert found["stale"].negative == pytest.approx(float((right & ~right_now).double().mean()))
    assert found["stale"].positive == pytest.approx(float((~right & right_now).double().mean()))
    assert found["stale"].agreement == pytest.approx(float((was.nearest == now.nearest).double().mean()))


def test_compatibility_matrix(run):
    run, stream = run
    matrix = compatibility_matrix(run, perceptron(), stream, 3, embed=Embedder())
    assert matrix.triu(1).isnan().sum() == 3
    vectors = []
    for number in range(3):
        model = perceptron()
        model.load_state_dict(run.read_tensors(f"weights/task{number:02d}.safetensors"))
        vectors.append(joined([embed(model, task.query) for task in stream]))
    for new in range(3):
        for old in range(new + 1):
            own = torch.arange(len(vectors[new]))
            expected = evaluate(vectors[new], vectors[old], self_positions=own)["recall@1"]
            assert float(matrix[new, old]) == pytest.approx(expected)


def test_an_unknown_map_is_refused():
    with pytest.raises(ValueError, match=r"compensate must be one of sdc, linear, .*auto or null, got 'cubic'"):
        GalleryConfig(compensate="cubic")  # pyright: ignore[reportArgumentType]


def test_names_of_galleries_on_the_command_line():
    assert command.kinds_of("stale, compensated", "sdc") == {"fresh": "fresh", "stale": "stale", "compensated": "sdc"}
    assert command.kinds_of("fresh", None) == {"fresh": "fresh"}
    with pytest.raises(ValueError, match=r"unknown gallery 'stail' \(did you mean 'stale'\?\)"):
        command.kinds_of("stail", None)
    with pytest.raises(ValueError, match=r"the run compensates nothing .*: name a map, .* in --gallery"):
        command.kinds_of("compensated", None)
