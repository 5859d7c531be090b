"""A grid: what was asked, and the nearest that was found for each, right or wrong, with pictures.

Data alone. A report and `tripletmas query` show it; a run directory keeps it:

shown/found00.json           after task 0: what was found then, by which later grids tell what has changed
shown/grid.json              of the last task: the grid that a report shows, with its texts
shown/pictures.safetensors   its pictures, by name
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from tripletmas.basics.weights import Params
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.images import ImageFiles
from tripletmas.data.preparation import Preparation


class TaskFiles(Protocol):
    """Tensors of each task."""

    def write(self, number: int, tensors: Params) -> None: ...


FOLLOWED = "gallery/shown"  # the name that a run directory keeps them under, task by task


class Folder(Protocol):
    """Where a run keeps its files under the names of others, such as a `RunDirectory`."""

    def write_json(self, name: str, content: Any) -> None: ...

    def read_json(self, name: str) -> Any: ...

    def write_tensors(self, name: str, tensors: Params) -> None: ...

    def read_tensors(self, name: str) -> Params: ...

    def of_tasks(self, name: str) -> TaskFiles: ...


@dataclass(frozen=True)
class Hit:
    """Something that was found.

    Attributes:
        name: what tells it from the others, such as the path of an image.
        score: the larger, the nearer.
        label: what it is, such as its class; None where nobody says.
        right: whether it is what was asked for; None where nobody says.
        id: its number in an index.
    """

    name: str
    score: float
    label: str | None = None
    right: bool | None = None
    id: int | None = None


@dataclass(frozen=True)
class Row:
    """Something that was asked.

    Attributes:
        name: what tells it from the others; its picture has this name, where it has one.
        found: the hits, nearest first, at each moment of the grid; none where it was not asked then.
        label: what is asked for: the class of a query, or a fact.
        task: which task asks, from 0.
        group: the heading that it stands below; "" where the task is that.
        values: what else was measured of it -> a value for each moment.
    """

    name: str
    found: tuple[tuple[Hit, ...], ...]
    label: str = ""
    task: int = 0
    group: str = ""
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Numbers beside a grid: a row is its name, then whole numbers as they are and others to be rounded.

    Attributes:
        title, text: stand above it; "" where it continues what is above.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Grid:
    """What was found for each row, at each moment.

    Attributes:
        moments: when rows were asked, in words, the present last.
        note: what a reader has to know besides.
        pictures: name -> uint8 (1 or 3, height, width), None where it could not be read; what has no name here is no
            image.
        texts: name -> the text, of what is one.
    """

    moments: tuple[str, ...]
    rows: tuple[Row, ...]
    tables: tuple[Table, ...] = ()
    note: str = ""
    pictures: Mapping[str, Tensor | None] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def with_files(self, size: int) -> Grid:
        """The same with the pictures that are still None read from their files: colour, the centre square."""
        read = {name: _read(name, size) if picture is None else picture for name, picture in self.pictures.items()}
        return replace(self, pictures=read)


def are_pictures(data: LabelledDataset) -> bool:
    """Whether samples can be shown: grey or colour images."""
    return len(data.sample_shape) == 3 and data.sample_shape[0] in (1, 3)


def write_found(run: Folder, number: int, rows: Iterable[Row]) -> None:
    """Keep what was found after task `number`: rows with one moment."""
    run.write_json(_found(number), [_plain(row) for row in rows])


def read_found(run: Folder, number: int) -> dict[str, Row]:
    """name -> what was found for it after task `number`; nothing where that was not kept."""
    return {row["name"]: _row(row) for row in run.read_json(_found(number)) or ()}


def write_grid(run: Folder, grid: Grid) -> None:
    """Keep the grid that a report shows, in place of an earlier one."""
    run.write_tensors("shown/pictures.safetensors", {k: v for k, v in grid.pictures.items() if v is not None})
    run.write_json("shown/grid.json", _plain(replace(grid, pictures={})))


def read_grid(run: Folder) -> Grid | None:
    """The grid that was kept last; None for a run without one."""
    content = run.read_json("shown/grid.json")
    if content is None:
        return None
    return Grid(
        moments=tuple(content["moments"]),
        rows=tuple(map(_row, content["rows"])),
        tables=tuple(Table(**{**table, "rows": tuple(map(tuple, table["rows"]))}) for table in content["tables"]),
        note=content["note"],
        pictures=run.read_tensors("shown/pictures.safetensors"),
        texts=content.get("texts", {}),
    )


def _found(number: int) -> str:
    return f"shown/found{number:02d}.json"


def _plain(content: Row | Grid) -> dict[str, Any]:
    return asdict(content, dict_factory=lambda given: {key: value for key, value in given if value is not None})


def _row(content: dict[str, Any]) -> Row:
    found = tuple(tuple(Hit(**hit) for hit in hits) for hits in content["found"])
    values = {name: tuple(each) for name, each in content["values"].items()}
    return Row(**{**content, "found": found, "values": values})


def _read(path: str, size: int) -> Tensor | None:
    try:
        return ImageFiles.at([path], Preparation((size, size)))[0]
    except ValueError:
        return None
