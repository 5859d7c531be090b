"""What is told of an index without torch, beside what the index itself tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tripletmas.basics.arrays import Unclear
from tripletmas.index.changes import add_images
from tripletmas.index.glance import read_glance
from tripletmas.index.images import ImageIndex, Part, Reading, Settings, Transform

IMAGES = Transform((8, 6), 3, invert=True, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.2, 0.1))


OLD, NEW = Part("a", 0, "a"), Part("b", 1, "c", ("linear", "sdc"))


def drawn(count: int) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


def filled(**settings: Any) -> ImageIndex:
    """20 images by an old model, 10 by another; a class is x, y or none."""
    index = ImageIndex.empty(Settings(**{"dim": 4, "transform": Transform((4, 4), 1), **settings}), "runs/a")
    for count, part in ((20, OLD), (10, NEW)):
        names = [f"{number}.png" for number in range(count)]
        classes = [("x", "y", None)[number % 3] for number in range(count)]
        index = add_images(index, drawn(count), names, classes, part, root=f"/{part.model}")
    return index


def of_texts() -> ImageIndex:
    count, paths = 3, tuple(f"/t.csv/{line}" for line in range(3))
    return ImageIndex(
        Settings(4, Reading("0123", 16)),
        drawn(count),
        torch.arange(count),
        torch.zeros(count, dtype=torch.int32),
        torch.tensor([0, -1, 0]),
        paths,
        (Part("a", 0, "a"),),
        ("x",),
        ("/t.csv",),
        "runs/a",
        count,
        texts=("ä", "b", "\udcff"),
    )


def made() -> dict[str, ImageIndex]:
    index = filled()
    return {
        "images": index,
        "no image": ImageIndex.empty(index.settings, "runs/a"),
        "other settings": filled(transform=IMAGES, metric="l2", normalize=False),
        "trained": filled(kind="HNSW8", ef_search=16),
        "texts": of_texts(),
    }


@pytest.mark.parametrize("name", made())
def test_it_tells_what_the_index_tells(name, tmp_path):
    index = made()[name]
    index.save(tmp_path / "index")
    found = read_glance(tmp_path / "index")
    assert found == ImageIndex.open(tmp_path / "index").glance() == index.glance()
    assert found.count == len(index)
    for model in {"nobody", *(part.moved_to for part in index.parts)}:
        assert found.num_stale(model) == len(index.of_parts(index.stale(model)))


@pytest.mark.slow
def test_a_damaged_index_is_unclear_wherever_it_is_no_index(tmp_path):
    filled().save(tmp_path / "index")
    content = (tmp_path / "index").read_bytes()
    for at in range(0, len(content), 7):
        (tmp_path / "index").write_bytes(content[:at] + bytes([content[at] ^ 32]) + content[at + 1 :])
        try:
            ImageIndex.open(tmp_path / "index")
        except ValueError:
            with pytest.raises(Unclear):
                read_glance(tmp_path / "index")


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": torch.tensor([0, 2, 1])},
        {"ids": torch.tensor([0, 1, 1])},
        {"part": torch.tensor([0, 1, 0], dtype=torch.int32)},
        {"labels": torch.tensor([0, 1, 0])},
        {"labels": torch.tensor([0, -2, 0])},
        {"vectors": torch.zeros(3, 5)},
        {"paths": ("a", "b")},
        {"texts": ("a", "b")},
    ],
    ids=str,
)
def test_tensors_that_do_not_belong_together_are_unclear(wrong, tmp_path):
    replace(of_texts(), **wrong).save(tmp_path / "index")
    with pytest.raises(ValueError, match="damaged"):
        ImageIndex.open(tmp_path / "index")
    with pytest.raises(Unclear):
        read_glance(tmp_path / "index")
