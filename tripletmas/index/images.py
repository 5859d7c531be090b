"""An index of images: vectors with labels and paths, and which model made each of them.

An index knows of each vector the image, its class, and the part that it belongs to: which model made it, and in whose
space it lies (`settings.Part`).

Shapes: n vectors, q queries, k ranks, dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics import mapped
from tripletmas.basics.shape import check_shape
from tripletmas.basics.tensor_stream import Filled, Room
from tripletmas.basics.version import __version__
from tripletmas.index.base import Index, import_faiss
from tripletmas.index.exact import ExactIndex
from tripletmas.index.file import (
    ON_DISK,
    read_index_file,
    read_strings,
    stored,
    strings_as_tensor,
    write_index_file,
)
from tripletmas.index.glance import FORMAT, Glance
from tripletmas.index.lists import InMemory
from tripletmas.index.settings import Part, Reading, Settings, Transform

NO_LABEL = -1
_TENSORS = ("vectors", "ids", "part", "labels")
_SETTINGS = {"dim": int, "metric?": str, "normalize?": bool, "kind?": str, "on_disk?": bool}
_SETTINGS |= {"nprobe?": (int, None), "ef_search?": (int, None)}


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
        serialized: what faiss holds, of an index that is not exact; of one on the disk what it has learned alone.
        list_sizes, lists: of an index on the disk, see `index.lists`; None where they are made when it is saved.
        file: from which it was read, for errors that are seen when it is searched.
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
    list_sizes: Tensor | None = field(default=None, repr=False)
    lists: Tensor | None = field(default=None, repr=False)
    file: str = field(default="", repr=False)

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
            check_shape(header["settings"], _SETTINGS, "its settings")
            shown = header["settings"].pop("transform")
            transform = Reading(**shown) if "tokenizer" in shown else Transform(**shown)
            texts = read_strings(tensors["texts"]) if "texts" in tensors else ()
            if len(texts) != (len(paths) if isinstance(transform, Reading) else 0):
                raise ValueError(f"{len(texts)} texts of {len(paths)} vectors")
            index = cls(
                Settings(**header["settings"], transform=transform),
                *(tensors[name] for name in _TENSORS),
                paths=paths,
                parts=tuple(Part(**{**part, "maps": tuple(part["maps"])}) for part in header["parts"]),
                class_names=tuple(header["class_names"]),
                roots=tuple(header["roots"]),
                run=str(header["run"]),
                next_id=int(header["next_id"]),
                serialized=tensors.get("index"),
                texts=texts,
                list_sizes=tensors.get("list_sizes"),
                lists=tensors.get("lists"),
            )
            if index.settings.dim != header["dim"]:
                raise ValueError(f"vectors of dim {header['dim']}, and settings of {index.settings.dim}")
            index._check_lists()
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(path, error) from None
        return replace(index, file=str(path))

    def save(self, path: str | Path, *, blocks: Callable[[], Iterator[Tensor]] | None = None) -> None:
        """Write the index to a file; until it is whole, the file that was there stays. `locked` keeps others away.

        Args:
            blocks: its vectors, block after block, in place of those that it holds, where these do not fit in memory.

        Raises:
            OSError: if it cannot be written, as when the disk is full; the old file is untouched.
            ValueError: if an index on the disk has fewer vectors than lists.
        """
        tensors, source, listing = self._tensors(), blocks or self._blocks, None
        if blocks:
            tensors["vectors"] = Room(torch.float32, (len(self), self.settings.dim))
        if self.settings.on_disk and len(self) and (blocks or self.lists is None):
            listing = self.settings.listing(source, len(self), self.serialized)
            tensors |= listing.rooms()

        def fill(places: Mapping[str, Filled]) -> None:
            again = source
            if blocks:
                again = stored(places["vectors"], source(), (len(self), self.settings.dim))
            if listing:
                places["list_sizes"].write(0, listing.fill(again, self.ids, places["lists"]))

        write_index_file(path, tensors, self.paths, self._header(), fill=fill)

    def _tensors(self) -> dict[str, Tensor | Room]:
        texts = strings_as_tensor(self.texts) if self.texts else None
        known = {name: getattr(self, name) for name in _TENSORS}
        known |= {"index": self.serialized, "list_sizes": self.list_sizes, "lists": self.lists, "texts": texts}
        return {name: value for name, value in known.items() if value is not None}

    def _header(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        if not settings["on_disk"]:
            del settings["on_disk"]  # earlier versions do not know it, and can read such a file
        return {
            "format": ON_DISK if self.settings.on_disk else FORMAT,
            "version": __version__,
            "settings": settings,
            "dim": self.settings.dim,
            "parts": [asdict(part) for part in self.parts],
            "class_names": self.class_names,
            "roots": self.roots,
            "run": self.run,
            "next_id": self.next_id,
        }

    def __len__(self) -> int:
        return len(self.ids)

    def _check_lists(self) -> None:
        """Raises ValueError where the lists of an index on the disk are not those of its vectors."""
        if self.settings.on_disk and len(self) and (self.lists is None or len(self.searchable()) != len(self)):
            raise ValueError("its lists are missing, or of another number of vectors")

    # --- what is asked of it

    def glance(self) -> Glance:
        """What is told of it without its vectors."""
        return Glance(
            self.settings,
            len(self),
            self.parts,
            tuple(len(self.of_parts([number])) for number in range(len(self.parts))),
            len(self.labels[self.labels >= 0].unique()),
            int((self.labels < 0).sum()),
            self.roots,
            self.run,
        )

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
        """A new index over the vectors, by ids; over those of an exact one where they lie.

        Raises:
            ValueError: if what it holds cannot be read, naming the file that it is of.
        """
        if self.settings.kind != "exact":
            import_faiss(f"an index of kind {self.settings.kind!r}")  # where it is missing, nothing is damaged
        try:
            return self._made()
        except ValueError as error:
            if not self.file:
                raise
            raise _damaged(self.file, error) from None

    def _made(self) -> Index:
        s = self.settings
        if s.kind == "exact":
            return ExactIndex.over(self.vectors, ids=self.ids, metric=s.metric, normalize=s.normalize)
        if not s.on_disk:
            return s.make_index(self.serialized)
        if self.lists is not None or not len(self):
            return s.mapped_lists(self.serialized, self.list_sizes, self.lists)
        listing = s.listing(self._blocks, len(self), self.serialized)
        place = InMemory(listing.length)
        return s.mapped_lists(listing.trained, listing.fill(self._blocks, self.ids, place), place.content)

    def _blocks(self) -> Iterator[Tensor]:
        return mapped.blocks(self.vectors)


def _damaged(path: str | Path, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0]
    return ValueError(f"{path} is damaged ({reason}): restore it from a copy, or build it anew")


def prefix(root: str) -> str:
    """What the paths below a root begin with."""
    return root if root.endswith("/") else f"{root}/"
