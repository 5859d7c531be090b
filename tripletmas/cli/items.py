"""What an index is made of: images in a folder, texts in a column of a CSV file, or files that are embedded already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from tripletmas.basics.sentences import listed
from tripletmas.data.images import ImageFiles, find_images
from tripletmas.data.parts import LEFT_OUT, SPLITS
from tripletmas.data.tables import read_rows
from tripletmas.data.tokens import Texts
from tripletmas.data.vector_parts import identity_of, read_parts
from tripletmas.index.base import unit
from tripletmas.index.images import ImageIndex, Reading, Transform, prefix
from tripletmas.runs.collapsed import refuse_collapse
from tripletmas.runs.models import RunModel, embed_images, embed_texts, transform_of

JUDGED = 1000  # vectors, of many, by which a collapse is told
_NO_CLASS = SPLITS.keys() | LEFT_OUT


@dataclass(frozen=True)
class Items:
    """Images or texts that come into an index.

    Attributes:
        root: the folder or archive of the images, the CSV file of the texts, as it was given.
        names: of the images below it; of texts the number of the line that each begins in.
        classes: None for one without.
        texts: the texts; () of images.
        vectors: of files that are embedded already, (n, dim), and by which model, as `identity_of` gives it.
    """

    root: str
    names: tuple[str, ...]
    classes: tuple[str | None, ...]
    texts: tuple[str, ...] = ()
    vectors: Tensor | None = None
    embedded_by: str = ""

    def subset(self, positions: Sequence[int]) -> Items:
        """Those at these positions."""
        names, classes = ([of[i] for i in positions] for of in (self.names, self.classes))
        texts = tuple(self.texts[i] for i in positions) if self.texts else ()
        vectors = None if self.vectors is None else self.vectors[list(positions)]
        return replace(self, names=tuple(names), classes=tuple(classes), texts=texts, vectors=vectors)

    def check_model(self, model: RunModel, *, invert: bool) -> None:
        """Raises ValueError where they are embedded already, and not as this model does it."""
        if self.vectors is None:
            return
        if invert:
            raise ValueError("--invert is for images that are embedded now, and --vectors are embedded already")
        if self.embedded_by != identity_of(model.hash, model.shown):
            raise ValueError(
                f"the vectors of --vectors are by another model than that of {model.run} after task "
                f"{model.after_task}: embed the files anew, or name the task with --after"
            )


def add_options(parser: ArgumentParser) -> None:
    """The options that say what comes into an index."""
    parser.add_argument(
        "--images", type=str, default=None, help="a folder or zip archive of images, in any sub-folders"
    )
    parser.add_argument("--csv", type=str, default=None, help="a CSV file of texts, in place of images")
    parser.add_argument("--text", type=str, default=None, help="the column of the texts in it")
    parser.add_argument("--label", type=str, default=None, help="the column of their classes (default: none)")
    parser.add_argument(
        "--vectors", type=str, default=None, help="a folder of files that are embedded already (docs/ray.md)"
    )


def items_of(options: Namespace) -> Items:
    """What the options name.

    Raises:
        ValueError: for none of images, texts and vectors, or several; if there are none, or one is empty.
    """
    if sum(map(bool, (options.images, options.csv, options.vectors))) != 1:
        raise ValueError(
            "give --images FOLDER, or for texts --csv FILE --text COLUMN, or of files that are embedded already "
            "--vectors FOLDER: one of them"
        )
    if options.csv:
        return _texts_of(options)
    if options.text or options.label:
        raise ValueError("--text and --label name columns of --csv, and files have none")
    if options.vectors:
        found = read_parts(options.vectors)
        classes = tuple(_class_names(found.names))
        return Items(found.root, found.names, classes, found.texts, found.vectors, found.model)
    names = find_images(options.images)
    return Items(options.images, tuple(names), tuple(_class_names(names)))


def _texts_of(options: Namespace) -> Items:
    if not options.text:
        raise ValueError("--csv needs --text, the column of the texts")
    needed = (options.text, *([options.label] if options.label else []))
    rows = _each_once(_filled_rows(options.csv, needed, options.text), needed, options.csv)
    classes = [cells[options.label] if options.label else None for _, cells in rows]
    names, texts = zip(*((str(number), cells[options.text]) for number, cells in rows), strict=True)
    return Items(options.csv, names, tuple(classes), texts)


def _filled_rows(path: str, needed: Sequence[str], text: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file; a ValueError where there are none, or a cell is empty."""
    rows = list(read_rows(path, needed, (), texts=(text,)))
    for number, cells in rows:
        if empty := [name for name in needed if not cells[name]]:
            raise ValueError(f"{path}, line {number}: the cell in the column {empty[0]!r} is empty")
    if not rows:
        raise ValueError(f"{path} lists no texts")
    return rows


def _each_once(
    rows: Sequence[tuple[int, dict[str, str]]], columns: Sequence[str], path: str
) -> list[tuple[int, dict[str, str]]]:
    """The first of the rows that are equal in these columns: an answer to several questions is one item."""
    first: dict[tuple[str, ...], tuple[int, dict[str, str]]] = {}
    for number, cells in rows:
        first.setdefault(tuple(cells[name] for name in columns), (number, cells))
    if len(first) < len(rows):
        print(f"{path}: {len(rows) - len(first)} of {len(rows)} rows repeat a text and count once")
    return list(first.values())


def new_items(items: Items, index: ImageIndex, file: str) -> Items:
    """Those that are not in an index yet.

    Raises:
        ValueError: if the index is of the other kind, or holds another text from the place of one.
    """
    if bool(items.texts) != isinstance(index.settings.transform, Reading):
        held, given = ("images", "texts") if items.texts else ("texts", "images")
        raise ValueError(f"{file} is an index of {held}, and {given} do not go into it: build another index")
    row_of, roots = _rows(index), [prefix(each(items.root)) for each in (os.path.abspath, os.path.realpath)]
    rows = [next((row_of[root + name] for root in roots if root + name in row_of), None) for name in items.names]
    _check_texts(items, rows, index, file)
    return items.subset([position for position, row in enumerate(rows) if row is None])


def _rows(index: ImageIndex) -> dict[str, int]:
    """The row of each path, and of what it is where a link is followed on the way to its root."""
    row_of = {path: row for row, path in enumerate(index.paths)}
    for root in index.roots:
        given, real = prefix(root), prefix(os.path.realpath(root))
        if given != real:
            row_of |= {real + path[len(given) :]: row for path, row in row_of.items() if path.startswith(given)}
    return row_of


def _check_texts(items: Items, rows: Sequence[int | None], index: ImageIndex, file: str) -> None:
    """Whether the index has these texts from their places, where it has any."""
    found = zip(items.names, items.texts, rows, strict=False)  # images have no texts
    other = [name for name, text, row in found if row is not None and index.texts[row] != text]
    if other:
        raise ValueError(
            f"{items.root} has changed: in line {listed(other, 3)} it has another text than {file} holds from there; "
            f"remove the old ones first, by: tripletmas index remove {file} {items.root}"
        )


def how_shown(model: RunModel, items: Items, *, invert: bool) -> Transform | Reading:
    """What an index of these notes of how the model was shown them."""
    if not items.texts:
        return transform_of(model, invert)
    if invert:
        raise ValueError("--invert is for images, and these are texts")
    return Reading(model.tokenizer.identity, model.tokenizer.max_length)


def embedded(
    index: ImageIndex,
    model: RunModel,
    items: ImageFiles | Sequence[str],
    labels: Sequence[str | None],
    *,
    skip_unreadable: bool,
    force: bool,
    option: str = "--skip-unreadable",
    given: Tensor | None = None,
) -> tuple[Tensor, list[int]]:
    """Raw vectors of the images that can be read, or of texts, as the index has them; and their positions.

    Args:
        labels: of the items.
        force: also where all are nearly one.
        option: which leaves out what cannot be read.
        given: raw vectors of all items, where they are embedded already.
    """
    shown = index.settings.transform
    if given is not None:
        samples = items if isinstance(items, ImageFiles) else Texts(items, model.tokenizer)
        vectors, kept = given, list(range(len(items)))
    elif isinstance(items, ImageFiles):
        invert = isinstance(shown, Transform) and shown.invert
        samples = items
        vectors, kept = embed_images(model, items, invert=invert, skip_unreadable=skip_unreadable, option=option)
    else:
        samples, kept = Texts(items, model.tokenizer), list(range(len(items)))
        vectors = embed_texts(model, items)
    if not force:
        step = -(-len(kept) // JUDGED) or 1
        some, judged = vectors[::step], kept[::step]
        compared, of_kept = unit(some) if index.settings.normalize else some, [labels[each] for each in judged]
        refuse_collapse(compared, samples, judged, by=f"the model of {model.run}", labels=of_kept)
    return vectors, kept


def _class_names(names: Sequence[str]) -> list[str | None]:
    """The class of each image, given its name below a root: the folders it lies in; None at the top.

    Folders train, test and the like are no part of it where all images lie in such ones.
    """
    folders = [PurePosixPath(name).parent.parts for name in names]
    if all(parts and parts[0].lower() in _NO_CLASS for parts in folders):
        folders = [parts[1:] for parts in folders]
    return ["/".join(parts) or None for parts in folders]
