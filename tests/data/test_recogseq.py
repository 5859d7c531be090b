"""The eight recognition tasks of the MAS paper, read whole from tiny copies in their layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_datasets import cars, cub, flowers, house_numbers, picture, planes

from tripletmas.data import images, sequences
from tripletmas.data.sequences import Joined
from tripletmas.data.tasks import Stream
from tripletmas.runs import catalog, configuration
from tripletmas.runs.options import TrainConfig

FILE = Path(__file__).resolve().parents[2] / "datasets" / "recogseq" / "mas.yaml"


def folder(root: Path, classes: str, *, ending: str) -> None:
    """3 images of each class to learn from, 2 to ask for."""
    for split, count in (("train", 3), ("test", 2)):
        for name in classes:
            for number in range(count):
                picture(root / split / name / f"{number}.{ending}", 10 * number, mode="L" if number else "RGB")


@pytest.fixture
def configured(tmp_path, monkeypatch) -> dict:
    """The configuration, where its data lie where it says."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    flowers(data)
    folder(data / "scenes", "pq", ending="jpg")
    cub(data)
    cars(data / "cars196")
    planes(data)
    folder(data / "actions", "rst", ending="jpg")
    folder(data / "letters", "uvwx", ending="png")
    house_numbers(data / "svhn", monkeypatch)
    return configuration.parse(["--config", str(FILE), "--data.size", "8"])[0]


def stream_of(configured: dict) -> Stream:
    return catalog.build_data("sequence", {key: v for key, v in configured["data"].items() if key != "name"}).stream


def test_all_eight_tasks_in_the_papers_order(configured):
    stream = stream_of(configured)
    assert [(task.name, len(task.classes)) for task in stream] == [
        ("flowers102", 3),
        ("scenes", 2),
        ("cub200", 2),
        ("cars196", 2),
        ("aircraft", 2),
        ("actions", 3),
        ("letters", 4),
        ("svhn", 10),
    ]
    # (learned, asked for): published test parts; of birds and cars 30 % of each class's 4, which is 2 at least
    assert [(len(task.train), len(task.query)) for task in stream] == [
        (6, 3),
        (6, 4),
        (4, 4),
        (4, 4),
        (4, 2),
        (9, 6),
        (12, 8),
        (20, 10),
    ]
    samples = stream[0].train.samples
    for task in stream:
        for part in (task.train, task.query):
            assert part.samples is samples
            assert part.sample_shape == (3, 8, 8)
            batch, labels = part[list(range(len(part)))]
            assert batch.isfinite().all()
            assert set(labels.tolist()) == set(task.classes)
    assert stream[7].train.class_names[stream[7].classes[0]] == "svhn/0"
    red = stream[7].query[[0]][0][0, 0]
    assert (red * 255).unique().tolist() == pytest.approx([1.0])  # the first test image shows a 1


def test_large_parts_are_read_when_they_are_asked_for(configured, monkeypatch):
    ready = stream_of(configured)
    for module in (images, sequences):
        monkeypatch.setattr(module, "IN_MEMORY_BYTES", 100)
    lazy = stream_of(configured)
    assert isinstance(ready[0].train.samples, torch.Tensor)
    assert isinstance(lazy[0].train.samples, Joined)
    for one, other in zip(ready, lazy, strict=True):
        everything = list(range(len(one.train)))
        assert torch.equal(one.train[everything][0], other.train[everything][0])


def test_the_rest_is_what_the_card_says(configured):
    assert configured["objective"] == "recognition"
    model = {"name": "alexnet", "pretrained": True, "dim": 0}
    assert configured["model"] == model
    strategy = {"name": "mas", "strength": 1.0, "relative": False, "output": "logits"}
    assert strategy.items() <= configured["strategy"].items()
    training = TrainConfig(**configured["training"])
    assert (training.optimizer, training.momentum, training.lr, training.weight_decay) == ("sgd", 0.9, 8e-4, 0.0)
    assert (training.epochs, training.batch_size, training.sampler) == (100, 200, "shuffled")
    assert (training.schedule, training.step_at) == ("step", 0.54)
