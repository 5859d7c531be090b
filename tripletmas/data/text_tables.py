"""Texts of a user's own, each with its class: columns of a CSV file, JSON lines, and files in folders."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tripletmas.basics.sentences import listed, not_text
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.images import find_files
from tripletmas.data.names import encode_labels
from tripletmas.data.pairs import Pair, source_of_pairs
from tripletmas.data.parts import SPLITS, ClassFrom, check_class_from, class_of, groups_of, parts_of
from tripletmas.data.source import Source
from tripletmas.data.tables import lines_of, read_rows
from tripletmas.data.tokens import Texts

logger = logging.getLogger(__name__)

Rows = Iterator[tuple[int, dict[str, str]]]  # (number of the line, column -> cell)


@dataclass(frozen=True)
class Entry:
    """One text: where it is from, its class, the group of its class, and the part of the set that it belongs to."""

    text: str
    place: str
    class_name: str
    group: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Columns:
    """Which columns, or keys, hold what: the classes, or in their place the answers of pairs."""

    text: str
    label: str
    positive: str | None = None

    def __post_init__(self):
        if self.text in (self.label, self.positive):
            other = "positive" if self.positive == self.text else "label"
            raise ValueError(f"text and {other} name one column, {self.text!r}")

    @property
    def needed(self) -> tuple[str, str]:
        return self.text, self.positive or self.label


def csv_of_texts(path: str, columns: Columns, *, test_path: str | None) -> Source:
    """The texts in a column of a CSV file; as `folders.csv` says."""
    optional = ("task", "split", *({"path"} - {*columns.needed}))
    texts = columns.needed if columns.positive else (columns.text,)
    return _of_tables(path, test_path, lambda file: read_rows(file, columns.needed, optional, texts=texts), columns)


def jsonl(
    *,
    path: str,
    text: str = "text",
    label: str = "label",
    positive: str | None = None,
    test_path: str | None = None,
) -> Source:
    """Texts in a file of JSON lines, each an object with a text and its class, as {"text": ..., "label": ...}.

    Labels may be any text or number; they name the classes. `task` and `split` are keys as they are columns of a CSV
    file.

    Args:
        path: the file, UTF-8, an object a line.
        text: the key of the texts.
        label: the key of their classes.
        positive: of pairs, in place of a class: the key of what answers the text.
        test_path: a second such file, of the queries.
    """
    columns = Columns(text, label, positive)
    return _of_tables(path, test_path, lambda file: _json_lines(file, columns.needed, ("task", "split")), columns)


def texts(*, root: str, class_from: ClassFrom = "path") -> Source:
    """Texts in folders, a file each: `<class>/<name>.txt` or `<task>/<class>/<name>.txt`, as images lie in them.

    Each may lie below `train`, `test` and `gallery`. With task folders, a class is '<task>/<class>' and its group is
    the task; with class_from="leaf" folders of one name in several tasks are one class, of which each task has texts.

    Args:
        root: the folder.
        class_from: what names a class below task folders: path, '<task>/<class>', or leaf, '<class>'.
    """
    check_class_from(class_from)
    if not Path(root).is_dir():
        raise ValueError(f"no such folder: {root}")
    files = find_files(root, frozenset({".txt"}), "texts")
    branches = [file.split("/")[:-1] for file in files]
    entries, example = [], {}
    for file, split, branch in zip(files, *parts_of(root, branches, what="texts"), strict=True):
        if split in SPLITS:
            place, group = Path(root) / file, branch[0] if len(branch) == 2 else None
            entries.append(Entry(_content(place), str(place), class_of(branch, class_from), group, SPLITS[split]))
            example.setdefault(len(branch), file)
    if len(example) != 1 or not example.keys() <= {1, 2}:
        raise ValueError(
            f"{root} must hold <class>/<name>.txt or <task>/<class>/<name>.txt, the same everywhere "
            f"(each may lie below train, test or gallery), but has {' and '.join(sorted(example.values()))}"
        )
    return source_of(entries, root)


def source_of_columns(entries: Sequence[Entry], columns: Columns, about: str) -> Source:
    """As `source_of`; where the columns hold pairs, what is called an entry's class is what answers its text."""
    if not columns.positive:
        return source_of(entries, about)
    return source_of_pairs([Pair(e.text, e.class_name, e.place, e.group, e.split) for e in entries], about)


def source_of(entries: Sequence[Entry], about: str) -> Source:
    """The parts of a data set of texts.

    Args:
        about: where they are from, for errors and the log.
    """
    entries = _told(entries, about)
    labels, class_names = encode_labels([entry.class_name for entry in entries])
    groups, own = groups_of([entry.class_name for entry in entries], [entry.group for entry in entries])
    samples = Texts([entry.text for entry in entries])
    places = [entry.place for entry in entries]
    whole = LabelledDataset(
        samples, labels, class_names, groups=groups, sample_groups=own, paths=places, texts=samples.strings
    )
    rows: dict[str, list[int]] = {"train": []}
    for row, entry in enumerate(entries):
        rows.setdefault(entry.split, []).append(row)
    if not rows["train"]:
        raise ValueError(f"{about} has no text to learn from")
    return Source.of(whole, rows)


def _of_tables(path: str, test_path: str | None, rows: Callable[[str], Rows], columns: Columns) -> Source:
    """The texts of a table, and of a second one with the queries."""
    entries: list[Entry] = []
    for file in [path] if test_path is None else [path, test_path]:
        found = len(entries)
        for number, cells in rows(file):
            try:
                entry = _entry(cells, f"{file}, line {number}", columns, "test" if file == test_path else None)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
            entries.append(entry)
        if len(entries) == found:
            raise ValueError(f"{file} lists no texts")
    return source_of_columns(entries, columns, path)


def _entry(cells: Mapping[str, str], place: str, columns: Columns, split: str | None) -> Entry:
    if "path" in cells and "path" not in columns.needed:
        raise ValueError(
            f"there is a column 'path', as of images, and text names the column {columns.text!r}: a run learns from "
            "one of them, so take the column out, or leave text out"
        )
    empty = [name for name, cell in cells.items() if not cell]
    if empty:
        what = "text" if empty[0] in (columns.text, columns.positive) else "cell"
        raise ValueError(f"the {what} in the column {empty[0]!r} is empty")
    if split and "split" in cells:
        raise ValueError("the file of queries (test_path) needs no column split: take it out, or leave test_path out")
    given = cells.get("split", "train").lower()
    _check_split(given, columns)
    text, other = columns.needed
    return Entry(cells[text], place, cells[other], cells.get("task"), split or SPLITS[given])


def _check_split(given: str, columns: Columns) -> None:
    if given not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {given!r}")
    if columns.positive and SPLITS[given] == "gallery":
        raise ValueError("pairs are for train or test: every answer is in the gallery")


def _told(entries: Sequence[Entry], about: str) -> list[Entry]:
    """The texts, each once in its class and part; the log says what is better known of those that come again."""
    kept: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        kept.setdefault((entry.text, entry.class_name, entry.split), entry)
    if again := len(entries) - len(kept):
        logger.warning("%s: %d texts repeat one of their class, and count once", about, again)
    if of_several := _of_several_classes(kept.values()):
        logger.warning("%s: %d texts are of several classes (%s)", about, len(of_several), _short(of_several))
    learned = {(entry.text, entry.class_name) for entry in kept.values() if entry.split == "train"}
    known = [each.text for each in kept.values() if each.split == "test" and (each.text, each.class_name) in learned]
    if known:
        logger.warning("%s: %d queries are learned from, word for word (%s)", about, len(known), _short(known))
    return list(kept.values())


def _of_several_classes(entries: Iterable[Entry]) -> list[str]:
    classes: dict[str, set[str]] = {}
    for entry in entries:
        classes.setdefault(entry.text, set()).add(entry.class_name)
    return [text for text, names in classes.items() if len(names) > 1]


def _short(found: Sequence[str]) -> str:
    return listed([f"{text:.40}" + ("..." if len(text) > 40 else "") for text in found], 2)


def _json_lines(path: str, needed: Sequence[str], optional: Sequence[str]) -> Rows:
    """The lines of a file as rows: of the keys that are known, all values as text without spaces around."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(lines_of(file, path), start=1):
                if not line.strip():
                    continue
                try:
                    yield number, _cells(json.loads(line), needed, optional)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: name a file of JSON lines") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} {not_text(error)}") from None


def _cells(content: object, needed: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    if not isinstance(content, dict):
        raise ValueError("each line must be an object, as {...}")
    for key in needed:
        if key not in content:
            raise ValueError(f"no key {key!r} (there are {', '.join(map(str, content)) or 'none'})")
    return {key: _as_text(key, content[key]) for key in (*needed, *optional) if key in content}


def _as_text(key: str, value: object) -> str:
    if isinstance(value, (dict, list)) or value is None:
        raise ValueError(f"{key!r} must be a text or a number, got {json.dumps(value):.40}")
    return str(value).strip()


def _content(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} {not_text(error)}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    if not text:
        raise ValueError(f"{file} is empty")
    return text
