"""The ridge classifier: sums over tasks against its literal twin, fitted to all samples at once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracles import ridge_labels
from torch import Tensor

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, Task, make_stream
from tripletmas.models.embedding import Embeddings
from tripletmas.objectives.recognition.ridge import (
    STRENGTHS,
    RidgeClassifier,
    choose_strength,
    held_out,
    one_hot,
    random_features,
)

CLASSES, DIM, EACH = 6, 4, 10


def points(noise: float = 0.7) -> LabelledDataset:
    """Around six centres, near enough to be mistaken for each other."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    samples = torch.randn(CLASSES, DIM, generator=generator)[labels]
    samples = samples + noise * torch.randn(len(labels), DIM, generator=generator)
    return LabelledDataset(samples, labels, list("abcdef"))


def stream() -> Stream:
    return make_stream(Source(points()), tasks=3)[0]


def embedded(data: LabelledDataset) -> Embeddings:
    samples, labels = data[list(range(len(data)))]
    return Embeddings(samples, labels)


def learned(tasks: Stream, random_dim: int) -> RidgeClassifier:
    ridge = RidgeClassifier(random_dim)
    for number, task in enumerate(tasks, start=1):
        ridge.after_task(embedded(task.train.plain()), tasks[:number])
    return ridge


def all_of(tasks: Stream) -> tuple[Tensor, list[int]]:
    parts = [embedded(task.train.plain()) for task in tasks]
    return torch.cat([part.vectors for part in parts]), [int(label) for part in parts for label in part.labels]


@pytest.mark.parametrize("random_dim", [0, 12, 24])
@pytest.mark.parametrize("strength", [1e-4, 1.0, 100.0])
def test_task_by_task_it_is_the_ridge_on_all_samples_at_once(random_dim, strength):
    tasks = stream()
    ridge = learned(tasks, random_dim)
    ridge.strength = strength
    samples, labels = all_of(tasks)
    asked = torch.randn(50, DIM)
    random = None
    if random_dim:
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(DIM, random_dim, generator=generator, dtype=torch.float64)
    expected = ridge_labels(samples.tolist(), labels, asked.tolist(), strength, random)
    assert ridge.predict(asked).tolist() == expected
    assert len(set(expected)) > 2


def test_classes_that_come_again_add_to_what_is_kept_of_them():
    """Tasks with the classes a b c, b d, d a e: it is still the ridge on all samples at once."""
    data = points()
    rows = [torch.arange(0, 60, 3), torch.arange(1, 60, 3), torch.arange(2, 60, 3)]
    named = (((0, 1, 2), rows[0]), ((1, 3), rows[1]), ((0, 3, 4), rows[2]))
    parts = [(classes, data.subset(at).of_classes(classes)) for classes, at in named]
    tasks = tuple(Task(f"{number}", classes, part, part) for number, (classes, part) in enumerate(parts))
    ridge = learned(tasks, 12)
    assert ridge.labels.tolist() == [0, 1, 2, 3, 4]
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(DIM, 12, generator=generator, dtype=torch.float64)
    samples, labels = all_of(tasks)
    asked = torch.randn(50, DIM)
    expected = ridge_labels(samples.tolist(), labels, asked.tolist(), ridge.strength, random)
    assert ridge.predict(asked).tolist() == expected
    other = RidgeClassifier(12)
    other.load_state_dict(ridge.state_dict(), tasks)
    assert other.predict(asked).tolist() == expected


def test_what_is_kept_does_not_grow_with_samples():
    ridge = learned(stream(), 24)
    shapes = {name: tuple(value.shape) for name, value in ridge.state_dict().items()}
    assert shapes == {"ridge/gram": (24, 24), "ridge/products": (24, CLASSES), "ridge/strength": ()}


def test_more_samples_than_fit_at_once_are_summed(monkeypatch):
    whole = learned(stream(), 24)
    monkeypatch.setattr("tripletmas.objectives.recognition.ridge._ROWS", 3)
    parts = learned(stream(), 24)
    torch.testing.assert_close(parts.gram, whole.gram, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(parts.products, whole.products, rtol=1e-12, atol=0.0)


def test_the_length_of_embeddings_does_not_matter():
    vectors = torch.randn(5, DIM)
    torch.testing.assert_close(random_features(3 * vectors, 8), random_features(vectors, 8), rtol=1e-6, atol=1e-6)
    assert (random_features(vectors, 8) >= 0).all()


def test_a_fifth_of_each_class_is_held_out():
    """Ten of class 0 give the last two; two of class 1 the second; one of class 2 none; four of class 3 the last."""
    labels = torch.tensor([0] * 10 + [1, 2, 1] + [3] * 4)
    assert held_out(labels).nonzero().flatten().tolist() == [8, 9, 12, 16]


def literal_errors(data: Embeddings, classes: Tensor, random_dim: int) -> list[float]:
    """The mean squared error of each strength on the held-out samples, by least squares on appended rows."""
    held = held_out(data.labels)
    h, y = random_features(data.vectors, random_dim), one_hot(data.labels, classes)
    size, errors = h.shape[1], []
    for strength in STRENGTHS:
        rows = torch.cat([h[~held], math.sqrt(strength) * torch.eye(size, dtype=torch.float64)])
        targets = torch.cat([y[~held], torch.zeros(size, len(classes), dtype=torch.float64)])
        answers = h[held] @ torch.linalg.lstsq(rows, targets, driver="gelsd").solution
        errors.append(float((answers - y[held]).square().mean()))
    return errors


@pytest.mark.parametrize("random_dim", [0, 8, 100])  # with 100, samples are fewer than features
@pytest.mark.parametrize("noise", [0.05, 0.7, 3.0])
def test_the_strength_is_the_best_on_held_out_samples(random_dim, noise):
    data, classes = embedded(points(noise)), torch.arange(CLASSES)
    errors = literal_errors(data, classes, random_dim)
    chosen = choose_strength(data, classes, random_dim)
    assert errors[STRENGTHS.index(chosen)] == pytest.approx(min(errors), rel=1e-6)


def test_noise_wants_a_stronger_ridge():
    classes = torch.arange(CLASSES)
    clean, noisy = (choose_strength(embedded(points(noise)), classes, 100) for noise in (0.05, 3.0))
    assert clean < noisy


def test_classes_of_one_sample_hold_nothing_out():
    data = Embeddings(torch.eye(3), torch.tensor([0, 1, 2]))
    assert choose_strength(data, torch.arange(3), 8) == 1.0


def test_a_state_is_taken_over_bit_for_bit():
    tasks = stream()
    whole, first = learned(tasks, 24), learned(tasks[:2], 24)
    other = RidgeClassifier(24)
    other.load_state_dict({name: value.clone() for name, value in first.state_dict().items()}, tasks)
    assert other.labels.tolist() == first.labels.tolist()
    other.after_task(embedded(tasks[2].train.plain()), tasks)
    asked = torch.randn(50, DIM)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items())
    assert torch.equal(other.predict(asked), whole.predict(asked))


def test_a_stream_that_has_grown_may_have_other_labels():
    tasks = stream()
    ridge, other = learned(tasks, 24), RidgeClassifier(24)
    grown = tuple(replace(task, classes=tuple(label + 1 for label in task.classes)) for task in tasks)
    other.load_state_dict(ridge.state_dict(), grown)
    asked = torch.randn(20, DIM)
    assert other.predict(asked).tolist() == (ridge.predict(asked) + 1).tolist()


def test_a_negative_number_of_dimensions():
    with pytest.raises(ValueError, match="ridge_dim must be >= 1, or 0 for the embedding itself, got -1"):
        RidgeClassifier(-1)
