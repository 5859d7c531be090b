"""The parts of a run that a forecast is made of, against what its files hold and its models say."""

from __future__ import annotations

import re

import pytest
import torch
from drawn_parts import angles
from torch import Tensor, nn

from tripletmas.cli.main import main
from tripletmas.index.base import unit
from tripletmas.models.embedding import embed
from tripletmas.runs import imagined
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import Experiment, load_trained
from tripletmas.runs.forecast import allowed_scale, forecast_of, measured_of
from tripletmas.runs.galleries import Galleries
from tripletmas.runs.imagined import imagine, parts_of_run
from tripletmas.runs.moves import shares_of

# --- imagined images


class Squared(nn.Module):
    """An embedding that is not linear, with a layer that behaves otherwise in training mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(9, 16), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(images.flatten(1))))


def test_images_are_imagined_where_vectors_lie():
    """Images of a model are targets that it can reach; what is made of other images lies there, within their range."""
    model = Squared()
    random = torch.Generator().manual_seed(1)
    hidden, images = torch.rand(70, 1, 3, 3, generator=random), torch.rand(20, 1, 3, 3, generator=random)
    targets = unit(model(hidden)).detach()
    found = imagine(model, targets, images, steps=200)
    with torch.no_grad():
        reached = (unit(model(found)) * targets).sum(dim=1)
        nearest = (targets @ unit(model(images)).T).max(dim=1).values
    assert found.shape == hidden.shape
    assert float(found.min()) >= float(images.min())
    assert float(found.max()) <= float(images.max())
    assert float(reached.mean()) > 0.99
    assert bool((reached >= nearest - 1e-3).all())
    assert not found.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


class Standardising(Squared):
    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5).mul_(2) if self.in_place else images.sub(0.5).mul(2))


def test_a_model_may_change_images_in_place():
    random = torch.Generator().manual_seed(1)
    images = torch.rand(20, 1, 3, 3, generator=random)
    targets, kept = unit(torch.randn(7, 4, generator=random)), images.clone()
    found = imagine(Standardising(in_place=True), targets, images, steps=5)
    assert torch.equal(images, kept)
    assert torch.equal(found, imagine(Standardising(in_place=False), targets, images, steps=5))


def test_an_image_starts_as_the_nearest():
    """No step is made: of three images, each target gets the one that lies nearest."""
    model = nn.Flatten()
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]])
    found = imagine(model, angles(10.0, 50.0, 80.0), images, steps=0)
    assert torch.equal(found, images[[0, 2, 1]])


# --- of a run

SMALL = ("--data.tasks", "[2,2,6]", "--model.hidden", "[16]", "--model.dim", "8", "--training.epochs", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """Digits in three tasks, under gram, which says how far responses moved, and a map that is named."""
    path = tmp_path_factory.mktemp("forecast") / "run"
    options = ("--strategy", "gram", "--gallery.compensate", "linear", "--report", "false", "--device", "cpu", *SMALL)
    assert main(["train", "--out", str(path), *options]) == 0
    return RunDirectory.open(path)


@pytest.fixture(scope="module")
def experiment(run) -> Experiment:
    return load_trained(run)[0]


def model_after(run: RunDirectory, experiment: Experiment, number: int) -> nn.Module:
    run.load_weights(experiment.model, number)
    return experiment.model.eval()


@pytest.mark.slow
def test_parts_are_what_is_stored_and_what_is_moved(run, experiment):
    parts = parts_of_run(run, experiment, 2)
    galleries = Galleries(("linear",))
    galleries.restore(run, experiment.model, experiment.stream, 3)
    assert [part.is_current for part in parts] == [False, False, True]
    assert [part.was_current for part in parts] == [False, True, False]
    for part, stored, moved in zip(parts, galleries.parts["stale"], galleries.parts["linear"], strict=True):
        torch.testing.assert_close(part.vectors, unit(stored.vectors))
        assert torch.equal(part.labels, stored.labels)
        assert part.compensated is not None
        torch.testing.assert_close(part.compensated, moved.vectors)
        assert part.rows.tolist() == sorted(set(part.rows.tolist()))
    earlier = Galleries(("linear",))
    earlier.restore(run, experiment.model, experiment.stream, 2)
    for part, moved in zip(parts[:2], earlier.parts["linear"], strict=True):
        assert part.compensated_before is not None
        torch.testing.assert_close(part.compensated_before, moved.vectors)
    last = parts[-1]
    assert torch.equal(last.now, last.vectors[last.rows])
    before = unit(embed(model_after(run, experiment, 1), experiment.stream[2].query).vectors)
    torch.testing.assert_close(last.before, before[last.rows])


def test_images_are_made_of_the_new_task_and_shown_to_the_models(run, experiment, monkeypatch):
    """Each part's images are asked for of the model that made it; here they are the first images of the new task."""
    asked: list[tuple[Tensor, Tensor]] = []

    def first_images(model: nn.Module, targets: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            asked.append((targets, unit(model(images[:1]))))
        return images[: len(targets)]

    monkeypatch.setattr(imagined, "imagine", first_images)
    monkeypatch.setattr(imagined, "_IMAGINED", 40)
    new = experiment.stream[2].train.plain()
    images = torch.stack([new[row][0] for row in range(len(new))])
    monkeypatch.setattr(imagined, "_STARTS", len(new))
    parts = parts_of_run(run, experiment, 2)
    for number, part in enumerate(parts[:2]):
        assert len(part.rows) == 20
        targets, first = asked[number]
        assert torch.equal(targets, part.vectors[part.rows])
        model = model_after(run, experiment, number)
        with torch.no_grad():
            torch.testing.assert_close(first, unit(model(images[:1])))
    for at, found in ((2, parts[0].now), (1, parts[0].before), (2, parts[1].now)):
        model = model_after(run, experiment, at)
        with torch.no_grad():
            torch.testing.assert_close(found, unit(model(images[:20])))
    assert torch.equal(parts[1].before, parts[1].vectors[parts[1].rows])  # the model before the update made them


def test_a_forecast_is_repeatable_and_moves_no_further_than_the_layers_say(run, experiment):
    shares = shares_of(run, 2)
    record = run.records("task")[2]
    assert shares == record["changed_responses"]
    assert shares_of(run, 0) == {}
    measured = measured_of(run, 2)
    one, other = (forecast_of(parts_of_run(run, experiment, 2), shares=shares, measured=measured) for _ in range(2))
    assert one == other
    assert one.recall != forecast_of(parts_of_run(run, experiment, 2), shares=shares).recall
    old = parts_of_run(run, experiment, 2)[:2]
    allowed = 10 * sum(shares.values())
    moved = 1 - sum(float((part.vectors[part.rows] * part.now).sum(dim=1).mean()) for part in old) / 2
    assert allowed_scale(old, shares) == pytest.approx(min(1, (allowed / moved) ** 0.5), rel=1e-4)


def test_what_has_no_forecast(run, experiment, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no update has followed the first task, so that no stored vector has moved"):
        parts_of_run(run, experiment, 0)
    with pytest.raises(ValueError, match="runs of older versions keep no galleries"):
        parts_of_run(RunDirectory(tmp_path), experiment, 1)
    monkeypatch.setattr(type(experiment.kind), "finds_items", False)
    with pytest.raises(ValueError, match=re.escape("not for objective metric")):
        parts_of_run(run, experiment, 1)
