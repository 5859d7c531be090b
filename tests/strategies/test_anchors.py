"""Anchors: which samples are kept with which vectors, and what is added to the loss, against loops over definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_distill import change, make_metric, make_model
from test_replay import literal_herding
from torch import Tensor, nn

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream
from tripletmas.models.embedding import embed
from tripletmas.runs.galleries import STALE, Galleries
from tripletmas.strategies.anchors import Anchors

PER_CLASS = 3


def prepared(stream: Stream, **options) -> Anchors:
    strategy = Anchors(**{"per_class": PER_CLASS, **options})
    strategy.prepare(make_model(), make_metric(), stream)
    return strategy


def unit_rows(vectors: Tensor) -> list[list[float]]:
    rows = vectors.double().tolist()
    lengths = [math.sqrt(sum(number * number for number in row)) for row in rows]
    return [[number / length for number in row] for row, length in zip(rows, lengths, strict=True)]


def kept_samples(strategy: Anchors, stream: Stream) -> Tensor:
    """Those that are held, from all samples of the stream, one task after the other."""
    every = torch.cat([task.train[list(range(len(task.train)))][0] for task in stream])
    return every[strategy.state_dict()["held"]]


# --- what is kept


def test_each_class_keeps_its_herd_with_the_vectors_that_its_task_ended_with(tiny_stream):
    """The second and third task move the model, not what was kept before."""
    model, strategy = make_model(), prepared(tiny_stream)
    samples: list[Tensor] = []
    vectors: list[list[float]] = []
    for number, task in enumerate(tiny_stream):
        change(model)
        strategy.after_task(model, task)
        for label in task.classes:
            data = task.train.of_classes([label])
            rows = unit_rows(embed(model, data).vectors)
            chosen = literal_herding(rows, PER_CLASS)
            samples.extend(data[position][0] for position in chosen)
            vectors.extend(rows[position] for position in chosen)
        assert len(samples) == 2 * (number + 1) * PER_CLASS
        assert torch.equal(kept_samples(strategy, tiny_stream), torch.stack(samples))
        torch.testing.assert_close(strategy.state_dict()["vectors"], torch.tensor(vectors), rtol=1e-5, atol=1e-6)


def test_they_are_the_vectors_of_the_stale_gallery(tiny_stream):
    """Of tasks whose galleries are what they learn from, each anchor is a row of the stored gallery of its task."""
    stream = tuple(replace(task, gallery=task.train) for task in tiny_stream)
    model, strategy, galleries = make_model(), prepared(stream), Galleries(("linear",))
    for task in stream:
        galleries.before_task(model, task)
        change(model)
        strategy.after_task(model, task)
        galleries.after_task(model, task, embed(model, task.train))
    held, vectors, _ = strategy.state_dict().values()
    stored = [row for part in galleries.parts[STALE] for row in unit_rows(part.vectors)]
    expected = torch.tensor([stored[position] for position in held.tolist()])
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)


def test_a_class_that_is_smaller_is_kept_whole_and_none_are_kept_if_none_are_asked_for(tiny_stream):
    for per_class, expected in ((7, 14), (8, 14), (0, 0)):
        model, strategy = make_model(), prepared(tiny_stream, per_class=per_class)
        strategy.after_task(model, tiny_stream[0])
        state = strategy.state_dict()
        assert state["held"].shape == (expected,)
        assert state["vectors"].shape == (expected, 3)
    inputs, _ = tiny_stream[1].train[[0, 1]]
    assert strategy.loss(model, inputs, model(inputs)) is None


# --- what is added


def literal_distance(found: list[list[float]], wanted: list[list[float]]) -> float:
    """mean_k 1 - cos."""
    total = 0.0
    for a, b in zip(found, wanted, strict=True):
        lengths = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
        total += 1 - sum(x * y for x, y in zip(a, b, strict=True)) / lengths
    return total / len(found)


def test_what_is_added_is_the_distance_of_old_samples_from_their_vectors(tiny_stream):
    """With room for all in a batch, their order does not matter; batch norm stands still."""
    model, strategy = make_model(), prepared(tiny_stream, strength=0.7)
    inputs, _ = tiny_stream[2].train[list(range(6))]
    for task in tiny_stream[:2]:
        strategy.after_task(model, task)
        change(model)
        change_statistics(model)
    held, vectors, _ = strategy.state_dict().values()
    model.eval()
    wanted = literal_distance(model(kept_samples(strategy, tiny_stream)).tolist(), vectors.tolist())
    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    addition = strategy.loss(model, inputs, torch.zeros(6, 3))
    assert addition is not None
    assert len(held) == 12
    assert addition.item() == pytest.approx(0.7 * wanted, rel=1e-4)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    addition.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def change_statistics(model: nn.Module) -> None:
    """As training does it: batch norm's running ones move."""
    model.train()
    with torch.no_grad():
        model(torch.rand(8, 1, 4, 4))


def test_nothing_is_added_before_there_are_anchors_nor_without_strength(tiny_stream):
    model, strategy = make_model(), prepared(tiny_stream)
    inputs, _ = tiny_stream[0].train[[0, 1]]
    assert strategy.loss(model, inputs, model(inputs)) is None
    strategy.after_task(model, tiny_stream[0])
    strategy.set_strength(0.0)
    assert strategy.loss(model, inputs, model(inputs)) is None
    strategy.set_strength(1.0)
    assert strategy.loss(model, inputs, model(inputs)) is not None


class Mirror(nn.Module):
    """Notes what it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked: list[Tensor] = []
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, samples: Tensor) -> Tensor:
        self.asked.append(samples.detach())
        return self.weight * samples.flatten(1)


def test_a_batch_is_drawn_without_replacement_as_the_seed_says_and_all_come_up(tiny_stream):
    model, strategy = Mirror(), prepared(tiny_stream, batch_size=4)
    strategy.after_task(model, tiny_stream[0])
    kept = kept_samples(strategy, tiny_stream)
    drawn = []
    for seed in (0, 0, 1):
        model.asked.clear()
        torch.manual_seed(seed)
        for _ in range(20):
            strategy.loss(model, kept, kept)
        positions = [[int((kept == sample).flatten(1).all(dim=1).nonzero()) for sample in a] for a in model.asked]
        assert all(len(set(batch)) == 4 for batch in positions)
        drawn.append(positions)
    assert drawn[0] == drawn[1] != drawn[2]
    assert {position for batch in drawn[0] for position in batch} == set(range(6))


def test_samples_are_never_augmented(tiny_stream):
    def refuse(sample: Tensor) -> Tensor:
        raise AssertionError("an augmented sample was read")

    stream = tuple(replace(task, train=task.train.with_transform(refuse)) for task in tiny_stream)
    model, strategy = make_model(), prepared(stream)
    strategy.after_task(model, stream[0])
    inputs, _ = tiny_stream[1].train[[0, 1]]
    assert strategy.loss(model, inputs, model(inputs)) is not None


# --- the pairs that join the fit of a map


def test_pairs_are_what_was_kept_before_a_task_by_the_models_before_it_and_after(tiny_stream):
    model, strategy = make_model(), prepared(tiny_stream)
    for number, task in enumerate(tiny_stream):
        strategy.before_task(model, task, torch.optim.SGD(model.parameters()))
        kept = kept_samples(strategy, tiny_stream)
        assert len(kept) == 2 * number * PER_CLASS
        model.eval()
        before = model(kept)
        change(model)
        after = model(kept)
        strategy.after_task(model, task)
        pairs = strategy.kept_pairs()
        if not number:
            assert pairs is None
            continue
        assert pairs is not None
        torch.testing.assert_close(pairs, (before, after), rtol=1e-5, atol=1e-6)


def test_pairs_of_a_task_that_is_resumed_in_its_middle_are_the_same(tiny_stream):
    model, strategy, other = make_model(), prepared(tiny_stream), prepared(tiny_stream)
    optimizer = torch.optim.SGD(model.parameters())
    strategy.after_task(model, tiny_stream[0])
    strategy.before_task(model, tiny_stream[1], optimizer)
    change(model)
    other.before_task(model, tiny_stream[1], optimizer)
    other.load_state_dict(strategy.state_dict())
    change(model)
    pairs = []
    for each in (strategy, other):
        each.after_task(model, tiny_stream[1])
        pairs.append(each.kept_pairs())
    assert all(map(torch.equal, *pairs))
    assert not torch.equal(*pairs[0])


# --- state


def test_anchors_stay_the_same_when_the_data_grow_around_them(tiny_stream):
    """In the grown data set another class comes first: labels move by one, and samples by the size of that class."""
    first = tiny_stream[0].train
    more = torch.cat([torch.zeros(10, 1, 4, 4), torch.as_tensor(first.samples)])
    labels = torch.cat([torch.zeros(10, dtype=torch.int64), first._all_labels + 1])
    whole = LabelledDataset(more, labels, ["a", *first.class_names])
    grown = tuple(
        replace(
            task,
            classes=tuple(label + 1 for label in task.classes),
            train=whole.subset(task.train.indices + 10),
        )
        for task in tiny_stream
    )
    strategy, other, model = prepared(tiny_stream), prepared(grown), make_model()
    strategy.after_task(model, tiny_stream[0])
    other.load_state_dict(strategy.state_dict())
    change(model)
    inputs, _ = tiny_stream[1].train[[0, 1]]
    found = []
    for each in (strategy, other):
        torch.manual_seed(0)
        addition = each.loss(model, inputs, torch.zeros(2, 3))
        assert addition is not None
        found.append(addition.item())
    assert found[0] == found[1] > 0
    for each, stream in ((strategy, tiny_stream), (other, grown)):
        each.after_task(model, stream[1])
    assert torch.equal(strategy.state_dict()["held"], other.state_dict()["held"])


def test_a_state_that_was_taken_does_not_change_any_more(tiny_stream):
    model, strategy = make_model(), prepared(tiny_stream)
    strategy.after_task(model, tiny_stream[0])
    state = strategy.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    strategy.after_task(model, tiny_stream[1])
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert before["num_seen"] == 14


@pytest.mark.parametrize("options", [{"per_class": -1}, {"strength": -1.0}, {"batch_size": 0}])
def test_wrong_options(options):
    with pytest.raises(ValueError, match="per_class and strength must be >= 0 and batch_size >= 1, got"):
        Anchors(**options)


def test_it_must_be_prepared(tiny_stream):
    with pytest.raises(RuntimeError, match=r"call strategy\.prepare"):
        Anchors().after_task(make_model(), tiny_stream[0])
