"""What a query asks with: image files, all images of folders and archives, or a column of a CSV file; or texts."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from tripletmas.data.images import find_images
from tripletmas.data.tables import read_rows

logger = logging.getLogger(__name__)


def asked_images(given: Sequence[str], csv: str | None, column: str) -> list[str]:
    """The paths of the images to search with, each once, in order.

    Args:
        given: image files; of a folder or a zip archive all images in it.
        csv: a CSV file with a column of paths, relative to the folder of the file.

    Raises:
        ValueError: if a folder, or the file, has none; naming the line where a path is empty.
    """
    found = [path for each in given for path in _images_in(each)]
    if csv:
        folder = Path(csv).parent
        try:
            found += [str(folder / cell) for cell in _cells(csv, column, texts=False)]
        except ValueError as error:
            raise ValueError(f"{error} (the index holds images, and the column {column!r} is to name such)") from None
    return list(dict.fromkeys(found))


def asked_texts(given: Sequence[str], csv: str | None, column: str) -> list[str]:
    """The texts to search with, each once, in order: those given, and those of a column of a CSV file.

    Raises:
        ValueError: for a text that is empty.
    """
    if empty := [each for each in given if not each.strip()]:
        raise ValueError(f"a text to search with is empty: {empty[0]!r}")
    if files := [each for each in given if os.path.exists(each)]:
        logger.warning("the index holds texts: what is searched for is %r itself, not what is in that file", files[0])
    return list(dict.fromkeys([*given, *(_cells(csv, column, texts=True) if csv else ())]))


def _images_in(path: str) -> list[str]:
    place = Path(path)
    if place.is_dir() or (place.suffix.lower() == ".zip" and place.is_file()):
        return [os.path.join(path, name) for name in find_images(path)]
    return [path]


def _cells(csv: str, column: str, *, texts: bool) -> list[str]:
    """The cells of a column, none of them empty."""
    found = []
    for number, cells in read_rows(csv, (column,), (), texts=(column,) if texts else ()):
        if not cells[column].strip():
            raise ValueError(f"{csv}, line {number}: the column {column} is empty")
        found.append(cells[column])
    if not found:
        raise ValueError(f"{csv} has no rows below its header")
    return found
