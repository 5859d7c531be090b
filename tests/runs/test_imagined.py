"""The parts of a run that a forecast is made of, against what its files hold and its models say."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from tripletmas.cli.main import main
from tripletmas.index.base import unit
from tripletmas.models.embedding import embed
from tripletmas.runs import imagined
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import Experiment, load_trained
from tripletmas.runs.forecast import allowed_scale, forecast_of
from tripletmas.runs.galleries import Galleries
from tripletmas.runs.imagined import parts_of_run
from tripletmas.runs.moves import shares_of

SMALL = ("--data.tasks", "[2,2,6]", "--model.hidden", "[16]", "--model.dim", "8", "--training.epochs", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """Digits in three tasks, under gram, which says how far responses moved."""
    path = tmp_path_factory.mktemp("forecast") / "run"
    options = ("--strategy", "gram", "--report", "false", "--device", "cpu", *SMALL)
    assert main(["train", "--out", str(path), *options]) == 0
    return RunDirectory.open(path)


@pytest.fixture(scope="module")
def experiment(run) -> Experiment:
    return load_trained(run)[0]


def model_after(run: RunDirectory, experiment: Experiment, number: int) -> nn.Module:
    run.load_weights(experiment.model, number)
    return experiment.model.eval()


def test_parts_are_what_is_stored_and_what_is_moved(run, experiment):
    parts = parts_of_run(run, experiment, 2)
    galleries = Galleries(("linear",))
    galleries.restore(run, experiment.model, experiment.stream, 3)
    assert [part.is_current for part in parts] == [False, False, True]
    for part, stored, moved in zip(parts, galleries.parts["stale"], galleries.parts["linear"], strict=True):
        torch.testing.assert_close(part.vectors, unit(stored.vectors))
        assert torch.equal(part.labels, stored.labels)
        assert part.compensated is not None
        torch.testing.assert_close(part.compensated, moved.vectors)
        assert part.rows.tolist() == sorted(set(part.rows.tolist()))
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
    one, other = (forecast_of(parts_of_run(run, experiment, 2), shares=shares) for _ in range(2))
    assert one == other
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
