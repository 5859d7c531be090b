"""Images in files, each with its class: a user's own folder (or zip archive) of folders, or a CSV file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from tripletmas.basics.sentences import listed
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.images import ImageFiles, find_images, identity_of, read_images
from tripletmas.data.names import encode_labels
from tripletmas.data.parts import LEFT_OUT as LEFT_OUT
from tripletmas.data.parts import SPLITS, ClassFrom, check_class_from, class_of, groups_of, parts_of
from tripletmas.data.preparation import Interpolation, Preparation, Size, height_and_width
from tripletmas.data.source import Source
from tripletmas.data.tables import read_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One image: its file, its class, the group that it is in (a task), and the part of the set that it belongs to."""

    file: str
    class_name: str
    group: str | None = None
    split: str = "train"


def folder(
    *,
    root: str,
    size: Size = 64,
    channels: int = 3,
    interpolation: Interpolation = "bilinear",
    crop: float = 1.0,
    in_memory: bool | None = None,
    skip_unreadable: bool = False,
    class_from: ClassFrom = "path",
) -> Source:
    """Images in folders: `<class>/<image>` or `<task>/<class>/<image>`, each also below `train`, `test` and `gallery`.

    With task folders, an image's group is the task, and its class '<task>/<class>', so that tasks have no class in
    common; with class_from="leaf" it is '<class>', and folders of one name in several tasks are one class, of which
    each task has images. `query` is another name for `test`; `val`, `valid` and `validation` beside `train` are left
    out.

    Args:
        root: the folder, or a zip archive of it.
        size: height and width in pixels, 224 or 224x160: the image is resized to cover it, and cut about its middle.
        channels: 1 for grey, 3 for RGB.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: the share of each side that is kept of that, in (0, 1].
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        skip_unreadable: leave out images that cannot be read, and say how many; else the first one is an error.
        class_from: what names a class below task folders: path, '<task>/<class>', or leaf, '<class>': the same product
            in two months is one class.
    """
    check_class_from(class_from)
    files = find_images(root)
    branches = [file.split("/")[:-1] for file in files]
    if Path(root).is_file():
        branches = _unwrapped(branches)
    entries, example = [], {}
    for file, split, branch in zip(files, *parts_of(root, branches), strict=True):
        if split in SPLITS:
            class_name = class_of(branch, class_from)
            entries.append(Entry(file, class_name, branch[0] if len(branch) == 2 else None, SPLITS[split]))
            example.setdefault(len(branch), file)
    if len(example) != 1 or not example.keys() <= {1, 2}:
        raise ValueError(
            f"{root} must hold <class>/<image> or <task>/<class>/<image>, the same everywhere "
            f"(each may lie below train, test or gallery), but has {' and '.join(sorted(example.values()))}"
        )
    prepared = Preparation(height_and_width(size), channels, interpolation, crop)
    return read_entries(root, entries, prepared, in_memory=in_memory, skip_unreadable=skip_unreadable)


def _unwrapped(branches: list[list[str]]) -> list[list[str]]:
    """The folders of each image, without one that wraps everything, as archives often have it."""
    one_top = len({"".join(branch[:1]) for branch in branches}) == 1
    return [branch[1:] for branch in branches] if one_top and min(map(len, branches)) > 1 else branches


def csv(
    *,
    path: str,
    root: str | None = None,
    size: Size = 64,
    channels: int = 3,
    interpolation: Interpolation = "bilinear",
    crop: float = 1.0,
    in_memory: bool | None = None,
    skip_unreadable: bool = False,
    text: str | None = None,
    label: str = "label",
    positive: str | None = None,
    test_path: str | None = None,
) -> Source:
    """Images listed in a CSV file with the columns `path,label[,task][,split]`, or texts in it; others are ignored.

    Labels may be any text or number; they name the classes. `task` groups images; a label in several tasks is one
    class, of which each task has images. `split` is train, test, query (the same as test) or gallery; without it all
    images are for training. A file has one label and one task; it may be for training and in the gallery, but a query
    is nothing else. A row that is there twice counts once, and is warned of, as are files outside of `root`. Texts need
    no `path`, and may have several lines in quotes.

    Args:
        path: the CSV file, UTF-8, with a header.
        root: the folder that the column `path` is relative to. None: the folder of the CSV file.
        size: height and width in pixels, 224 or 224x160: the image is resized to cover it, and cut about its middle.
        channels: 1 for grey, 3 for RGB.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: the share of each side that is kept of that, in (0, 1].
        in_memory: decode all images at the start. None: if they take less than 1 GiB.
        skip_unreadable: leave out images that are missing or cannot be read, and say how many; else the first one is an
            error.
        text: the column of the texts that are learned, in place of images, by a model of texts.
        label: the column of the classes.
        positive: of texts, in place of a class: the column of what answers the text of the same row. Learned are pairs,
            best by a loss over the batch (ntxent); queries are held out by row, and search all answers of their task.
        test_path: of texts a second CSV file, of the queries, where the first has no column split.
    """
    if text is not None:
        if root is not None or skip_unreadable:
            raise ValueError(
                "root and skip_unreadable are for images, and text names a column of texts: leave them out"
            )
        if (size, channels, interpolation, crop, in_memory) != (64, 3, "bilinear", 1.0, None):
            raise ValueError(
                "size, channels, interpolation, crop and in_memory are for images, and text names a column of texts: "
                "leave them out"
            )
        from tripletmas.data.text_tables import Columns, csv_of_texts  # here, so that no chain of imports grows longer

        return csv_of_texts(path, Columns(text, label, positive), test_path=test_path)
    if test_path is not None or positive is not None:
        raise ValueError("test_path and positive are for texts: name their column with text")
    folder_of_paths = Path(path).parent if root is None else Path(root)
    if not folder_of_paths.is_dir():
        raise ValueError(f"no such folder: {folder_of_paths}")
    entries = _listed(path, label, folder_of_paths, may_be_missing=skip_unreadable)
    prepared = Preparation(height_and_width(size), channels, interpolation, crop)
    return read_entries(folder_of_paths, entries, prepared, in_memory=in_memory, skip_unreadable=skip_unreadable)


def _listed(path: str, label: str, folder: Path, *, may_be_missing: bool) -> list[Entry]:
    """The images that a CSV file lists, relative to a folder."""
    table = _Table(folder)
    for number, cells in read_rows(path, ("path", label), ("task", "split")):
        try:
            table.add(number, {**cells, "label": cells[label]}, may_be_missing=may_be_missing)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    table.tell(path)
    if not table.entries:
        raise ValueError(f"{path} lists no images")
    return table.entries


class _Row(NamedTuple):
    """What a row says of a file besides its part of the set."""

    line: int
    label: str
    task: str | None


class _Table:
    """What the rows say, taken one by one.

    Attributes:
        repeated: the lines that repeat an earlier one.
        outside: the files that do not lie below the folder that paths are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Entry] = []
        self.repeated: list[str] = []
        self.outside: list[str] = []
        self._of_file: dict[object, dict[str, _Row]] = {}  # split -> what was said first

    def add(self, line: int, cells: dict[str, str], *, may_be_missing: bool) -> None:
        entry = _entry(cells)
        place = self.folder / entry.file
        identity = identity_of(place)
        if identity is None and not may_be_missing:
            raise ValueError(f"no file {place}")
        before = self._of_file.setdefault(identity or str(place), {})
        _check_again(entry, before)
        if entry.split in before:
            self.repeated.append(str(line))
            return
        before[entry.split] = _Row(line, entry.class_name, entry.group)
        self.entries.append(entry)
        if os.path.isabs(entry.file) or os.path.normpath(entry.file).startswith(".."):
            self.outside.append(entry.file)

    def tell(self, path: str) -> None:
        """Log what the table has that is better known."""
        if self.repeated:
            lines = listed(self.repeated, 5)
            logger.warning(
                "%s: %d rows repeat an earlier one and count once (line %s)", path, len(self.repeated), lines
            )
        if self.outside:
            files = listed(self.outside, 5)
            logger.warning("%s: %d images do not lie below %s: %s", path, len(self.outside), self.folder, files)


def _check_again(entry: Entry, before: dict[str, _Row]) -> None:
    """Whether a file may be listed so, given the rows that list it already, by split."""
    for split, row in before.items():
        if row.label != entry.class_name:
            raise ValueError(f"{entry.file} has label {entry.class_name!r}, but in line {row.line} {row.label!r}")
        if row.task != entry.group:
            raise ValueError(
                f"{entry.file} is in task {entry.group!r}, but in line {row.line} in task {row.task!r}; a label may be "
                "in several tasks, a file belongs to one"
            )
        if split != entry.split and "test" in (split, entry.split):
            raise ValueError(f"{entry.file} is for {entry.split}, but in line {row.line} for {split}: choose one")


def _entry(cells: dict[str, str]) -> Entry:
    empty = [name for name, cell in cells.items() if not cell]
    if empty:
        raise ValueError(f"no {empty[0]}")
    split = cells.get("split", "train").lower()
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {cells['split']!r}")
    return Entry(cells["path"], cells["label"], cells.get("task"), SPLITS[split])


def unlabelled(
    root: str | Path,
    prepared: Preparation,
    *,
    invert: bool = False,
    in_memory: bool | None = None,
    skip_unreadable: bool = False,
    option: str | None = "skip_unreadable",
) -> LabelledDataset:
    """All images below a folder, or in a zip archive, as a model takes them, with labels that say nothing.

    Args:
        invert: black is read as white, and white as black.
        in_memory, skip_unreadable, option: as `read_images`.

    Raises:
        ValueError: if there is none, or one cannot be read.
    """
    images = ImageFiles(root, find_images(root), prepared)
    samples, kept = read_images(images, in_memory=in_memory, skip_unreadable=skip_unreadable, option=option)
    if not kept:
        raise ValueError(f"{root}: no image in it can be read")
    paths = images.subset(kept).paths
    labels = torch.zeros(len(kept), dtype=torch.int64)
    found = LabelledDataset(samples, labels, ["unlabelled"], paths=paths, prepared=prepared)
    return found.with_transform(lambda image: 1 - image) if invert else found


def read_entries(
    root: str | Path,
    entries: Sequence[Entry],
    prepared: Preparation,
    *,
    in_memory: bool | None = None,
    skip_unreadable: bool = False,
) -> Source:
    """Reads the images (see `read_images`) and sorts them into parts, which share the samples and the class names."""
    images = ImageFiles(root, [entry.file for entry in entries], prepared)
    option = "--data.skip_unreadable true, or skip_unreadable=True in Python,"
    samples, kept = read_images(images, in_memory=in_memory, skip_unreadable=skip_unreadable, option=option)
    entries = [entries[i] for i in kept]
    labels, class_names = encode_labels([entry.class_name for entry in entries])
    groups, own = groups_of([entry.class_name for entry in entries], [entry.group for entry in entries])
    paths = images.subset(kept).paths
    whole = LabelledDataset(
        samples, labels, class_names, groups=groups, sample_groups=own, paths=paths, prepared=prepared
    )
    rows: dict[str, list[int]] = {"train": []}
    for row, entry in enumerate(entries):
        rows.setdefault(entry.split, []).append(row)
    if not rows["train"]:
        raise ValueError(f"{root} has no readable training image")
    return Source.of(whole, rows)
