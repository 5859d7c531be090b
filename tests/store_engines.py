"""The engines that the tests of stores run on, and points to put into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import postgres_server
import torch

from tripletmas.index.changes import add_images
from tripletmas.index.images import ImageIndex, Part, Settings, Transform
from tripletmas.stores.identity import Identity, read_notes, write_notes
from tripletmas.stores.opening import created
from tripletmas.stores.store import Store, VectorField

DIM, COUNT = 8, 50
SHOWN = Transform((8, 8), 1)
LABELS = ("it's", "mug", "köln")


@dataclass(frozen=True)
class Engine:
    """How to come by a collection of an engine.

    Attributes:
        url: a folder of the test's own -> the place of a collection that is not there yet.
        names: whether ids can be any texts.
        metrics: that a new field can be given.
        renames: whether a switch renames, so that nobody has to change their code.
        inserts: whether points can be put into it through the protocol.
    """

    url: Callable[[Path], str]
    names: bool = True
    metrics: tuple[str, ...] = ("cosine", "inner_product", "l2")
    renames: bool = True
    inserts: bool = True


ENGINES = {
    "file": Engine(lambda folder: f"{folder}/points.index", names=False, inserts=False),
    "lancedb": Engine(lambda folder: f"lancedb://{folder}/base#points"),
    "qdrant": Engine(lambda folder: f"qdrant://{folder}/base#points", names=False, renames=False),
    "qdrant-edge": Engine(lambda folder: f"qdrant-edge://{folder}/base#points", names=False, renames=False),
    "postgres": Engine(postgres_server.url),
    "chroma": Engine(lambda folder: f"chroma://{folder}/base#points"),
    "sqlite-vec": Engine(lambda folder: f"sqlite-vec://{folder}/base.db#points", metrics=("cosine", "l2")),
    "milvus": Engine(lambda folder: f"milvus://{folder}/base.db#points"),
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
    if "://" not in url:
        _index_file(metric).save(url)
        return
    kinds: dict[str, type] = dict.fromkeys(columns(), str)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)).tolist()
    with created(url, VectorField("vector", DIM, metric), kinds) as store:
        content = {name: [values[row] for row in order] for name, values in columns().items()}
        store.insert("vector", [3 * (row + 1) for row in order], points()[order], content)


def _index_file(metric: str) -> ImageIndex:
    settings = Settings(DIM, SHOWN, "l2" if metric == "l2" else "inner_product", metric == "cosine")
    of = columns()
    part = Part("0123456789abcdef", 2, "0123456789abcdef")
    index = add_images(ImageIndex.empty(settings, "runs/old"), points(), of["path"], of["label"], part)
    return replace(index, ids=3 * (index.ids + 1), next_id=3 * COUNT + 1)


def note(store: Store, name: str, dim: int) -> None:
    """Say what made the vectors of a field, as an upgrade does before the switch."""
    made = Identity("fedcba9876543210", SHOWN, dim, "inner_product", True, "runs/new", 3, "0123456789abcdef")
    write_notes(store, read_notes(store).with_identity(name, made))
