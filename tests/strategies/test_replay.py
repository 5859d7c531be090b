"""Replay: which samples are kept, and what is trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_distill import change, make_metric, make_model
from torch import Tensor
from torch.nn import functional

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.tasks import Stream
from tripletmas.models.embedding import embed
from tripletmas.strategies.replay import Replay, herd, reservoir


def prepared(stream, **options) -> Replay:
    strategy = Replay(**options)
    strategy.prepare(make_model(), make_metric(), stream)
    return strategy


def indices(data: LabelledDataset) -> list[int]:
    return data.indices.tolist()


# --- herding


def in_memory(strategy: Replay, stream: Stream) -> Tensor:
    """(2, m): which samples of the data set are held, and their labels."""
    positions, classes = strategy.state_dict()["held"]
    samples = torch.cat([task.train.indices for task in stream])
    labels = torch.tensor([label for task in stream for label in task.classes])
    return torch.stack([samples[positions], labels[classes]])


def literal_herding(vectors: list[list[float]], count: int) -> list[int]:
    dim = len(vectors[0])
    mean = [sum(vector[i] for vector in vectors) / len(vectors) for i in range(dim)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(vectors)):
        gaps = {}
        for candidate in range(len(vectors)):
            if candidate in chosen:
                continue
            tried = [vectors[position] for position in (*chosen, candidate)]
            own = [sum(vector[i] for vector in tried) / len(tried) for i in range(dim)]
            gaps[candidate] = sum((a - b) ** 2 for a, b in zip(mean, own, strict=True))
        chosen.append(min(gaps, key=lambda candidate: gaps[candidate]))
    return chosen


@pytest.mark.parametrize("count", [0, 1, 5, 12, 20])
@pytest.mark.parametrize("seed", range(3))
def test_herding_brings_the_mean_of_the_chosen_nearest_to_that_of_all(seed, count):
    generator = torch.Generator().manual_seed(seed)
    vectors = functional.normalize(torch.randn(12, 4, dtype=torch.float64, generator=generator))
    assert herd(vectors, count).tolist() == literal_herding(vectors.tolist(), count)


def test_each_class_keeps_its_herd_and_gives_room_from_the_end_of_the_list(tiny_stream):
    model, strategy = make_model(), prepared(tiny_stream, memory=9)
    ranked: dict[int, list[int]] = {}
    for number, (task, share) in enumerate(zip(tiny_stream, (4, 2, 1), strict=True)):  # 9 // 2, 9 // 4, 9 // 6
        change(model)
        strategy.after_task(model, task)
        for label in task.classes:
            data = task.train.of_classes([label])
            vectors = functional.normalize(embed(model, data).vectors.double())
            ranked[label] = [indices(data)[position] for position in literal_herding(vectors.tolist(), share)]
        ranked = {label: listed[:share] for label, listed in ranked.items()}
        held, labels = in_memory(strategy, tiny_stream).tolist()
        assert len(ranked) == 2 * (number + 1)
        for label, listed in ranked.items():
            assert [index for index, other in zip(held, labels, strict=True) if other == label] == listed


# --- reservoir


def literal_reservoir(items: list[int], size: int, draws: list[float]) -> list[int]:
    held: list[int] = []
    waiting = iter(draws)
    for number, item in enumerate(items):
        if len(held) < size:
            held.append(item)
        elif (slot := int(next(waiting) * (number + 1))) < size:
            held[slot] = item
    return held


def test_the_reservoir_is_algorithm_r_in_any_number_of_parts():
    items = torch.stack([torch.arange(30), torch.arange(30) % 5])
    held, seen, draws = torch.zeros(2, 0, dtype=torch.int64), 0, []
    for number, size in enumerate((3, 12, 15)):
        part = items[:, seen : seen + size]
        held = reservoir(held, part, seen, 7, torch.Generator().manual_seed(number))
        own = torch.Generator().manual_seed(number)
        draws += torch.rand(min(size, max(0, seen + size - 7)), generator=own, dtype=torch.float64).tolist()
        seen += size
        assert held.shape[1] == min(seen, 7)
        assert torch.equal(held[1], held[0] % 5)
    assert held[0].tolist() == literal_reservoir(list(range(30)), 7, draws)


def test_each_sample_seen_is_in_the_reservoir_with_the_same_probability():
    """5 of 20, in two parts, 4000 times: a binomial of mean 1000 and deviation sqrt(4000 * 0.25 * 0.75) = 27."""
    counts = torch.zeros(20)
    items = torch.stack([torch.arange(20), torch.zeros(20, dtype=torch.int64)])
    generator = torch.Generator().manual_seed(0)
    for _ in range(4000):
        held = reservoir(torch.zeros(2, 0, dtype=torch.int64), items[:, :8], 0, 5, generator)
        held = reservoir(held, items[:, 8:], 8, 5, generator)
        assert len(set(held[0].tolist())) == 5
        counts[held[0]] += 1
    assert ((counts - 1000).abs() < 4 * 27).all()
    assert ((counts - 1000).square() / 750).sum() < 44  # chi squared with 19 degrees of freedom: 0.1 %


def test_the_reservoir_is_a_function_of_the_seed(tiny_stream):
    drawn, model = [], make_model()
    for seed in (0, 0, 1):
        strategy = prepared(tiny_stream, memory=8, selection="reservoir")
        torch.manual_seed(seed)
        torch.rand(seed + len(drawn))  # what was drawn since does not matter
        strategy.after_task(model, tiny_stream[0])
        drawn.append(strategy.state_dict()["held"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_class_with_a_single_sample_sits_out(tiny_stream):
    strategy = prepared(tiny_stream, memory=8, selection="reservoir")
    first = tiny_stream[0].train
    positions = [0, 1, int((first.labels == first.labels[-1]).nonzero()[0])]
    held = torch.stack([torch.tensor(positions), first.labels[positions]])
    assert held[1].unique().tolist() == list(tiny_stream[0].classes) == [0, 1]
    seen = torch.tensor([14, 2])
    strategy.load_state_dict({"held": held, "num_seen": seen})
    data = strategy.training_data(tiny_stream[1], tiny_stream[:1])
    assert indices(data) == [*first.indices[:2].tolist(), *indices(tiny_stream[1].train)]
    strategy.load_state_dict({"held": held[:, 1:], "num_seen": seen})
    assert indices(strategy.training_data(tiny_stream[1], tiny_stream[:1])) == indices(tiny_stream[1].train)


# --- both


@pytest.mark.parametrize("selection", ["herding", "reservoir"])
def test_memory_and_task_are_trained_on_and_both_augmented(selection, tiny_stream):
    def marked(sample: Tensor) -> Tensor:
        return sample * 0 - 1

    stream = [replace(task, train=task.train.with_transform(marked)) for task in tiny_stream]
    strategy, model = prepared(stream, memory=8, selection=selection), make_model()
    assert indices(strategy.training_data(stream[0], ())) == indices(stream[0].train)
    for number, task in enumerate(stream[:2]):
        strategy.after_task(model, task)
        data = strategy.training_data(stream[number + 1], stream[: number + 1])
        held = in_memory(strategy, tuple(stream))
        assert held.shape == (2, 8)
        new = len(stream[number + 1].train)
        paired = held[:, [int((held[1] == label).sum()) > 1 for label in held[1]]]
        assert paired.shape[1] >= 6
        assert sorted(indices(data)[:-new]) == sorted(paired[0].tolist())
        assert indices(data)[-new:] == indices(stream[number + 1].train)
        assert (data[list(range(len(data)))][0] == -1).all()
        earlier = {label for other in stream[: number + 1] for label in other.classes}
        assert set(data.labels[:-new].tolist()) <= earlier
        labels = dict(zip(indices(data), data.labels.tolist(), strict=True))
        assert all(labels[index] == label for index, label in paired.t().tolist())


def test_herding_sees_plain_samples(tiny_stream):
    def refuse(sample: Tensor) -> Tensor:
        raise AssertionError("an augmented sample was measured")

    task = replace(tiny_stream[0], train=tiny_stream[0].train.with_transform(refuse))
    prepared(tiny_stream).after_task(make_model(), task)


def test_a_memory_too_small_for_pairs_is_told_before_the_training(tiny_stream):
    with pytest.raises(ValueError, match=r"memory must be >= 8, two samples for each of 4 earlier classes.*got 7"):
        prepared(tiny_stream, memory=7)
    prepared(tiny_stream, memory=8)
    prepared(tiny_stream[:1], memory=0)


def test_a_memory_stays_the_same_when_the_data_grow_around_it(tiny_stream):
    """In the grown data set another class comes first: labels move by one, and samples by the size of that class."""
    first = tiny_stream[0].train
    more = torch.cat([torch.zeros(10, 1, 4, 4), torch.as_tensor(first.samples)])
    labels = torch.cat([torch.zeros(10, dtype=torch.int64), first._all_labels + 1])
    grown = tuple(
        replace(
            task,
            classes=tuple(label + 1 for label in task.classes),
            train=LabelledDataset(more, labels, ["a", *first.class_names]).subset(task.train.indices + 10),
        )
        for task in tiny_stream
    )
    for selection in ("herding", "reservoir"):
        strategy, other = prepared(tiny_stream, selection=selection, memory=8), prepared(grown, memory=8)
        strategy.after_task(make_model(), tiny_stream[0])
        other.load_state_dict(strategy.state_dict())
        data = other.training_data(grown[1], grown[:1])
        expected = strategy.training_data(tiny_stream[1], tiny_stream[:1])
        assert torch.equal(data.indices, expected.indices + 10)
        assert torch.equal(data.labels, expected.labels + 1)


def test_the_state_is_integers_that_say_which_samples_and_classes(tiny_stream):
    strategy, other = (prepared(tiny_stream, selection="reservoir", memory=8) for _ in range(2))
    strategy.after_task(make_model(), tiny_stream[0])
    state = strategy.state_dict()
    assert state["held"].dtype == torch.int64
    assert state["num_seen"].tolist() == [14]
    other.load_state_dict(state)
    before, model = state["held"].clone(), make_model()
    for each in (strategy, other):
        torch.manual_seed(3)
        each.after_task(model, tiny_stream[1])
    assert torch.equal(strategy.state_dict()["held"], other.state_dict()["held"])
    assert torch.equal(state["held"], before)  # a state that was taken does not change any more


def test_wrong_options_and_no_strength():
    with pytest.raises(ValueError, match="selection must be 'herding' or 'reservoir', got 'random'"):
        Replay(selection="random")  # pyright: ignore
    with pytest.raises(ValueError, match="Replay has no strength"):
        Replay().set_strength(0.0)
