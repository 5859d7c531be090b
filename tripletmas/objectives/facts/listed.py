"""Facts of a user's own images: a CSV file with a row for each fact of each image."""

from __future__ import annotations

import csv as csv_format
import logging
from pathlib import Path

import torch

from tripletmas.basics.weights import listed
from tripletmas.data.dataset import LabelledDataset, Source
from tripletmas.data.images import ImageFiles, find_images, read_images
from tripletmas.objectives.facts.fact import PARTS, Fact, fact

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")


def facts(
    *,
    csv: str,
    images: str | None = None,
    size: int = 64,
    channels: int = 3,
    in_memory: bool | None = None,
) -> Source:
    """Images and their facts, listed in a CSV file with the columns `image,subject,predicate,object[,split][,task]`.

    A row is one fact of one image: only a subject, a subject with a predicate, or all three. Case and spaces of the
    parts do not matter; a row that is there twice counts once, and is warned of. `split` is train or test, the same in
    all rows of an image; without it all images are for training, and a stream holds some out. `task` groups facts, so a
    fact belongs to one task.

    Args:
        csv: the CSV file, UTF-8, with a header.
        images: the folder or zip archive that the column `image` is relative to. None: the folder of the CSV file.
        size: height and width in pixels: the short side is resized, the centre square cut out.
        channels: 1 for grey, 3 for RGB.
        in_memory: decode all images at the start. None: if they take less than 1 GiB.

    Raises:
        ValueError: naming the file, and the line of a row that is wrong.
    """
    root = Path(csv).parent if images is None else Path(images)
    if not root.exists():
        raise ValueError(f"no such folder or archive: {root}")
    table = _Table(csv, set(find_images(root)), root)
    names = sorted(table.tasks, key=lambda each: (each.order, each.parts))
    column = {each: number for number, each in enumerate(names)}
    truth = torch.zeros(len(table.of_image), len(names), dtype=torch.bool)
    for row, known in enumerate(table.of_image.values()):
        truth[row, [column[each] for each in known]] = True
    files = ImageFiles(root, list(table.of_image), size=size, channels=channels)
    samples, _ = read_images(files, in_memory=in_memory, skip_unreadable=False)
    groups = [table.tasks[each] for each in names]
    everything = LabelledDataset(
        samples,
        truth,
        [str(each) for each in names],
        groups=groups if any(groups) else None,
        paths=files.paths,
    )

    def part(split: str) -> LabelledDataset:
        return everything.subset([row for row, name in enumerate(table.of_image) if table.splits[name] == split])

    return Source(part("train"), part("test") if "test" in table.splits.values() else None)


class _Table:
    """What a CSV file says.

    Attributes:
        of_image: image -> its facts, in the order of the file.
        splits: image -> the part of the set that it belongs to.
        tasks: fact -> its task, "" for none.
    """

    def __init__(self, csv: str, known: set[str], root: Path):
        self.of_image: dict[str, dict[Fact, int]] = {}
        self.splits: dict[str, str] = {}
        self.tasks: dict[Fact, str] = {}
        repeated = []
        try:
            with open(csv, encoding="utf-8-sig", newline="") as file:
                rows = csv_format.DictReader(file)
                columns = rows.fieldnames or []
                missing = [name for name in ("image", *PARTS) if name not in columns]
                if missing:
                    there = ", ".join(columns) or "none"
                    raise ValueError(f"{csv}, line 1: no column {missing[0]!r} (there are {there})")
                for row in rows:
                    if None in row:
                        raise ValueError(
                            f"{csv}, line {rows.line_num}: more cells than columns; quote a cell that holds a comma"
                        )
                    cells = {name: (row[name] or "").strip() for name in columns if name}
                    if self._take(cells, f"{csv}, line {rows.line_num}", rows.line_num, known, root):
                        repeated.append(rows.line_num)
        except csv_format.Error as error:
            raise ValueError(f"{csv} is no CSV file ({error})") from None
        except FileNotFoundError:
            raise ValueError(f"no such file: {csv}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{csv} is not UTF-8 text ({error})") from None
        if "train" not in self.splits.values():
            raise ValueError(f"{csv} lists no image to learn from")
        if repeated:
            logger.warning(
                "%s: %d rows repeat an earlier one and count once (line %s)",
                csv,
                len(repeated),
                listed([str(number) for number in repeated], 5),
            )
        if len(known) > len(self.of_image):
            logger.warning(
                "%s: %d images in %s have no fact and are left out", csv, len(known) - len(self.of_image), root
            )

    def _take(self, cells: dict[str, str], where: str, line: int, known: set[str], root: Path) -> bool:
        """Note one row; whether an earlier one said the same."""
        image, split, task = cells["image"], cells.get("split", "train").lower(), cells.get("task", "")
        if not image:
            raise ValueError(f"{where}: no image")
        try:
            said = fact(*(cells[part] for part in PARTS))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if image not in known:
            raise ValueError(f"{where}: no image {image!r} in {root}")
        if split not in SPLITS:
            raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {cells['split']!r}")
        if "task" in cells and not task:
            raise ValueError(f"{where}: no task")
        if self.splits.setdefault(image, split) != split:
            raise ValueError(
                f"{where}: image {image!r} is in split {split!r}, but was in {self.splits[image]!r} before"
            )
        if self.tasks.setdefault(said, task) != task:
            raise ValueError(
                f"{where}: the fact <{said}> is in task {task!r}, but was in {self.tasks[said]!r} before; a fact "
                "belongs to one task"
            )
        of_image = self.of_image.setdefault(image, {})
        return of_image.setdefault(said, line) != line
