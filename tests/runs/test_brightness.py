"""Images that are shown to a model as negatives of those that it learned from are told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from tripletmas.cli.main import main
from tripletmas.data.dataset import LabelledDataset
from tripletmas.runs.brightness import brightness_learned, brightness_of, warn_of_negatives
from tripletmas.runs.directory import RunDirectory


def images(*values: float, size: int = 4) -> LabelledDataset:
    """Of two greys each, about these."""
    halves = torch.tensor([0.05, -0.05]).repeat(size, size // 2)
    return LabelledDataset(torch.tensor(values).reshape(-1, 1, 1, 1) + halves, torch.zeros(len(values)), ["unlabelled"])


def test_brightness_is_the_mean_of_pixels():
    assert brightness_of(images(0.25, 0.75, 0.5)) == pytest.approx(0.5)
    assert brightness_of(images(*[0.0] * 50, *[1.0] * 50)) == pytest.approx(0.5, abs=0.05)  # of every fourth
    pixels = torch.tensor([[0, 102], [102, 0]], dtype=torch.uint8).expand(2, 3, 2, 2)
    assert brightness_of(LabelledDataset(pixels.clone(), torch.zeros(2), ["unlabelled"])) == pytest.approx(0.2)


def test_images_of_one_colour_do_not_count(caplog):
    """Empty pages are no negatives of digits."""
    white = LabelledDataset(torch.ones(5, 1, 4, 4), torch.zeros(5), ["unlabelled"])
    assert brightness_of(white) is None
    warn_of_negatives(white, [0.1], of="runs/x", inverted=False)
    assert not caplog.text
    mixed = LabelledDataset(torch.cat([white.samples, images(0.25).samples]), torch.zeros(6), ["unlabelled"])
    assert brightness_of(mixed) == pytest.approx(0.25)


def test_what_is_no_image_has_none():
    assert brightness_of(LabelledDataset(torch.rand(3, 9), torch.zeros(3), ["a"])) is None
    assert brightness_of(images(-1.5, 0.5)) is None, "normalised already"
    assert brightness_of(images(0.5).subset([])) is None


@pytest.mark.parametrize(
    ("shown", "learned", "said"),
    [
        ([0.9] * 5, [0.1], "mostly light (mean 0.90 of 1), and those that runs/x learned from are not (0.10)"),
        ([0.1] * 5, [0.9], "mostly dark (mean 0.10 of 1), and those that runs/x learned from are not (0.90)"),
        ([0.9] * 5, [0.1, 0.2], "are not (0.20)"),
        ([0.9] * 5, [0.1, 0.8], None),  # some task had such images
        ([0.9] * 5, [], None),
        ([0.45] * 5, [0.55], None),
        ([0.8] * 5, [0.5], None),  # lighter, and the negatives are as far
        ([0.75] * 1, [0.4], None),  # one photograph alone
        ([0.75] * 5, [0.4], "--invert shows them so"),
    ],
)
def test_negatives_are_told(shown, learned, said, caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_negatives(images(*shown), learned, of="runs/x", inverted=False)
    assert (said in caplog.text) if said else not caplog.text


def test_negatives_of_negatives_are_told(caplog):
    warn_of_negatives(images(*[0.9] * 5), [0.1], of="runs/x", inverted=True)
    assert "without --invert they would be alike" in caplog.text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Digits, which are white on black."""
    folder = tmp_path_factory.mktemp("run") / "run"
    few = ["--data.tasks", "2", "--data.per_class", "4", "--training.epochs", "1", "--report", "false"]
    few += ["--training.eval_batch_size", "2"]
    assert main(["train", "--data", "digits", "--strategy", "mas", "--out", str(folder), *few]) == 0
    return folder


@pytest.fixture
def scans(tmp_path) -> Path:
    """Six that are black on white."""
    for number in range(6):
        page = Image.new("L", (8, 8), 250 - number)
        page.paste(40, (3, 2, 5, 5))
        page.save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("options", "is_told"), [([], True), (["--invert"], False)])
def test_commands_tell_it(options, is_told, run, scans, caplog, tmp_path_factory):
    """An index and its queries, which are shown as it was; and what is added to the protection."""
    assert len(brightness_learned(RunDirectory.open(run))) == 2
    out = str(tmp_path_factory.mktemp("out") / "a.index")
    for line in (
        ["index", "build", str(run), "--images", str(scans), "--out", out, "--force", *options],
        ["query", out, str(scans), "--force"],
        ["importance", str(run), "--images", str(scans), "--again", *options],
    ):
        caplog.clear()
        assert main(line) == 0
        assert ("mostly light" in caplog.text) == is_told, line


def test_a_build_in_parts_tells_it_once(run, scans, caplog, monkeypatch, tmp_path_factory):
    monkeypatch.setattr("tripletmas.runs.embedded_parts.PART", 2)
    out = str(tmp_path_factory.mktemp("out") / "a.index")
    assert main(["index", "build", str(run), "--images", str(scans), "--out", out, "--force"]) == 0
    assert caplog.text.count("mostly light") == 1
