"""Data sets that Hugging Face's `datasets` saved, or a hub keeps as Parquet: a folder of images or texts.

Read are the tables themselves, by pyarrow: no code of a data set is executed, and nothing is copied or downloaded.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tripletmas.basics.sentences import listed, suggestion
from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.decoding import MAX_PIXELS, decode
from tripletmas.data.names import encode_labels
from tripletmas.data.parts import LEFT_OUT, SPLITS
from tripletmas.data.preparation import Interpolation, Preparation, Size, height_and_width
from tripletmas.data.source import Source
from tripletmas.data.text_tables import Columns, Entry, source_of_columns

logger = logging.getLogger(__name__)

_SPLIT = re.compile(rf"(?:^|[-_./])({'|'.join(sorted({*SPLITS, *LEFT_OUT}))})(?=[-_./]|$)")


def hf(
    *,
    root: str,
    text: str | None = None,
    label: str = "label",
    positive: str | None = None,
    image: str = "image",
    size: Size = 64,
    channels: int = 3,
    interpolation: Interpolation = "bilinear",
    crop: float = 1.0,
) -> Source:
    """A folder that `save_to_disk` of Hugging Face's `datasets` wrote, or one of Parquet files; `--data hf:FOLDER`.

    Its splits are the parts: train, test (or query), gallery; validation is left out. A file of Parquet is of the split
    that its name, or that of its folder, says. Needs pyarrow (the extra `parquet`). Images are decoded when asked for.

    Args:
        root: the folder.
        text: the column of the texts that are learned, in place of images, by a model of texts.
        label: the column of the classes: names, numbers, or numbers that the data set has names for.
        positive: of texts, in place of a class: the column of what answers the text of the same row.
        image: the column of the images.
        size: height and width in pixels, 224 or 224x160: the image is resized to cover it, and cut about its middle.
        channels: 1 for grey, 3 for RGB.
        interpolation: nearest, bilinear, bicubic or lanczos.
        crop: the share of each side that is kept of that, in (0, 1].
    """
    if positive is not None and text is None:
        raise ValueError("positive is for texts: name their column with text")
    columns = Columns(text or image, label, positive)
    tables = {split: _table(root, split, files, columns.needed) for split, files in _files(Path(root)).items()}
    if "train" not in tables:
        raise ValueError(f"{root} has no split train, only {', '.join(tables)}")
    if text is None:
        return _images(root, tables, columns, Preparation(height_and_width(size), channels, interpolation, crop))
    entries = [each for split, table in tables.items() for each in _entries(root, split, table, columns)]
    return source_of_columns(entries, columns, root)


class ImageCells(Sequence[Tensor]):
    """Images in columns of tables, decoded when asked for: `images[i]` is uint8 (channels, height, width).

    Args:
        columns: of structs with the bytes of each image; one after the other.
        places: where each image is, for errors.
    """

    def __init__(self, columns: Sequence[Any], places: Sequence[str], prepared: Preparation):
        self._columns, self._places, self._prepared = list(columns), places, prepared

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        place, row = self._places[index], index
        for column in self._columns:
            if row < len(column):
                break
            row -= len(column)
        else:
            raise IndexError(f"there are {len(self)} images, no number {index}")
        content = column[row].as_py()
        try:
            with Image.open(io.BytesIO(content["bytes"])) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}")
                return decode(opened, self._prepared)
        except Exception as error:  # Pillow reports a broken file with many types
            raise ValueError(f"the image of {place} cannot be read: {error}") from None


def _entries(root: str, split: str, table: Any, columns: Columns) -> list[Entry]:
    """The rows of a table of texts."""
    of_columns = (_strings(root, split, table, name) for name in columns.needed)
    rows = enumerate(zip(*of_columns, strict=True))
    return [Entry(text, f"{root}, {split} row {row}", other, None, split) for row, (text, other) in rows]


def _images(root: str, tables: dict[str, Any], columns: Columns, prepared: Preparation) -> Source:
    places = [f"{root}, {split} row {row}" for split, table in tables.items() for row in range(len(table))]
    names = [name for split, table in tables.items() for name in _strings(root, split, table, columns.label)]
    cells = [table.column(columns.text) for table in tables.values()]
    for cell in cells:
        if not _holds_bytes(cell.type):
            raise ValueError(
                f"the column {columns.text!r} of {root} holds {cell.type}, no images: name texts with text"
            )
    labels, class_names = encode_labels(names)
    samples = ImageCells(cells, places, prepared)
    whole = LabelledDataset(samples, labels, class_names, paths=places, prepared=prepared)
    starts, positions = 0, {}
    for split, table in tables.items():
        positions[split] = torch.arange(starts, starts + len(table))
        starts += len(table)
    return Source.of(whole, positions)


def _holds_bytes(kind: Any) -> bool:
    """Whether a type of pyarrow is that of structs with bytes, as images are kept."""
    return str(kind).startswith("struct<") and "bytes" in {field.name for field in kind}


def _files(root: Path) -> dict[str, list[Path]]:
    """part -> its files, in their order."""
    if not root.is_dir():
        raise ValueError(f"no such folder: {root}")
    found = _files_of_splits(root)
    if not found:
        raise ValueError(
            f"{root} is no data set that can be read: it holds neither what save_to_disk writes (dataset_dict.json or "
            "state.json) nor files of Parquet"
        )
    if left_out := sorted(found.keys() - SPLITS.keys()):
        logger.warning("%s: left out %s", root, listed(left_out))
    return {SPLITS[name]: files for name, files in found.items() if name in SPLITS}


def _files_of_splits(root: Path) -> dict[str, list[Path]]:
    """split, as it is called there -> its files."""
    if (root / "dataset_dict.json").is_file():
        return {name: _saved(root / name) for name in _json(root / "dataset_dict.json")["splits"]}
    if (root / "state.json").is_file():
        return {"train": _saved(root)}
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        named = _SPLIT.search(path.relative_to(root).as_posix())
        found.setdefault(named[1] if named else "train", []).append(path)
    return found


def _saved(folder: Path) -> list[Path]:
    """The files of what save_to_disk wrote of one split."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ValueError(f"{folder} keeps the order of its rows in a file of its own: load it, and save it anew")
    return [folder / Path(each["filename"]).name for each in state["_data_files"]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _table(root: str, split: str, files: Sequence[Path], needed: Sequence[str]) -> Any:
    """The columns that are needed, of all files."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ValueError('data hf needs pyarrow: pip install "tripletmas[parquet]"') from None
    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                table = parquet.read_table(file)
            else:
                table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
        for name in needed:
            if name not in table.column_names:
                hint = suggestion(name, table.column_names)
                raise ValueError(f"{root}: no column {name!r}{hint} (there are {', '.join(table.column_names)})")
        tables.append(table.select(list(needed)))
    return pa.concat_tables(tables)


def _strings(root: str, split: str, table: Any, column: str) -> list[str]:
    """A column as text without spaces around; numbers of classes by their names.

    Raises:
        ValueError: naming the row of an empty cell.
    """
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(column, {})
    names = feature.get("names") if isinstance(feature, dict) else None
    found = []
    for row, value in enumerate(table.column(column).to_pylist()):
        if isinstance(value, int) and names and 0 <= value < len(names):
            value = names[value]
        if isinstance(value, (dict, list, bytes)):
            raise ValueError(f"the column {column!r} of {root} holds neither texts nor numbers")
        text = "" if value is None else str(value).strip()
        if not text:
            raise ValueError(f"{root}, {split} row {row}: the cell in the column {column!r} is empty")
        found.append(text)
    return found
