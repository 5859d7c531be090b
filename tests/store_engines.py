"""The engines that the tests of stores run on, and points to put into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tripletmas.stores.opening import created
from tripletmas.stores.store import VectorField

DIM, COUNT = 8, 50
LABELS = ("it's", "mug", "köln")


@dataclass(frozen=True)
class Engine:
    """How to come by a collection of an engine.

    Attributes:
        url: a folder of the test's own -> the place of a collection that is not there yet.
        names: whether ids can be any texts.
        metrics: that a new field can be given.
        renames: whether a switch renames, so that nobody has to change their code.
    """

    url: Callable[[Path], str]
    names: bool = True
    metrics: tuple[str, ...] = ("cosine", "inner_product", "l2")
    renames: bool = True


ENGINES = {
    "lancedb": Engine(lambda folder: f"lancedb://{folder}/base#points"),
}


def points(seed: int = 0, *, dim: int = DIM) -> torch.Tensor:
    """(50, dim) vectors of unit length: some engines keep no others for the cosine."""
    return torch.nn.functional.normalize(torch.randn(COUNT, dim, generator=torch.Generator().manual_seed(seed)))


def columns() -> dict[str, list[str]]:
    """What the user keeps of the points beside their vectors."""
    labels = [LABELS[number % 3] for number in range(COUNT)]
    return {"label": labels, "path": [f"/photos/{number:02}, a.jpg" for number in range(COUNT)]}


def fill(url: str, *, metric: str = "cosine") -> None:
    """Make the collection, with points whose ids are 3, 6, 9, ..., given in another order."""
    kinds: dict[str, type] = dict.fromkeys(columns(), str)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)).tolist()
    with created(url, VectorField("vector", DIM, metric), kinds) as store:
        content = {name: [values[row] for row in order] for name, values in columns().items()}
        store.insert("vector", [3 * (row + 1) for row in order], points()[order], content)
