"""An index of images: vectors with labels and paths, and which model made each of them.

A vector is comparable to those of one model only. So an index knows, part by part, the model that embedded its vectors
(`Part.model`) and the model whose space they lie in (`Part.moved_to`: the same one, unless a drift map moved them),
both by the hash of the weights.

Shapes: n vectors, q queries, k ranks, dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics.version import __version__
from tripletmas.basics.weights import Params
from tripletmas.index.base import Index
from tripletmas.index.exact import ExactIndex
from tripletmas.index.file import read_index_file, read_strings, strings_as_tensor, write_index_file
from tripletmas.index.making import make_index

NO_LABEL = -1
_TENSORS = ("vectors", "ids", "part", "labels")


@dataclass(frozen=True)
class Transform:
    """How an image becomes what the model is shown; vectors of images that were made otherwise do not compare.

    Args:
        size: (height, width) in pixels; one number, as in older files, is both.
        channels: 1 for grey, 3 for RGB.
        invert: black is shown as white, and white as black.
        interpolation, crop: how the image is brought to that size.
        mean, deviation: what the values of each channel are normalised by; None where they are not.
    """

    size: tuple[int, int]
    channels: int
    invert: bool = False
    interpolation: str = "bilinear"
    crop: float = 1.0
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __post_init__(self):
        size: Any = self.size
        object.__setattr__(self, "size", (size, size) if isinstance(size, int) else tuple(size))
        for name in ("mean", "deviation"):
            values = getattr(self, name)
            object.__setattr__(self, name, None if values is None else tuple(values))


@dataclass(frozen=True)
class Reading:
    """How a text becomes what the model is shown; vectors of texts that were read otherwise do not compare.

    Args:
        tokenizer: a checksum of all that the ids of tokens depend on.
        max_length: so many tokens are read of a text, and the rest is not.
    """

    tokenizer: str
    max_length: int


@dataclass(frozen=True)
class Settings:
    """What is the same for all vectors of an index; see `make_index`."""

    dim: int
    transform: Transform | Reading
    metric: str = "inner_product"
    normalize: bool = True
    kind: str = "exact"
    nprobe: int | None = None
    ef_search: int | None = None

    def make_index(self, data: Tensor | None = None) -> Index:
        """An empty index, or the one that serialized to these data."""
        return make_index(
            self.dim,
            kind=self.kind,
            metric=self.metric,
            normalize=self.normalize,
            nprobe=self.nprobe,
            ef_search=self.ef_search,
            data=data,
        )


@dataclass(frozen=True)
class Part:
    """Where some of the vectors come from.

    Args:
        model: hash of the weights that embedded the images (`basics.weights.weight_hash`).
        after_task: after which task of its run that model was, from 0.
        moved_to: hash of the weights whose space the vectors lie in now; `model` itself unless they were compensated.
        maps: the kind of drift map of each refresh that moved them, in order; one refresh may span several tasks.
    """

    model: str
    after_task: int
    moved_to: str
    maps: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """n vectors (float32, as they are searched) with ids, parts, labels and paths; `index_changes` gives changed ones.

    Args:
        ids: (n,) int64, ascending; an image keeps its id.
        part: (n,) int32, which of `parts` each vector belongs to.
        labels: (n,) int64 into `class_names`; NO_LABEL for an image without one.
        paths: the file of each image, unique: a root and the name below it. Of a text the root is the file, and the
            name its line there.
        texts: the texts themselves; () of images.
        roots: the folders and archives that were added; the commands give absolute paths, as of `run`.
        run: the run directory whose model is the present one.
        next_id: what the next image gets; ids are not used again after a removal.
        serialized: what faiss holds, of an index that is not exact.
    """

    settings: Settings
    vectors: Tensor
    ids: Tensor
    part: Tensor
    labels: Tensor
    paths: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    class_names: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    run: str = ""
    next_id: int = 0
    serialized: Tensor | None = field(default=None, repr=False)
    texts: tuple[str, ...] = ()

    @classmethod
    def empty(cls, settings: Settings, run: str = "") -> ImageIndex:
        """An index without vectors.

        Raises:
            ValueError: if the settings do not fit each other, as for a kind that faiss does not know.
        """
        settings.make_index()
        none = torch.empty(0, dtype=torch.int64)
        return cls(settings, torch.empty(0, settings.dim), none, none.int(), none, run=run)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> ImageIndex:
        """The index in a file. Its vectors stay on the disk until they are searched.

        Args:
            verify: read the whole file once, to compare its checksums.

        Raises:
            ValueError: if there is no such file, if it is no index, was cut short, or is of another format.
        """
        tensors, paths, header = read_index_file(path, verify=verify)
        try:
            shown = header["settings"].pop("transform")
            transform = Reading(**shown) if "tokenizer" in shown else Transform(**shown)
            texts = read_strings(tensors["texts"]) if "texts" in tensors else ()
            if len(texts) != (len(paths) if isinstance(transform, Reading) else 0):
                raise ValueError(f"{len(texts)} texts of {len(paths)} vectors")
            index = cls(
                Settings(**header["settings"], transform=transform),
                **{name: tensors[name] for name in _TENSORS},
                paths=paths,
                parts=tuple(Part(**{**part, "maps": tuple(part["maps"])}) for part in header["parts"]),
                class_names=tuple(header["class_names"]),
                roots=tuple(header["roots"]),
                run=str(header["run"]),
                next_id=int(header["next_id"]),
                serialized=tensors.get("index"),
                texts=texts,
            )
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): restore it from a copy, or build it anew") from None
        return index

    def save(self, path: str | Path) -> None:
        """Write the index to a file; until it is whole, the file that was there stays. `locked` keeps others away.

        Raises:
            OSError: if it cannot be written, as when the disk is full; the old file is untouched.
        """
        tensors: Params = {name: getattr(self, name) for name in _TENSORS}
        if self.serialized is not None:
            tensors["index"] = self.serialized
        if self.texts:
            tensors["texts"] = strings_as_tensor(self.texts)
        header = {
            "version": __version__,
            "settings": asdict(self.settings),
            "dim": self.settings.dim,
            "parts": [asdict(part) for part in self.parts],
            "class_names": self.class_names,
            "roots": self.roots,
            "run": self.run,
            "next_id": self.next_id,
        }
        write_index_file(path, tensors, self.paths, header)

    def __len__(self) -> int:
        return len(self.ids)

    # --- what is asked of it

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k vectors of largest score for each query (q, dim), best first, whatever space each vector lies in.

        A score is the inner product, or for the metric "l2" the negative squared distance, of unit vectors where the
        index normalises. Where the index ends before rank k, positions are -1 and scores -inf.

        Returns: scores (q, k) float32 and positions (q, k) int64, rows of this index and not ids.
        """
        scores, ids = self._searched.search(queries, k)
        positions = torch.searchsorted(self.ids, ids.clamp_min(0))
        return scores, torch.where(ids >= 0, positions, -1)

    def search_parts(self, queries: Mapping[int, Tensor], k: int) -> tuple[Tensor, Tensor]:
        """The same where each part is asked by queries of its own, as those that were moved to the space it lies in.

        Every part is searched exactly, whatever the kind of the index; then what was found is put in one order by its
        scores, equal ones by their rows.

        Args:
            queries: number of each part -> (q, dim), the same q queries.
        """
        found = []
        for number, asked in queries.items():
            own, s = self.of_parts([number]), self.settings
            index = ExactIndex.over(self.vectors[own].contiguous(), ids=own, metric=s.metric, normalize=s.normalize)
            found.append(index.search(asked, k))
        scores, rows = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        by_row = rows.argsort(dim=1)
        scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        return scores.gather(1, best), rows.gather(1, best)

    def stale(self, model: str) -> tuple[int, ...]:
        """The numbers of the parts whose vectors do not lie in the space of the model with this hash."""
        return tuple(number for number, part in enumerate(self.parts) if part.moved_to != model)

    def of_parts(self, numbers: Sequence[int]) -> Tensor:
        """The rows of these parts, (r,), ascending."""
        return torch.isin(self.part, torch.tensor(numbers, dtype=torch.int32)).nonzero().flatten()

    def label_of(self, row: int) -> str | None:
        """The name of the class of a row; None if it has none."""
        label = int(self.labels[row])
        return None if label == NO_LABEL else self.class_names[label]

    def name_of(self, row: int) -> str:
        """The path of a row below its root."""
        root = self.root_of(row)
        return self.paths[row] if root is None else self.paths[row][len(prefix(root)) :]

    def root_of(self, row: int) -> str | None:
        """The longest of the roots that a row lies below; None if it lies below none."""
        return max((root for root in self.roots if self.paths[row].startswith(prefix(root))), key=len, default=None)

    @cached_property
    def _searched(self) -> Index:
        return self.searchable()

    def searchable(self) -> Index:
        """A new index over the vectors, by ids; over those of an exact one where they lie."""
        s = self.settings
        if s.kind == "exact":
            return ExactIndex.over(self.vectors, ids=self.ids, metric=s.metric, normalize=s.normalize)
        return s.make_index(self.serialized)


def prefix(root: str) -> str:
    """What the paths below a root begin with."""
    return root if root.endswith("/") else f"{root}/"
