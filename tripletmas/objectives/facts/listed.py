"""Facts of a user's own images: a CSV file with a row for each fact of each image."""

from __future__ import annotations

import logging
from pathlib import Path

from tripletmas.basics.sentences import listed
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.images import ImageFiles, find_images, read_images
from tripletmas.data.preparation import Preparation
from tripletmas.data.source import Source
from tripletmas.data.tables import read_rows
from tripletmas.objectives.facts.fact import PARTS, Fact, by_order, fact, truth_of

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
    table = _read(csv, root)
    columns = by_order(table.tasks)
    groups = [table.tasks[each] for each in columns]
    files = ImageFiles(root, list(table.facts), Preparation((size, size), channels))
    samples, _ = read_images(files, in_memory=in_memory, option=None)
    everything = LabelledDataset(
        samples,
        truth_of(table.facts.values(), columns),
        [str(each) for each in columns],
        groups=groups if any(groups) else None,
        paths=files.paths,
    )
    rows = {split: [row for row, name in enumerate(table.facts) if table.splits[name] == split] for split in SPLITS}
    return Source(everything.subset(rows["train"]), everything.subset(rows["test"]) if rows["test"] else None)


def _read(csv: str, root: Path) -> _Table:
    found = set(find_images(root))
    table, repeated = _Table(), []
    for line, cells in read_rows(csv, ("image", *PARTS), ("split", "task")):
        try:
            if cells["image"] not in found:
                raise ValueError(f"no image {cells['image']!r} in {root}" if cells["image"] else "no image")
            if not table.add(cells):
                repeated.append(str(line))
        except ValueError as error:
            raise ValueError(f"{csv}, line {line}: {error}") from None
    if "train" not in table.splits.values():
        raise ValueError(f"{csv} lists no image to learn from")
    if repeated:
        lines = listed(repeated, 5)
        logger.warning("%s: %d rows repeat an earlier one and count once (line %s)", csv, len(repeated), lines)
    left_out = len(found) - len(table.facts)
    if left_out:
        logger.warning("%s: %d images in %s have no fact and are left out", csv, left_out, root)
    return table


class _Table:
    """What the rows say, taken one by one.

    Attributes:
        facts: image -> its facts, in the order of the file.
        splits: image -> the part of the set that it belongs to.
        tasks: fact -> its task, "" for none.
    """

    def __init__(self) -> None:
        self.facts: dict[str, set[Fact]] = {}
        self.splits: dict[str, str] = {}
        self.tasks: dict[Fact, str] = {}

    def add(self, cells: dict[str, str]) -> bool:
        """Whether the row says something new."""
        image, split, task = cells["image"], cells.get("split", "train").lower(), cells.get("task")
        said = fact(*(cells[part] for part in PARTS))
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {cells['split']!r}")
        if task == "":
            raise ValueError("no task")
        before = self.splits.setdefault(image, split)
        if before != split:
            raise ValueError(f"image {image!r} is in split {split!r}, but was in {before!r} before")
        before = self.tasks.setdefault(said, task or "")
        if before != (task or ""):
            raise ValueError(
                f"the fact <{said}> is in task {task!r}, but was in {before!r} before; a fact belongs to one task"
            )
        of_image = self.facts.setdefault(image, set())
        new = said not in of_image
        of_image.add(said)
        return new
