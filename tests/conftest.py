"""What the tests share: where real data lie, and small streams."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from commands import restored_tables
from hypothesis import settings
from PIL import Image
from tiny_texts import write_encoder

from tripletmas.cli import main as cli
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, make_stream

settings.register_profile("unhurried", deadline=None)  # speed is measured by scripts, never by a timed test
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: `TRIPLETMAS_REAL_DATA`, or `../shared/data`; where there is none, tests skip."""
    named = os.environ.get("TRIPLETMAS_REAL_DATA")
    if named:
        assert Path(named).is_dir(), f"TRIPLETMAS_REAL_DATA names no folder: {named}"
        return Path(named)
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent, and TRIPLETMAS_REAL_DATA names no other folder")
    return folder


@pytest.fixture(scope="session")
def class_images() -> Callable[..., LabelledDataset]:
    """Makes images (1, side, side) of classes that can be told apart: a random pattern each, plus noise."""

    def make(num_classes: int, *, per_class: int = 10, side: int = 4) -> LabelledDataset:
        random = torch.Generator().manual_seed(0)
        patterns = torch.rand(num_classes, 1, side, side, generator=random)
        labels = torch.arange(num_classes).repeat_interleave(per_class)
        noise = torch.rand(len(labels), 1, side, side, generator=random)
        return LabelledDataset((patterns[labels] + noise) / 2, labels, [f"c{i}" for i in range(num_classes)])

    return make


@pytest.fixture(scope="session")
def tiny_stream(class_images) -> Stream:
    """Three tasks of two classes, each with 7 images to learn and 3 to query, 1 x 4 x 4."""
    return make_stream(Source(class_images(6)), tasks=3)[0]


@pytest.fixture(scope="session")
def write_images() -> Callable[..., Path]:
    """Writes grey images `<folder>/0.png`, `1.png`, ...: a pattern that `seed` draws, plus noise."""

    def write(folder: Path, *, count: int = 6, side: int = 8, seed: int = 0) -> Path:
        random = torch.Generator().manual_seed(seed)
        pattern = torch.rand(side, side, generator=random)
        folder.mkdir(parents=True)
        for number in range(count):
            image = (pattern + torch.rand(side, side, generator=random)) * 127
            Image.fromarray(image.byte().numpy()).save(folder / f"{number}.png")
        return folder

    return write


@pytest.fixture
def call(capsys):
    """Calls the command line; gives (exit status, what was printed, what was complained about)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def without_drawing() -> Callable[[], AbstractContextManager[None]]:
    """Inside `with without_drawing():` plots are made, but blank: for tests of what a page says."""
    from matplotlib.figure import Figure

    from tripletmas.report import style

    def blank(figure: Figure) -> Image.Image:
        width, height = figure.get_size_inches() * style.DPI
        return Image.new("RGBA", (round(width), round(height)))

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(style, "_picture", blank)
            yield

    return patched


@pytest.fixture
def undrawn(without_drawing):
    """Plots are made, but blank."""
    with without_drawing():
        yield


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """The tables of parts, which training enters one's own into, as they were before the test."""
    with restored_tables():
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """The folder of a tiny sentence encoder of random weights; see `tiny_texts`."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")
