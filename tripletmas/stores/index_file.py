"""An index file of our own as a store: a second vector lies beside it, and a switch puts a new file in its place.

shop.index                    the index: its vectors are the field "vector"
shop.index.NAME.vectors       float32 of another field, a row for each id; zeros where a point has none
shop.index.NAME               after a switch, the former index
shop.index.beside.json        which of these there are, and what we note of an upgrade
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tripletmas.basics.files import flush_folder, read_json, save_json
from tripletmas.index.changes import all_replaced
from tripletmas.index.file import locked
from tripletmas.index.images import ImageIndex, Part
from tripletmas.stores.identity import FORMAT, Identity
from tripletmas.stores.place import Place
from tripletmas.stores.store import (
    ROWS,
    Block,
    Hit,
    Id,
    Switched,
    VectorField,
    check_columns,
    check_queries,
    check_vectors,
    field_among,
)

_VECTOR = "vector"
_COLUMNS = ("path", "label", "text")
_REMEDY = "delete it with the files that are named like it, and begin the upgrade anew"
_Rows = Callable[[Tensor], Tensor]  # ids (n,) -> vectors (n, dim); nan where a point has none


def open_store(place: Place) -> IndexStore:
    """The index in a file.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    return IndexStore(place)


def create_store(place: Place, new: VectorField, columns: Mapping[str, type], ids: type) -> IndexStore:
    """Raises ValueError: other commands make an index file."""
    what = "is there already" if place.path.exists() else "is made by: tripletmas index build, or index pull"
    raise ValueError(f"the index file {place} {what}")


@final
class IndexStore:
    """An index file, as a `Store`."""

    def __init__(self, place: Place):
        self.place, self._path = place, Path(os.path.realpath(place.path))
        self._about = self._path.with_name(f"{self._path.name}.beside.json")
        self._opened: tuple[tuple[int, int], ImageIndex] | None = None
        self._index()

    def _index(self) -> ImageIndex:
        """The index as it is now: read again, where it was written since."""
        if not self._path.is_file():
            raise ValueError(f"no such index file: {self.place}")
        state = self._path.stat()
        edition = state.st_ino, state.st_mtime_ns
        if self._opened is None or self._opened[0] != edition:
            self._opened = edition, ImageIndex.open(self._path)
        return self._opened[1]

    def _beside(self) -> dict[str, Any]:
        """What lies beside the index: "fields" name -> dim, "kept" names of former indexes, "notes"."""
        nothing = {"fields": {}, "kept": [], "notes": {}}
        return read_json(self._about, _REMEDY) if self._about.exists() else nothing

    def _note(self, beside: Mapping[str, Any]) -> None:
        if any(beside.values()):
            save_json(self._about, beside)
        else:
            self._about.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{name}")

    def fields(self) -> dict[str, VectorField]:
        beside, metric = self._beside(), _metric_of(self._index())
        found = {_VECTOR: VectorField(_VECTOR, self._index().settings.dim, metric)}
        found |= {name: VectorField(name, dim, metric) for name, dim in beside["fields"].items()}
        for name in beside["kept"]:
            found[name] = VectorField(name, ImageIndex.open(self._file(name), verify=False).settings.dim, metric)
        return found

    def _field(self, name: str) -> VectorField:
        return field_among(self.fields(), name, self.place)

    def __len__(self) -> int:
        return len(self._index())

    def columns(self) -> list[str]:
        return [each for each in _COLUMNS if each != "text" or self._index().texts]

    def scan(
        self, name: str, *, after: Id | None = None, size: int = ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        index, rows_of = self._index(), self._rows(name)
        check_columns(columns, self.columns(), self.place)
        first = 0 if after is None else int(torch.searchsorted(index.ids, int(after), right=True))
        for start in range(first, len(index), size):
            yield self._block(index, torch.arange(start, min(start + size, len(index))), rows_of, columns)

    def read(self, name: str, ids: Sequence[Id], *, columns: Sequence[str] = ()) -> Block:
        index = self._index()
        check_columns(columns, self.columns(), self.place)
        row_of = {each: row for row, each in enumerate(index.ids.tolist())}
        rows = torch.tensor([row_of[each] for each in ids if each in row_of], dtype=torch.int64)
        return self._block(index, rows, self._rows(name), columns)

    def _block(self, index: ImageIndex, rows: Tensor, rows_of: _Rows, columns: Sequence[str]) -> Block:
        of = {"path": lambda row: index.paths[row], "label": index.label_of, "text": lambda row: index.texts[row]}
        values = {each: [of[each](row) for row in rows.tolist()] for each in columns}
        return Block(index.ids[rows].tolist(), rows_of(index.ids[rows]), values)

    def _rows(self, name: str) -> _Rows:
        """What finds the vectors of a field."""
        dim = self._field(name).dim
        if name in self._beside()["fields"]:
            return _rows_beside(self._file(f"{name}.vectors"), dim)
        return _rows_of_index(self._index() if name == _VECTOR else ImageIndex.open(self._file(name), verify=False))

    def search(
        self,
        name: str,
        queries: Tensor,
        k: int,
        *,
        metric: str,
        where: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
    ) -> list[list[Hit]]:
        index, found = self._index(), self._field(name)
        check_queries(found, queries, k, metric, self.place)
        check_columns([*columns, *(where or ())], self.columns(), self.place)
        if not where and name == _VECTOR:
            scores, rows = index.search(queries, min(k, max(len(index), 1)))
        else:
            scores, rows = self._search_some(index, found, queries, k, where or {})
        return [self._hits(index, *each, columns) for each in zip(scores.tolist(), rows.tolist(), strict=True)]

    def _search_some(
        self, index: ImageIndex, found: VectorField, queries: Tensor, k: int, where: Mapping[str, str]
    ) -> tuple[Tensor, Tensor]:
        """Scores and rows of the nearest points that have these values, searched exactly."""
        vectors = self._rows(found.name)(index.ids)
        keep = ~vectors.isnan().any(dim=1)
        every = self._block(index, torch.arange(len(index)), lambda ids: vectors[:0], list(where)).columns
        for column, value in where.items():
            keep &= torch.tensor([each == value for each in every[column]], dtype=torch.bool)
        rows = keep.nonzero().flatten()
        exact = replace(index.settings, dim=found.dim, kind="exact", nprobe=None, ef_search=None).make_index()
        exact.add(vectors[rows], rows)
        return exact.search(queries, min(k, max(len(rows), 1)))

    def _hits(self, index: ImageIndex, scores: list[float], rows: list[int], columns: Sequence[str]) -> list[Hit]:
        kept = [(score, row) for score, row in zip(scores, rows, strict=True) if row >= 0]
        block = self._block(index, torch.tensor([row for _, row in kept], dtype=torch.int64), _nothing, columns)
        values = [{each: block.columns[each][at] for each in columns} for at in range(len(kept))]
        return [Hit(each, score, of) for each, (score, _), of in zip(block.ids, kept, values, strict=True)]

    def add_field(self, new: VectorField) -> None:
        beside = self._beside()
        if new.name in self.fields():
            return
        if self._file(new.name).exists():
            raise ValueError(f"{self._file(new.name)} is in the way of a new vector: move it away")
        self._file(f"{new.name}.vectors").write_bytes(b"")
        self._note({**beside, "fields": {**beside["fields"], new.name: new.dim}})

    def write(self, name: str, ids: Sequence[Id], vectors: Tensor) -> None:
        found, index = self._field(name), self._index()
        rows = check_vectors(found, ids, vectors, self.place)
        if name not in self._beside()["fields"]:
            raise ValueError(f"the vectors {name!r} of {self.place} stay as they are: index refresh changes them")
        there = torch.isin(torch.tensor(list(ids), dtype=torch.int64), index.ids)
        path, places = self._file(f"{name}.vectors"), torch.tensor(list(ids), dtype=torch.int64)[there]
        if not len(places):
            return
        size = index.next_id * found.dim * 4
        if path.stat().st_size < size:
            _make_room(path, size)
        mapped = np.memmap(path, dtype=np.float32, mode="r+", shape=(index.next_id, found.dim))
        mapped[_at(places)] = rows[there].numpy()
        mapped.flush()

    def drop_field(self, name: str) -> None:
        beside = self._beside()
        if name == _VECTOR:
            raise ValueError(f"{self.place} is its vectors: delete the file")
        fields = {each: dim for each, dim in beside["fields"].items() if each != name}
        self._note({**beside, "fields": fields, "kept": [each for each in beside["kept"] if each != name]})
        if name in beside["fields"]:
            self._file(f"{name}.vectors").unlink(missing_ok=True)
        if name in beside["kept"]:
            self._file(name).unlink(missing_ok=True)

    def switch(self, old: str, new: str, kept: str) -> Switched:
        with locked(self._path):
            beside = self._beside()
            if new not in self.fields():  # dropped last of all
                return Switched(old, kept)
            if not self._is_in_place(new):
                ready = self._file("ready")
                if new in beside["fields"]:
                    self._with_vectors(new).save(ready)
                else:
                    _link(self._file(new), ready)
                _link(self._path, self._file(kept))
                self._note({**beside, "kept": sorted({*beside["kept"], kept})})
                os.replace(ready, self._path)
                flush_folder(self._path.parent)
            self.drop_field(new)
        return Switched(old, kept)

    def _is_in_place(self, name: str) -> bool:
        """Whether a switch to this field was killed when the index had its vectors already."""
        if name in self._beside()["kept"]:
            return self._path.samefile(self._file(name))
        model = self.notes().get("fields", {}).get(name, {}).get("model")
        return all(part.moved_to == model for part in self._index().parts)

    def _with_vectors(self, name: str) -> ImageIndex:
        """The index with the vectors of a field beside it in place of its own."""
        index, vectors = self._index(), self._rows(name)(self._index().ids)
        without = int(vectors.isnan().any(dim=1).sum())
        if without:
            raise ValueError(f"{without} points of {self.place} have no new vector, and an index has one of each")
        try:
            identity = Identity.from_json(self.notes()["fields"][name])
        except LookupError:
            raise ValueError(f"{self.place}: what made the vectors {name!r} is not known") from None
        settings = replace(
            index.settings,
            dim=identity.dim,
            transform=identity.shown,
            metric=identity.metric,
            normalize=identity.normalize,
        )
        by, moved = identity.embedded_by or identity.model, bool(identity.embedded_by)
        part = Part(by, max(identity.after_task, 0), identity.model, ("upgrade",) if moved else ())
        return all_replaced(index, vectors, settings, part, run=identity.source)

    def notes(self) -> dict[str, Any]:
        index, notes = self._index(), self._beside()["notes"]
        spaces = {part.moved_to for part in index.parts}
        if len(spaces) != 1:
            return notes
        s, made = index.settings, {part.model for part in index.parts}
        by = next(iter(made - spaces), "")
        own = Identity(
            spaces.pop(), s.transform, s.dim, s.metric, s.normalize, index.run, index.parts[-1].after_task, by
        )
        fields = {**notes.get("fields", {}), _VECTOR: own.to_json()}
        return {"format": FORMAT, "upgrade": None, **notes, "fields": fields}

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        others = {name: each for name, each in notes.get("fields", {}).items() if name != _VECTOR}
        said = {**notes, "fields": others} if others or notes.get("upgrade") else {}
        self._note({**self._beside(), "notes": said})

    def insert(self, name: str, ids: Sequence[Id], vectors: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        raise ValueError(f"points come into {self.place} by: tripletmas index add {self.place}")

    def close(self) -> None:
        self._opened = None


def _metric_of(index: ImageIndex) -> str:
    s = index.settings
    return Identity("", s.transform, s.dim, s.metric, s.normalize).compared_by


def _nothing(ids: Tensor) -> Tensor:
    return torch.empty(len(ids), 0)


def _rows_of_index(index: ImageIndex) -> _Rows:
    def rows(ids: Tensor) -> Tensor:
        places = torch.searchsorted(index.ids, ids).clamp_max(max(len(index) - 1, 0))
        there = index.ids[places] == ids if len(index) else torch.zeros(len(ids), dtype=torch.bool)
        if len(ids) and bool(there.all()):
            return index.vectors[_at(places)].clone()
        found = torch.full((len(ids), index.settings.dim), torch.nan)
        found[there] = index.vectors[places[there]]
        return found

    return rows


def _rows_beside(path: Path, dim: int) -> _Rows:
    def rows(ids: Tensor) -> Tensor:
        found = torch.full((len(ids), dim), torch.nan)
        count = path.stat().st_size // (4 * dim)
        if count and len(ids):
            mapped = np.memmap(path, dtype=np.float32, mode="r", shape=(count, dim))
            there = ids < count
            whole = bool(there.all())
            at = _at(ids) if whole else ids[there].numpy()
            found[slice(None) if whole else there] = torch.from_numpy(np.array(mapped[at]))
            found[torch.linalg.vector_norm(found, dim=1) == 0] = torch.nan
        return found

    return rows


def _make_room(path: Path, size: int) -> None:
    """Make a file so long, on the disk: who fills a hole of a mapped file on a full one is killed, without a word."""
    reserve = getattr(os, "posix_fallocate", lambda file, _, end: os.truncate(file, end))  # not on every system
    try:
        with path.open("r+b") as file:
            reserve(file.fileno(), 0, size)
    except OSError as error:
        raise OSError(error.errno, f"no room for {size} bytes of new vectors in {path}") from None


def _at(places: Tensor) -> Any:
    """Places as a slice, where they follow each other: to read is then to copy."""
    if bool((places.diff() == 1).all()):
        return slice(int(places[0]), int(places[-1]) + 1)
    return places.numpy()


def _link(path: Path, to: Path) -> None:
    """Give a file one more name, on the disk."""
    to.unlink(missing_ok=True)
    os.link(path, to)
    flush_folder(to.parent)
